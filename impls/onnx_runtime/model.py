"""Models of one attention node.

Sources: onnxruntime docs/ContribOperators.md (com.microsoft); onnx docs/Operators.md, Attention of opset 23.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..problem import AttentionProblem

#: The first opset that has Attention; an older intermediate representation than the newest is read by every release.
_OPSET, _IR_VERSION = 23, 10


def model(operator: str, problem: AttentionProblem) -> Any:
    """A graph of one node: query `[B, Sq, Hq D]`, key and value `[B, Skv, Hkv D]`, out `[B, Sq, Hq D]`."""
    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[problem.dtype]
    batch = problem.batch
    query_width, key_width = (heads * problem.head_dim for heads in (problem.heads_q, problem.heads_kv))

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
    square = int(problem.is_square_causal)
    if operator == "MultiHeadAttention":
        return ("bias", "key_padding_mask", "mask"), {"num_heads": problem.heads_q, "unidirectional": square}
    if operator == "GroupQueryAttention":
        heads = {"num_heads": problem.heads_q, "kv_num_heads": problem.heads_kv}
        return ("past_key", "past_value", "seqlens_k", "total_sequence_length"), heads
    heads = {"q_num_heads": problem.heads_q, "kv_num_heads": problem.heads_kv}
    return ("mask",), heads | {"is_causal": square}


def _constants(operator: str, problem: AttentionProblem) -> list[Any]:
    """What the graph holds beside its node: lengths, or the mask of a rectangular causal problem."""
    if operator == "GroupQueryAttention":
        lengths = np.full(problem.batch, problem.seq_kv - 1, np.int32)  # the operator wants one less
        total = np.array(problem.seq_kv, np.int32)
        return [numpy_helper.from_array(lengths, "seqlens_k"), numpy_helper.from_array(total, "total_sequence_length")]
    if not problem.is_rectangular_causal:
        return []
    seen = np.tri(problem.seq_q, problem.seq_kv, problem.causal_offset, dtype=bool)
    if operator == "MultiHeadAttention":
        added = np.where(seen, 0.0, -np.inf).astype(problem.dtype)
        return [numpy_helper.from_array(added[None, None], "mask")]
    return [numpy_helper.from_array(seen, "mask")]
