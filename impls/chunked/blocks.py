"""Which blocks are visited, apart from the arithmetic on them. No torch.

A block is some query rows of some heads against all keys that they see: then one fused softmax does, and nothing is rescaled.
Only beyond a very large number of keys are these cut into blocks as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ..problem import AttentionProblem

#: A block has no fewer rows, though its scores outgrow the workspace: below, products are slow.
LEAST_ROWS = 64
#: Under a causal mask the corner above the diagonal is computed in vain, half the square of a block's rows: fewer rows
#: waste less, and 16-bit products, where they are fast, need more rows to be so.
CAUSAL_ROWS = {2: 256, 4: 128, 8: 128}
#: What the sums of key and value gradients may take before heads are done in turn.
SUMS_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Limits:
    """The largest block: rows of all heads of a group, keys, and bytes of its scores over all heads done at once."""

    rows: int
    keys: int
    workspace_bytes: int


@dataclass(frozen=True)
class Blocks:
    """Query rows (of one head) and keys of a block; what else the number of heads done at once follows from."""

    rows: int
    keys: int
    group: int
    seq_q: int
    seq_kv: int
    head_dim: int
    causal: bool
    workspace_bytes: int
    item_bytes: int
    converts: bool

    @classmethod
    def of(cls, problem: AttentionProblem, limits: Limits, item_bytes: int, *, converts: bool) -> Self:
        """Blocks for a problem whose scores take `item_bytes` each; `converts` where keys and values need a copy in that type."""
        group = problem.group_size
        keys = min(problem.seq_kv, limits.keys)
        most = min(limits.rows, max(LEAST_ROWS, limits.workspace_bytes // (keys * item_bytes)))
        if problem.is_causal and problem.seq_q > 1:
            most = min(most, CAUSAL_ROWS[item_bytes])
        rows = _even(problem.seq_q, max(1, most // group))
        return cls(
            rows, keys, group, problem.seq_q, problem.seq_kv, problem.head_dim, problem.is_causal,
            limits.workspace_bytes, item_bytes, converts,
        )  # fmt: skip

    @property
    def cuts_keys(self) -> bool:
        """Whether some rows see more keys than a block has."""
        return self.keys < self.seq_kv

    def row_slices(self) -> list[slice]:
        """All query rows; the last come first, so that under a causal mask buffers begin with their largest size."""
        return list(_slices(self.seq_q, self.rows))[::-1]

    def key_slices(self, rows: slice) -> list[slice]:
        """The blocks of keys that at least one of these query rows sees."""
        return list(_slices(self._visible(rows), self.keys))

    def head_slices(self, heads: range, rows: slice, *, matrices: int = 1) -> list[slice]:
        """Key/value heads, as many at once as the workspace holds with so many matrices of scores of each."""
        columns = min(self.keys, self._visible(rows))
        width = max(self.group * (rows.stop - rows.start), self.head_dim if self.converts else 1)
        fits = max(1, self.workspace_bytes // (matrices * width * columns * self.item_bytes))
        size = _even(len(heads), fits)
        return [slice(heads.start + each.start, heads.start + each.stop) for each in _slices(len(heads), size)]

    def head_ranges(self, heads: int) -> list[range]:
        """Key/value heads whose gradients are summed at the same time."""
        size = _even(heads, max(1, SUMS_BYTES // (8 * self.seq_kv * self.head_dim)))
        return [range(each.start, each.stop) for each in _slices(heads, size)]

    def first_diagonal_key(self, rows: slice) -> int | None:
        """From this key on some of the rows see less than all; None where the mask hides nothing."""
        return rows.start + self.seq_kv - self.seq_q if self.causal else None

    def _visible(self, rows: slice) -> int:
        return rows.stop + self.seq_kv - self.seq_q if self.causal else self.seq_kv


def _even(length: int, most: int) -> int:
    """The size of as few parts as `most` allows, so that no part is much smaller than the others."""
    return math.ceil(length / math.ceil(length / most))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
