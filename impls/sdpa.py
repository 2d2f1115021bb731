"""PyTorch's `scaled_dot_product_attention`: as torch picks, and with each of its backends pinned.

torch's `is_causal` is aligned top-left (pytorch#108108). Rectangular causal problems therefore get an explicit
bottom-right mask: `causal_lower_right` where a kernel on CUDA knows it, a dense boolean mask elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from .api import Implementation, RefusedError, Tensors, WrongBackendError
from .limits import ByCapability, Device, Limit, Limits, Support, at_least, at_most, for_device, one_of
from .problem import AttentionProblem, Pass
from .registry import register

_SDP_UTILS = "torch 2.13 aten/src/ATen/native/transformers/cuda/sdp_utils.cpp"

#: The operator that a backend dispatches; the math backend is what remains, plain products and a softmax.
_BACKEND_OF_OPERATOR = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": "flash",
    "aten._scaled_dot_product_flash_attention.default": "flash",
    "aten._scaled_dot_product_efficient_attention.default": "efficient",
    "aten._efficient_attention_forward.default": "efficient",
    "aten._scaled_dot_product_cudnn_attention.default": "cudnn",
    "aten._scaled_dot_product_fused_attention_overrideable.default": "overrideable",
}


#: Backends on CUDA whose kernels can align causal bottom-right without a mask in memory.
_ALIGNED = ("flash", "efficient")


class _Sdpa(Implementation):
    """One call of `scaled_dot_product_attention` under a pinned backend; `pinned` None lets torch pick."""

    pinned: ClassVar[str | None] = None
    #: Limits that hold on CUDA beside those that hold everywhere.
    cuda_limits: ClassVar[Limits] = Limits()
    #: Those that differ by compute capability, of all passes and of those with a backward.
    capability_limits: ClassVar[ByCapability] = {}
    training_limits: ClassVar[ByCapability] = {}

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device's reasons, from the limits of all devices and of CUDA."""
        reasons = super().unavailable(device)
        return (*reasons, *self.cuda_limits.device_refusals(device)) if device.kind == "cuda" else reasons

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Every reason, from the limits of all devices and of CUDA."""
        reasons = super().supports(problem, passes, device).reasons
        if device.kind == "cuda":
            stated = [self.cuda_limits, for_device(self.capability_limits, device)]
            if passes != "forward":
                stated.append(for_device(self.training_limits, device))
            for limits in stated:
                reasons += limits.refusals(problem, passes, device)
        return Support(tuple(dict.fromkeys(reasons)))

    def context(self) -> AbstractContextManager[Any]:
        """The pinned backend, and no other."""
        if self.pinned is None:
            return nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        member = {"math": "MATH"}.get(self.pinned, f"{self.pinned.upper()}_ATTENTION")
        context: AbstractContextManager[Any] = sdpa_kernel([getattr(SDPBackend, member)])
        return context

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Build the mask; one call under the pin shows whether torch accepts it."""
        from torch.nn.functional import scaled_dot_product_attention

        square = problem.is_square_causal
        mask = self._mask(problem, tensors)
        scale, grouped = problem.softmax_scale, problem.group_size > 1

        def call() -> Any:
            return scaled_dot_product_attention(
                *tensors, attn_mask=mask, is_causal=square, scale=scale, enable_gqa=grouped
            )

        if self.pinned is not None:
            self._try(call)
        return call

    def _mask(self, problem: AttentionProblem, tensors: Tensors) -> Any:
        if not problem.is_rectangular_causal:
            return None
        import torch

        device = tensors.query.device
        if device.type == "cuda" and takes_lower_right(self.pinned, _aligned_kernels(problem, tensors)):
            from torch.nn.attention.bias import causal_lower_right

            return causal_lower_right(problem.seq_q, problem.seq_kv)
        ones = torch.ones(problem.seq_q, problem.seq_kv, dtype=torch.bool, device=device)
        return ones.tril(diagonal=problem.causal_offset)

    def _try(self, call: Callable[[], Any]) -> None:
        with warnings.catch_warnings(record=True) as caught, self.context():
            warnings.simplefilter("always")
            try:
                call()
            except RuntimeError as error:
                if "No available kernel" not in str(error):
                    raise
                reasons = "; ".join(str(each.message).split(" (Triggered")[0] for each in caught) or str(error)
                raise RefusedError(f"torch refuses its {self.pinned} backend: {reasons}") from error

    def backend(self, operators: frozenset[str]) -> str | None:
        """The backend that ran, told from the operators it dispatched."""
        ran = sorted({name for op, name in _BACKEND_OF_OPERATOR.items() if op in operators}) or ["math"]
        if self.pinned is not None and ran != [self.pinned]:
            raise WrongBackendError(f"asked for SDPA's {self.pinned} backend, {' and '.join(ran)} ran")
        return "+".join(ran)


def takes_lower_right(pinned: str | None, aligned: frozenset[str]) -> bool:
    """Whether a rectangular causal call gets `causal_lower_right`; `aligned` are the kernels that may run it bottom-right.

    With none of them torch would build its dense mask anew in each call, inside the clock. A pin of such a kernel takes
    it all the same: torch then refuses for its own reasons, and not because there is a mask.
    """
    return bool(aligned) if pinned is None else pinned in _ALIGNED


def _aligned_kernels(problem: AttentionProblem, tensors: Tensors) -> frozenset[str]:
    """Of the kernels that can align bottom-right those that torch would use here, asked as `causal_lower_right` asks."""
    from torch.backends import cuda

    asked = cuda.SDPAParams(*tensors, None, 0.0, False, problem.group_size > 1)
    answers = (cuda.can_use_flash_attention(asked), cuda.can_use_efficient_attention(asked))
    return frozenset(name for name, usable in zip(_ALIGNED, answers, strict=True) if usable)


#: Backward with these kernels lacks the middle of the largest head dimensions where shared memory is small.
_TRAINING_HEAD_DIMS = Limits(
    head_dims=Limit(
        lambda value: value <= 192 or value > 224,
        "at most 192 or above 224",
        f"{_SDP_UTILS}, check_requires_grad_and_head_dim_gt192_constraints",
    )
)
_CUDNN_SHAPES = f"{_SDP_UTILS}, check_cudnn_tensor_shapes"
_CUDNN_128 = Limits(head_dims=at_most(128, multiple_of=8, source=f"{_CUDNN_SHAPES}: 256 on 9.0 and 10.x alone"))
_CUDNN_256 = Limits(head_dims=at_most(256, multiple_of=8, source=_CUDNN_SHAPES))


@register
class SdpaAuto(_Sdpa):
    """torch picks the backend; the record names the one that ran."""

    name = "sdpa"
    summary = "torch SDPA, backend picked by torch"


@register
class SdpaMath(_Sdpa):
    """The explicit products, in torch's own C++."""

    name = "sdpa_math"
    summary = "torch SDPA, math backend pinned"
    pinned = "math"


@register
class SdpaFlash(_Sdpa):
    """FlashAttention: on CUDA flash-attention 2 as torch ships it, on the CPU torch's own kernel."""

    name = "sdpa_flash"
    summary = "torch SDPA, flash backend pinned"
    pinned = "flash"
    limits = Limits(devices=one_of("cpu", "cuda", source="torch SDPA documentation"))
    cuda_limits = Limits(
        capability=at_least(
            (8, 0), below=(12, 2), source=f"{_SDP_UTILS}, check_flash_attention_hardware_support: sm80 to sm121"
        ),
        dtypes=one_of("float16", "bfloat16", source=f"{_SDP_UTILS}, check_dtypes_low_precision"),
        head_dims=at_most(256, source=f"{_SDP_UTILS}, check_head_dim_size_flash"),
    )
    training_limits: ClassVar[ByCapability] = {
        (8, 6): _TRAINING_HEAD_DIMS,
        (9, 0): Limits(),
        (12, 0): _TRAINING_HEAD_DIMS,
    }


@register
class SdpaEfficient(_Sdpa):
    """The memory-efficient kernel that torch took from xformers; CUDA only."""

    name = "sdpa_efficient"
    summary = "torch SDPA, memory-efficient backend pinned"
    pinned = "efficient"
    limits = Limits(devices=one_of("cuda", source=_SDP_UTILS))
    cuda_limits = Limits(
        capability=at_least(
            (5, 0), below=(12, 2), source=f"{_SDP_UTILS}, check_mem_efficient_hardware_support: sm50 to sm121"
        ),
        group_sizes=one_of(1, source=f"{_SDP_UTILS}, can_use_mem_efficient_attention"),
    )
    capability_limits: ClassVar[ByCapability] = {
        (5, 0): Limits(
            dtypes=one_of(
                "float32", "float16", source=f"{_SDP_UTILS}, can_use_mem_efficient_attention: bfloat16 from sm80 on"
            )
        ),
        (8, 0): Limits(),
    }


@register
class SdpaCudnn(_Sdpa):
    """cuDNN's fused attention; CUDA only."""

    name = "sdpa_cudnn"
    summary = "torch SDPA, cuDNN backend pinned"
    pinned = "cudnn"
    limits = Limits(devices=one_of("cuda", source=_SDP_UTILS))
    cuda_limits = Limits(
        platforms=one_of("cuda", source=f"{_SDP_UTILS}, can_use_cudnn_attention"),
        capability=at_least((8, 0), below=(12, 2), source=f"{_SDP_UTILS}, check_cudnn_hardware_support: sm80 to sm121"),
        dtypes=one_of("float16", "bfloat16", source=f"{_SDP_UTILS}, check_dtypes_low_precision"),
        seq_kv=Limit(lambda value: value > 1, "at least 2", _CUDNN_SHAPES),
    )
    capability_limits: ClassVar[ByCapability] = {
        (8, 0): _CUDNN_128,
        (9, 0): _CUDNN_256,
        (9, 1): _CUDNN_128,
        (10, 0): _CUDNN_256,
        (11, 0): _CUDNN_128,
    }
