"""The composite limit: the least time that an attention problem's parts take on this CPU, each measured at its best.

Attention in blocks of query rows is two products (five more with a backward pass), a softmax over the scores (one more
with a backward pass, which computes them again) and the reading and writing of its tensors. No implementation made of such
parts can take less; one that fuses them better than these can.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch

from ...impls import ELEMENT_BYTES, AttentionProblem, Pass
from ..records import CompositeLimit
from .chain import CACHED_BYTES, Chain, Part, chains
from .inputs import torch_dtype

#: Rows of a block, of which the best counts.
ROWS = (64, 128, 256, 512)
#: Scores of so few rows may be faster the other way round.
_FEW_ROWS = 16
#: More keys than these do not make a product faster.
MOST_KEYS = 4096
#: Seconds that one rate is measured for, and calls at least.
_RATE_S, _CALLS = 0.01, 3
#: A chain is not called again whose first call takes so many times as long as the fastest so far, and so many seconds: of these
#: the cold start is little.
_SLOWER, _LONG_S = 1.1, 0.05
#: A dtype is no candidate, and not measured further, whose product of so many heads, rows and keys takes so many times float32's.
#: Small first: a CPU without 16-bit products may take a thousand times as long. Where AMX multiplies bfloat16, so small a product
#: takes several times as long, and a block's less.
_HOPELESS = (((1, 64, 64), 32), ((4, 256, 512), 4))
#: Products of a pass by what is multiplied: query with keys, weights with values, turned weights with query rows.
_PRODUCTS: dict[str, dict[str, int]] = {
    "forward": {"scores": 1, "values": 1},
    "backward": {"scores": 2, "values": 1, "turned": 2},
    "forward_backward": {"scores": 3, "values": 2, "turned": 2},
}
_PARTS: dict[str, tuple[Part, ...]] = {
    "forward": ("forward",),
    "backward": ("backward",),
    "forward_backward": ("forward", "backward"),
}
_SOFTMAXES = {"forward": 1, "backward": 1, "forward_backward": 2}


def measure(works: Iterable[tuple[AttentionProblem, Pass]]) -> tuple[CompositeLimit, ...]:
    """The limits of some problems and passes, in their order."""
    rates = _Rates()
    with torch.no_grad():
        return tuple(_limit(problem, passes, rates) for problem, passes in works)


def _limit(problem: AttentionProblem, passes: Pass, rates: _Rates) -> CompositeLimit:
    dtypes = [dtype for dtype in dict.fromkeys((problem.dtype, "float32")) if rates.is_candidate(dtype)]
    rows = sorted({min(each, problem.group_size * problem.seq_q) for each in ROWS})
    limits = [_in_blocks(problem, passes, dtype, each, rates) for dtype in dtypes for each in rows]
    least = min(limits, key=lambda limit: limit.seconds)
    # One after another, a pass forward and one back each in its own best blocks.
    chain_s = sum(rates.chain(problem, part, least.products) for part in _PARTS[passes])
    return least.model_copy(update={"chain_s": chain_s + least.traffic_s})


def _least_s(tried: Iterable[Chain]) -> float:
    """The seconds of a pass by the fastest of some chains."""
    least = math.inf
    for chain in tried:
        least = min(least, _seconds(chain, hopeless_s=_SLOWER * least * chain.share) / chain.share)
    return least


def _in_blocks(problem: AttentionProblem, passes: Pass, dtype: str, rows: int, rates: _Rates) -> CompositeLimit:
    """The limit with blocks of so many rows of all query heads of a group."""
    heads = problem.batch * problem.heads_kv
    products_s = softmax_s = 0.0
    for keys, per_head in _scores(problem, max(1, rows // problem.group_size)).items():
        shape, scores = _Shape(dtype, heads, rows, keys, problem.head_dim), heads * per_head
        softmax_s += _SOFTMAXES[passes] * scores / rates.softmax(shape)
        for kind, count in _PRODUCTS[passes].items():
            products_s += count * 2 * scores * problem.head_dim / rates.product(shape, kind)
    traffic_s = _traffic_bytes(problem, passes) / rates.bandwidth
    return CompositeLimit(
        problem=str(problem), passes=passes, seconds=products_s + softmax_s + traffic_s,
        products_s=products_s, softmax_s=softmax_s, traffic_s=traffic_s, rows=rows, products=dtype,
    )  # fmt: skip


def _scores(problem: AttentionProblem, rows: int) -> dict[int, int]:
    """Scores of one key/value head's group, each block of rows against the keys that its last row sees.

    By the number of keys, rounded up to a power of two, for which a rate is measured.
    """
    totals: dict[int, int] = {}
    for start in range(0, problem.seq_q, rows):
        stop = min(start + rows, problem.seq_q)
        visible = len(problem.mask.visible_keys(stop - 1, problem.seq_q, problem.seq_kv))
        keys = min(MOST_KEYS, problem.seq_kv, 1 << (visible - 1).bit_length())
        totals[keys] = totals.get(keys, 0) + problem.group_size * (stop - start) * visible
    return totals


def _traffic_bytes(problem: AttentionProblem, passes: Pass) -> int:
    """What must be read and written at least: backward reads q, k, v and dO and writes three gradients."""
    size = ELEMENT_BYTES[problem.dtype] * problem.head_dim * problem.batch
    queries, keys = size * problem.heads_q * problem.seq_q, size * problem.heads_kv * problem.seq_kv
    forward, backward = 2 * queries + 2 * keys, 3 * queries + 4 * keys
    return {"forward": forward, "backward": backward, "forward_backward": forward + backward}[passes]


@dataclass(frozen=True)
class _Shape:
    """The shape of a block's products: `heads` at once are as many as stay in a cache, or all, whichever is faster."""

    dtype: str
    heads: int
    rows: int
    keys: int
    head_dim: int

    @property
    def counts(self) -> list[int]:
        """Heads at once that are tried."""
        size = max(self.rows, self.head_dim) * self.keys * ELEMENT_BYTES[self.dtype]
        cached = max(1, min(self.heads, CACHED_BYTES // size))
        few = self.rows * self.keys * ELEMENT_BYTES[self.dtype] * self.heads <= CACHED_BYTES
        return sorted({cached, self.heads} if few else {cached})


@dataclass
class _Rates:
    """What this machine does a second, each rate measured once, and the seconds of chains."""

    _known: dict[tuple[str, object], float] = field(default_factory=dict)

    def product(self, shape: _Shape, kind: str) -> float:
        """Floating-point operations a second of a block's product into a buffer."""
        return self._once((kind, shape), lambda: max(_product_rate(shape, kind, count) for count in shape.counts))

    def softmax(self, shape: _Shape) -> float:
        """Scores a second of the fastest of softmax, exp and exp2 over a cached block."""
        key = ("softmax", (shape.dtype, shape.keys))
        return self._once(key, lambda: _softmax_rate(shape.dtype, shape.keys))

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a sum over far more than any cache holds."""
        source = partial(torch.ones, 2**26)
        return self._once(("bandwidth", None), lambda: 4 * 2**26 / _seconds(source().sum))

    def is_candidate(self, dtype: str) -> bool:
        """Whether products of this dtype are not hopelessly slow here."""
        return dtype == "float32" or all(
            self._of_heads(dtype, *sizes) * hopeless > self._of_heads("float32", *sizes)
            for sizes, hopeless in _HOPELESS
        )

    def chain(self, problem: AttentionProblem, part: Part, dtype: str) -> float:
        """Seconds of a pass of this problem by the fastest of its chains."""
        return self._once(
            (f"chain {part} {dtype}", problem), lambda: _least_s(chains(problem, part, torch_dtype(dtype)))
        )

    def _of_heads(self, dtype: str, heads: int, rows: int, keys: int) -> float:
        shape = _Shape(dtype, heads, rows, keys, 64)
        return self._once(("of heads", shape), lambda: _product_rate(shape, "scores", heads))

    def _once(self, key: tuple[str, object], rate: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = rate()
        return self._known[key]


def _product_rate(shape: _Shape, kind: str, heads: int) -> float:
    dtype = torch_dtype(shape.dtype)
    rows = torch.ones(heads, shape.rows, shape.head_dim, dtype=dtype)
    keys = torch.ones(heads, shape.keys, shape.head_dim, dtype=dtype)
    scores = torch.ones(heads, shape.rows, shape.keys, dtype=dtype)
    left, right, out = {
        "scores": (rows, keys.transpose(1, 2), scores),
        "values": (scores, keys, rows),
        "turned": (scores.transpose(1, 2), rows, keys),
    }[kind]
    seconds = _seconds(partial(torch.bmm, left, right, out=out))
    if kind == "scores" and shape.rows <= _FEW_ROWS:
        turned = torch.ones(heads, shape.keys, shape.rows, dtype=dtype)
        seconds = min(seconds, _seconds(partial(torch.bmm, keys, rows.transpose(1, 2), out=turned)))
    return 2 * heads * shape.rows * shape.keys * shape.head_dim / seconds


def _softmax_rate(dtype: str, keys: int) -> float:
    rows = max(1, CACHED_BYTES // 4 // (keys * ELEMENT_BYTES[dtype]))
    block = torch.ones(rows, keys, dtype=torch_dtype(dtype))
    out = torch.empty_like(block)
    passes = (partial(torch.softmax, block, -1), partial(torch.exp, block), partial(torch.exp2, block))
    return block.numel() / min(_seconds(partial(each, out=out)) for each in passes)


def _seconds(call: Callable[[], object], hopeless_s: float = math.inf) -> float:
    """The median of some calls, after one; of no more than that where it was hopeless, and long enough to tell."""
    begin = time.perf_counter()
    call()
    first_s = time.perf_counter() - begin
    if first_s > max(_LONG_S, hopeless_s):
        return first_s
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _CALLS or time.perf_counter() - begin < _RATE_S:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
