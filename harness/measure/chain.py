"""Chains: the parts of attention in blocks one after another, as calls of torch and nothing between them.

What one part wrote the next reads, where the composite limit has each part alone in a loop; and what the parts need besides
is there: the sums of exponentials, and a look at sums and values, which tells that no maximum was needed; the mask of a
diagonal; a softmax's gradient; gradients of keys and values summed over blocks in float32; what the problem has in another
dtype than products, converted once. Its tensors are in a cache: the reading and writing of a whole problem's comes on top. No
implementation made of calls of torch on such blocks takes less, but by what it leaves out or fuses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from ...impls import AttentionProblem
from .inputs import torch_dtype

Part = Literal["forward", "backward"]
#: Rows of a block of all query heads of a group, of which the best counts.
ROWS = (64, 128, 256, 512, 1024)
#: What a block's scores may take, so that they stay in a cache.
CACHED_BYTES = 8 * 2**20
#: Without maxima, keys of a row are read in parts of so many, so that scores stay in a core's own cache. Not in 16 bits:
#: their sums would be rounded at each.
PART_KEYS = 512
#: Of a pass with more blocks so many are called, or up to twice as many, evenly apart.
_SAMPLED = 4
#: Calls of each exponential, of which the faster is taken.
_CALLS = 10


@dataclass(frozen=True)
class Chain:
    """Calls for some of a pass's blocks, which have such a `share` of its scores, 0 to 1: seconds / share are the pass's."""

    calls: tuple[Callable[[], object], ...]
    share: float

    def __call__(self) -> None:
        """Make them in turn."""
        for call in self.calls:
            call()


def chains(problem: AttentionProblem, part: Part, dtype: torch.dtype) -> Iterator[Chain]:
    """Every chain that is tried, most often the fastest first: by heights of blocks, heads at once, softmax or exponentials.

    Backward computes a block's scores and softmax again (Rabe & Staats 2021, arXiv:2112.05682, section 3). In 16 bits it has no
    exponentials as they are: torch's gradient of a softmax is faster there, and rounds once.
    """
    every = problem.batch * problem.heads_kv
    is_wide = dtype.itemsize > 2
    for rows in sorted({max(1, min(each // problem.group_size, problem.seq_q)) for each in ROWS}, reverse=True):
        for unshifted in (False, True) if is_wide or part == "forward" else (False,):
            keys = min(PART_KEYS, problem.seq_kv) if unshifted and is_wide else problem.seq_kv
            cached = max(1, min(every, CACHED_BYTES // (problem.group_size * rows * keys * dtype.itemsize)))
            for heads in sorted({cached, min(cached, torch.get_num_threads())}):
                yield _chain(problem, part, dtype, (heads, rows, keys), unshifted=unshifted)


def _chain(
    problem: AttentionProblem, part: Part, dtype: torch.dtype, sizes: tuple[int, int, int], *, unshifted: bool
) -> Chain:
    heads, rows, part_keys = sizes
    starts = range(0, problem.seq_q, rows)
    heights = [min(rows, problem.seq_q - start) for start in starts]
    seen = [
        len(problem.mask.visible_keys(start + height - 1, problem.seq_q, problem.seq_kv))
        for start, height in zip(starts, heights, strict=True)
    ]
    scores = [height * keys for height, keys in zip(heights, seen, strict=True)]
    apart = max(1, len(starts) // _SAMPLED)
    sampled = range(len(starts) - 1 - (apart - 1) // 2, -1, -apart)
    memory = torch.empty(2, heads * problem.group_size * rows * part_keys, dtype=dtype)
    sums = None if len(starts) == 1 else torch.zeros(2, heads * problem.seq_kv * problem.head_dim)
    calls: list[Callable[[], object]] = []
    for each in sampled:
        block = _Block(problem, dtype, (heads, heights[each], seen[each]), part_keys, memory, sums)
        if part == "backward":
            calls.append(block.differentiate_exponentials if unshifted else block.differentiate)
        else:
            calls.append(block.exponentiate if unshifted else block.attend)
    of_heads = sum(scores[each] for each in sampled) / sum(scores)
    if unshifted and part == "forward":
        values = torch.ones(
            heads, math.ceil(problem.seq_kv * of_heads), problem.head_dim, dtype=torch_dtype(problem.dtype)
        )
        calls.append(partial(torch.aminmax, values))
    if torch_dtype(problem.dtype) != dtype:
        counts = (problem.group_size * sum(heights[each] for each in sampled), math.ceil(problem.seq_kv * of_heads))
        calls.append(_conversions(problem, part, dtype, heads, counts))
    return Chain(tuple(calls), of_heads * heads / (problem.batch * problem.heads_kv))


def _conversions(
    problem: AttentionProblem, part: Part, dtype: torch.dtype, heads: int, counts: tuple[int, int]
) -> Callable[[], None]:
    """So many rows and keys to this dtype of products, and results to that of the problem."""
    given = torch_dtype(problem.dtype)
    rows, keys = (torch.ones(heads, count, problem.head_dim, dtype=given) for count in counts)
    wide_rows, wide_keys = rows.to(dtype), keys.to(dtype)
    copies = [(wide_rows, rows), (rows, wide_rows), (wide_keys, keys), (wide_keys, keys)]
    if part == "backward":
        copies += [(wide_rows, rows), (keys, wide_keys), (keys, wide_keys)]

    def convert() -> None:
        for target, source in copies:
            target.copy_(source)

    return convert


class _Part:
    """Some keys of a block `[n, c, D]`, their scores `[n, G r, c]`, and the sums of their gradients over blocks `[n, c, D]`.

    Sums, in float32, are written where there is one block alone.
    """

    def __init__(self, k: Tensor, v: Tensor, height: int, memory: Tensor, sums: Tensor | None) -> None:
        self.k, self.v = k, v
        heads, keys, dim = k.shape
        self.turned_k, self.turned_v = k.transpose(1, 2), v.transpose(1, 2)
        self.scores, self.grad_scores = (each[: heads * height * keys].view(heads, height, keys) for each in memory)
        self.turned_scores, self.turned_grad_scores = (each.transpose(1, 2) for each in (self.scores, self.grad_scores))
        self._beta = 0 if sums is None else 1
        self._addend = torch.empty(heads, keys, dim, dtype=k.dtype)
        addends = (self._addend, self._addend)
        of_sums = addends if sums is None else [each[: heads * keys * dim].view(heads, keys, dim) for each in sums]
        self.sum_k: Tensor = of_sums[0]
        self.sum_v: Tensor = of_sums[1]

    def add(self, total: Tensor, turned: Tensor, rows: Tensor) -> None:
        """Add to one of the sums."""
        if total.dtype == rows.dtype:
            torch.baddbmm(total, turned, rows, beta=self._beta, out=total)
        else:
            total.add_(torch.bmm(turned, rows, out=self._addend))


class _Block:
    """Some rows of some heads `[n, G r, D]`, and the parts of the keys that the last of them sees."""

    def __init__(
        self,
        problem: AttentionProblem,
        dtype: torch.dtype,
        sizes: tuple[int, int, int],
        part_keys: int,
        memory: Tensor,
        sums: Tensor | None,
    ) -> None:
        heads, rows, keys = sizes
        height, dim = problem.group_size * rows, problem.head_dim
        # Products of rows and keys are a half, whose exponentials any dtype holds.
        value = (2 * dim) ** -0.5
        self._q, self._grad_out, self._out, self._grad_q = torch.full((4, heads, height, dim), value, dtype=dtype)
        self._total, self._of_part, self._delta = torch.ones(3, heads, height, 1, dtype=dtype)
        k, v = torch.full((2, heads, keys, dim), value, dtype=dtype)
        self._parts = [
            _Part(
                k[:, start : start + part_keys],
                v[:, start : start + part_keys],
                height,
                memory,
                None if sums is None else sums[:, heads * start * dim :],
            )
            for start in range(0, keys, part_keys)
        ]
        # A row sees so many keys of each part, and those before: less than none of a part that it does not see.
        hides = problem.is_causal and rows > 1
        self._seen = [
            keys - rows - start if hides and start + part_keys > keys - rows + 1 else None
            for start in range(0, keys, part_keys)
        ]
        self._rows = rows
        self._hidden = torch.full((rows, rows), -math.inf, dtype=dtype).triu_(1) if hides else None

    def attend(self) -> None:
        """By a softmax."""
        (part,) = self._parts
        self._weigh(part)
        torch.bmm(part.scores, part.v, out=self._out)

    def exponentiate(self) -> None:
        """By exponentials and their sums, which are looked at."""
        for part, seen in zip(self._parts, self._seen, strict=True):
            is_first = part is self._parts[0]
            self._exponentials(part, seen)
            torch.sum(part.scores, -1, keepdim=True, out=self._total if is_first else self._of_part)
            if not is_first:
                self._total.add_(self._of_part)
            _add(self._out, part.scores, part.v, is_first=is_first)
        torch.aminmax(self._total)
        self._out.div_(self._total)

    def differentiate(self) -> None:
        """Five products, of which the first is a softmax's once more."""
        (part,) = self._parts
        self._weigh(part)
        part.add(part.sum_v, part.turned_scores, self._grad_out)
        grad, weights = part.grad_scores, part.scores
        torch.bmm(self._grad_out, part.turned_v, out=grad)
        torch.ops.aten._softmax_backward_data.out(grad, weights, -1, weights.dtype, grad_input=grad)  # noqa: SLF001
        torch.bmm(grad, part.k, out=self._grad_q)
        part.add(part.sum_k, part.turned_grad_scores, self._q)

    def differentiate_exponentials(self) -> None:
        """As `differentiate`, with the sums of exponentials from forward: their gradient is E (dE - delta), here twice that."""
        torch.div(self._grad_out, self._total, out=self._grad_q)
        torch.sum(self._grad_q * self._out, -1, keepdim=True, out=self._delta)
        for part, seen in zip(self._parts, self._seen, strict=True):
            self._exponentials(part, seen)
            part.add(part.sum_v, part.turned_scores, self._grad_out)
            grad, weights = part.grad_scores, part.scores
            torch.bmm(self._grad_out, part.turned_v, out=grad)
            torch.ops.aten.mse_loss_backward.grad_input(weights, grad, self._delta, 0, grad_input=grad)
            _add(self._grad_q, grad, part.k, is_first=part is self._parts[0])
            part.add(part.sum_k, part.turned_grad_scores, self._q)

    def _weigh(self, part: _Part) -> None:
        torch.bmm(self._q, part.turned_k, out=part.scores)
        if self._hidden is not None:
            rows = self._by_head(part)
            rows[:, :, rows.shape[2] - rows.shape[1] :].add_(self._hidden)
        torch.softmax(part.scores, -1, out=part.scores)

    def _exponentials(self, part: _Part, seen: int | None) -> None:
        torch.bmm(self._q, part.turned_k, out=part.scores)
        _exponential(part.scores.dtype)(part.scores, out=part.scores)
        if seen is not None:
            self._by_head(part).tril_(seen)

    def _by_head(self, part: _Part) -> Tensor:
        rows: Tensor = part.scores.view(-1, self._rows, part.scores.shape[-1])
        return rows


@cache
def _exponential(dtype: torch.dtype) -> Callable[..., Tensor]:
    """The faster of torch's exponentials here, over a block of scores: the least of some calls of each in turn."""
    scores = torch.ones(CACHED_BYTES // 8 // dtype.itemsize, dtype=dtype)
    out = torch.empty_like(scores)
    least = {torch.exp: math.inf, torch.exp2: math.inf}
    for _ in range(_CALLS):
        for function, known_s in least.items():
            begin = time.perf_counter()
            function(scores, out=out)
            least[function] = min(known_s, time.perf_counter() - begin)
    return min(least, key=lambda function: least[function])


def _add(total: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
    """A part of a product: the first is written, others are added."""
    if is_first:
        torch.bmm(left, right, out=total)
    else:
        torch.baddbmm(total, left, right, out=total)
