"""Which blocks are visited, apart from the arithmetic on them. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ..problem import AttentionProblem

#: What one block of scores may take in float32, over all key/value heads that are computed together.
WORKSPACE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Blocks:
    """Block sizes in key/value heads, query rows (of one head) and keys; the sequence lengths; the mask."""

    heads: int
    queries: int
    keys: int
    seq_q: int
    seq_kv: int
    causal: bool

    @classmethod
    def of(cls, problem: AttentionProblem, query_block: int, key_block: int) -> Self:
        """Blocks for a problem: a group's query heads share the rows of a block, heads share the workspace."""
        queries = min(problem.seq_q, max(1, query_block // problem.group_size))
        keys = min(problem.seq_kv, key_block)
        block_bytes = 4 * problem.group_size * queries * keys
        heads = min(problem.batch * problem.heads_kv, max(1, WORKSPACE_BYTES // block_bytes))
        return cls(heads, queries, keys, problem.seq_q, problem.seq_kv, problem.is_causal)

    def head_slices(self, heads_kv: int) -> Iterator[slice]:
        """All key/value heads of all batches, in turn."""
        return _slices(heads_kv, self.heads)

    def query_slices(self) -> Iterator[slice]:
        """All query rows, in turn."""
        return _slices(self.seq_q, self.queries)

    def key_slices(self, rows: slice) -> Iterator[slice]:
        """The blocks of keys that at least one of these query rows sees."""
        visible = rows.stop + self.seq_kv - self.seq_q if self.causal else self.seq_kv
        return _slices(visible, self.keys)

    def crosses_diagonal(self, rows: slice, keys: slice) -> bool:
        """Whether some of these rows do not see some of these keys."""
        return self.causal and keys.stop - 1 > rows.start + self.seq_kv - self.seq_q


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
