"""Attention computed for two halves of the batch-and-heads in turn: an implementation from another distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnbench.impls import AttentionProblem, Implementation, Limits, Tensors, one_of


class Halves(Implementation):
    """Half of the key/value heads at a time, through torch's own attention."""

    name = "halves"
    summary = "an out-of-tree example"
    package = "attnbench-halves"
    limits = Limits(masks=one_of("full", source="attnbench-halves 0.1"))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the halves."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        middle = max(1, problem.heads_kv // 2)
        parts = [slice(0, middle), slice(middle, problem.heads_kv)]

        def call() -> Any:
            outs = []
            for part in parts:
                if part.start == part.stop:
                    continue
                queries = slice(part.start * problem.group_size, part.stop * problem.group_size)
                query, key, value = tensors.query[:, queries], tensors.key[:, part], tensors.value[:, part]
                outs.append(
                    scaled_dot_product_attention(query, key, value, scale=problem.softmax_scale, enable_gqa=True)
                )
            return torch.cat(outs, dim=1)

        return call
