"""Attention in few blocks, computed as they come: to lay them out takes as long as some of their products. Legend: kernel.py."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .method import Method
from .precision import hold_ordinary, hold_small, hold_small_scores
from .workspace import by_group, narrowed, part_of, without_groups


def attend_directly(q: Tensor, k: Tensor, v: Tensor, scale: float, method: Method) -> Tensor:
    """Rows of all heads against all keys that they see: q `[N, G, Sq, D]`, k and v `[N, Skv, D]` -> out in the order of q.

    Errors: as `attend`.
    """
    if method.unshifted:
        hold_ordinary(v)
    rows, keys, values = q.to(method.operands), k.to(method.operands), v.to(method.operands)
    blocks = method.forward.forward
    if len(blocks) == 1:
        return _attend(without_groups(rows), keys, values, blocks[0].rows, scale, method).to(q.dtype)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for block in blocks:
        (seen,) = block.keys
        part = part_of(out, block)
        of_rows = without_groups(part_of(rows, block))
        result = _attend(of_rows, narrowed(keys, 1, seen), narrowed(values, 1, seen), block.rows, scale, method)
        part.copy_(by_group(result, part))
    return out


def _attend(rows: Tensor, keys: Tensor, values: Tensor, which: slice, scale: float, method: Method) -> Tensor:
    """Some rows of each head `[n, G r, D]`, the sequence's rows `which` -> their results, in this order: `[n, G r, D]`.

    Of one head that threads share they are `[threads, G r / threads, D]`. Errors: as `attend`.
    """
    threads = method.forward.threads
    if rows.shape[0] == 1 and rows.shape[1] % threads == 0 and method.is_by_matrix(rows.device):
        rows = rows.unflatten(1, (threads, -1))[0]
        keys, values = keys.expand(threads, -1, -1), values.expand(threads, -1, -1)
    seen = _seen_by_first(which, keys, method)
    if not method.unshifted:
        scores = _scores(rows, keys.mT, which, seen, scale, method)
        return torch.bmm(torch.softmax(scores, -1, out=scores), values)
    weights = _product(rows, keys.mT, scale / method.unit)
    method.exponential(weights, out=weights)
    if seen is not None:
        weights.view(-1, which.stop - which.start, weights.shape[2]).tril_(seen)
    totals = weights.sum(-1, keepdim=True)
    hold_small(totals)
    return torch.bmm(weights, values).div_(totals)


def _seen_by_first(which: slice, keys: Tensor, method: Method) -> int | None:
    """The last key that the first of these rows sees, if it does not see all of these."""
    seen = method.forward.first_diagonal_key(which)
    return seen if seen is not None and seen < keys.shape[1] - 1 else None


def _scores(rows: Tensor, columns: Tensor, which: slice, seen: int | None, scale: float, method: Method) -> Tensor:
    """Scaled scores `[n, r, c]`, minus infinity where a row does not see a key.

    Errors: `LargeScoresError` if the method looks and one is large, hidden or not.
    """
    hidden, begin = None, 0
    if seen is not None:
        # One block takes a call less so. MKL multiplies one matrix of few rows up to three times as fast if it adds to another.
        begin = 0 if method.forward.has_one_row_block or rows.shape[0] == 1 else max(0, seen)
        shape = which.stop - which.start, columns.shape[2] - begin
        hidden = _hidden(shape, seen - begin, method.forward.group, rows.shape[1], rows.dtype, rows.device)
        if not begin and not method.looks:
            return torch.baddbmm(hidden, rows, columns, alpha=scale)
    scores = _product(rows, columns, scale)
    if method.looks:
        hold_small_scores(scores)
    if hidden is not None:
        narrowed(scores, 2, slice(begin, scores.shape[2])).add_(hidden)
    return scores


def _product(rows: Tensor, columns: Tensor, factor: float) -> Tensor:
    return torch.baddbmm(rows.new_empty(()), rows, columns, beta=0, alpha=factor)


@lru_cache(maxsize=4)
def _hidden(
    shape: tuple[int, int], seen: int, group: int, rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What is added to scores of matrices of so many rows `[1 or threads, r, c]`: row t of each head sees key `seen` + t last."""
    of_head = torch.full(shape, -math.inf, dtype=dtype, device=device).triu_(seen + 1)
    return of_head.repeat(group, 1).view(-1, rows, shape[1])
