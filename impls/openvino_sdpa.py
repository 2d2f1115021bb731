"""OpenVINO on the CPU: ScaledDotProductAttention as a model of one node, bound to the memory of our tensors.

Source: OpenVINO operation specification, ScaledDotProductAttention-13.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from . import packages
from .api import Implementation, RefusedError, Tensors
from .limits import Device, Limits, one_of
from .problem import AttentionProblem
from .registry import register

_SPECIFICATION = "OpenVINO operation specification, ScaledDotProductAttention-13"
#: What the node is called, in the model and in the compiled graph, whatever kernel it became there.
_NODE = "attention"
#: OpenVINO's names for our dtypes.
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@register
class OpenVino(Implementation):
    """Forward only. The compiled model says in which precision it runs; another than the problem's is refused.

    The operation aligns causal top-left, so that rectangular causal problems get an explicit bottom-right mask.
    """

    name = "openvino"
    summary = "OpenVINO's ScaledDotProductAttention on the CPU"
    package = "openvino"
    traced = False
    limits = Limits(
        devices=one_of("cpu", source="this wrapper compiles for OpenVINO's CPU device"),
        passes=one_of("forward", source="OpenVINO runs inference: its operations have no gradients"),
        group_sizes=one_of(1, source=f"{_SPECIFICATION}: key and value have the query's heads"),
    )
    _ran = ""

    def unavailable(self, device: Device) -> tuple[str, ...]:
        """The device and the package."""
        missing = not packages.has_module("openvino")
        reasons = ("openvino is not installed: pip install 'attnbench[cpu]'",) if missing else ()
        return (*super().unavailable(device), *reasons)

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Compile the node for this problem's precision, and bind inputs and output."""
        # Its converters report their use where this package is found. None is called here, and none could.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino
        import torch

        asked = _TYPES[problem.dtype]
        compiled = openvino.Core().compile_model(
            _model(problem),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": "1",
                "INFERENCE_PRECISION_HINT": asked,
                "ENABLE_CPU_PINNING": False,
            },
        )
        precision = _runtime_precision(compiled)
        if precision != asked:
            raise RefusedError(f"OpenVINO asked for {asked} compiles {precision or 'no node of that name'} on this CPU")
        self._ran = f"{precision}, {compiled.get_property('INFERENCE_NUM_THREADS')} threads"
        request = compiled.create_infer_request()
        out = torch.empty_like(tensors.query)
        bound = [_shared(each, problem) for each in (*tensors, out)]
        for index, tensor in enumerate(bound[:3]):
            request.set_input_tensor(index, tensor)
        request.set_output_tensor(bound[3])

        def call() -> Any:
            request.start_async()
            request.wait()
            return out

        return call

    def backend(self, operators: frozenset[str]) -> str | None:
        """The package's version, and the precision and threads that the compiled model names."""
        return f"openvino {packages.version('openvino')} {self._ran}"


def _shared(tensor: Any, problem: AttentionProblem) -> Any:
    """An OpenVINO tensor over the memory of a torch tensor."""
    import openvino
    import torch

    if problem.dtype != "bfloat16":
        return openvino.Tensor(tensor.detach().numpy(), shared_memory=True)
    # numpy has no bfloat16: the same bits, named anew.
    return openvino.Tensor(tensor.detach().view(torch.int16).numpy(), tensor.shape, openvino.Type.bf16)


def _model(problem: AttentionProblem) -> Any:
    """Query `[B, H, Sq, D]`, key and value `[B, H, Skv, D]`, out `[B, H, Sq, D]`; a mask of 0 is none."""
    import numpy as np
    import openvino
    from openvino import opset13

    element = getattr(openvino.Type, _TYPES[problem.dtype])
    shapes = {"query": problem.query_shape, "key": problem.key_shape, "value": problem.key_shape}
    inputs = [opset13.parameter(list(shape), element, name=name) for name, shape in shapes.items()]
    mask = opset13.constant(0.0, element)
    if problem.is_rectangular_causal:
        seen = np.tri(problem.seq_q, problem.seq_kv, problem.causal_offset, dtype=bool)
        mask = opset13.constant(seen)
    scale = opset13.constant(problem.softmax_scale, element)
    attention = opset13.scaled_dot_product_attention(*inputs, mask, scale, causal=problem.is_square_causal)
    attention.set_friendly_name(_NODE)
    return openvino.Model([opset13.result(attention)], inputs, "attention")


def _runtime_precision(compiled: Any) -> str:
    """The precision of the node that computes attention in the compiled graph; empty where there is none of its name."""
    for node in compiled.get_runtime_model().get_ops():
        if node.get_friendly_name() == _NODE:
            return str(node.get_rt_info()["runtimePrecision"].value)
    return ""
