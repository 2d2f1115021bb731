"""A cell that beats physics was not measured: the guard against impossible numbers."""

from __future__ import annotations

import statistics

from ..cell import Cell
from ..records import Ceilings, Measurement

#: Above a theoretical peak, and above a measured bandwidth, this much is the measurement's own error.
MARGIN = 1.1
#: Where no theoretical peak is known: ONNX Runtime honestly does twice torch's own product on an AMD CPU.
GEMM_FACTOR = 4.0
#: Work that goes on after the timed region's stream is done: more than this share of a sample, and than a host's jitter, of
#: which 70 us were seen beside an H200.
OUTLIVED_SHARE, OUTLIVED_S = 0.05, 100e-6


def beats_physics(cell: Cell, measurement: Measurement, ceilings: Ceilings) -> str:
    """Why a measurement cannot be true, in a sentence; empty where it can."""
    if measurement.samples is None:
        return ""
    time_s = statistics.median(measurement.samples.times_s)
    if time_s < ceilings.empty_call_s:
        return f"a call took {time_s:.3g} s, less than an empty call ({ceilings.empty_call_s:.3g} s)"
    sample_s, outlived_s = time_s * measurement.samples.repeats, measurement.samples.outlived_s
    if outlived_s > max(OUTLIVED_S, OUTLIVED_SHARE * sample_s):
        return f"work outlived the timed region by {outlived_s:.3g} s a sample of {sample_s:.3g} s: it ran on another stream"
    return _too_many_flops(cell, time_s, ceilings) or _too_many_bytes(cell, time_s, ceilings)


def _too_many_flops(cell: Cell, time_s: float, ceilings: Ceilings) -> str:
    rate = cell.problem.flops(cell.passes) / time_s
    peak = ceilings.peak_flops_per_s.get(cell.problem.dtype)
    if peak is not None:
        limit, words = MARGIN * peak, f"{MARGIN:g} times the theoretical peak"
    else:
        best = max(ceilings.gemm_flops_per_s.values(), default=0.0)
        limit, words = GEMM_FACTOR * best, f"{GEMM_FACTOR:g} times the best matrix product of this run"
    return f"{rate / 1e9:.4g} GFLOP/s is more than {words} ({limit / 1e9:.4g})" if rate > limit > 0 else ""


def _too_many_bytes(cell: Cell, time_s: float, ceilings: Ceilings) -> str:
    """Judged only where the working set cannot stay in a cache."""
    moved, cache = cell.problem.forward_bytes(), ceilings.last_level_cache_bytes
    if cell.passes != "forward" or cache is None or moved <= 2 * cache:
        return ""
    rate, limit = moved / time_s, MARGIN * ceilings.memory_bytes_per_s
    return (
        f"{rate / 1e9:.4g} GB/s is more than {MARGIN:g} times the measured bandwidth ({limit / 1e9:.4g})"
        if rate > limit
        else ""
    )
