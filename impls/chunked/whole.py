"""Attention that is one block, computed as it comes: buffers that serve no other take long to lay out. Legend: kernel.py."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .method import Method
from .precision import hold_ordinary, hold_small, hold_small_scores
from .workspace import without_groups


def attend_whole(q: Tensor, k: Tensor, v: Tensor, scale: float, method: Method) -> Tensor:
    """All rows against all keys: q `[N, G, Sq, D]`, k and v `[N, Skv, D]` -> elements of the result, in the order of q's.

    Errors: as `attend`.
    """
    rows, keys, values = without_groups(q).to(method.operands), k.to(method.operands), v.to(method.operands)
    threads = method.forward.threads
    if rows.shape[0] == 1 and rows.shape[1] % threads == 0 and method.is_by_matrix(q.device):
        rows = rows.unflatten(1, (threads, -1))[0]
        keys, values = keys.expand(threads, -1, -1), values.expand(threads, -1, -1)
    if not method.unshifted:
        scores = _scores(rows, keys.mT, scale, method)
        return torch.bmm(torch.softmax(scores, -1, out=scores), values).to(q.dtype)
    hold_ordinary(v)
    weights = _exponentials(rows, keys.mT, scale, method)
    totals = weights.sum(-1, keepdim=True)
    hold_small(totals)
    return torch.bmm(weights, values).div_(totals).to(q.dtype)


def _exponentials(rows: Tensor, columns: Tensor, scale: float, method: Method) -> Tensor:
    """Of scaled scores `[n, r, c]`, 0 where a row does not see a key."""
    weights = _product(rows, columns, scale / method.unit)
    method.exponential(weights, out=weights)
    if (seen := _seen_by_first(method)) is not None:
        weights.view(-1, method.forward.seq_q, columns.shape[2]).tril_(seen)
    return weights


def _scores(rows: Tensor, columns: Tensor, scale: float, method: Method) -> Tensor:
    """Scaled scores `[n, r, c]`, minus infinity where a row does not see a key.

    Errors: `LargeScoresError` if the method looks and one is large, hidden or not.
    """
    hidden = None
    if (seen := _seen_by_first(method)) is not None:
        blocks = method.forward
        hidden = _hidden(blocks.seq_q, blocks.seq_kv, seen, blocks.group, rows.shape[1], rows.dtype, rows.device)
    if hidden is not None and not method.looks:
        return torch.baddbmm(hidden, rows, columns, alpha=scale)
    scores = _product(rows, columns, scale)
    if method.looks:
        hold_small_scores(scores)
    return scores if hidden is None else scores.add_(hidden)


def _product(rows: Tensor, columns: Tensor, factor: float) -> Tensor:
    return torch.baddbmm(rows.new_empty(()), rows, columns, beta=0, alpha=factor)


def _seen_by_first(method: Method) -> int | None:
    """The last key that the first row sees, if it does not see all."""
    blocks = method.forward
    seen = blocks.first_diagonal_key(slice(0, blocks.seq_q))
    return seen if seen is not None and seen < blocks.seq_kv - 1 else None


@lru_cache(maxsize=4)
def _hidden(
    seq_q: int, seq_kv: int, seen: int, group: int, rows: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What is added to scores of matrices of so many rows `[1 or threads, r, Skv]`: row t of each head sees `seen` + t."""
    of_head = torch.full((seq_q, seq_kv), -math.inf, dtype=dtype, device=device).triu_(seen + 1)
    return of_head.repeat(group, 1).view(-1, rows, seq_kv)
