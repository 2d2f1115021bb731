"""The tensors of a problem: random normal, from the problem's seed alone, the same on every device."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from ...impls import AttentionProblem


class Inputs(NamedTuple):
    """query `[B, Hq, Sq, D]`, key and value `[B, Hkv, Skv, D]`, grad_out `[B, Hq, Sq, D]`, in the problem's dtype."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor


def problem_seed(problem: AttentionProblem, seed: int) -> int:
    """A 63-bit seed of its own for each problem and run seed."""
    digest = hashlib.sha256(f"{seed}:{problem}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw(problem: AttentionProblem, seed: int) -> Inputs:
    """Inputs on the CPU, drawn in float32 and rounded to the problem's dtype."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch_dtype(problem.dtype)
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape, problem.query_shape)
    return Inputs(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


#: By how many rows and columns each tensor is turned: differently, so that no two keep their places to each other.
_STEPS = ((1, 1), (2, 2), (3, 3), (5, 1))


def turned(inputs: Inputs, times: int) -> Inputs:
    """The same numbers in other places, and of another sign: drawing large tensors anew takes seconds."""
    query, key, value, grad_out = (
        torch.roll(each, (times * rows, times * columns), dims=(-2, -1))
        for each, (rows, columns) in zip(inputs, _STEPS, strict=True)
    )
    sign = (-1) ** times
    return Inputs(query, key, sign * value, sign * grad_out)


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
