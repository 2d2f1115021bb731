"""The dtype of products: the inputs' own where this machine multiplies it faster and the scores are small, else float32."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

#: Scores of a 16-bit product are rounded by up to 2**-9 of their size (bfloat16), as eager attention rounds them. Up to
#: this size that is the error of one step among others; far beyond it a softmax of them is another softmax.
LARGEST_SCORE = 32.0
#: The inputs' own dtype must be this much faster than the more accurate float32.
ADVANTAGE = 1.2
#: Shapes of the race, small first: a CPU without 16-bit products may take a thousand times longer, and is not asked further.
_SMALL, _LARGE, _HOPELESS = (64, 64, 64), (512, 64, 512), 8
#: A shape is timed for so long and so many calls at least: the first calls of a process are ten times slower than the rest.
_RACE_S, _CALLS = 3e-3, 6


def fastest(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which products are to be computed; on CUDA float32, so that no value must be read back to choose."""
    if dtype == torch.float64 or device.type != "cpu":
        return torch.promote_types(dtype, torch.float32)
    return _winner(dtype, torch.get_num_threads())


@torch.no_grad()
def are_small(query: Tensor, key: Tensor, scale: float) -> bool:
    """Whether no score can exceed `LARGEST_SCORE`: |q . k| <= |q| |k| (Cauchy and Schwarz)."""
    longest_query, longest_key = (float(torch.linalg.vector_norm(each, dim=-1).max()) for each in (query, key))
    return abs(scale) * longest_query * longest_key <= LARGEST_SCORE


@cache
def _winner(dtype: torch.dtype, _threads: int) -> torch.dtype:
    if dtype == torch.float32 or _seconds(dtype, _SMALL) > _HOPELESS * _seconds(torch.float32, _SMALL):
        return torch.float32
    own, single = (_seconds(each, _LARGE) for each in (dtype, torch.float32))
    return dtype if own * ADVANTAGE < single else torch.float32


def _seconds(dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _CALLS or time.perf_counter() - begin < _RACE_S:
        before = time.perf_counter()
        torch.mm(left, right, out=out)
        times.append(time.perf_counter() - before)
    return min(times)
