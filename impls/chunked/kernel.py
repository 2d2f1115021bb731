"""The arithmetic of chunked attention, forward and backward, block by block.

Legend: n key/value heads of all batches, G query heads of a group, r query rows, c keys of a block, p columns of its scores (keys
and padding), w of those the columns that a product writes, D head dimension. A dimension G is left out where that is 1.
Every block is computed in buffers that the next one uses again: writing a product into memory that was mapped for it takes
longer than the product.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import TILE, Block, Blocks, Piece
from .calls import MOST_CALLS, Calls
from .direct import attend_directly
from .method import Method
from .precision import hold_ordinary, hold_small, hold_small_scores
from .sums import Kept, Sums
from .workspace import Workspace, by_group, fill, narrowed, part_of, without_groups

#: Rows whose hidden scores are masked at once on a CPU, where these are so many that it pays to lay out each strip.
STRIP, LEAST_STRIPPED = 128, 2**20
#: As torch's kernels of losses count their reductions.
_NO_REDUCTION = 0


class ChunkedAttention(torch.autograd.Function):
    """`attend` with gradients. Backward keeps q, k and v, and computes blocks again (Rabe & Staats 2021, section 3).

    Where a row's softmax is not taken in one piece it keeps `Kept` as well.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, method: Method) -> Tensor:
        """As `attend`."""
        out, kept = _attend(query, key, value, scale, method, keeps=any(ctx.needs_input_grad))
        ctx.save_for_backward(query, key, value, *(kept or ()))
        ctx.scale, ctx.method = scale, method
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """grad_out `[B, Hq, Sq, D]` -> gradients of query, key and value, in their shapes."""
        query, key, value, *rest = ctx.saved_tensors
        kept = Kept(*rest) if rest else None
        q, k, v, grad_o = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1), _by_group(grad_out, key)
        visited = ctx.method.backward
        arithmetic = _Arithmetic(ctx.method, visited, visited.most_backward_scores, ctx.scale, q.device)
        grad_q, grad_k, grad_v = (torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
        k, v = arithmetic.converted("k", k), arithmetic.converted("v", v)
        for some, blocks in visited.backward:
            sums = Sums(grad_k, grad_v, some, visited, arithmetic.exact)
            for block in blocks:
                arithmetic.differentiate(q, k, v, grad_o, block, kept, grad_q, sums)
                arithmetic.calls.make_if_many()
            sums.finish(arithmetic.calls)
        arithmetic.calls.make()
        return grad_q.view(query.shape), grad_k.view(key.shape), grad_v.view(value.shape), None, None


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, method: Method) -> Tensor:
    """softmax(scale q k^T, masked) v: query `[B, Hq, Sq, D]`, key and value `[B, Hkv, Skv, D]` -> out `[B, Hq, Sq, D]`.

    Errors: `LargeScoresError` where the method looks or is unshifted and a score is beyond `LARGEST_SCORE`, or where it is
    unshifted and values are not `ORDINARY`.
    """
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        out: Tensor = ChunkedAttention.apply(query, key, value, scale, method)  # type: ignore[no-untyped-call]
        return out
    return _attend(query, key, value, scale, method, keeps=False)[0]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, method: Method, *, keeps: bool
) -> tuple[Tensor, Kept | None]:
    q, k, v = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1)
    if method.is_direct and not (keeps and method.keeps_sums):
        return attend_directly(q, k, v, scale, method).view(query.shape), None
    arithmetic = _Arithmetic(method, method.forward, method.forward.most_scores, scale, q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    blocks = method.forward.forward
    kept = Kept.of(out, method) if keeps and method.keeps_sums else None
    totals = None if kept is None else kept.total
    if totals is None and method.unshifted and len(blocks) > 1:
        totals = torch.empty((*q.shape[:-1], 1), dtype=method.products, device=q.device)
    if method.unshifted:
        arithmetic.calls.add(hold_ordinary, v)
    k, v = arithmetic.converted("k", k), arithmetic.converted("v", v)
    for block in blocks:
        if method.unshifted:
            # Where scores are large some of the first block's are, most often: those are looked at first.
            arithmetic.attend_unshifted(q, k, v, block, out, totals, kept, looks=block is blocks[0])
        elif method.forward.cuts_keys:
            arithmetic.attend_online(q, k, v, block, out, kept)
        else:
            arithmetic.attend(q, k, v, block, out)
        arithmetic.calls.make_if_many()
    if method.unshifted and len(blocks) > 1:
        arithmetic.calls.add(hold_small, totals)
    arithmetic.calls.make()
    return out.view(query.shape), kept


class _Arithmetic:
    """What is computed on a block: it is laid out, and computed when `calls` are made."""

    def __init__(self, method: Method, blocks: Blocks, most_scores: int, scale: float, device: torch.device) -> None:
        self._method, self._blocks, self._scale, self._device = method, blocks, scale, device
        self._operands, self._products = method.operands, method.products
        #: What sums over blocks are kept in.
        self.exact = torch.float64 if self._products == torch.float64 else torch.float32
        self._by_matrix = method.is_by_matrix(device)
        # A GPU computes while the next block is laid out.
        self.calls = Calls(MOST_CALLS if device.type == "cpu" else 1)
        self._space = Workspace(blocks, most_scores, method.operands, method.products, device, self.calls)
        #: Keys or values of all heads in the dtype of operands, where those are few enough.
        self.converted = self._space.converted

    def attend(self, q: Tensor, k: Tensor, v: Tensor, block: Block, out: Tensor) -> None:
        """Rows against all keys they see: one softmax and two products. Writes the block's part of `out`."""
        (keys,) = block.keys
        rows, columns = self._space.rows("q rows", q, block), self._space.columns("k", k, block.heads, keys)
        scores = self._scores(rows, columns, block, keys)
        self.calls.add(torch.softmax, scores, -1, out=scores)
        weights = self._space.operand("weights", scores)
        self._write(part_of(out, block), weights, self._space.terms("v", v, block.heads, keys))

    def attend_unshifted(
        self, q: Tensor, k: Tensor, v: Tensor, block: Block, out: Tensor, totals: Tensor | None,
        kept: Kept | None, *, looks: bool,
    ) -> None:  # fmt: skip
        """Rows against their keys part by part, of scores so small that no maximum need be taken off them.

        Then exp and a sum take the place of a softmax's three passes, and parts add up as they are. Writes as `attend_online`,
        and the sums of rows, which tell whether scores were small, to `totals` `[N, G, Sq, 1]`; it `looks` at them at once if so.
        """
        rows, part, dim = self._space.rows("q rows", q, block), part_of(out, block), v.shape[-1]
        mine = None if totals is None else part_of(totals, block)
        ones = TILE if self._method.sums_in_product else 0
        sums = self._space.buffer("sums", (*rows.shape[:2], dim + ones))
        acc, total = narrowed(sums, 2, slice(0, dim)), mine
        if ones:
            total = narrowed(sums, 2, slice(dim, dim + 1))
        elif total is None or total.dim() > acc.dim():
            total = self._space.buffer("totals", (*acc.shape[:2], 1))
        is_cut = len(block.pieces) > 1 and not ones
        of_pieces = total.unsqueeze(0)
        if is_cut:
            of_pieces = self._space.buffer("totals of pieces", (len(block.pieces), *total.shape))
        for piece, of_piece in zip(block.pieces, of_pieces.unbind(), strict=True):
            self._attend_piece(rows, k, v, block, piece, sums, None if ones else of_piece)
        if is_cut:
            self.calls.add(torch.sum, of_pieces, 0, out=total)
        if looks:
            self.calls.add(hold_small, total)
        if mine is not None and mine is not total:
            self.calls.add(mine.copy_, by_group(total, mine))
        self.calls.add(torch.div, by_group(acc, part), by_group(total, part), out=part)
        if kept is not None and kept.out is not out:
            self.calls.add(acc.div_, total)
            self._store(kept.out, block, acc)

    def _attend_piece(
        self, rows: Tensor, k: Tensor, v: Tensor, block: Block, piece: Piece, sums: Tensor, total: Tensor | None
    ) -> None:
        """Add a piece to the sums of rows `[n, G r, D + ones]`, or write it there if it is the first; totals are `[n, G r, 1]`.

        Where the values have columns of ones there are no totals.
        """
        columns = self._space.columns("k", k, block.heads, piece.part)
        values = self._space.terms("v", v, block.heads, piece.part, ones=sums.shape[2] - v.shape[2])
        if piece.keys is not piece.part:
            of_part = slice(piece.keys.start - piece.part.start, piece.keys.stop - piece.part.start)
            columns, values = columns[:, :, of_part], values[:, of_part]
        if unseen := piece.rows.start - block.rows.start:
            rows, sums = rows[:, unseen:], sums[:, unseen:]
            if total is not None:
                self.calls.add(total[:, :unseen].zero_)
                total = total[:, unseen:]
        weights = self._weights(rows, columns, piece.rows, piece.keys)
        if total is not None:
            self.calls.add(torch.sum, weights, -1, keepdim=True, out=total)
        self._add_product(sums, weights, values, is_first=piece is block.pieces[0])

    def attend_online(self, q: Tensor, k: Tensor, v: Tensor, block: Block, out: Tensor, kept: Kept | None) -> None:
        """Rows against their keys part by part. Writes the block's part of `out`, and there what backward needs.

        The online softmax of Milakov & Gimelshein 2018, section 3: the running maximum rescales what was summed before.
        Products are at least float32 here: 16-bit scores less their maximum would be rounded once more.
        """
        rows = self._space.rows("q rows", q, block)
        acc = self._space.buffer("sums", rows.shape)
        highest, total = (self._space.buffer(name, (*acc.shape[:2], 1)) for name in ("highest", "totals"))
        for each, value in ((acc, 0.0), (highest, -math.inf), (total, 0.0)):
            self.calls.add(each.fill_, value)
        for keys in block.keys:
            scores = self._scores(rows, self._space.columns("k", k, block.heads, keys), block, keys)
            self.calls.add(_accumulate, acc, highest, total, scores, self._space.terms("v", v, block.heads, keys))
        self.calls.add(acc.div_, total)
        self._store(out, block, acc)
        for tensor, result in zip(kept or (), (highest, total, acc), strict=False):
            if tensor is not None and tensor is not out:
                self._store(tensor, block, result)

    def differentiate(
        self, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, block: Block, kept: Kept | None,
        grad_q: Tensor, sums: Sums,
    ) -> None:  # fmt: skip
        """The gradients of a block: writes its part of `grad_q`, writes or adds to the sums of dk and dv.

        With what was kept, E = exp(S - max) stands for P = E / total, and dO / total for dO (FlashAttention-2,
        algorithm 2, has P itself from the log-sum-exp).
        """
        rows, grad_rows = self._space.rows("q rows", q, block), self._space.rows("grad rows", grad_out, block)
        highest = delta = None
        slope = self._scale
        if kept is not None:
            highest, total, out = (None if each is None else without_groups(part_of(each, block)) for each in kept)
            divided = self._space.buffer("divided rows", grad_rows.shape)
            delta = self._space.buffer("delta", (*grad_rows.shape[:2], 1))
            self.calls.add(torch.div, grad_rows, total, out=divided)
            self.calls.add(_dot_rows, divided, out, delta)
            # Of twice the gradient of the scores.
            grad_rows, slope = divided, self._scale / 2
        is_first = block.rows.stop == self._blocks.seq_q
        total_q = None if len(block.keys) == 1 else self._space.buffer("query sums", rows.shape, self.exact)
        for keys in block.keys:
            grad_k, grad_v = sums.of(block.heads, keys)
            k_columns = self._space.columns("k", k, block.heads, keys)
            v_columns = self._space.columns("v", v, block.heads, keys)
            if kept is None:
                scores = self._scores(rows, k_columns, block, keys)
                self.calls.add(torch.softmax, scores, -1, out=scores)
            elif highest is None:
                scores = self._weights(rows, k_columns, block.rows, keys)
            else:
                scores = self._scores(rows, k_columns, block, keys)
                self.calls.add(scores.sub_, highest)
                self.calls.add(scores.exp_)
            turned_weights = self._space.operand("weights", scores).transpose(1, 2)
            self._add_product(grad_v, turned_weights, grad_rows, is_first=is_first)
            grad_weights = self._matrix("grad scores", grad_rows, v_columns, keys)
            fill(self.calls, grad_weights, keys.stop - keys.start, 0.0)
            if delta is None:
                self.calls.add(_softmax_gradient, scores, grad_weights)
            else:
                self.calls.add(_twice_exponential_gradient, scores, grad_weights, delta)
            grad_scores = self._space.operand("weights", grad_weights)
            terms = self._space.terms("k", k, block.heads, keys)
            if total_q is None:
                self._write(part_of(grad_q, block), grad_scores, terms, slope)
            else:
                self._add_product(total_q, grad_scores, terms, slope, is_first=keys is block.keys[0])
            self._add_product(grad_k, grad_scores.transpose(1, 2), rows, slope, is_first=is_first)
        if total_q is not None:
            self._store(grad_q, block, total_q)

    def _scores(self, rows: Tensor, columns: Tensor, block: Block, keys: slice) -> Tensor:
        """Scaled scores `[n, G r, c]`, minus infinity where a row does not see a key."""
        scores, count = self._all_scores(rows, columns, keys), keys.stop - keys.start
        if self._method.looks:
            self.calls.add(hold_small_scores, narrowed(scores, 2, slice(0, count)))
        fill(self.calls, scores, count, -math.inf)
        if (diagonal := self._diagonal(scores, block.rows, keys)) is not None:
            self._hide(*diagonal, keys.stop - keys.start)
        return scores

    def _hide(self, rows: Tensor, seen: int, count: int) -> None:
        """Minus infinity at scores `[n G, r, p]` above the diagonal, of so many keys.

        Of many, a strip of rows at a time: what is right of its square is written, which takes a fraction of an addition's time.
        """
        is_large = self._device.type == "cpu" and rows.shape[0] * rows.shape[1] ** 2 >= LEAST_STRIPPED
        height = min(self._blocks.rows, STRIP) if is_large else self._blocks.rows
        hidden = _addends(height, self._products, self._device)
        for top in range(0, rows.shape[1], height):
            strip = narrowed(rows, 1, slice(top, min(top + height, rows.shape[1])))
            first, of_strip = top + seen, strip.shape[1]
            begin, end = max(0, first), min(count, first + of_strip)
            if begin < end:
                addends = narrowed(narrowed(hidden, 0, slice(0, of_strip)), 1, slice(begin - first, end - first))
                self.calls.add(narrowed(strip, 2, slice(begin, end)).add_, addends)
            if end < count:
                self.calls.add(strip[:, :, max(0, end) : count].fill_, -math.inf)

    def _weights(self, rows: Tensor, columns: Tensor, of_rows: slice, keys: slice) -> Tensor:
        """The exponentials of scores that are small, 0 where a row does not see a key: exp is slow at minus infinity."""
        scores = self._all_scores(rows, columns, keys, self._method.unit)
        self.calls.add(self._method.exponential, scores, out=scores)
        # Where the values' columns of ones sum the weights, those of keys of zeros meet zeros there; other padding is no number.
        fill(
            self.calls,
            scores,
            self._blocks.width(keys) if self._method.sums_in_product else keys.stop - keys.start,
            0.0,
        )
        if (diagonal := self._diagonal(scores, of_rows, keys)) is not None:
            by_head, seen = diagonal
            # Over all columns: of some of them torch would make a copy first.
            self.calls.add(by_head.tril_, seen)
        return scores

    def _all_scores(self, rows: Tensor, columns: Tensor, keys: slice, unit: float = 1.0) -> Tensor:
        """Scores by this unit `[n, G r, p]`, of hidden keys as well; what they are in padding is not said.

        A product takes the scale at no cost, and before it is rounded.
        """
        factor = self._scale / unit
        if self._method.turns:
            turned = self._product("turned", columns.transpose(1, 2), rows.transpose(1, 2)).transpose(1, 2)
            scores = self._space.buffer("scores", turned.shape)
            self.calls.add(torch.mul, turned, factor, out=scores)
        else:
            scores = self._matrix("scores", rows, columns, keys, factor)
        return scores

    def _diagonal(self, matrix: Tensor, of_rows: slice, keys: slice) -> tuple[Tensor, int] | None:
        """A matrix `[n, G r, p]` of which some rows do not see all keys, as `[n G, r, p]`; row t sees key t + d: that d.

        None where all rows see all of these keys. d is negative where the first rows see none.
        """
        first = self._blocks.first_diagonal_key(of_rows)
        if first is None or keys.stop - 1 <= first:
            return None
        count = of_rows.stop - of_rows.start
        rows = matrix if matrix.shape[1] == count else matrix.view(-1, count, matrix.shape[-1])
        return rows, first - keys.start

    def _matrix(self, name: str, rows: Tensor, columns: Tensor, keys: slice, factor: float = 1.0) -> Tensor:
        """Products of rows and keys `[n, G r, p]`; what they are in padding is not said."""
        # Padding makes rows of the matrix longer, not the product: oneDNN is slower at an odd number of columns.
        matrix = self._space.scores(name, rows.shape[0], rows.shape[1], keys)
        self._multiply(narrowed(matrix, 2, slice(0, columns.shape[2])), rows, columns, factor)
        return matrix

    def _product(self, name: str, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
        return self._multiply(self._space.buffer(name, (*left.shape[:2], right.shape[2])), left, right, factor)

    def _multiply(self, out: Tensor, left: Tensor, right: Tensor, factor: float, beta: int = 0) -> Tensor:
        """beta out + factor left right in place of `out`: left `[n, a, b]`, right `[n, b, c]` -> `[n, a, c]`."""
        if self._operands != self._products:
            self.calls.add(multiply_wider, out, left, right, beta=beta, alpha=factor)
            return out
        total = out
        if self._by_matrix and left.shape[0] == 1 and left.shape[1] % self._blocks.threads == 0:
            total, left = self._space.by_thread(out, split=True), self._space.by_thread(left, split=True)
            right = self._space.by_thread(right, split=False)
        if factor == 1.0 and not beta:
            self.calls.add(torch.bmm, left, right, out=total)
        else:
            self.calls.add(total.baddbmm_, left, right, beta=beta, alpha=factor)
        return out

    def _write(self, part: Tensor, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
        """Write factor left right to a part of a result `[n, G, r, D]`, at once where that is best, else by way of a buffer."""
        rows = self._space.viewed(part, self._products)
        if rows is not None and self._takes_products(rows):
            self._multiply(rows, left, right, factor)
        else:
            self.calls.add(part.copy_, by_group(self._product("rows", left, right, factor), part))

    def _add_product(self, total: Tensor, left: Tensor, right: Tensor, factor: float = 1.0, *, is_first: bool) -> None:
        """Add factor left right to a total, or write it there if it is the first; what left has more rows are padding."""
        if total.dtype == self._products and total.shape[1] == left.shape[1] and self._takes_products(total):
            self._multiply(total, left, right, factor, beta=0 if is_first else 1)
        else:
            product = narrowed(self._product("addend", left, right, factor), 1, slice(0, total.shape[1]))
            self.calls.add(total.copy_ if is_first else total.add_, product)

    def _takes_products(self, out: Tensor) -> bool:
        """Whether products are best written to `out` `[n, a, c]` itself, and not to a buffer first.

        Matrices that are apart in memory MKL multiplies in turn, each by all threads, and scores leave the caches of the cores
        that wrote them: where these are far apart, to write there again takes half as long again. But of a number of heads
        that threads cannot share evenly, some would wait.
        """
        return not self._by_matrix or out.is_contiguous() or out.shape[0] % self._blocks.threads != 0

    def _store(self, tensor: Tensor, block: Block, result: Tensor) -> None:
        """Write a block's result `[n, G r, ...]` to its part of a tensor `[N, G, Sq, ...]`."""
        part = part_of(tensor, block)
        self.calls.add(part.copy_, by_group(result, part))


def multiply_wider(out: Tensor, left: Tensor, right: Tensor, *, beta: float, alpha: float) -> Tensor:
    """beta out + alpha left right in place, `out` wider than the operands; torch has it for CUDA alone."""
    result: Tensor = torch.ops.aten.baddbmm.dtype_out(out, left, right, out.dtype, beta=beta, alpha=alpha, out=out)
    return result


@lru_cache(maxsize=4)
def _addends(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores on the diagonal: row t sees key t of them and those before."""
    return torch.full((rows, rows), -math.inf, dtype=dtype, device=device).triu_(1)


def _accumulate(acc: Tensor, highest: Tensor, total: Tensor, scores: Tensor, values: Tensor) -> None:
    """One part of the keys of an online softmax: rescale what was summed, in place, and add to it."""
    # Key 0 is in the first part and every row sees it, so the maximum is finite from there on.
    higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
    weights = scores.sub_(higher).exp_()
    rescale = (highest - higher).exp_()
    total.mul_(rescale).add_(weights.sum(-1, keepdim=True))
    acc.mul_(rescale).baddbmm_(weights, values)
    highest.copy_(higher)


def _dot_rows(left: Tensor, right: Tensor, out: Tensor) -> None:
    torch.sum(left * right, -1, keepdim=True, out=out)


def _softmax_gradient(weights: Tensor, grad_weights: Tensor) -> Tensor:
    """dS = P (dP - sum_j P_ij dP_ij) in place of dP, of whole rows."""
    # Autograd's own kernel for a softmax: two passes over the block where the formula takes five.
    backward = torch.ops.aten._softmax_backward_data.out  # noqa: SLF001 - torch has no public name for it
    gradient: Tensor = backward(grad_weights, weights, -1, weights.dtype, grad_input=grad_weights)
    return gradient


def _twice_exponential_gradient(exponentials: Tensor, grad: Tensor, delta: Tensor) -> Tensor:
    """2 dS = 2 E (dE - delta) in place of dE, where delta `[n, G r, 1]` is what a row's dE are on average."""
    # Autograd's kernel for a squared difference, E times (dE - delta)^2: one pass where subtraction and product take two.
    backward = torch.ops.aten.mse_loss_backward.grad_input
    gradient: Tensor = backward(exponentials, grad, delta, _NO_REDUCTION, grad_input=grad)
    return gradient


def _by_group(tensor: Tensor, key: Tensor) -> Tensor:
    """`[B, Hq, S, D]` as `[B Hkv, G, S, D]`."""
    batch, heads, rows, dim = tensor.shape
    heads_kv = key.shape[1]
    if heads == heads_kv:
        return tensor.flatten(0, 1)
    return tensor.reshape(batch * heads_kv, heads // heads_kv, rows, dim)
