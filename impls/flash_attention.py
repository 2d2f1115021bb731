"""flash-attn 2, FlashAttention-3 and FlashAttention-4: three packages of one repository (Dao-AILab/flash-attention).

All three read `[B, S, H, D]`, align causal bottom-right and take query heads that share a key/value head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from . import packages
from .api import Implementation, Option, Tensors
from .limits import ByCapability, Device, Limits, Support, at_least, at_most, for_device, one_of
from .problem import AttentionProblem, Pass
from .registry import register

_README = "flash-attention README, requirements of 2.8"
_INTERFACE = "flash-attn 2.8, flash_attn_interface.py"
_HOPPER_README = "flash-attention README, FlashAttention-3 beta: H100 / H800"
_HOPPER_API = "flash-attention hopper/flash_api.cpp, mha_fwd"
_CUTE = "flash-attention flash_attn/cute/interface.py"

_FUNCTION_LIMITS = {
    "flash_attn_func": Limits(),
    "flash_attn_with_kvcache": Limits(passes=one_of("forward", source=f"{_INTERFACE}, flash_attn_with_kvcache")),
    "flash_attn_varlen_func": Limits(),
}


@register
class FlashAttention2(Implementation):
    """Causal is bottom-right since 2.1. Its three functions take the same problem: a batch, a cache, or packed sequences."""

    name = "flash_attn2"
    summary = "flash-attn 2"
    package = "flash-attn"
    layout = "BSHD"
    traced = False
    options: ClassVar[Mapping[str, Option]] = {"function": Option("flash_attn_func", tuple(_FUNCTION_LIMITS))}
    limits = Limits(
        devices=one_of("cuda", source=_README),
        capability=at_least((8, 0), source=_README),
        dtypes=one_of("float16", "bfloat16", source=_README),
        head_dims=at_most(256, source=_README),
    )

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device, the package, its version, its kernels."""
        return (*super().unavailable(device), *self._package_reasons())

    @staticmethod
    def _package_reasons() -> tuple[str, ...]:
        version = packages.version("flash-attn")
        if version is None or not packages.has_module("flash_attn"):
            return ("flash-attn is not installed: pip install flash-attn --no-build-isolation",)
        reasons = _release_reasons("flash-attn", version, 2)
        if not reasons and _release(version) < (2, 1):
            reasons = (
                f"flash-attn {version} aligns causal top-left: needs at least 2.1 (flash-attention README, 2.1)",
            )
        if not packages.has_module("flash_attn_2_cuda"):
            reasons += (
                f"flash-attn {version} is installed without its CUDA kernels (no flash_attn_2_cuda): "
                "build it where nvcc and torch are present",
            )
        return reasons

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Every reason: the package's and the function's."""
        reasons = super().supports(problem, passes, device).reasons
        reasons += _FUNCTION_LIMITS[str(self.option("function"))].refusals(problem, passes, device)
        return Support(tuple(dict.fromkeys(reasons)))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the function; for packed sequences also where each of them begins."""
        import flash_attn

        name = str(self.option("function"))
        function = getattr(flash_attn, name)
        scale, causal = problem.softmax_scale, problem.is_causal
        if name == "flash_attn_varlen_func":
            return _packed(function, problem, tensors)

        def call() -> Any:
            return function(*tensors, softmax_scale=scale, causal=causal)

        return call

    def backend(self, operators: frozenset[str]) -> str | None:
        """The package has one kernel family: its version says which, and the function how it was entered."""
        return f"flash-attn {packages.version('flash-attn')} {self.option('function')}"


def _packed(function: Callable[..., Any], problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
    """Sequences of equal lengths, one after the other: `[B * S, H, D]`. The views are made in the call, for gradients."""
    import torch

    batch, seq_q, seq_kv = problem.batch, problem.seq_q, problem.seq_kv
    scale, causal = problem.softmax_scale, problem.is_causal
    starts_q, starts_kv = (
        torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=tensors.query.device)
        for length in (seq_q, seq_kv)
    )

    def call() -> Any:
        query, key, value = (each.flatten(0, 1) for each in tensors)
        out = function(query, key, value, starts_q, starts_kv, seq_q, seq_kv, softmax_scale=scale, causal=causal)
        return out.unflatten(0, (batch, seq_q))

    return call


@register
class FlashAttention3(Implementation):
    """For Hopper (Shah et al. 2024, arXiv:2407.08608)."""

    name = "flash_attn3"
    summary = "FlashAttention-3, flash_attn_interface"
    package = "flash-attn-3"
    layout = "BSHD"
    traced = False
    limits = Limits(
        devices=one_of("cuda", source=_HOPPER_README),
        platforms=one_of("cuda", source=_HOPPER_README),
        capability=at_least((9, 0), below=(10, 0), source=_HOPPER_README),
        dtypes=one_of("float16", "bfloat16", source=_HOPPER_API),
        head_dims=at_most(256, multiple_of=8, source=_HOPPER_API),
    )

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device, the package, its version, its kernels."""
        return (*super().unavailable(device), *self._package_reasons())

    @staticmethod
    def _package_reasons() -> tuple[str, ...]:
        version = packages.version("flash-attn-3")
        if version is None or not packages.has_module("flash_attn_interface"):
            return (
                "flash-attn-3 is not installed: build it from hopper/ of the flash-attention repository, "
                "or take a wheel of PyTorch's index",
            )
        reasons = _release_reasons("flash-attn-3", version, 3)
        if not packages.has_extension("flash_attn_3", "_C") and not packages.has_module("flash_attn_3_cuda"):
            reasons += (f"flash-attn-3 {version} is installed without its kernels (no flash_attn_3._C)",)
        return reasons

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the function."""
        from flash_attn_interface import flash_attn_func

        return _output_of(flash_attn_func, problem, tensors)

    def backend(self, operators: frozenset[str]) -> str | None:
        """The package has one kernel family; its version says which."""
        return f"flash-attn-3 {packages.version('flash-attn-3')} flash_attn_func"


#: What `_validate_head_dims` asks of equal head dimensions of key and value.
_CUTE_LIMITS: ByCapability = {
    (9, 0): Limits(head_dims=at_most(256, least=8, multiple_of=8, source=f"{_CUTE}, _validate_head_dims, SM90")),
    (10, 0): Limits(
        head_dims=at_most(
            128, least=8, multiple_of=8, also=256, source=f"{_CUTE}, _validate_head_dims, SM100 and SM110"
        )
    ),
}


@register
class FlashAttention4(Implementation):
    """For Hopper and Blackwell, written in CuTe's Python: it has no compiled kernels and builds them at the first call."""

    name = "flash_attn4"
    summary = "FlashAttention-4, flash_attn.cute"
    package = "flash-attn-4"
    layout = "BSHD"
    traced = False
    compiled = True
    limits = Limits(
        devices=one_of("cuda", source=f"{_CUTE}, _flash_attn_fwd"),
        platforms=one_of("cuda", source="flash_attn/cute/README.md: Hopper and Blackwell GPUs"),
        capability=at_least((9, 0), below=(12, 0), source=f"{_CUTE}, _flash_attn_fwd: 9.x, 10.x, 11.x"),
        dtypes=one_of("float16", "bfloat16", source=f"{_CUTE}, _flash_attn_fwd"),
    )

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device, the package, its version, the compiler that it needs."""
        return (*super().unavailable(device), *self._package_reasons())

    @staticmethod
    def _package_reasons() -> tuple[str, ...]:
        # Its modules lie in the folder of flash-attn 2, which may be there without it.
        version = packages.version("flash-attn-4", "flash-attn-cute")
        if version is None or not packages.has_file("flash_attn", "cute/interface.py"):
            return ("flash-attn-4 is not installed: pip install flash-attn-4",)
        is_renamed = packages.version("flash-attn-4") is not None
        reasons = _release_reasons("flash-attn-4", version, 4) if is_renamed else ()
        if not packages.has_module("cutlass"):
            reasons += (
                f"flash-attn-4 {version} is installed without nvidia-cutlass-dsl, which compiles its kernels "
                "(no module cutlass): pip install nvidia-cutlass-dsl",
            )
        return reasons

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Every reason: the package's, and what it asks of head dimensions on this architecture."""
        reasons = super().supports(problem, passes, device).reasons
        reasons += for_device(_CUTE_LIMITS, device).refusals(problem, passes, device)
        return Support(tuple(dict.fromkeys(reasons)))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the function; one call compiles it."""
        from flash_attn.cute import flash_attn_func

        call = _output_of(flash_attn_func, problem, tensors)
        call()
        return call

    def backend(self, operators: frozenset[str]) -> str | None:
        """The package has one kernel family; its version says which."""
        return f"flash-attn-4 {packages.version('flash-attn-4', 'flash-attn-cute')} flash_attn.cute"


def _output_of(function: Callable[..., Any], problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
    """A call that returns the output alone: some versions return the log-sum-exp beside it."""
    scale, causal = problem.softmax_scale, problem.is_causal

    def call() -> Any:
        out = function(*tensors, softmax_scale=scale, causal=causal)
        return out[0] if isinstance(out, tuple) else out

    return call


def _release(version: str) -> tuple[int, ...]:
    """The release of a version, pre-releases and local builds among them; empty where it cannot be read."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version).release
    except InvalidVersion:
        return ()


def _release_reasons(distribution: str, version: str, major: int) -> tuple[str, ...]:
    """Why this version is not wrapped: it cannot be read, or has another major number."""
    release = _release(version)
    if not release:
        return (
            f"{distribution} {version} is installed: its version cannot be read, this wrapper is for version {major}",
        )
    if release[0] != major:
        return (f"{distribution} {version} is installed: this wrapper is for version {major}",)
    return ()
