"""The arithmetic of chunked attention, forward and backward, block by block.

Legend: n key/value heads of all batches, G query heads of a group, r query rows, c keys of a block, D head dimension.
Every block is computed in buffers that the next one uses again: writing a product into memory that was mapped for it takes
longer than the product.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import Blocks
from .precision import LARGEST_SCORE

#: In float32 a product with fewer rows is faster the other way round: keys times query, then turned.
FEW_ROWS = 8


class LargeScoresError(ArithmeticError):
    """A score beyond what the dtype of products can bear."""


class ChunkedAttention(torch.autograd.Function):
    """softmax(scale q k^T, masked) v. Backward keeps q, k and v, and computes blocks again (Rabe & Staats 2021, section 3).

    Where the keys of a row are cut into blocks it keeps `_Kept` as well.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Blocks, products: torch.dtype,
        look: bool = False,
    ) -> Tensor:  # fmt: skip
        """query `[B, Hq, Sq, D]`, key and value `[B, Hkv, Skv, D]` -> out `[B, Hq, Sq, D]`.

        `look` at every score. Errors: `LargeScoresError` where one is beyond `LARGEST_SCORE`.
        """
        q, k, v = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1)
        block = _Block(blocks, scale, products, q.device, look=look)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        kept = _Kept.empty(q, products) if blocks.cuts_keys and any(ctx.needs_input_grad) else None
        for rows in blocks.row_slices():
            for heads in blocks.head_slices(range(k.shape[0]), rows):
                if blocks.cuts_keys:
                    block.attend_online(q, k, v, heads, rows, out, kept)
                else:
                    block.attend(q, k, v, heads, rows, out)
        ctx.save_for_backward(query, key, value, *(kept or ()))
        ctx.scale, ctx.blocks, ctx.products = scale, blocks, products
        return out.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """grad_out `[B, Hq, Sq, D]` -> gradients of query, key and value, in their shapes."""
        query, key, value, *rest = ctx.saved_tensors
        blocks, kept = ctx.blocks, _Kept(*rest) if rest else None
        q, k, v, grad_o = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1), _by_group(grad_out, key)
        block = _Block(blocks, ctx.scale, ctx.products, q.device)
        grad_q, grad_k, grad_v = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
        for some in blocks.head_ranges(k.shape[0]):
            these = slice(some.start, some.stop)
            sums = _Sums(grad_k[these], grad_v[these], block.exact)
            for rows in blocks.row_slices():
                # Scores and their gradients are there at the same time.
                for heads in blocks.head_slices(some, rows, matrices=2):
                    block.differentiate(q, k, v, grad_o, heads, rows, kept, grad_q, sums.of(heads, some.start))
            sums.finish()
        return grad_q.view(query.shape), grad_k.view(key.shape), grad_v.view(value.shape), None, None, None, None


class _Kept(NamedTuple):
    """What backward needs of rows whose keys were cut: the softmax's maximum and sum `[n, G, Sq]`, and out unrounded.

    Not their log-sum-exp: at scores of 1e4 float32 holds it to 1e-3. Not out as it was returned: dS = P (dP - dO . O)
    nearly cancels where a row sees one key alone.
    """

    highest: Tensor
    total: Tensor
    out: Tensor

    @classmethod
    def empty(cls, q: Tensor, dtype: torch.dtype) -> Self:
        shapes = (q.shape[:-1], q.shape[:-1], q.shape)
        return cls(*(torch.empty(shape, dtype=dtype, device=q.device) for shape in shapes))


class _Sums:
    """Sums of dk and dv `[n, Skv, D]`: 16-bit ones would round at each block, so they are kept exact and rounded once."""

    def __init__(self, grad_k: Tensor, grad_v: Tensor, exact: torch.dtype) -> None:
        self._grads = (grad_k, grad_v)
        self._totals = [
            each.zero_() if each.dtype == exact else torch.zeros_like(each, dtype=exact) for each in self._grads
        ]

    def of(self, heads: slice, first: int) -> tuple[Tensor, Tensor]:
        """The sums of some heads; `first` is the first head that is summed here."""
        of_k, of_v = (each[heads.start - first : heads.stop - first] for each in self._totals)
        return of_k, of_v

    def finish(self) -> None:
        """Write the gradients."""
        for grad, total in zip(self._grads, self._totals, strict=True):
            if total is not grad:
                grad.copy_(total)


class _Block:
    """The arithmetic on one block, and the buffers that all blocks share."""

    def __init__(
        self, blocks: Blocks, scale: float, products: torch.dtype, device: torch.device, *, look: bool = False
    ) -> None:
        self._blocks, self._scale, self._products, self._device, self._look = blocks, scale, products, device, look
        #: What sums over blocks are kept in.
        self.exact = torch.promote_types(products, torch.float32)
        self._buffers: dict[str, Tensor] = {}
        self._corner = _corner(blocks.rows, products, device) if blocks.causal else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: slice, rows: slice, out: Tensor) -> None:
        """Rows against all keys they see: one softmax and two products. Writes `out[heads, :, rows]`."""
        (keys,) = self._blocks.key_slices(rows)
        scores = self._scores(self._scaled_rows(q, heads, rows), self._taken("k", k, heads, keys), rows, keys)
        weights = torch.softmax(scores, -1, out=scores)
        out[heads, :, rows] = self._product("rows", weights, self._taken("v", v, heads, keys)).view(
            out[heads, :, rows].shape
        )

    def attend_online(
        self, q: Tensor, k: Tensor, v: Tensor, heads: slice, rows: slice, out: Tensor, kept: _Kept | None
    ) -> None:
        """Rows against their keys block by block. Writes `out[heads, :, rows]`, and there what backward needs.

        The online softmax of Milakov & Gimelshein 2018, section 3: the running maximum rescales what was summed before.
        Products are at least float32 here: 16-bit scores less their maximum would be rounded once more.
        """
        q_rows = self._scaled_rows(q, heads, rows)
        acc = torch.zeros_like(q_rows)
        highest = acc.new_full((*acc.shape[:2], 1), -math.inf)
        total = torch.zeros_like(highest)
        for keys in self._blocks.key_slices(rows):
            scores = self._scores(q_rows, self._taken("k", k, heads, keys), rows, keys)
            # Key 0 is in the first block and every row sees it, so the maximum is finite from there on.
            higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
            weights = scores.sub_(higher).exp_()
            rescale = (highest - higher).exp_()
            total = total.mul_(rescale).add_(weights.sum(-1, keepdim=True))
            acc.mul_(rescale).baddbmm_(weights, self._taken("v", v, heads, keys))
            highest = higher
        results = (highest, total, acc.div_(total).view(out[heads, :, rows].shape))
        out[heads, :, rows] = results[-1]
        for tensor, result in zip(kept or (), results, strict=False):
            tensor[heads, :, rows] = result.view(tensor[heads, :, rows].shape)

    def differentiate(
        self, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, heads: slice, rows: slice,
        kept: _Kept | None, grad_q: Tensor, sums: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        """The gradients of a block of rows: writes `grad_q[heads, :, rows]`, adds to the sums of dk and dv.

        Where keys are cut, E = exp(S - max) stands for P = E / total, and dO / total for dO (FlashAttention-2,
        algorithm 2, has P itself from the log-sum-exp).
        """
        q_rows, grad_rows = self._scaled_rows(q, heads, rows), self._rows("grad rows", grad_out, heads, rows)
        highest = delta = None
        if kept is not None:
            highest, total, out = (each[heads, :, rows].flatten(1, 2) for each in kept)
            highest, grad_rows = highest.unsqueeze(-1), grad_rows.div_(total.unsqueeze(-1))
            delta = (grad_rows * out).sum(-1, keepdim=True)
        grad_k, grad_v = sums
        total_q = torch.zeros_like(q_rows, dtype=self.exact)
        for keys in self._blocks.key_slices(rows):
            k_block, v_block = self._taken("k", k, heads, keys), self._taken("v", v, heads, keys)
            scores = self._scores(q_rows, k_block, rows, keys)
            weights = torch.softmax(scores, -1, out=scores) if highest is None else scores.sub_(highest).exp_()
            self._add_product(grad_v[:, keys], weights.transpose(1, 2), grad_rows)
            grad_weights = self._product("grad scores", grad_rows, v_block.transpose(1, 2))
            grad_scores = _softmax_gradient(weights, grad_weights, delta)
            self._add_product(total_q, grad_scores, k_block)
            self._add_product(grad_k[:, keys], grad_scores.transpose(1, 2), q_rows)
        grad_q[heads, :, rows] = total_q.mul_(self._scale).view(grad_q[heads, :, rows].shape)

    def _scores(self, q_rows: Tensor, k_block: Tensor, rows: slice, keys: slice) -> Tensor:
        """Scaled scores `[n, G r, c]`, minus infinity where a row does not see a key."""
        if q_rows.shape[1] <= FEW_ROWS and self._products == torch.float32 and self._device.type == "cpu":
            turned = self._product("turned", k_block, q_rows.transpose(1, 2)).transpose(1, 2)
            scores = self._buffer("scores", turned.shape).copy_(turned)
        else:
            scores = self._product("scores", q_rows, k_block.transpose(1, 2))
        if self._look and max(map(abs, map(float, torch.aminmax(scores)))) > LARGEST_SCORE:
            raise LargeScoresError
        first = self._blocks.first_diagonal_key(rows)
        if self._corner is not None and first is not None and keys.stop - 1 > first:
            count, begin = rows.stop - rows.start, max(keys.start, first)
            corner = self._corner[:count, begin - first : keys.stop - first]
            scores.view(scores.shape[0], -1, count, scores.shape[-1])[..., begin - keys.start :].add_(corner)
        return scores

    def _scaled_rows(self, q: Tensor, heads: slice, rows: slice) -> Tensor:
        return self._rows("q rows", q, heads, rows).mul_(self._scale)

    def _rows(self, name: str, tensor: Tensor, heads: slice, rows: slice) -> Tensor:
        """A copy `[n, G r, D]` of these rows in the dtype of products."""
        block = tensor[heads, :, rows]
        return self._buffer(name, block.shape).copy_(block).flatten(1, 2)

    def _taken(self, name: str, tensor: Tensor, heads: slice, keys: slice) -> Tensor:
        """Keys or values of a block `[n, c, D]` in the dtype of products: a view where they are, else a copy."""
        block = tensor[heads, keys]
        return block if block.dtype == self._products else self._buffer(name, block.shape).copy_(block)

    def _product(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(left, right, out=self._buffer(name, (*left.shape[:2], right.shape[2])))

    def _add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        if total.dtype == left.dtype:
            total.baddbmm_(left, right)
        else:
            total.add_(self._product("addend", left, right))

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A buffer of this shape in the dtype of products; what it held before is lost."""
        count = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < count:
            self._buffers[name] = torch.empty(count, dtype=self._products, device=self._device)
        return self._buffers[name][:count].view(shape)


@lru_cache(maxsize=4)
def _corner(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a block on the diagonal adds to its last columns: row t sees key t of them and those before."""
    return torch.full((rows, rows), -math.inf, dtype=dtype, device=device).triu_(1)


def _softmax_gradient(weights: Tensor, grad_weights: Tensor, delta: Tensor | None) -> Tensor:
    """dS = P (dP - delta) in place of dP; delta = sum_j P_ij dP_ij is taken from the block where it holds whole rows."""
    if delta is not None:
        return grad_weights.sub_(delta).mul_(weights)
    # Autograd's own kernel for a softmax: two passes over the block where the formula takes five.
    backward = torch.ops.aten._softmax_backward_data.out  # noqa: SLF001 - torch has no public name for it
    gradient: Tensor = backward(grad_weights, weights, -1, weights.dtype, grad_input=grad_weights)
    return gradient


def _by_group(tensor: Tensor, key: Tensor) -> Tensor:
    """`[B, Hq, S, D]` as `[B Hkv, G, S, D]`."""
    heads_kv = key.shape[1]
    by_group: Tensor = tensor.unflatten(1, (heads_kv, tensor.shape[1] // heads_kv))
    return by_group.flatten(0, 1)
