"""Attention in few blocks, computed as they come: to lay them out takes as long as some of their products. Legend: kernel.py."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .blocks import Block
from .method import Method
from .precision import hold_ordinary, hold_small, hold_small_scores
from .workspace import by_group, narrowed, part_of, without_groups


def attend_directly(q: Tensor, k: Tensor, v: Tensor, scale: float, method: Method) -> Tensor:
    """Rows of all heads against all keys that they see: q `[N, G, Sq, D]`, k and v `[N, Skv, D]` -> out in the order of q.

    Errors: as `attend`.
    """
    if method.unshifted:
        hold_ordinary(v)
    operands, dtype = (q, k, v), q.dtype
    if dtype != method.operands:
        operands = q.to(method.operands), k.to(method.operands), v.to(method.operands)
    steps = _steps(method, q.device)
    if len(steps) == 1:
        out = _attend(*_matrices(*operands, steps[0]), steps[0], scale, method)
        return out if out.dtype == dtype else out.to(dtype)
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    # As in `Calls`: a block's scores push Python itself out of a core's caches.
    laid_out = [(*_matrices(*operands, step), _part(out, step)) for step in steps]
    for step, (rows, columns, values, part) in zip(steps, laid_out, strict=True):
        part.copy_(by_group(_attend(rows, columns, values, step, scale, method), part))
    return out


class _Step(NamedTuple):
    """A block of all heads, `matrices` of them: more than one of a single head are of threads that share its rows.

    Behind the keys come as many of zeros as rows of scores have `padding`. The first row sees no key behind `seen`, if that is
    not the last; what is `hidden` is added to scores from key `begin` on.
    """

    block: Block
    matrices: int
    padding: int
    seen: int | None
    hidden: Tensor | None
    begin: int

    @classmethod
    def of(cls, block: Block, method: Method, device: torch.device) -> Self:
        """How to compute this block."""
        blocks, (visible,) = method.forward, block.keys
        length, matrices, columns = block.rows.stop - block.rows.start, blocks.heads, blocks.columns(visible)
        padding = columns - visible.stop
        if matrices == 1 and blocks.group * length % blocks.threads == 0 and method.is_by_matrix(device):
            matrices = blocks.threads
        seen = blocks.first_diagonal_key(block.rows)
        if seen is None or seen >= visible.stop - 1:
            return cls(block, matrices, padding, None, None, 0)
        if method.unshifted:
            return cls(block, matrices, padding, seen, None, 0)
        # One block takes a call less so. MKL multiplies one matrix of few rows up to three times as fast if it adds to another.
        begin = 0 if blocks.has_one_row_block or matrices == 1 else max(0, seen)
        of_matrix = blocks.group * length * blocks.heads // matrices
        hidden = _hidden((length, columns - begin), seen - begin, blocks.group, of_matrix, method.operands, device)
        return cls(block, matrices, padding, seen, hidden, begin)


@lru_cache(maxsize=4)
def _steps(method: Method, device: torch.device) -> tuple[_Step, ...]:
    """The steps of a forward pass: what does not depend on its tensors takes longer than some of their products."""
    return tuple(_Step.of(block, method, device) for block in method.forward.forward)


@lru_cache(maxsize=4)
def _hidden(
    shape: tuple[int, int], seen: int, group: int, rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What is added to scores of matrices of so many rows `[1 or threads, r, c]`: row t of each head sees key `seen` + t last.

    Blocks that differ only in where they are share it.
    """
    of_head = torch.full(shape, -math.inf, dtype=dtype, device=device).triu_(seen + 1)
    return of_head.repeat(group, 1).view(-1, rows, shape[1])


def _matrices(q: Tensor, k: Tensor, v: Tensor, step: _Step) -> tuple[Tensor, Tensor, Tensor]:
    """A step's rows `[n, G r, D]`, columns `[n, D, p]` and values `[n, p, D]` of q `[N, G, Sq, D]`, k and v `[N, Skv, D]`."""
    rows, which, (visible,) = q, step.block.rows, step.block.keys
    if step.matrices == k.shape[0] and visible.stop == k.shape[1] and which.stop - which.start == q.shape[-2]:
        return without_groups(q), _padded(k, step).mT, _padded(v, step)
    if q.dim() > 3:
        rows = without_groups(part_of(q, step.block))
        which = slice(0, rows.shape[1])
    columns, values = (_padded(_strided(each, visible, step.matrices, repeats=True), step) for each in (k, v))
    return _strided(rows, which, step.matrices), columns.mT, values


def _padded(keys: Tensor, step: _Step) -> Tensor:
    """Keys or values `[n, c, D]` with zeros behind them `[n, p, D]`."""
    return torch.constant_pad_nd(keys, (0, 0, 0, step.padding)) if step.padding else keys


def _part(out: Tensor, step: _Step) -> Tensor:
    """The step's part of `out`, in matrices as its results where these have no groups."""
    return part_of(out, step.block) if out.dim() > 3 else _strided(out, step.block.rows, step.matrices)


def _strided(tensor: Tensor, rows: slice, matrices: int, *, repeats: bool = False) -> Tensor:
    """These r rows of every matrix of `[N, S, D]`; if N is 1, in so many of r / n rows, or as often if it `repeats`: `[n, ., D]`.

    In one call: each view takes as long as some thousand scores.
    """
    count, most, dim = tensor.shape
    length = rows.stop - rows.start
    if matrices == count and length == most:
        return tensor
    apart, step, inner = tensor.stride()
    if matrices > count:
        length = length if repeats else length // matrices
        apart = 0 if repeats else length * step
    return tensor.as_strided((matrices, length, dim), (apart, step, inner), tensor.storage_offset() + rows.start * step)


def _attend(rows: Tensor, columns: Tensor, values: Tensor, step: _Step, scale: float, method: Method) -> Tensor:
    """The results of a step's rows, in their order. Errors: as `attend`."""
    if not method.unshifted:
        scores = _scores(rows, columns, step, scale, method)
        return torch.bmm(torch.softmax(scores, -1, out=scores), values)
    weights = _product(rows, columns, scale / method.unit)
    method.exponential(weights, out=weights)
    if step.seen is not None:
        of_head = step.block.rows.stop - step.block.rows.start
        weights.view(-1, of_head, weights.shape[2]).tril_(step.seen)
    elif step.padding:
        _padding(weights, step).zero_()
    totals = weights.sum(-1, keepdim=True)
    hold_small(totals)
    return torch.bmm(weights, values).div_(totals)


def _scores(rows: Tensor, columns: Tensor, step: _Step, scale: float, method: Method) -> Tensor:
    """Scaled scores `[n, r, p]`, minus infinity where a row does not see a key.

    Errors: `LargeScoresError` if the method looks and one is large, hidden or not.
    """
    if step.hidden is not None and not step.begin and not method.looks:
        return torch.baddbmm(step.hidden, rows, columns, alpha=scale)
    scores = _product(rows, columns, scale)
    if method.looks:
        hold_small_scores(scores)
    if step.hidden is not None:
        narrowed(scores, 2, slice(step.begin, scores.shape[2])).add_(step.hidden)
    elif step.padding:
        _padding(scores, step).fill_(-math.inf)
    return scores


def _padding(scores: Tensor, step: _Step) -> Tensor:
    return scores[:, :, scores.shape[2] - step.padding :]


def _product(rows: Tensor, columns: Tensor, factor: float) -> Tensor:
    # In place: else torch copies what it multiplies by 0 to all of them first.
    product = rows.new_empty((*rows.shape[:2], columns.shape[2]))
    return product.baddbmm_(rows, columns, beta=0, alpha=factor)
