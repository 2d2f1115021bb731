"""The textbook: an explicit matrix of scores, its softmax, and the weighted sum of the values.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .api import Implementation, Tensors
from .problem import AttentionProblem
from .registry import register


@register
class Naive(Implementation):
    """softmax(scale q k^T) v with every intermediate in the problem's dtype; memory grows with Sq x Skv."""

    name = "naive"
    summary = "explicit softmax(QK^T)V"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """A group's query heads are folded into rows, so that keys and values are never repeated."""
        import torch

        batch, heads_kv, group = problem.batch, problem.heads_kv, problem.group_size
        seq_q, seq_kv, dim = problem.seq_q, problem.seq_kv, problem.head_dim
        scale = problem.softmax_scale
        hidden = None
        if problem.is_causal and seq_q > 1:
            ones = torch.ones(seq_q, seq_kv, dtype=torch.bool, device=tensors.query.device)
            hidden = ones.triu(diagonal=problem.causal_offset + 1)

        def call() -> Any:
            query = tensors.query.reshape(batch, heads_kv, group * seq_q, dim)
            scores = (query @ tensors.key.transpose(-2, -1)) * scale
            if hidden is not None:
                by_head = scores.view(batch, heads_kv, group, seq_q, seq_kv)
                scores = by_head.masked_fill(hidden, float("-inf")).view_as(scores)
            out = torch.softmax(scores, dim=-1) @ tensors.value
            return out.reshape(problem.query_shape)

        return call
