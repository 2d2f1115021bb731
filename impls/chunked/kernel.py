"""The arithmetic of chunked attention: forward and backward over blocks, products in float32 (float64 for float64).

Legend: n key/value heads of all batches, G query heads of a group, r query rows, c keys of a block, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import Blocks


class ChunkedAttention(torch.autograd.Function):
    """softmax(scale q k^T, masked) v. Backward keeps q, k, v, out and one number a row; blocks are computed again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Blocks) -> Tensor:
        """query `[B, Hq, Sq, D]`, key and value `[B, Hkv, Skv, D]` -> out `[B, Hq, Sq, D]`."""
        q, k, v = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        log_sums = torch.empty(q.shape[:-1], dtype=_working_dtype(q), device=q.device)
        for heads in blocks.head_slices(k.shape[0]):
            for rows in blocks.query_slices():
                out[heads, :, rows], log_sums[heads, :, rows] = _attend(q, k, v, heads, rows, scale, blocks)
        out = out.view(query.shape)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.scale, ctx.blocks = scale, blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """grad_out `[B, Hq, Sq, D]` -> gradients of query, key and value, in their shapes."""
        query, key, value, out, log_sums = ctx.saved_tensors
        blocks, scale = ctx.blocks, ctx.scale
        q, k, v = _by_group(query, key), key.flatten(0, 1), value.flatten(0, 1)
        grad_out, out = _by_group(grad_out, key), _by_group(out, key)
        grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        grad_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
        grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        for heads in blocks.head_slices(k.shape[0]):
            sum_k = torch.zeros(k[heads].shape, dtype=log_sums.dtype, device=k.device)
            sum_v = torch.zeros_like(sum_k)
            for rows in blocks.query_slices():
                q_rows = _rows(q, heads, rows).mul_(scale)
                grad_rows = _rows(grad_out, heads, rows)
                # delta_i = sum_j P_ij dP_ij = dO_i . O_i: the softmax's own gradient (FlashAttention-2, algorithm 2)
                delta = (grad_rows * _rows(out, heads, rows)).sum(-1, keepdim=True)
                log_sum = log_sums[heads, :, rows].flatten(1, 2).unsqueeze(-1)
                sum_q = torch.zeros_like(q_rows)
                for keys in blocks.key_slices(rows):
                    k_block, v_block = k[heads, keys].to(sum_k.dtype), v[heads, keys].to(sum_k.dtype)
                    weights = _scores(q_rows, k_block, rows, keys, blocks).sub_(log_sum).exp_()
                    sum_v[:, keys].baddbmm_(weights.transpose(1, 2), grad_rows)
                    grad_scores = torch.bmm(grad_rows, v_block.transpose(1, 2)).sub_(delta).mul_(weights)
                    sum_q.baddbmm_(grad_scores, k_block)
                    sum_k[:, keys].baddbmm_(grad_scores.transpose(1, 2), q_rows)
                grad_q[heads, :, rows] = sum_q.mul_(scale).view(grad_q[heads, :, rows].shape)
            grad_k[heads], grad_v[heads] = sum_k, sum_v
        return grad_q.view(query.shape), grad_k.view(key.shape), grad_v.view(value.shape), None, None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, heads: slice, rows: slice, scale: float, blocks: Blocks
) -> tuple[Tensor, Tensor]:
    """A block of query rows against all keys it sees: out `[n, G, r, D]` and log-sum-exp `[n, G, r]`.

    The online softmax of Milakov & Gimelshein 2018, section 3: the running maximum rescales what was summed before.
    """
    q_rows = _rows(q, heads, rows).mul_(scale)
    highest = q_rows.new_full((*q_rows.shape[:2], 1), float("-inf"))
    total = torch.zeros_like(highest)
    acc = torch.zeros_like(q_rows)
    for keys in blocks.key_slices(rows):
        scores = _scores(q_rows, k[heads, keys].to(q_rows.dtype), rows, keys, blocks)
        # Key 0 is in the first block and every row sees it, so the maximum is finite from there on.
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights = scores.sub_(higher).exp_()
        rescale = (highest - higher).exp_()
        total = total.mul_(rescale).add_(weights.sum(-1, keepdim=True))
        acc = acc.mul_(rescale).baddbmm_(weights, v[heads, keys].to(acc.dtype))
        highest = higher
    shape = (*q[heads, :, rows].shape[:-1], q.shape[-1])
    return acc.div_(total).view(shape), total.log_().add_(highest).view(shape[:-1])


def _scores(q_rows: Tensor, k_block: Tensor, rows: slice, keys: slice, blocks: Blocks) -> Tensor:
    """Scaled, masked scores `[n, G r, c]`; only a block that crosses the diagonal is masked."""
    scores = torch.bmm(q_rows, k_block.transpose(1, 2))
    if blocks.crosses_diagonal(rows, keys):
        last_seen = torch.arange(rows.start, rows.stop, device=scores.device) + blocks.seq_kv - blocks.seq_q
        hidden = torch.arange(keys.start, keys.stop, device=scores.device) > last_seen.unsqueeze(-1)
        group = scores.shape[1] // hidden.shape[0]
        scores.unflatten(1, (group, hidden.shape[0])).masked_fill_(hidden, float("-inf"))
    return scores


def _by_group(tensor: Tensor, key: Tensor) -> Tensor:
    """`[B, Hq, S, D]` as `[B Hkv, G, S, D]`."""
    heads_kv = key.shape[1]
    by_group: Tensor = tensor.unflatten(1, (heads_kv, tensor.shape[1] // heads_kv))
    return by_group.flatten(0, 1)


def _rows(grouped: Tensor, heads: slice, rows: slice) -> Tensor:
    """A new tensor `[n, G r, D]` of these rows, in the working dtype."""
    block = grouped[heads, :, rows]
    return block.to(_working_dtype(grouped), copy=True, memory_format=torch.contiguous_format).flatten(1, 2)


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
