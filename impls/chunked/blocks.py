"""Which blocks are visited, apart from the arithmetic on them. No torch.

A block is some query rows of some heads against all keys that they see: then one fused softmax does, and nothing is rescaled.
Keys are cut as well only where no maximum is taken off the scores, or where they are very many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Self

from ..problem import AttentionProblem

#: A block has no fewer rows, though its scores outgrow the workspace: below, products are slow.
LEAST_ROWS = 64
#: Under a causal mask the corner above the diagonal is computed in vain, half the square of a block's rows: fewer rows
#: waste less, and 16-bit products need more rows to be fast, twice as many where a race says so (`tall_is_faster`). Of a long
#: sequence more are wasted in less, up to a square of a part of its keys.
CAUSAL_ROWS, TALL_CAUSAL_ROWS, CAUSAL_SHARE = {2: 256, 4: 128, 8: 128}, 512, 8
#: More rows of one head than this gain nothing, where there are other heads to be done at once. In 16 bits oneDNN packs a
#: head's keys for each product, and a block of more rows does it less often.
ROWS_OF_ONE_HEAD = {2: 1024, 4: 512, 8: 512}
#: Where threads share the rows of a head, fewer than these are not worth what is saved in their caches.
LEAST_SHARED_ROWS = 256
#: So many rows of all heads together at least, fewer under a causal mask: still fewer are done sooner than they are launched,
#: and leave threads idle. Where few blocks are computed as they come that takes less.
ROWS_OF_ALL_HEADS, CAUSAL_ROWS_OF_ALL_HEADS, DIRECT_ROWS_OF_ALL_HEADS = 1024, 512, 256
#: A head with so many scores in a block is worth a block of its own, where otherwise threads would wait for one of them. If all
#: rows of all heads would be one block, computed as it comes, it takes more scores of a head to be worth two; as many of all
#: heads are worth several blocks of fewer rows.
SCORES_OF_A_THREAD, ONE_BLOCK_SCORES = 3 * 2**15, 3 * 2**16
#: At least so many matrices of a head's scores fit the workspace: more of its rows gain nothing, more heads at once do.
MATRICES_AT_ONCE = 2
#: What the sums of key and value gradients may take before heads are done in turn.
SUMS_BYTES = 32 * 2**20
#: Padded rows of scores are an odd number of cache lines long: by a power of two of them, rows would share a few cache sets.
LINE_BYTES = 64
#: On the diagonal parts of the keys are cut into so many at least, where that leaves out rows that see none of them. Of fewer
#: scores than these a piece more takes longer than what it spares.
LEAST_CUT_KEYS, LEAST_CUT_SCORES = 128, 2**18
#: So few blocks are computed as they come, if each has all heads; of several in 16 bits oneDNN would copy the keys each time.
FEW_BLOCKS = {2: 1, 4: 8, 8: 8}
#: To copy values, so that rows may be padded and summed beside them, pays of so many rows and keys; to pad rows of whole lines
#: if they are so long.
LEAST_COPIED, PADDED_BYTES = 256, 2048
#: AMX multiplies tiles of 16 columns, and products of a number of keys that is no multiple of it take up to two thirds longer
#: in trials. There a copy of the keys with zeros pays, of so many rows and keys.
TILE, LEAST_ALIGNED = 16, 128


@dataclass(frozen=True)
class Limits:
    """The largest block: rows of all heads of a group, keys, and bytes of its scores over all heads done at once.

    `threads` share the heads of a block, which have `thread_bytes` of scores for each, if it has more heads than threads.
    `causal_rows` are the most under a causal mask, if not those of `CAUSAL_ROWS`.
    """

    rows: int
    keys: int
    workspace_bytes: int
    threads: int = 1
    thread_bytes: int | None = None
    causal_rows: int | None = None


@dataclass(frozen=True)
class Piece:
    """Some keys of a `part` of a block's keys, and the rows of the block from the first on that sees one of them."""

    part: slice
    keys: slice
    rows: slice


@dataclass(frozen=True)
class Block:
    """Key/value heads of all batches, query rows of each head of their groups, and the parts in which their keys are read.

    In `pieces` those on the diagonal are cut again, where that pays and rows need nothing of a part that they do not see.
    """

    heads: slice
    rows: slice
    keys: tuple[slice, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Blocks:
    """Query rows (of one head) and keys of a block; what else the number of heads done at once follows from.

    `copies` where rows and keys are many enough for a copy of the values to pay; `pads` and `aligns` as in `of`.
    """

    heads: int
    rows: int
    keys: int
    group: int
    seq_q: int
    seq_kv: int
    head_dim: int
    causal: bool
    workspace_bytes: int
    threads: int
    thread_bytes: int | None
    item_bytes: int
    converts: bool
    copies: bool
    pads: bool
    aligns: bool

    @classmethod
    def of(
        cls, problem: AttentionProblem, limits: Limits, item_bytes: int,
        *, converts: bool, pads: bool = False, aligns: bool = False, head_bytes: int | None = None,
        causal_rows: int = CAUSAL_ROWS_OF_ALL_HEADS,
    ) -> Self:  # fmt: skip
        """Blocks for a problem whose scores take `item_bytes` each; `converts` where keys and values need a copy in that type.

        `pads` where rows of scores may be longer than keys are many, `aligns` where keys may be copied with some of zeros.
        A head's scores in a block take `head_bytes` at most, unless those of `LEAST_SHARED_ROWS` rows take more; without, its
        rows are no more than `ROWS_OF_ONE_HEAD`. Under a causal mask all heads together have `causal_rows` at least.
        """
        group = problem.group_size
        keys = min(problem.seq_kv, limits.keys)
        of_all_heads = ROWS_OF_ALL_HEADS // (problem.batch * problem.heads_kv)
        most = min(limits.rows, max(LEAST_ROWS, limits.workspace_bytes // MATRICES_AT_ONCE // (keys * item_bytes)))
        if head_bytes is None:
            most = min(most, max(ROWS_OF_ONE_HEAD[item_bytes], of_all_heads))
        else:
            most = min(most, max(LEAST_SHARED_ROWS, head_bytes // (keys * item_bytes)))
        if problem.is_causal and problem.seq_q > 1:
            of_one_head = max(limits.causal_rows or CAUSAL_ROWS[item_bytes], min(keys, problem.seq_q // CAUSAL_SHARE))
            most = min(most, max(of_one_head, causal_rows // (problem.batch * problem.heads_kv)))
        rows = _even(problem.seq_q, max(1, most // group))
        if rows < problem.seq_q and (tiles := math.ceil(rows / TILE) * TILE) <= most // group:
            # Threads have as many rows each then, and under a causal mask all blocks but the last see whole tiles of keys.
            rows = tiles
        many = min(group * problem.seq_q, keys)
        return cls(
            problem.batch * problem.heads_kv, rows, keys, group, problem.seq_q, problem.seq_kv, problem.head_dim,
            problem.is_causal, limits.workspace_bytes, limits.threads, limits.thread_bytes, item_bytes, converts,
            many >= LEAST_COPIED, pads and many >= LEAST_COPIED, aligns and many >= LEAST_ALIGNED,
        )  # fmt: skip

    @property
    def cuts_keys(self) -> bool:
        """Whether some rows see more keys than a block has."""
        return self.keys < self.seq_kv

    @property
    def has_one_row_block(self) -> bool:
        """Whether a block has all rows of its heads."""
        return self.rows >= self.seq_q

    @cached_property
    def is_few(self) -> bool:
        """Whether there are few blocks, of all heads and of all keys that their rows see."""
        if self.cuts_keys or math.ceil(self.seq_q / self.rows) > FEW_BLOCKS[self.item_bytes]:
            return False
        return all(block.heads.stop - block.heads.start == self.heads for block in self.forward)

    def width(self, keys: slice) -> int:
        """How many keys a product takes for these, zeros behind them included: of ragged ones as many as rows are long."""
        count: int = keys.stop - keys.start
        return self.columns(keys) if self.aligns and count % TILE else count

    def columns(self, keys: slice) -> int:
        """How long a row of scores is that holds those of these keys."""
        count: int = keys.stop - keys.start
        if not self.pads:
            return math.ceil(count / TILE) * TILE if self.aligns else count
        of_a_line = LINE_BYTES // self.item_bytes
        lines = math.ceil(count / of_a_line)
        is_short = lines * of_a_line == count and count * self.item_bytes < PADDED_BYTES
        return count if is_short else of_a_line * (lines | 1)

    @cached_property
    def most_scores(self) -> int:
        """How many scores a block of the forward pass has at most, padding included."""
        return max(map(self._scores, self.forward))

    @cached_property
    def most_backward_scores(self) -> int:
        """As `most_scores`, of the backward pass."""
        return max(self._scores(block) for _, blocks in self.backward for block in blocks)

    @cached_property
    def forward(self) -> tuple[Block, ...]:
        """Every block, in the order of the forward pass."""
        return tuple(self._blocks(range(self.heads), matrices=1))

    @cached_property
    def backward(self) -> tuple[tuple[slice, tuple[Block, ...]], ...]:
        """Heads whose gradients of keys and values are summed at the same time, and their blocks.

        Scores and their gradients are there at once, so that a block has fewer heads.
        """
        size = _even(self.heads, max(1, SUMS_BYTES // (8 * self.seq_kv * self.head_dim)))
        return tuple(
            (some, tuple(self._blocks(range(some.start, some.stop), matrices=2))) for some in _slices(self.heads, size)
        )

    def first_diagonal_key(self, rows: slice) -> int | None:
        """From this key on some of the rows see less than all; None where the mask hides nothing."""
        return rows.start + self.seq_kv - self.seq_q if self.causal else None

    def _scores(self, block: Block) -> int:
        heads: int = block.heads.stop - block.heads.start
        rows: int = block.rows.stop - block.rows.start
        return heads * self.group * rows * max(map(self.columns, block.keys))

    def _blocks(self, heads: range, *, matrices: int) -> Iterator[Block]:
        """The last rows come first, so that under a causal mask buffers begin with their largest size.

        Heads come first where all of their rows see the same keys and share copies, else rows: of fewer keys more heads fit.
        """
        of_rows = list(_slices(self.seq_q, self.rows))[::-1]
        if not self.causal:
            order = [(part, rows) for part in self._head_slices(heads, of_rows[0], matrices) for rows in of_rows]
        else:
            order = [(part, rows) for rows in of_rows for part in self._head_slices(heads, rows, matrices)]
        for part, rows in order:
            keys = tuple(_slices(self._visible(rows), self.keys))
            yield Block(part, rows, keys, tuple(self._pieces(part, rows, keys)))

    def _pieces(self, heads: slice, rows: slice, parts: tuple[slice, ...]) -> Iterator[Piece]:
        """The pieces of these parts of the keys, in order; the first has all rows.

        Nothing is cut for a group, whose rows are one matrix, nor where threads share rows, whose products are small already; in
        16 bits it was not tried.
        """
        first, many_heads = self.first_diagonal_key(rows), heads.stop - heads.start
        cuts = self.group == 1 and self.item_bytes > 2 and many_heads >= self.threads
        for part in parts:
            begin = min(max(part.start, first), part.stop) if first is not None and cuts else part.stop
            many = part.stop - begin
            if first is None or many_heads * many**2 < LEAST_CUT_SCORES:
                yield Piece(part, part, rows)
                continue
            for cut in _slices(many, math.ceil(many / max(1, many // LEAST_CUT_KEYS))):
                keys = slice(begin + cut.start if cut.start else part.start, begin + cut.stop)
                unseen = max(0, keys.start - first) if keys.start else 0
                yield Piece(part, keys, slice(rows.start + unseen, rows.stop))

    def _head_slices(self, heads: range, rows: slice, matrices: int) -> Iterator[slice]:
        """As many heads at once as the workspace holds with so many matrices of scores of each."""
        columns = min(self.keys, self._visible(rows))
        width = max(self.group * (rows.stop - rows.start), self.head_dim if self.converts else 1)
        of_a_head = matrices * width * columns * self.item_bytes
        fits = self.workspace_bytes // of_a_head
        if self.thread_bytes is not None:
            fits = min(fits, max(self.threads, self.threads * self.thread_bytes // of_a_head))
        size = _even(len(heads), max(1, fits))
        # oneDNN shares the rows of 16-bit products among threads, MKL whole heads.
        is_whole = size == len(heads) and self.has_one_row_block and not self.cuts_keys
        least = ONE_BLOCK_SCORES if is_whole else SCORES_OF_A_THREAD
        if self.item_bytes > 2 and size > self.threads and width * columns >= least:
            size -= size % self.threads
        parts = _slices(len(heads), size)
        return (slice(heads.start + each.start, heads.start + each.stop) for each in parts)

    def _visible(self, rows: slice) -> int:
        return rows.stop + self.seq_kv - self.seq_q if self.causal else self.seq_kv


@cache
def second_level_cache_bytes() -> int:
    """The size of the first core's second-level cache, or a usual one where Linux does not say."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii").strip()
        return int(size.removesuffix("K")) * 2**10
    except (OSError, ValueError):
        return 2**20


def _even(length: int, most: int) -> int:
    """The size of as few parts as `most` allows, so that no part is much smaller than the others."""
    return math.ceil(length / math.ceil(length / most))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
