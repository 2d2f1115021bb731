"""ONNX Runtime on the CPU: its attention operators, each as a model of one node that is bound to the memory of our tensors.

Sources: onnxruntime docs/ContribOperators.md (com.microsoft); onnx docs/Operators.md, Attention of opset 23.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from . import packages
from .api import Implementation, Option, RefusedError, Tensors
from .limits import Device, Limits, Support, one_of
from .problem import AttentionProblem, Pass
from .registry import register

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
#: The first opset that has Attention; an older intermediate representation than the newest is read by every release.
_OPSET, _IR_VERSION = 23, 10
#: Calls of each operator in the race; the shortest counts.
_RACE_CALLS = 3
#: Classes of the package's errors, which have no public base, that mean: there is no such kernel, or not for these inputs.
_REFUSALS = ("NotImplemented", "InvalidArgument", "InvalidGraph")


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
        asked = str(self.option("operator"))
        calls: dict[str, _Call] = {}
        refusals = []
        for operator in _candidates(problem) if asked == "fastest" else (asked,):
            try:
                calls[operator] = _Call(operator, problem, tensors)
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


class _Call:
    """A session of one operator, whose inputs are our tensors and whose output is a tensor that each call writes anew.

    Errors: `RefusedError` where the package has no such kernel.
    """

    def __init__(self, operator: str, problem: AttentionProblem, tensors: Tensors) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors are raised; warnings are of no use to a reader of a benchmark
        self._out = torch.empty_like(tensors.query)
        try:
            model = _model(operator, problem).SerializeToString()
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._binding = self._session.io_binding()
            self._bind(dict(zip(("query", "key", "value"), tensors, strict=True)) | {"out": self._out})
            self()
        except Exception as error:
            if type(error).__name__ in _REFUSALS:
                raise RefusedError(f"onnxruntime refuses {operator}: {' '.join(str(error).split())}") from error
            raise

    @property
    def threads(self) -> int:
        """The session's threads within an operator."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def __call__(self) -> Any:
        """Run; the output is complete on return."""
        self._session.run_with_iobinding(self._binding)
        return self._out

    def shortest_s(self) -> float:
        """The shortest of a few calls, in seconds."""
        times = []
        for _ in range(_RACE_CALLS):
            begin = time.perf_counter()
            self()
            times.append(time.perf_counter() - begin)
        return min(times)

    def _bind(self, ours: dict[str, Any]) -> None:
        """Every input and output to an address; an output that we do not need gets memory that it may write each time."""
        import torch

        dtypes = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
        for node in self._session.get_inputs():
            self._binding.bind_input(node.name, "cpu", 0, _numpy_type(node.type), node.shape, ours[node.name].data_ptr())
        self._held = []
        for node in self._session.get_outputs():
            tensor = ours.get(node.name)
            if tensor is None:
                tensor = torch.empty(node.shape, dtype=dtypes[node.type])
                self._held.append(tensor)
            self._binding.bind_output(node.name, "cpu", 0, _numpy_type(node.type), node.shape, tensor.data_ptr())


def _candidates(problem: AttentionProblem) -> tuple[str, ...]:
    cpu = Device("cpu")
    return tuple(name for name, limits in _OPERATOR_LIMITS.items() if not limits.refusals(problem, "forward", cpu))


def _numpy_type(onnx_type: str) -> Any:
    import numpy

    return {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}[onnx_type]


def _model(operator: str, problem: AttentionProblem) -> Any:
    """A graph of one node: query `[B, Sq, Hq D]`, key and value `[B, Skv, Hkv D]`, out `[B, Sq, Hq D]`."""
    from onnx import TensorProto, helper

    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[problem.dtype]
    batch, query_width, key_width = problem.batch, problem.heads_q * problem.head_dim, problem.heads_kv * problem.head_dim

    def described(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, element, shape)

    inputs = [
        described("query", batch, problem.seq_q, query_width),
        described("key", batch, problem.seq_kv, key_width),
        described("value", batch, problem.seq_kv, key_width),
    ]
    outputs = [described("out", batch, problem.seq_q, query_width)]
    constants = _constants(operator, problem)
    names = {each.name for each in constants}
    wanted, attributes = _signature(operator, problem)
    if operator == "GroupQueryAttention":
        cache = (batch, problem.heads_kv, problem.seq_kv, problem.head_dim)
        outputs += [described("present_key", *cache), described("present_value", *cache)]
    given = ["query", "key", "value", *(name if name in names else "" for name in wanted)]
    node = helper.make_node(
        operator,
        given,
        [each.name for each in outputs],
        domain="" if operator == "Attention" else "com.microsoft",
        scale=problem.softmax_scale,
        **attributes,
    )
    graph = helper.make_graph([node], operator, inputs, outputs, initializer=constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _signature(operator: str, problem: AttentionProblem) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of an operator's inputs after query, key and value, as far as we give any, and its attributes."""
    square = int(problem.is_causal and problem.causal_offset == 0 and problem.seq_q > 1)
    if operator == "MultiHeadAttention":
        return ("bias", "key_padding_mask", "mask"), {"num_heads": problem.heads_q, "unidirectional": square}
    if operator == "GroupQueryAttention":
        heads = {"num_heads": problem.heads_q, "kv_num_heads": problem.heads_kv}
        return ("past_key", "past_value", "seqlens_k", "total_sequence_length"), heads
    heads = {"q_num_heads": problem.heads_q, "kv_num_heads": problem.heads_kv}
    return ("mask",), heads | {"is_causal": square}


def _constants(operator: str, problem: AttentionProblem) -> list[Any]:
    """What the graph holds beside its node: lengths, or the mask of a rectangular causal problem."""
    import numpy
    from onnx import numpy_helper

    if operator == "GroupQueryAttention":
        lengths = numpy.full(problem.batch, problem.seq_kv - 1, numpy.int32)  # the operator wants one less
        total = numpy.array(problem.seq_kv, numpy.int32)
        return [numpy_helper.from_array(lengths, "seqlens_k"), numpy_helper.from_array(total, "total_sequence_length")]
    if not problem.is_causal or problem.seq_q == 1 or problem.causal_offset == 0:
        return []
    seen = numpy.tri(problem.seq_q, problem.seq_kv, problem.causal_offset, dtype=bool)
    if operator == "MultiHeadAttention":
        added = numpy.where(seen, 0.0, -numpy.inf).astype(problem.dtype)
        return [numpy_helper.from_array(added[None, None], "mask")]
    return [numpy_helper.from_array(seen, "mask")]
