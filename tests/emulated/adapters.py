"""Adapters that make real GPU packages accept CPU tensors: their own Triton kernels, run by Triton's interpreter, in float16.

A plugin: `attnbench conformance flash_attn2_emulated --plugin tests/emulated/adapters.py`. What is tested is the wrappers'
`prepare` against the real packages: layouts, scale, alignment, grouped heads, gradients. Nothing is ever timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

# Read by both packages when they are imported.
os.environ["TRITON_INTERPRET"] = "1"
os.environ["FLASH_ATTENTION_TRITON_AMD_ENABLE"] = "TRUE"

from attnbench.impls import (
    AttentionProblem,
    Device,
    Limits,
    Pass,
    Support,
    Tensors,
    at_most,
    get,
    one_of,
    packages,
    register,
)

_INTERPRETER = "Triton 3.5.1's interpreter"
#: Triton's interpreter computes with bfloat16's bits as if they were integers.
_FLOAT16 = one_of("float16", source=_INTERPRETER)
#: Beyond them the kernel splits the keys, and its sum over the parts is NaN where the last one is short.
_DECODE_LIMITS = Limits(seq_kv=at_most(256, source="flash-attn 2.8.3, flash_attn_triton_amd/fwd_decode.py, as tried"))
FlashAttention2, Xformers = type(get("flash_attn2")), type(get("xformers"))


@register
class EmulatedFlashAttention2(FlashAttention2):
    """flash-attn 2, its kernels for AMD GPUs, which are written in Triton."""

    name = "flash_attn2_emulated"
    emulates = "flash_attn2"
    summary = "flash-attn 2 in Triton's interpreter: for tests"
    limits = replace(
        FlashAttention2.limits, devices=one_of("cpu", source=_INTERPRETER), capability=None, dtypes=_FLOAT16
    )

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device and the package, whose CUDA kernels are not needed."""
        missing = packages.version("flash-attn") is None
        return (*self.limits.device_refusals(device), *(("flash-attn is not installed",) if missing else ()))

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """The wrapper's reasons; and a fault of the package's kernel for AMD GPUs, which the one for CUDA does not share."""
        reasons = super().supports(problem, passes, device).reasons
        if self.option("function") == "flash_attn_with_kvcache":
            reasons += _DECODE_LIMITS.refusals(problem, passes, device)
        return Support(reasons)

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """The wrapper's own, once the package takes CPU tensors."""
        _admit_cpu_to_flash_attn()
        return super().prepare(problem, tensors)


@register
class EmulatedXformers(Xformers):
    """xformers with its `triton_splitk` operator, the one that needs no CUDA."""

    name = "xformers_emulated"
    emulates = "xformers"
    summary = "xformers' triton_splitk in Triton's interpreter: for tests"
    limits = replace(
        Xformers.limits,
        devices=one_of("cpu", source=_INTERPRETER),
        capability=None,
        dtypes=_FLOAT16,
        passes=one_of("forward", source="xformers 0.0.35, ops/fmha/triton_splitk.py"),
    )

    def __init__(self, **given: Any) -> None:
        super().__init__(**({"operator": "triton_splitk"} | given))

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device and the package, whose compiled extension is not needed."""
        missing = packages.version("xformers") is None
        return (*self.limits.device_refusals(device), *(("xformers is not installed",) if missing else ()))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """The wrapper's own, once the operator takes CPU tensors."""
        _admit_cpu_to_xformers()
        return super().prepare(problem, tensors)


@cache
def _admit_cpu_to_flash_attn() -> None:
    """The operators are registered for CUDA alone; what they call runs anywhere that Triton does."""
    from flash_attn import flash_attn_interface as interface

    for operator in (
        interface._flash_attn_forward,
        interface._flash_attn_backward,
        interface._flash_attn_varlen_forward,
        interface._flash_attn_varlen_backward,
    ):
        operator.register_kernel("cpu")(operator._init_fn)


@cache
def _admit_cpu_to_xformers() -> None:
    import torch
    from xformers.ops.fmha import triton_splitk

    triton_splitk.FwOp.SUPPORTED_DEVICES = {"cuda", "cpu"}
    # The operator asks it to choose the size of its blocks: as on an A100.
    torch.cuda.get_device_capability = lambda _=None: (8, 0)
