"""FlexAttention: torch compiles a kernel for the mask (torch.nn.attention.flex_attention).

On the CPU inductor generates C++, so a compiler must be there, and there is no backward.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from .api import Implementation, Tensors
from .limits import Device, Limit, Limits, Support, one_of
from .problem import AttentionProblem, Pass
from .registry import register

_LIMITS = {
    "cpu": Limits(passes=one_of("forward", source="torch 2.13: FlexAttention does not support backward on CPU")),
    "cuda": Limits(
        head_dims=Limit(lambda dim: dim >= 16, "at least 16", "torch 2.13 _inductor/kernel/flex/flex_attention.py")
    ),
}


@register
class FlexAttention(Implementation):
    """Compiled in `prepare`, as one graph: where torch cannot compile, it fails instead of running eagerly."""

    name = "flex_attention"
    summary = "torch FlexAttention, compiled"
    traced = False
    compiled = True

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """On the CPU inductor needs a C++ compiler."""
        reasons = super().unavailable(device)
        if device.kind == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
            reasons += ("no C++ compiler on PATH: torch.compile generates C++ on the CPU",)
        return reasons

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Forward only on the CPU; head dimensions from 16 on a GPU."""
        reasons = super().supports(problem, passes, device).reasons
        return Support(reasons + _LIMITS[device.kind].refusals(problem, passes, device))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Build the block mask and compile for these static shapes."""
        import torch
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        block_mask = None
        if problem.is_causal and problem.seq_q > 1:
            offset = problem.causal_offset
            block_mask = create_block_mask(
                lambda _batch, _head, query, key: key <= query + offset,
                B=None, H=None, Q_LEN=problem.seq_q, KV_LEN=problem.seq_kv,
                device=tensors.query.device.type,
            )  # fmt: skip
        torch.compiler.reset()  # shapes are static, and of one function torch compiles only so many in a process
        compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        scale, grouped = problem.softmax_scale, problem.group_size > 1

        def call() -> Any:
            return compiled(*tensors, block_mask=block_mask, scale=scale, enable_gqa=grouped)

        # torch compiles at the first call, for the grad mode that it finds.
        with torch.set_grad_enabled(tensors.query.requires_grad):
            call()
        return call

    def backend(self, operators: frozenset[str]) -> str | None:
        """`fullgraph` makes torch raise rather than run eagerly, so what ran is what inductor compiled."""
        return "inductor"
