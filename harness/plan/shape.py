"""The sizes of a problem before it is known to have a meaning."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ...impls import AttentionProblem, Dtype, Mask
from ..config.fields import Pair
from ..config.sweep import Sweep


@dataclass(frozen=True)
class Shape:
    """One combination of the axes that make a problem."""

    batch: int
    heads: Pair
    seq_len: Pair
    head_dim: int
    dtype: Dtype
    mask: Mask

    def refusal(self) -> str | None:
        """Why no problem has this shape; None where one has."""
        return self.mask.refusal(self.seq_len.query, self.seq_len.key)

    def problem(self) -> AttentionProblem:
        """The problem of this shape. Errors: `ValueError` where there is none."""
        return AttentionProblem(
            batch=self.batch,
            heads_q=self.heads.query,
            heads_kv=self.heads.key,
            seq_q=self.seq_len.query,
            seq_kv=self.seq_len.key,
            head_dim=self.head_dim,
            dtype=self.dtype,
            mask=self.mask,
        )

    def __str__(self) -> str:
        sizes = f"batch {self.batch}, heads {self.heads}, seq_len {self.seq_len}, head_dim {self.head_dim}"
        return f"{sizes}, {self.dtype}, {self.mask}"


def shapes(sweep: Sweep) -> Iterator[Shape]:
    """The shapes of a sweep, the last axis fastest; `remainders` tells first whether all of them exist."""
    sequences: tuple[int, ...] = sweep.total_tokens or sweep.batch or (1,)
    widths: tuple[int | Pair, ...] = sweep.hidden or sweep.heads or ()
    axes = itertools.product(sequences, widths, sweep.seq_len, sweep.head_dim, sweep.dtype, sweep.mask)
    for count, width, seq_len, head_dim, dtype, mask in axes:
        batch = count // seq_len.query if sweep.total_tokens else count
        heads = width if isinstance(width, Pair) else Pair(width // head_dim, width // head_dim)
        yield Shape(batch, heads, seq_len, head_dim, dtype, mask)


def remainders(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) for each total that its divisor does not divide evenly."""
    for total, length in itertools.product(sweep.total_tokens or (), sweep.seq_len):
        if total % length.query:
            words = f"{total} tokens leave a remainder of {total % length.query} in sequences of seq_len {length}"
            yield "total_tokens", f"{words}; allowed: multiples of every seq_len"
    for width, head_dim in itertools.product(sweep.hidden or (), sweep.head_dim):
        if width % head_dim:
            words = f"{width} leaves a remainder of {width % head_dim} in heads of head_dim {head_dim}"
            yield "hidden", f"{words}; allowed: multiples of every head_dim"
