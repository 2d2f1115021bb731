"""ONNX Runtime on the CPU: its attention operators, each as a model of one node that is bound to the memory of our tensors.

Sources: onnxruntime docs/ContribOperators.md (com.microsoft); onnx docs/Operators.md, Attention of opset 23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .. import packages
from ..api import Implementation, Option, RefusedError, Tensors
from ..limits import Device, Limits, Support, one_of
from ..problem import AttentionProblem, Pass
from ..registry import register

_CONTRIB = "onnxruntime docs/ContribOperators.md"
#: What each operator cannot do, beside what the package cannot.
_OPERATOR_LIMITS = {
    "MultiHeadAttention": Limits(group_sizes=one_of(1, source=_CONTRIB)),
    "GroupQueryAttention": Limits(
        masks=one_of("causal", source=_CONTRIB),
        causal_offsets=one_of(0, source=f"{_CONTRIB}: earlier keys come from a cache in a layout of its own"),
    ),
    "Attention": Limits(),
}


@register
class OnnxRuntime(Implementation):
    """Forward only. `operator: fastest` races in `prepare` the operators that take the problem; the record says which won.

    ONNX aligns causal top-left, so that rectangular causal problems get an explicit bottom-right mask.
    """

    name = "onnxruntime"
    summary = "ONNX Runtime's attention operators on the CPU"
    package = "onnxruntime"
    layout = "BSHD"
    traced = False
    options: ClassVar[Mapping[str, Option]] = {"operator": Option("fastest", ("fastest", *_OPERATOR_LIMITS))}
    limits = Limits(
        devices=one_of("cpu", source="this wrapper uses the CPU execution provider"),
        dtypes=one_of("float32", "float16", source="onnxruntime docs/OperatorKernels.md: no CPU kernel takes bfloat16"),
        passes=one_of("forward", source="ONNX Runtime runs inference: its operators have no gradients"),
    )
    _ran = ""

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device, and two packages: one that makes models, one that runs them."""
        missing = [name for name in ("onnxruntime", "onnx") if not packages.has_module(name)]
        reasons = (f"{' and '.join(missing)} not installed: pip install 'attnbench[cpu]'",) if missing else ()
        return (*super().unavailable(device), *reasons)

    def supports(self, problem: AttentionProblem, passes: Pass, device: Device) -> Support:
        """Every reason: the package's, and the named operator's."""
        reasons = super().supports(problem, passes, device).reasons
        named = _OPERATOR_LIMITS.get(str(self.option("operator")), Limits())
        return Support(tuple(dict.fromkeys((*reasons, *named.refusals(problem, passes, device)))))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """A session for each operator that takes the problem, and the fastest of them."""
        from .session import BoundSession

        asked = str(self.option("operator"))
        calls: dict[str, BoundSession] = {}
        refusals = []
        for operator in _candidates(problem) if asked == "fastest" else (asked,):
            try:
                calls[operator] = BoundSession(operator, problem, tensors)
            except RefusedError as error:
                refusals.append(str(error))
        if not calls:
            raise RefusedError("; ".join(refusals))
        chosen = min(calls, key=lambda operator: calls[operator].shortest_s())
        race = "" if len(calls) == 1 else f", fastest of {', '.join(calls)}"
        self._ran = f"{chosen}, {calls[chosen].threads} threads{race}"
        return calls[chosen]

    def backend(self, operators: frozenset[str]) -> str | None:
        """The package's version, the operator that ran, and the threads of its session."""
        return f"onnxruntime {packages.version('onnxruntime')} {self._ran}"


def _candidates(problem: AttentionProblem) -> tuple[str, ...]:
    cpu = Device("cpu")
    return tuple(name for name, limits in _OPERATOR_LIMITS.items() if not limits.refusals(problem, "forward", cpu))
