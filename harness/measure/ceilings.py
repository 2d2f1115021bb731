"""What the machine itself does: products per dtype, memory bandwidth, exponentials, and an empty call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from ...impls import ELEMENT_BYTES
from ..records import Ceilings
from .inputs import torch_dtype
from .regions import Empty
from .timing import CpuClock

#: A size is not doubled once a product takes this long: a CPU without fast 16-bit products is a thousand times slower.
ENOUGH_S = 0.02
GEMM_SIZES = (128, 256, 512, 1024, 2048)
#: Far beyond any last-level cache.
BANDWIDTH_BYTES = 256 * 2**20


def measure(device: str, dtypes: Sequence[str], last_level_cache_bytes: int | None) -> Ceilings:
    """The ceilings of a device for these dtypes, best of a few repetitions each."""
    place = torch.device(device)
    with torch.no_grad():
        return Ceilings(
            gemm_flops_per_s={dtype: _gemm(place, dtype) for dtype in dtypes},
            memory_bytes_per_s=_bandwidth(place),
            exp_per_s=_exponentials(place),
            empty_call_s=_empty_call(),
            last_level_cache_bytes=last_level_cache_bytes,
        )


def _gemm(place: torch.device, dtype: str) -> float:
    best = 0.0
    for size in GEMM_SIZES:
        left, right = (torch.randn(size, size).to(place, torch_dtype(dtype)) for _ in range(2))
        out = torch.empty_like(left)
        seconds = _best_of(place, lambda a=left, b=right, o=out: torch.mm(a, b, out=o))  # type: ignore[misc]
        best = max(best, 2 * size**3 / seconds)
        if seconds > ENOUGH_S:
            break
    return best


def _bandwidth(place: torch.device) -> float:
    source = torch.ones(BANDWIDTH_BYTES // ELEMENT_BYTES["float32"], device=place)
    return BANDWIDTH_BYTES / _best_of(place, source.sum)


def _exponentials(place: torch.device) -> float:
    source = torch.randn(2**16, device=place)
    out = torch.empty_like(source)
    return source.numel() / _best_of(place, lambda: torch.exp(source, out=out))


def _empty_call() -> float:
    clock, repeats = CpuClock(), 100_000
    return min(clock.time(Empty(), repeats).wall_s for _ in range(3)) / repeats


def _best_of(place: torch.device, call: Callable[[], object], repeats: int = 4) -> float:
    """The shortest of a few timings, in seconds; the first call is a warm-up and counts only if it is long."""
    best = float("inf")
    for attempt in range(repeats + 1):
        begin = time.perf_counter()
        call()
        if place.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        if attempt or seconds > ENOUGH_S:
            best = min(best, seconds)
        if seconds > ENOUGH_S * 5:
            break
    return max(best, 1e-9)
