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

from .blocks import Block, Blocks
from .precision import LARGEST_SCORE

#: In float32 a product with fewer rows is faster the other way round: keys times query, then turned.
FEW_ROWS = 8


class LargeScoresError(ArithmeticError):
    """A score beyond what the dtype of products can bear."""


class ChunkedAttention(torch.autograd.Function):
    """`attend` with gradients. Backward keeps q, k and v, and computes blocks again (Rabe & Staats 2021, section 3).

    Where the keys of a row are cut into blocks it keeps `_Kept` as well.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Blocks, products: torch.dtype,
        look: bool = False,
    ) -> Tensor:  # fmt: skip
        """As `attend`."""
        out, kept = _attend(query, key, value, scale, blocks, products, look=look, keeps=any(ctx.needs_input_grad))
        ctx.save_for_backward(query, key, value, *(kept or ()))
        ctx.scale, ctx.blocks, ctx.products = scale, blocks, products
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """grad_out `[B, Hq, Sq, D]` -> gradients of query, key and value, in their shapes."""
        query, key, value, *rest = ctx.saved_tensors
        kept = _Kept(*rest) if rest else None
        q, k, v, grad_o = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1), _by_group(grad_out, key)
        arithmetic = _Arithmetic(ctx.blocks, ctx.scale, ctx.products, q.device)
        grad_q, grad_k, grad_v = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
        for some, blocks in ctx.blocks.backward:
            sums = _Sums(grad_k[some], grad_v[some], arithmetic.exact)
            for block in blocks:
                arithmetic.differentiate(q, k, v, grad_o, block, kept, grad_q, sums.of(block.heads, some.start))
            sums.finish()
        return grad_q.view(query.shape), grad_k.view(key.shape), grad_v.view(value.shape), None, None, None, None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    blocks: Blocks,
    products: torch.dtype,
    *,
    look: bool = False,
) -> Tensor:
    """softmax(scale q k^T, masked) v: query `[B, Hq, Sq, D]`, key and value `[B, Hkv, Skv, D]` -> out `[B, Hq, Sq, D]`.

    `look` at every score. Errors: `LargeScoresError` where one is beyond `LARGEST_SCORE`.
    """
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        out: Tensor = ChunkedAttention.apply(query, key, value, scale, blocks, products, look)  # type: ignore[no-untyped-call]
        return out
    return _attend(query, key, value, scale, blocks, products, look=look, keeps=False)[0]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Blocks, products: torch.dtype,
    *, look: bool, keeps: bool,
) -> tuple[Tensor, _Kept | None]:  # fmt: skip
    q, k, v = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1)
    arithmetic = _Arithmetic(blocks, scale, products, q.device, look=look)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kept = _Kept.empty(q, products) if blocks.cuts_keys and keeps else None
    for block in blocks.forward:
        if blocks.cuts_keys:
            arithmetic.attend_online(q, k, v, block, out, kept)
        else:
            arithmetic.attend(q, k, v, block, out)
    return out.view(query.shape), kept


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


class _Query(NamedTuple):
    """Query rows `[n, G r, D]` in the dtype of products, and the factor that their products are still to be given."""

    rows: Tensor
    factor: float


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


class _Arithmetic:
    """What is computed on a block, and the buffers that all blocks share."""

    def __init__(
        self, blocks: Blocks, scale: float, products: torch.dtype, device: torch.device, *, look: bool = False
    ) -> None:
        self._blocks, self._scale, self._products, self._device, self._look = blocks, scale, products, device, look
        #: What sums over blocks are kept in.
        self.exact = torch.promote_types(products, torch.float32)
        self._buffers: dict[str, Tensor] = {}
        self._corner = _corner(blocks.rows, products, device) if blocks.causal else None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, block: Block, out: Tensor) -> None:
        """Rows against all keys they see: one softmax and two products. Writes the block's part of `out`."""
        (keys,) = block.keys
        scores = self._scores(self._query(q, block), self._taken("k", k, block.heads, keys), block, keys)
        weights = torch.softmax(scores, -1, out=scores)
        values, part = self._taken("v", v, block.heads, keys), _part(out, block)
        if part.dtype == self._products and part.is_contiguous():
            torch.bmm(weights, values, out=part.view(*weights.shape[:2], -1))
        else:
            part.copy_(self._product("rows", weights, values).view(part.shape))

    def attend_online(self, q: Tensor, k: Tensor, v: Tensor, block: Block, out: Tensor, kept: _Kept | None) -> None:
        """Rows against their keys part by part. Writes the block's part of `out`, and there what backward needs.

        The online softmax of Milakov & Gimelshein 2018, section 3: the running maximum rescales what was summed before.
        Products are at least float32 here: 16-bit scores less their maximum would be rounded once more.
        """
        part = _part(out, block)
        acc = part.new_zeros((part.shape[0], part.shape[1] * part.shape[2], part.shape[3]), dtype=self._products)
        highest = acc.new_full((*acc.shape[:2], 1), -math.inf)
        total = torch.zeros_like(highest)
        query = self._query(q, block)
        for keys in block.keys:
            scores = self._scores(query, self._taken("k", k, block.heads, keys), block, keys)
            # Key 0 is in the first part and every row sees it, so the maximum is finite from there on.
            higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
            weights = scores.sub_(higher).exp_()
            rescale = (highest - higher).exp_()
            total = total.mul_(rescale).add_(weights.sum(-1, keepdim=True))
            acc.mul_(rescale).baddbmm_(weights, self._taken("v", v, block.heads, keys))
            highest = higher
        results = (highest, total, acc.div_(total).view(part.shape))
        part.copy_(results[-1])
        for tensor, result in zip(kept or (), results, strict=False):
            stored = _part(tensor, block)
            stored.copy_(result.view(stored.shape))

    def differentiate(
        self, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, block: Block, kept: _Kept | None,
        grad_q: Tensor, sums: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        """The gradients of a block: writes its part of `grad_q`, adds to the sums of dk and dv.

        Where keys are cut, E = exp(S - max) stands for P = E / total, and dO / total for dO (FlashAttention-2,
        algorithm 2, has P itself from the log-sum-exp).
        """
        query, grad_rows = self._query(q, block), self._rows("grad rows", grad_out, block)
        highest = delta = None
        if kept is not None:
            highest, total, out = (_part(each, block).flatten(1, 2) for each in kept)
            highest, grad_rows = highest.unsqueeze(-1), grad_rows / total.unsqueeze(-1)
            delta = (grad_rows * out).sum(-1, keepdim=True)
        grad_k, grad_v = sums
        total_q = torch.zeros(query.rows.shape, dtype=self.exact, device=q.device)
        for keys in block.keys:
            k_block, v_block = self._taken("k", k, block.heads, keys), self._taken("v", v, block.heads, keys)
            scores = self._scores(query, k_block, block, keys)
            weights = torch.softmax(scores, -1, out=scores) if highest is None else scores.sub_(highest).exp_()
            self._add_product(_narrowed(grad_v, 1, keys), weights.transpose(1, 2), grad_rows)
            grad_weights = self._product("grad scores", grad_rows, v_block.transpose(1, 2))
            grad_scores = _softmax_gradient(weights, grad_weights, delta)
            self._add_product(total_q, grad_scores, k_block)
            self._add_product(_narrowed(grad_k, 1, keys), grad_scores.transpose(1, 2), *query)
        part = _part(grad_q, block)
        part.copy_(total_q.mul_(self._scale).view(part.shape))

    def _scores(self, query: _Query, k_block: Tensor, block: Block, keys: slice) -> Tensor:
        """Scaled scores `[n, G r, c]`, minus infinity where a row does not see a key."""
        rows, factor = query
        if rows.shape[1] <= FEW_ROWS and self._products == torch.float32 and self._device.type == "cpu":
            turned = self._product("turned", k_block, rows.transpose(1, 2)).transpose(1, 2)
            scores = torch.mul(turned, factor, out=self._buffer("scores", turned.shape))
        else:
            scores = self._product("scores", rows, k_block.transpose(1, 2), factor)
        if self._look and max(map(abs, map(float, torch.aminmax(scores)))) > LARGEST_SCORE:
            raise LargeScoresError
        first = self._blocks.first_diagonal_key(block.rows)
        if self._corner is not None and first is not None and keys.stop - 1 > first:
            count, begin = block.rows.stop - block.rows.start, max(keys.start, first)
            corner = self._corner[:count, begin - first : keys.stop - first]
            scores.view(scores.shape[0], -1, count, scores.shape[-1])[..., begin - keys.start :].add_(corner)
        return scores

    def _query(self, q: Tensor, block: Block) -> _Query:
        """A float32 product takes a factor at no cost; 16-bit rows are scaled before."""
        rows = self._rows("q rows", q, block)
        return _Query(rows, self._scale) if self._products == self.exact else _Query(rows.mul_(self._scale), 1.0)

    def _rows(self, name: str, tensor: Tensor, block: Block) -> Tensor:
        """These rows as `[n, G r, D]` in the dtype of products: a view where that can be, else a copy."""
        part = _part(tensor, block)
        if self._products == self.exact == part.dtype and (part.shape[1] == 1 or part.is_contiguous()):
            return part.flatten(1, 2)
        return self._buffer(name, part.shape).copy_(part).flatten(1, 2)

    def _taken(self, name: str, tensor: Tensor, heads: slice, keys: slice) -> Tensor:
        """Keys or values of a block `[n, c, D]` in the dtype of products: a view where they are, else a copy."""
        taken = _narrowed(_narrowed(tensor, 0, heads), 1, keys)
        return taken if taken.dtype == self._products else self._buffer(name, taken.shape).copy_(taken)

    def _product(self, name: str, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
        out = self._buffer(name, (*left.shape[:2], right.shape[2]))
        return torch.bmm(left, right, out=out) if factor == 1.0 else out.baddbmm_(left, right, beta=0, alpha=factor)

    def _add_product(self, total: Tensor, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
        if total.dtype == left.dtype:
            total.baddbmm_(left, right, alpha=factor)
        else:
            total.add_(self._product("addend", left, right, factor))

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A buffer of this shape in the dtype of products; what it held before is lost."""
        held = self._buffers.get(name)
        if held is None or held.numel() < math.prod(shape):
            held = self._buffers[name] = torch.empty(shape, dtype=self._products, device=self._device)
        return held if held.shape == shape else held.view(-1)[: math.prod(shape)].view(shape)


def _part(tensor: Tensor, block: Block) -> Tensor:
    """A block's heads and rows `[n, G, r, ...]` of a tensor `[N, G, Sq, ...]`."""
    return _narrowed(_narrowed(tensor, 0, block.heads), 2, block.rows)


def _narrowed(tensor: Tensor, dim: int, to: slice) -> Tensor:
    """A slice of one dimension, unless it is all of it: a view takes a third of a small product's time."""
    count = to.stop - to.start
    return tensor if count == tensor.shape[dim] else tensor.narrow(dim, to.start, count)


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
    batch, heads, rows, dim = tensor.shape
    heads_kv = key.shape[1]
    return tensor.reshape(batch * heads_kv, heads // heads_kv, rows, dim)
