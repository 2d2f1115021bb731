"""The dtype of products and the softmax that are faster on this machine, and whether scores are small enough for them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .blocks import TILE

#: Scores of a 16-bit product are rounded by up to 2**-9 of their size (bfloat16), as eager attention rounds them. Up to
#: this size that is the error of one step among others; far beyond it a softmax of them is another softmax.
LARGEST_SCORE = 32.0
#: That is for bounds, which scores hardly reach. The sum of a row's exponentials tells its largest score itself: in 16 bits
#: that is held to half of it.
LARGEST_ROUNDED_SCORE = 16.0
#: exp(32) is 8e13: between these no value that counts leaves float32 when it is multiplied by it, or divided.
ORDINARY = (2.0**-60, 2.0**60)
#: The inputs' own dtype must be this much faster than the more accurate float32, and so must whole tiles, and tall blocks.
ADVANTAGE = 1.2
#: Ones beside the values, padding, exponentials and powers of two cost no accuracy, and are taken sooner.
SMALL_ADVANTAGE = 1.05
#: Shapes of the race: heads, rows, head dimension and keys. Small first: a CPU without 16-bit products may take a thousand times
#: longer, and is not asked further; where AMX multiplies them, so small a product takes several times as long, and a block less.
_SMALL, _BLOCK, _HOPELESS = (1, 64, 64, 64), (8, 256, 64, 512), 32
#: Of so few rows a product is as long as its keys are read, and where they need a copy in float32, that is most of it.
FEW_ROWS, _FEW = 8, (4, 4, 128, 2048)
#: Rows of scores: a page long, so that they share cache sets; of keys that are no whole tiles; and padded, a cache line longer.
_EVEN, _RAGGED, _PADDED = (4, 256, 64, 2048), (4, 256, 64, 2045), (4, 256, 64, 2080)
#: Twice the rows of `_BLOCK`.
_TALL = (8, 512, 64, 512)
#: A shape is timed for so long and so many calls at least, twice: the first calls of a process are ten times slower than the
#: rest, and AMX's first may take all of the time, while its sixth still takes twice as long as its tenth.
_RACE_S, _CALLS = 3e-3, 6


class LargeScoresError(ArithmeticError):
    """A score beyond what the method can bear, or values that it cannot."""


def fastest(dtype: torch.dtype, device: torch.device, rows: int) -> torch.dtype:
    """The dtype in which to compute products of so many rows; on CUDA float32, so that no value must be read back to choose.

    There `widens` tells whether their operands may stay as they are.
    """
    if dtype == torch.float64 or device.type != "cpu":
        return torch.promote_types(dtype, torch.float32)
    return _winner(dtype, torch.get_num_threads(), is_few=rows <= FEW_ROWS)


def turns(dtype: torch.dtype, device: torch.device, rows: int) -> bool:
    """Whether a product of so few rows is faster the other way round, keys times query and then turned; in 16 bits none is."""
    return (
        device.type == "cpu" and dtype == torch.float32 and rows <= FEW_ROWS and _turned_wins(torch.get_num_threads())
    )


def widens(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this device multiplies 16-bit operands into float32 results: NVIDIA's tensor cores do, by torch 2.8 or newer.

    No score is rounded then, so that none can be too large.
    """
    least = {torch.float16: (7, 0), torch.bfloat16: (8, 0)}.get(dtype)
    if least is None or device.type != "cuda" or torch.version.hip is not None:
        return False
    return hasattr(torch.ops.aten.baddbmm, "dtype_out") and torch.cuda.get_device_capability(device) >= least


@torch.no_grad()
def are_small(query: Tensor, key: Tensor, scale: float) -> bool:
    """Whether no score can exceed `LARGEST_SCORE`: |q . k| <= |q| |k| (Cauchy and Schwarz)."""
    return abs(scale) * _longest(query) * _longest(key) <= LARGEST_SCORE


def are_small_scores(scores: Tensor) -> bool:
    """Whether none of these is beyond `LARGEST_SCORE`."""
    return _largest(scores) <= LARGEST_SCORE


def are_ordinary(value: Tensor) -> bool:
    """Whether `value` can be multiplied by `exp` of scores up to `LARGEST_SCORE`, and summed over any number of keys."""
    return ORDINARY[0] <= _largest(value) <= ORDINARY[1]


def are_small_sums(totals: Tensor) -> bool:
    """Whether sums of a row's exponentials are those of rows whose largest score is small; of NaN they are not."""
    largest = math.exp(LARGEST_ROUNDED_SCORE if totals.dtype.itemsize == 2 else LARGEST_SCORE)
    least, most = map(float, torch.aminmax(totals))
    return 1 / largest <= least and most <= largest


def hold_ordinary(values: Tensor) -> None:
    """Errors: `LargeScoresError` if values are not `ORDINARY`."""
    if not are_ordinary(values):
        raise LargeScoresError


def hold_small(totals: Tensor) -> None:
    """Errors: `LargeScoresError` if sums of exponentials tell of a large score."""
    if not are_small_sums(totals):
        raise LargeScoresError


def hold_small_scores(scores: Tensor) -> None:
    """Errors: `LargeScoresError` if a score is beyond `LARGEST_SCORE`."""
    if not are_small_scores(scores):
        raise LargeScoresError


def bears_exponentials(dtype: torch.dtype) -> bool:
    """Whether `exp` of scores up to `LARGEST_SCORE` are numbers of this type: float16 has none beyond 65,504."""
    return math.exp(LARGEST_SCORE) < torch.finfo(dtype).max


def exp2_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch's exp2 takes less than its exp: in 16 bits it does, in float32 exp is MKL's, which on some CPUs is slower."""
    if dtype.itemsize == 2:
        return True
    return device.type == "cpu" and dtype == torch.float32 and _exp2_wins(torch.get_num_threads())


def _largest(tensor: Tensor) -> float:
    # Detached, as the no_grad of `are_small` would cost more than this reads.
    plain = tensor.detach() if tensor.requires_grad else tensor
    return max(map(abs, map(float, torch.aminmax(plain))))


def _longest(tensor: Tensor) -> float:
    """The largest Euclidean norm of a row."""
    # In float16 torch's norm takes ten times as long, and overflows.
    dtype = torch.float32 if tensor.dtype == torch.float16 else None
    return float(torch.linalg.vector_norm(tensor, dim=-1, dtype=dtype).max())


def exp_is_faster(dtype: torch.dtype, device: torch.device, *, sums: bool) -> bool:
    """Whether exponentials, and with `sums` those, take clearly less than torch's softmax here; not asked on CUDA, as above."""
    return device.type == "cpu" and _exp_wins(dtype, torch.get_num_threads(), sums=sums)


def _multiplies_16_bits(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this is a 16-bit type whose products are fast here: else they would take their time in a race as well."""
    is_16_bits = dtype.itemsize == 2 and device.type == "cpu"
    return is_16_bits and _winner(dtype, torch.get_num_threads(), is_few=False) == dtype


def padded_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether 16-bit scores are written sooner to rows that are not a power of two long; in float32 none are."""
    return _multiplies_16_bits(dtype, device) and _padded_wins(dtype, torch.get_num_threads())


@cache
def _padded_wins(dtype: torch.dtype, _threads: int) -> bool:
    even_s, padded_s = _least_s(_product(dtype, _EVEN), _product(dtype, _PADDED))
    return SMALL_ADVANTAGE * padded_s < even_s


def aligned_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether 16-bit products with whole tiles of keys take less than those with fewer keys; in float32 they do not."""
    return _multiplies_16_bits(dtype, device) and _aligned_wins(dtype, torch.get_num_threads())


@cache
def _aligned_wins(dtype: torch.dtype, _threads: int) -> bool:
    ragged_s, whole_s = _least_s(_product(dtype, _RAGGED), _product(dtype, _PADDED))
    return ADVANTAGE * whole_s < ragged_s


def tall_is_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a 16-bit product takes clearly less than two of half its rows."""
    return _multiplies_16_bits(dtype, device) and _tall_wins(dtype, torch.get_num_threads())


@cache
def _tall_wins(dtype: torch.dtype, _threads: int) -> bool:
    half_s, tall_s = _least_s(_product(dtype, _BLOCK), _product(dtype, _TALL))
    return ADVANTAGE * tall_s < 2 * half_s


def ones_are_faster(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product with values and columns of ones takes clearly less than one with values, and a sum of the weights."""
    return dtype.itemsize == 2 and device.type == "cpu" and _ones_win(dtype, torch.get_num_threads())


@cache
def _ones_win(dtype: torch.dtype, _threads: int) -> bool:
    heads, rows, inner, columns = _BLOCK
    weights, out = torch.ones(heads, rows, columns, dtype=dtype), torch.empty(heads, rows, 1, dtype=dtype)
    products = [
        (torch.ones(heads, columns, width, dtype=dtype), torch.empty(heads, rows, width, dtype=dtype))
        for width in (inner + TILE, inner)
    ]

    def beside_ones() -> None:
        torch.bmm(weights, products[0][0], out=products[0][1])

    def and_a_sum() -> None:
        torch.bmm(weights, products[1][0], out=products[1][1])
        torch.sum(weights, -1, keepdim=True, out=out)

    ones_s, sum_s = _least_s(beside_ones, and_a_sum)
    return SMALL_ADVANTAGE * ones_s < sum_s


@cache
def _exp2_wins(_threads: int) -> bool:
    scores = torch.zeros(2 * _BLOCK[1], _BLOCK[3])
    out = torch.empty_like(scores)
    exp_s, exp2_s = _least_s(lambda: torch.exp(scores, out=out), lambda: torch.exp2(scores, out=out))
    return SMALL_ADVANTAGE * exp2_s < exp_s


@cache
def _exp_wins(dtype: torch.dtype, _threads: int, *, sums: bool) -> bool:
    scores = torch.zeros(2 * _BLOCK[1], _BLOCK[3], dtype=dtype)
    out, total = torch.empty_like(scores), torch.empty(len(scores), dtype=dtype)
    function = torch.exp2 if exp2_is_faster(dtype, scores.device) else torch.exp

    def exponentials() -> None:
        function(scores, out=out)
        if sums:
            torch.sum(out, -1, out=total)

    exp_s, softmax_s = _least_s(exponentials, lambda: torch.softmax(scores, -1, out=out))
    # In 16 bits a fused softmax needs a look at queries and keys besides.
    return (1.0 if dtype.itemsize == 2 else SMALL_ADVANTAGE) * exp_s < softmax_s


@cache
def _turned_wins(_threads: int) -> bool:
    heads, rows, inner, columns = _FEW
    left, right, out = (
        torch.ones(heads, rows, inner),
        torch.ones(heads, columns, inner),
        torch.empty(heads, rows, columns),
    )
    turned = torch.empty(heads, columns, rows)

    def other_way_round() -> None:
        torch.bmm(right, left.transpose(1, 2), out=turned)
        torch.mul(turned.transpose(1, 2), 2.0, out=out)

    direct_s, turned_s = _least_s(lambda: torch.bmm(left, right.transpose(1, 2), out=out), other_way_round)
    return ADVANTAGE * turned_s < direct_s


@cache
def _winner(dtype: torch.dtype, _threads: int, *, is_few: bool) -> torch.dtype:
    if dtype == torch.float32:
        return torch.float32
    for shape, advantage in ((_SMALL, 1 / _HOPELESS), (_FEW if is_few else _BLOCK, ADVANTAGE)):
        own_s, single_s = _least_s(
            _product(dtype, shape), _product(torch.float32, shape, dtype if shape is _FEW else None)
        )
        if own_s * advantage > single_s:
            return torch.float32
    return dtype


def _product(
    dtype: torch.dtype, shape: tuple[int, int, int, int], given: torch.dtype | None = None
) -> Callable[[], object]:
    """Rows times keys, which are `given` in another dtype if so."""
    heads, rows, inner, columns = shape
    left, right = torch.ones(heads, rows, inner, dtype=dtype), torch.ones(heads, columns, inner, dtype=dtype)
    out = torch.empty(heads, rows, columns, dtype=dtype)
    keys = None if given is None else right.to(given)

    def multiply() -> None:
        if keys is not None:
            right.copy_(keys)
        torch.bmm(left, right.transpose(1, 2), out=out)

    return multiply


def _least_s(*calls: Callable[[], object]) -> list[float]:
    """The shortest time of each, in turn: a slow moment meets them all. The first round warms up, and does not count."""
    least: list[float] = []
    for _ in range(2):
        least, calls_made, begin = [math.inf] * len(calls), 0, time.perf_counter()
        while calls_made < _CALLS or time.perf_counter() - begin < _RACE_S * len(calls):
            for index, call in enumerate(calls):
                before = time.perf_counter()
                call()
                least[index] = min(least[index], time.perf_counter() - before)
            calls_made += 1
    return least
