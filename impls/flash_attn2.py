"""flash-attn 2 (Dao 2023, arXiv:2307.08691): `flash_attn.flash_attn_func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import packages
from .api import Implementation, Tensors
from .limits import Device, Limits, at_least, at_most, one_of
from .problem import AttentionProblem
from .registry import register

_README = "flash-attention README, requirements of 2.8"


@register
class FlashAttention2(Implementation):
    """Causal is aligned bottom-right since 2.1; query heads that share a key/value head are native."""

    name = "flash_attn2"
    summary = "flash-attn 2, flash_attn_func"
    package = "flash-attn"
    layout = "BSHD"
    traced = False
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
        reasons = _version_reasons(version)
        if not packages.has_module("flash_attn_2_cuda"):
            reasons += (
                f"flash-attn {version} is installed without its CUDA kernels (no flash_attn_2_cuda): "
                "build it where nvcc and torch are present",
            )
        return reasons

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the function; it takes `[B, S, H, D]`."""
        from flash_attn import flash_attn_func

        scale, causal = problem.softmax_scale, problem.is_causal

        def call() -> Any:
            return flash_attn_func(*tensors, softmax_scale=scale, causal=causal)

        return call

    def backend(self, operators: frozenset[str]) -> str | None:
        """The package has one kernel family; its version says which."""
        return f"flash-attn {packages.version('flash-attn')}"


def _version_reasons(version: str) -> tuple[str, ...]:
    """Why this version is not wrapped; none for 2.1 and later of 2, pre-releases and local builds among them."""
    from packaging.version import InvalidVersion, Version

    try:
        release = Version(version).release
    except InvalidVersion:
        return (f"flash-attn {version} is installed: its version cannot be read, needs at least 2.1 and below 3",)
    if release[0] != 2:
        return (f"flash-attn {version} is installed: this wrapper is for version 2",)
    if release < (2, 1):
        return (f"flash-attn {version} aligns causal top-left: needs at least 2.1 (flash-attention README, 2.1)",)
    return ()
