"""Chains: the parts of attention in blocks one after another, as calls of torch and nothing between them.

What one part wrote the next reads, where the composite limit has each part alone in a loop; and what the parts need besides
is there: the sums of exponentials, the mask of a diagonal, a softmax's gradient, gradients of keys and values summed over
blocks in float32. Its tensors are in a cache: the reading and writing of a whole problem's comes on top. No implementation made
of calls of torch on such blocks takes less, but by what it leaves out or fuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...impls import AttentionProblem

Part = Literal["forward", "backward"]
#: Rows of a block of all query heads of a group, of which the best counts.
ROWS = (64, 128, 256, 512, 1024)
#: What a block's scores may take, so that they stay in a cache.
CACHED_BYTES = 8 * 2**20
#: Of a pass with more blocks so many are called, or up to twice as many, evenly apart.
_SAMPLED = 4


@dataclass(frozen=True)
class Chain:
    """Calls for some of a pass's blocks, which have such a `share` of its scores, 0 to 1: seconds / share are the pass's."""

    calls: tuple[Callable[[], None], ...]
    share: float

    def __call__(self) -> None:
        """Make them in turn."""
        for call in self.calls:
            call()


def chains(problem: AttentionProblem, part: Part, dtype: torch.dtype) -> Iterator[Chain]:
    """Every chain that is tried: heights of blocks, heads at once, softmax or exponentials as they are.

    Backward computes a block's scores and softmax again (Rabe & Staats 2021, arXiv:2112.05682, section 3).
    """
    every = problem.batch * problem.heads_kv
    for rows in sorted({max(1, min(each // problem.group_size, problem.seq_q)) for each in ROWS}):
        head_bytes = problem.group_size * rows * problem.seq_kv * dtype.itemsize
        cached = max(1, min(every, CACHED_BYTES // head_bytes))
        for heads in sorted({cached, min(cached, torch.get_num_threads())}):
            for unshifted in (False, True) if part == "forward" else (False,):
                yield _chain(problem, part, dtype, rows, heads, unshifted=unshifted)


def _chain(
    problem: AttentionProblem, part: Part, dtype: torch.dtype, rows: int, heads: int, *, unshifted: bool
) -> Chain:
    starts = range(0, problem.seq_q, rows)
    heights = [min(rows, problem.seq_q - start) for start in starts]
    seen = [
        len(problem.mask.visible_keys(start + height - 1, problem.seq_q, problem.seq_kv))
        for start, height in zip(starts, heights, strict=True)
    ]
    scores = [height * keys for height, keys in zip(heights, seen, strict=True)]
    apart = max(1, len(starts) // _SAMPLED)
    sampled = range(len(starts) - 1 - (apart - 1) // 2, -1, -apart)
    memory = torch.empty(2, heads * problem.group_size * rows * problem.seq_kv, dtype=dtype)
    sums = None if len(starts) == 1 else torch.zeros(2, heads, problem.seq_kv, problem.head_dim)
    calls: list[Callable[[], None]] = []
    for each in sampled:
        block = _Block(problem, dtype, (heads, heights[each], seen[each]), memory, sums)
        calls.append(block.differentiate if part == "backward" else block.exponentiate if unshifted else block.attend)
    share = sum(scores[each] for each in sampled) / sum(scores) * heads / (problem.batch * problem.heads_kv)
    return Chain(tuple(calls), share)


class _Block:
    """Some rows of some heads `[n, G r, D]`, the keys that the last of them sees `[n, c, D]`, and their scores `[n, G r, c]`."""

    def __init__(
        self,
        problem: AttentionProblem,
        dtype: torch.dtype,
        sizes: tuple[int, int, int],
        memory: Tensor,
        sums: Tensor | None,
    ) -> None:
        heads, rows, keys = sizes
        height, dim = problem.group_size * rows, problem.head_dim
        # Products of rows and keys are a half, whose exponentials any dtype holds.
        value = (2 * dim) ** -0.5
        self._q, self._grad_out, self._out, self._grad_q = torch.full((4, heads, height, dim), value, dtype=dtype)
        self._k, self._v, self._grad_k, self._grad_v = torch.full((4, heads, keys, dim), value, dtype=dtype)
        self._turned_k, self._turned_v = self._k.transpose(1, 2), self._v.transpose(1, 2)
        self._scores, self._grad_scores = (each[: heads * height * keys].view(heads, height, keys) for each in memory)
        self._turned_scores, self._turned_grad_scores = (
            each.transpose(1, 2) for each in (self._scores, self._grad_scores)
        )
        self._total = torch.empty(heads, height, 1, dtype=dtype)
        self._sums = [] if sums is None else [(sums[0, :, :keys], self._grad_k), (sums[1, :, :keys], self._grad_v)]
        self._rows, self._first_hidden = self._scores.view(-1, rows, keys), keys - rows
        self._square = self._rows[:, :, self._first_hidden :]
        hides = problem.is_causal and rows > 1
        self._hidden = torch.full((rows, rows), -math.inf, dtype=dtype).triu_(1) if hides else None

    def attend(self) -> None:
        """By a softmax."""
        self._weigh()
        torch.bmm(self._scores, self._v, out=self._out)

    def exponentiate(self) -> None:
        """By exponentials and their sums."""
        torch.bmm(self._q, self._turned_k, out=self._scores)
        (torch.exp2 if self._scores.itemsize == 2 else torch.exp)(self._scores, out=self._scores)
        if self._hidden is not None:
            self._rows.tril_(self._first_hidden)
        torch.sum(self._scores, -1, keepdim=True, out=self._total)
        torch.bmm(self._scores, self._v, out=self._out)
        self._out.div_(self._total)

    def differentiate(self) -> None:
        """Five products, of which the first is a softmax's once more."""
        self._weigh()
        torch.bmm(self._turned_scores, self._grad_out, out=self._grad_v)
        grad, weights = self._grad_scores, self._scores
        torch.bmm(self._grad_out, self._turned_v, out=grad)
        torch.ops.aten._softmax_backward_data.out(grad, weights, -1, weights.dtype, grad_input=grad)  # noqa: SLF001
        torch.bmm(grad, self._k, out=self._grad_q)
        torch.bmm(self._turned_grad_scores, self._q, out=self._grad_k)
        for total, addend in self._sums:
            total.add_(addend)

    def _weigh(self) -> None:
        torch.bmm(self._q, self._turned_k, out=self._scores)
        if self._hidden is not None:
            self._square.add_(self._hidden)
        torch.softmax(self._scores, -1, out=self._scores)
