"""xformers: `memory_efficient_attention`, its operator picked by xformers or named in the configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from . import packages
from .api import Implementation, Option, RefusedError, Tensors
from .limits import Device, Limits, Support, at_least, at_most, one_of
from .problem import AttentionProblem, Pass
from .registry import register

_DOCSTRING = "xformers 0.0.35, memory_efficient_attention"
_FMHA = "xformers 0.0.35, ops/fmha"

_OPERATOR_LIMITS = {
    "auto": Limits(),
    "cutlass": Limits(
        capability=at_least((5, 0), below=(9, 1), source=f"{_FMHA}/cutlass.py"),
        group_sizes=one_of(1, source=f"{_FMHA}/cutlass.py: no 5-dimensional backward"),
    ),
    "flash": Limits(
        capability=at_least((8, 0), source=f"{_FMHA}/flash.py"),
        dtypes=one_of("float16", "bfloat16", source=f"{_FMHA}/flash.py"),
        head_dims=at_most(256, multiple_of=8, source=f"{_FMHA}/flash.py"),
    ),
    "triton_splitk": Limits(
        capability=at_least((8, 0), source=f"{_FMHA}/triton_splitk.py"),
        dtypes=one_of("float16", "bfloat16", source=f"{_FMHA}/triton_splitk.py"),
        head_dims=at_most(512, source=f"{_FMHA}/triton_splitk.py"),
        passes=one_of("forward", source=f"{_FMHA}/triton_splitk.py"),
    ),
}


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
        operator = _OPERATOR_LIMITS[str(self.option("operator"))].device_refusals(device)
        return (*super().unavailable(device), *operator, *self._package_reasons())

    @staticmethod
    def _package_reasons() -> tuple[str, ...]:
        version = packages.version("xformers")
        if version is None or not packages.has_module("xformers"):
            return ("xformers is not installed: pip install 'attnbench[gpu]'",)
        if not packages.has_extension("xformers", "_C") and not packages.has_module("mslk"):
            return (f"xformers {version} is installed without its kernels (no _C extension, no mslk)",)
        return ()

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Every reason: the function's, the operator's, and grouped queries backwards."""
        reasons = super().supports(problem, passes, device).reasons
        reasons += _OPERATOR_LIMITS[str(self.option("operator"))].refusals(problem, passes, device)
        if problem.group_size > 1 and passes != "forward":
            reasons += (f"pass {passes} with grouped queries: needs forward ({_DOCSTRING})",)
        return Support(tuple(dict.fromkeys(reasons)))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Bind the operator and the mask; one call shows whether xformers accepts them. Grouped heads become a dimension."""
        from xformers.ops import fmha

        bias = None
        if problem.is_causal and problem.seq_q > 1:
            bias = fmha.attn_bias.LowerTriangularFromBottomRightMask()
        operator = self._operator(fmha)
        scale, grouped = problem.softmax_scale, problem.group_size > 1

        def call() -> Any:
            return fmha.memory_efficient_attention(*tensors, attn_bias=bias, scale=scale, op=operator)

        def grouped_call() -> Any:
            out = fmha.memory_efficient_attention(*_grouped(problem, tensors), attn_bias=bias, scale=scale, op=operator)
            return out.flatten(2, 3)

        chosen = grouped_call if grouped else call
        _try(chosen)
        inputs = fmha.Inputs(*(_grouped(problem, tensors) if grouped else tensors), attn_bias=bias, scale=scale)
        self._forward_operator = (operator[0] if operator else _dispatched(fmha, inputs)).NAME
        return chosen

    def _operator(self, fmha: Any) -> Any:
        names = {"cutlass": "MemoryEfficientAttentionCutlassOp", "flash": "MemoryEfficientAttentionFlashAttentionOp"}
        operator = str(self.option("operator"))
        if operator == "auto":
            return None
        return (fmha.triton_splitk.FwOp, None) if operator == "triton_splitk" else getattr(fmha, names[operator])

    def backend(self, operators: frozenset[str]) -> str | None:
        """The forward operator, by xformers' own name for it and its version; with `auto` the one that xformers picked."""
        return f"xformers {packages.version('xformers')} {self._forward_operator}"


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
        raise RefusedError(f"xformers refuses: {'; '.join(reasons) or ' '.join(str(error).split())}") from error


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
