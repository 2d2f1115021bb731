"""What the machine itself does: products per dtype, memory bandwidth, exponentials, and an empty call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from ...impls import ELEMENT_BYTES
from ..records import Ceilings
from .cuda import CudaClock
from .inputs import torch_dtype
from .regions import Empty, Region
from .timing import Clock, CpuClock

#: A size is not doubled once a product takes this long: a CPU without fast 16-bit products is a thousand times slower.
ENOUGH_S = 0.02
#: Sides of square products; the largest are for GPUs, which the others do not fill.
CPU_GEMM_SIZES, GPU_GEMM_SIZES = (128, 256, 512, 1024, 2048), (1024, 2048, 4096, 8192)
#: Far beyond any last-level cache.
CPU_BANDWIDTH_BYTES, GPU_BANDWIDTH_BYTES = 256 * 2**20, 2**30


def measure(device: str, dtypes: Sequence[str], last_level_cache_bytes: int | None) -> Ceilings:
    """The ceilings of a device for these dtypes, best of a few repetitions each; `last_level_cache_bytes` is a CPU's."""
    place = torch.device(device)
    on_cuda = place.type == "cuda"
    probe = _Probe.of(place)
    cache_bytes = torch.cuda.get_device_properties(place).L2_cache_size if on_cuda else last_level_cache_bytes
    with torch.no_grad():
        return Ceilings(
            gemm_flops_per_s={dtype: probe.gemm(dtype) for dtype in dtypes},
            memory_bytes_per_s=probe.bandwidth(),
            exp_per_s=None if on_cuda else probe.exponentials(),
            empty_call_s=probe.empty_call(),
            last_level_cache_bytes=cache_bytes,
        )


class _Call(Region):
    """Any call as a region."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def run(self, repeats: int) -> None:
        call = self._call
        for _ in itertools.repeat(None, repeats):
            call()


@dataclass
class _Probe:
    """A device and how its calls are timed."""

    place: torch.device
    clock: Clock
    repeats: int
    empty_repeats: int
    gemm_sizes: tuple[int, ...]
    bandwidth_bytes: int

    @classmethod
    def of(cls, place: torch.device) -> Self:
        """A GPU by events over several repeats, since a launch takes longer than a small product; else one call a time."""
        if place.type == "cuda":
            return cls(place, CudaClock(), 20, 100, GPU_GEMM_SIZES, GPU_BANDWIDTH_BYTES)
        return cls(place, CpuClock(), 1, 100_000, CPU_GEMM_SIZES, CPU_BANDWIDTH_BYTES)

    def gemm(self, dtype: str) -> float:
        """FLOP/s of the fastest square product."""
        best = 0.0
        for size in self.gemm_sizes:
            left, right = (torch.randn(size, size).to(self.place, torch_dtype(dtype)) for _ in range(2))
            out = torch.empty_like(left)
            seconds = self._best_of(lambda a=left, b=right, o=out: torch.mm(a, b, out=o))  # type: ignore[misc]
            best = max(best, 2 * size**3 / seconds)
            if seconds > ENOUGH_S:
                break
        return best

    def bandwidth(self) -> float:
        """Bytes read a second, by a sum."""
        source = torch.ones(self.bandwidth_bytes // ELEMENT_BYTES["float32"], device=self.place)
        return self.bandwidth_bytes / self._best_of(source.sum)

    def exponentials(self) -> float:
        """Exponentials a second over a block that stays in cache."""
        source = torch.randn(2**16, device=self.place)
        out = torch.empty_like(source)
        return source.numel() / self._best_of(lambda: torch.exp(source, out=out))

    def empty_call(self) -> float:
        """Seconds of a call that does nothing, through the same clock."""
        return min(self.clock.time(Empty(), self.empty_repeats).device_s for _ in range(3)) / self.empty_repeats

    def _best_of(self, call: Callable[[], object], attempts: int = 4) -> float:
        """The shortest of a few timings, in seconds, after a warm-up: a dtype's first product takes up to a third of a second."""
        region, best = _Call(call), float("inf")
        self.clock.time(region, self.repeats)
        for _ in range(attempts):
            seconds = self.clock.time(region, self.repeats).device_s / self.repeats
            best = min(best, seconds)
            if seconds > ENOUGH_S * 5:
                break
        return max(best, 1e-9)
