"""What backward needs of the rows of the forward pass, and the sums of gradients over blocks. Legend: kernel.py."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .blocks import Blocks
from .calls import Calls
from .method import Method
from .workspace import narrowed


class Kept(NamedTuple):
    """What backward needs of rows `[N, G, Sq, 1]`: their softmax's sum, its maximum unless that is 0 for all, and out unrounded.

    That is `[N, G, Sq, D]`, and the result itself where this is not rounded.
    Not their log-sum-exp: at scores of 1e4 float32 holds it to 1e-3. Not out as it was returned in fewer bits:
    dS = P (dP - dO . O) nearly cancels where a row sees one key alone.
    """

    highest: Tensor | None
    total: Tensor
    out: Tensor

    @classmethod
    def of(cls, out: Tensor, method: Method) -> Self:
        """For a result that is to be written to `out`, which is kept itself if it is not rounded."""
        empty = partial(torch.empty, dtype=method.products, device=out.device)
        rows = (*out.shape[:-1], 1)
        return cls(
            None if method.unshifted else empty(rows), empty(rows),
            out if out.dtype == method.products else empty(out.shape),
        )  # fmt: skip


class Sums:
    """Sums of dk and dv over blocks: 16-bit ones would round at each, so they are kept exact and rounded once.

    The first block of a head has its last rows, which see all keys: it writes the sums, later ones add to them. Where there
    is no other it writes the gradients. Where keys are cut each part of them has sums of its own, `[n, c, D]` without a gap.
    """

    def __init__(self, grad_k: Tensor, grad_v: Tensor, heads: slice, blocks: Blocks, exact: torch.dtype) -> None:
        self._grads, self._first, self._exact = (grad_k[heads], grad_v[heads]), heads.start, exact
        self._is_in_place = blocks.has_one_row_block or (grad_k.dtype == exact and not blocks.cuts_keys)
        self._parts: dict[int, list[Tensor]] = {}

    def of(self, heads: slice, keys: slice) -> list[Tensor]:
        """The sums of some heads and keys."""
        if keys.start not in self._parts:
            parts = [narrowed(grad, 1, keys) for grad in self._grads]
            self._parts[keys.start] = parts if self._is_in_place else [self._empty(part) for part in parts]
        mine = slice(heads.start - self._first, heads.stop - self._first)
        seen = slice(0, keys.stop - keys.start)
        return [narrowed(narrowed(total, 0, mine), 1, seen) for total in self._parts[keys.start]]

    def finish(self, calls: Calls) -> None:
        """Write the gradients."""
        for start, totals in self._parts.items() if not self._is_in_place else ():
            for grad, total in zip(self._grads, totals, strict=True):
                calls.add(narrowed(grad, 1, slice(start, start + total.shape[1])).copy_, total)

    def _empty(self, part: Tensor) -> Tensor:
        return torch.empty(part.shape, dtype=self._exact, device=part.device)
