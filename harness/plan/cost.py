"""How long a launch takes and how much memory it needs, roughly, before anything has run. No torch.

Nominal rates, on the low side so that a deadline made of them is generous; a factor of three is to be expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from ...impls import ELEMENT_BYTES, AttentionProblem, Device
from ..cell import Cell
from ..config.protocol import Protocol
from ..environment import cpu_flags, usable_threads

#: Floating-point operations a second of one core, by dtype and the first of these instruction sets that it has: a CPU
#: without 16-bit products emulates them.
CPU_CORE_FLOPS = {
    "float32": {"avx512f": 40e9, "avx2": 20e9},
    "bfloat16": {"amx_bf16": 60e9, "avx512_bf16": 60e9},
    "float16": {"amx_fp16": 60e9, "avx512_fp16": 60e9},
}
SLOW_CORE_FLOPS = {"float32": 10e9, "bfloat16": 2.5e9, "float16": 2.5e9}
#: Of a GPU.
GPU_FLOPS = {"float32": 5e12, "bfloat16": 50e12, "float16": 50e12}
BYTES_PER_S = {"cpu": 5e9, "cuda": 500e9}
#: A call cannot be shorter, whatever it computes.
LEAST_CALL_S = 50e-6
#: Forking, inputs, and on CUDA the context that each process makes anew.
PROCESS_S = {"cpu": 0.05, "cuda": 3.0}
#: A fresh interpreter that imports torch.
SERVER_S = 2.5
#: Implementations that compile in each fresh process, and how long that takes without a warm cache.
COMPILE_S = {"flex_attention": 10.0, "flash_attn4": 10.0}
#: Implementations known to hold the scores of all heads at once; any other counts as linear in memory.
QUADRATIC = frozenset({"naive", "sdpa_math"})
#: Score matrices held at once, and how often one is read or written: scores, softmax, their gradients in backward.
SCORE_MATRICES = {"forward": 3, "backward": 5, "forward_backward": 5}
SCORE_PASSES = {"forward": 6, "backward": 14, "forward_backward": 14}
#: Calls beside the timed ones: the check on three sets of inputs, what ran, reuse, and memory.
UNTIMED_CALLS = 6
#: Starting torch's profiler and reading what it saw, five times, in a process of its own.
PROFILES_S = 2.0
#: Samples that are taken however long one lasts, those of the warm-up included.
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Cost:
    """What one launch of a cell may need: wall seconds of its process, peak bytes of tensors."""

    seconds_per_launch: float
    memory_bytes: int


def cost_of(cell: Cell, device: Device, protocol: Protocol) -> Cost:
    """Time and memory of one launch of a cell."""
    call_s = _call_s(cell, device, protocol)
    timing_s = max(1.25 * protocol.max_time_s, FEWEST_SAMPLES * call_s) if "time" in protocol.measure else 0.0
    profiles_s = PROFILES_S if "kernels" in protocol.measure else 0.0
    fixed_s = PROCESS_S.get(device.kind, 0.0) + COMPILE_S.get(cell.implementation, 0.0) + profiles_s
    return Cost(fixed_s + UNTIMED_CALLS * call_s + timing_s, _memory_bytes(cell))


def _call_s(cell: Cell, device: Device, protocol: Protocol) -> float:
    problem, passes = cell.problem, cell.passes
    # `backward` builds a fresh graph outside the clock for each timed one.
    flops = problem.flops("forward" if passes == "forward" else "forward_backward")
    if cell.implementation in QUADRATIC:
        flops = flops * problem.seq_q * problem.seq_kv // problem.pairs
    moved = _tensor_bytes(cell)
    if cell.implementation in QUADRATIC:
        moved += SCORE_PASSES[passes] * problem.score_bytes()
    return max(LEAST_CALL_S, flops / _flops_per_s(problem, device, protocol), moved / BYTES_PER_S.get(device.kind, 5e9))


def _flops_per_s(problem: AttentionProblem, device: Device, protocol: Protocol) -> float:
    if device.kind == "cuda":
        return GPU_FLOPS[problem.dtype]
    threads = _threads() if protocol.threads == "all" else protocol.threads
    return _core_flops(problem.dtype) * threads


def _memory_bytes(cell: Cell) -> int:
    scores = SCORE_MATRICES[cell.passes] * cell.problem.score_bytes() if cell.implementation in QUADRATIC else 0
    return _tensor_bytes(cell) + scores


def _tensor_bytes(cell: Cell) -> int:
    """Inputs and outputs; with a backward pass also dO and the gradients."""
    problem = cell.problem
    query, key = math.prod(problem.query_shape), math.prod(problem.key_shape)
    elements = 2 * (query + key) if cell.passes == "forward" else 4 * (query + key)
    return ELEMENT_BYTES[problem.dtype] * elements


@cache
def _core_flops(dtype: str) -> float:
    flags = cpu_flags()
    return next((rate for flag, rate in CPU_CORE_FLOPS[dtype].items() if flag in flags), SLOW_CORE_FLOPS[dtype])


@cache
def _threads() -> int:
    return usable_threads()
