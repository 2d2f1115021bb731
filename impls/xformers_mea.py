"""xformers: `memory_efficient_attention`, its operator picked by xformers or named in the configuration.

Later versions are stubs over the package mslk, which then has the operators under the names that they had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from . import packages
from .api import Implementation, Option, RefusedError, Tensors
from .limits import ByCapability, Device, Limits, Support, at_least, at_most, for_device, one_of
from .problem import AttentionProblem, Pass
from .registry import register

_DOCSTRING = "xformers 0.0.35, memory_efficient_attention"
_FMHA = "xformers 0.0.35, ops/fmha"
_ON_CUDA = one_of("cuda", source=f"{_FMHA}/__init__.py, ALL_FW_OPS")

_OPERATOR_LIMITS = {
    "auto": Limits(),
    "cutlass": Limits(
        platforms=_ON_CUDA,
        capability=at_least((5, 0), below=(9, 1), source=f"{_FMHA}/cutlass.py"),
        dtypes=one_of("float32", "float16", "bfloat16", source=f"{_FMHA}/cutlass.py"),
    ),
    "cutlass_blackwell": Limits(
        platforms=_ON_CUDA,
        capability=at_least((10, 0), source=f"{_FMHA}/cutlass_blackwell.py"),
        dtypes=one_of("float16", "bfloat16", source=f"{_FMHA}/cutlass_blackwell.py"),
        head_dims=one_of(64, 128, source=f"{_FMHA}/cutlass_blackwell.py"),
        scales=one_of("default", source=f"{_FMHA}/cutlass_blackwell.py, SUPPORTS_CUSTOM_SCALE"),
    ),
    "flash": Limits(
        capability=at_least((8, 0), source=f"{_FMHA}/flash.py"),
        dtypes=one_of("float16", "bfloat16", source=f"{_FMHA}/flash.py"),
        head_dims=at_most(256, multiple_of=8, source=f"{_FMHA}/flash.py"),
    ),
    "flash3": Limits(
        platforms=_ON_CUDA,
        capability=at_least((8, 0), below=(9, 1), source=f"{_FMHA}/flash3.py"),
        dtypes=one_of("float16", "bfloat16", source=f"{_FMHA}/flash3.py"),
        head_dims=at_most(256, least=32, multiple_of=8, source=f"{_FMHA}/flash3.py, FwOp"),
    ),
    "triton_splitk": Limits(
        capability=at_least((8, 0), source=f"{_FMHA}/triton_splitk.py"),
        dtypes=one_of("float16", "bfloat16", source=f"{_FMHA}/triton_splitk.py"),
        head_dims=one_of(16, 32, 64, 128, 256, 512, source=f"{_FMHA}/triton_splitk.py, shape_not_supported_reasons"),
        passes=one_of("forward", source=f"{_FMHA}/triton_splitk.py"),
        causal_seq_q=at_most(16, source=f"{_FMHA}/triton_splitk.py, not_supported_reasons"),
    ),
    "ck": Limits(
        platforms=one_of("rocm", source=f"{_FMHA}/__init__.py, ALL_FW_OPS"),
        dtypes=one_of("float16", "bfloat16", source=f"{_FMHA}/ck.py"),
        head_dims=at_most(512, source=f"{_FMHA}/ck.py, FwOp"),
    ),
}
#: What an operator asks beyond that where there is a backward.
_BACKWARD_LIMITS = {
    "flash3": Limits(head_dims=at_most(256, least=64, multiple_of=8, source=f"{_FMHA}/flash3.py, BwOp")),
    "ck": Limits(head_dims=at_most(256, source=f"{_FMHA}/ck.py, BwOp")),
}
_CAPABILITY_LIMITS: ByCapability = {
    (5, 0): Limits(dtypes=one_of("float32", "float16", source=f"{_FMHA}/common.py: bf16 on A100 and later")),
    (8, 0): Limits(),
}
_MSLK_FOLDER = "attention/fmha/__init__.py"


@register
class Xformers(Implementation):
    """Bottom-right causal by `LowerTriangularFromBottomRightMask`; grouped queries as five dimensions, forward only."""

    name = "xformers"
    summary = "xformers memory_efficient_attention"
    package = "xformers"
    layout = "BSHD"
    traced = False
    options: ClassVar[Mapping[str, Option]] = {"operator": Option("auto", tuple(_OPERATOR_LIMITS))}
    limits = Limits(
        devices=one_of("cuda", source=_DOCSTRING),
        capability=at_least((6, 0), source=_DOCSTRING),
    )
    _forward_operator: str

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device, the package, its kernels, and what the named operator needs."""
        operator = str(self.option("operator"))
        return (
            *super().unavailable(device),
            *_OPERATOR_LIMITS[operator].device_refusals(device),
            *(_package_reasons() or _neighbour_reasons() + _operator_reasons(operator)),
        )

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Every reason: the function's, the operator's, and grouped queries backwards."""
        operator = str(self.option("operator"))
        reasons = super().supports(problem, passes, device).reasons
        stated = [_OPERATOR_LIMITS[operator], for_device(_CAPABILITY_LIMITS, device)]
        if passes != "forward":
            stated.append(_BACKWARD_LIMITS.get(operator, Limits()))
        for limits in stated:
            reasons += limits.refusals(problem, passes, device)
        if problem.group_size > 1 and passes != "forward":
            reasons += (f"pass {passes} with grouped queries: needs forward ({_DOCSTRING})",)
        return Support(tuple(dict.fromkeys(reasons)))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the operator and the mask; one call shows whether xformers accepts them. Grouped heads become a dimension."""
        from xformers.ops import fmha

        operator = self._operator(fmha)
        # Not every operator takes a scale, though it be the default.
        scale = None if problem.scale is None else problem.softmax_scale
        in_blocks = self.option("operator") == "triton_splitk" and problem.is_causal and problem.seq_q > 1
        bias = _blocks(fmha, problem, tensors) if in_blocks else _bottom_right(fmha, problem)

        def inputs() -> Tensors:
            laid_out = _grouped(problem, tensors) if problem.group_size > 1 else tensors
            return Tensors(*(each.flatten(0, 1).unsqueeze(0) for each in laid_out)) if in_blocks else laid_out

        def call() -> Any:
            return fmha.memory_efficient_attention(*inputs(), attn_bias=bias, scale=scale, op=operator)

        def reshaped_call() -> Any:
            return call().reshape(problem.batch, problem.seq_q, problem.heads_q, problem.head_dim)

        chosen = reshaped_call if in_blocks or problem.group_size > 1 else call
        _try(chosen)
        asked = fmha.Inputs(*inputs(), attn_bias=bias, scale=scale)
        self._forward_operator = (operator[0] if operator else _dispatched(fmha, asked)).NAME
        return chosen

    def _operator(self, fmha: Any) -> Any:
        operator = str(self.option("operator"))
        if operator == "auto":
            return None
        module = getattr(fmha, operator)
        return (module.FwOp, getattr(module, "BwOp", None))

    def backend(self, operators: frozenset[str]) -> str | None:
        """The forward operator, by its own name for itself, and the versions; with `auto` the one that xformers picked."""
        over = f" over mslk {packages.version('mslk')}" if _is_stub() else ""
        return f"xformers {packages.version('xformers')}{over} {self._forward_operator}"


def _is_stub() -> bool:
    """Whether this xformers re-exports another package's operators and has none of its own; it then imports silently without."""
    return packages.mentions("xformers", "ops/fmha/__init__.py", "mslk.attention")


def _package_reasons() -> tuple[str, ...]:
    version = packages.version("xformers")
    if version is None or not packages.has_module("xformers"):
        return ("xformers is not installed: pip install 'attnbench[gpu]'",)
    if _is_stub():
        if not packages.has_module("mslk"):
            return (f"xformers {version} is a stub over the package mslk, which is not installed: pip install mslk",)
        if not packages.has_file("mslk", _MSLK_FOLDER):
            words = f"the mslk {packages.version('mslk')} that is installed has no {_MSLK_FOLDER.rpartition('/')[0]}"
            return (f"xformers {version} is a stub over the package mslk, and {words}: pip install --upgrade mslk",)
        return ()
    if not packages.has_extension("xformers", "_C"):
        return (f"xformers {version} is installed without its kernels (no _C extension)",)
    return ()


def _neighbour_reasons() -> tuple[str, ...]:
    """flash-attn-4 lies in the folder of flash-attn 2, which xformers takes to be there when it sees the folder."""
    if not packages.has_module("flash_attn") or packages.has_file("flash_attn", "flash_attn_interface.py"):
        return ()
    return (
        f"xformers fails to import beside flash-attn-4 without flash-attn ({_FMHA}/flash.py): "
        "install flash-attn, or remove flash-attn-4",
    )


def _operator_reasons(operator: str) -> tuple[str, ...]:
    """What a named operator needs beside xformers itself."""
    own = packages.has_extension("xformers", "flash_attn_3/_C")  # up to 0.0.34
    if operator == "flash3" and not own and not packages.has_extension("flash_attn_3", "_C"):
        return (f"operator flash3: needs the package flash-attn-3, which is not installed ({_FMHA}/flash3.py)",)
    if operator == "cutlass_blackwell" and not _is_stub() and not packages.has_module("fbgemm_gpu"):
        return (f"operator cutlass_blackwell: needs the package fbgemm-gpu-genai ({_FMHA}/cutlass_blackwell.py)",)
    return ()


def _bottom_right(fmha: Any, problem: AttentionProblem) -> Any:
    """A causal mask as a bias that takes no memory; one query sees all keys."""
    if problem.is_causal and problem.seq_q > 1:
        return fmha.attn_bias.LowerTriangularFromBottomRightMask()
    return None


def _blocks(fmha: Any, problem: AttentionProblem, tensors: Tensors) -> Any:
    """The causal bias that `triton_splitk` knows: sequences one after the other, each aligned at its last key."""
    return fmha.attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        q_seqlen=[problem.seq_q] * problem.batch,
        kv_padding=problem.seq_kv,
        kv_seqlen=[problem.seq_kv] * problem.batch,
        device=tensors.query.device,
    )


def _grouped(problem: AttentionProblem, tensors: Tensors) -> Tensors:
    """Views `[B, S, Hkv, group, D]`: of the query its heads by group, of key and value one head repeated."""
    group = problem.group_size
    query = tensors.query.unflatten(2, (problem.heads_kv, group))
    key, value = (each.unsqueeze(3).expand(-1, -1, -1, group, -1) for each in (tensors.key, tensors.value))
    return Tensors(query, key, value)


def _try(call: Callable[[], Any]) -> None:
    """One call. Errors: `RefusedError` where xformers has no operator, or the named one does not take these inputs."""
    try:
        call()
    except (NotImplementedError, ValueError) as error:
        reasons = _reasons(str(error))
        if isinstance(error, ValueError) and not reasons:
            raise  # inputs that no operator could take are a mistake of ours
        said = "; ".join(reasons) or " ".join(str(error).split())
        raise RefusedError(f"xformers refuses: {said}{_other_cuda() if 'build with CUDA' in said else ''}") from error


def _other_cuda() -> str:
    """Why kernels that are installed are not loaded, where torch is for another CUDA: xformers itself says that it has none."""
    built = packages.extract("xformers", "cpp_lib.json", r'"cuda": (\d+)\d\d')  # 1208 is 12.8
    here = packages.extract("torch", "version.py", r"^cuda\b.*'(\d+)\.")
    if built is None or here is None or built == here:
        return ""
    return f" (this xformers is built for CUDA {built}, torch here for CUDA {here}: install both for the same)"


def _reasons(message: str) -> list[str]:
    """Each operator with its reasons, from a message that gives every reason a line (ops/fmha/dispatch.py)."""
    _, *parts = re.split(r"^`(\S+)` is not supported because:$", message, flags=re.MULTILINE)
    each_operator = zip(parts[::2], parts[1::2], strict=True)
    return [
        f"{name}: {', '.join(line.strip() for line in lines.strip().splitlines())}" for name, lines in each_operator
    ]


def _dispatched(fmha: Any, inputs: Any) -> Any:
    """The forward operator that xformers picks, asked as its own call asks."""
    needs_gradient = any(each.requires_grad for each in (inputs.query, inputs.key, inputs.value))
    return fmha._dispatch_fw(inputs, needs_gradient)  # noqa: SLF001 - there is no public way to ask
