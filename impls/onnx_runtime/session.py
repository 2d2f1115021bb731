"""A session of one operator, bound to the memory of our tensors."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime
import torch

from ..api import RefusedError, Tensors
from ..problem import AttentionProblem
from .model import model

#: Calls of each operator in the race; the shortest counts.
_RACE_CALLS = 3
#: Classes of the package's errors, which have no public base, that mean: there is no such kernel, or not for these inputs.
_REFUSALS = ("NotImplemented", "InvalidArgument", "InvalidGraph")
_TORCH_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class BoundSession:
    """A session of one operator, whose inputs are our tensors and whose output is a tensor that each call writes anew.

    Errors: `RefusedError` where the package has no such kernel.
    """

    def __init__(self, operator: str, problem: AttentionProblem, tensors: Tensors) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors are raised; warnings are of no use to a reader of a benchmark
        self._out = torch.empty_like(tensors.query)
        try:
            graph = model(operator, problem).SerializeToString()
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
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
        for node in self._session.get_inputs():
            self._binding.bind_input(
                node.name, "cpu", 0, _NUMPY_TYPES[node.type], node.shape, ours[node.name].data_ptr()
            )
        self._held = []
        for node in self._session.get_outputs():
            tensor = ours.get(node.name)
            if tensor is None:
                tensor = torch.empty(node.shape, dtype=_TORCH_TYPES[node.type])
                self._held.append(tensor)
            self._binding.bind_output(node.name, "cpu", 0, _NUMPY_TYPES[node.type], node.shape, tensor.data_ptr())
