"""CUDA: the event clock, a cold cache, graph capture, the allocator's peak, and what NVML says of a launch.

`torch.cuda` is a parameter, so that the order of events is tested against a device that is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .proof import cuda_kernels
from .regions import Region
from .timing import Span

#: A device-side sleep before each sample, in cycles: long enough that the host has queued the whole sample by then.
GAP_CYCLES = 2_000_000
#: Throttle reasons of NVML that void a launch: thermal and power brake (nvml.h, nvmlClocksEventReasons).
_VOID_REASONS = {0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
                 0x80: "hardware power brake"}  # fmt: skip


class CudaClock:
    """CUDA events around a sample, the launch gap hidden behind a device-side sleep.

    `cold` flushes twice the L2 cache before each pass, outside the events; a cold sample times each pass apart.
    """

    resolution_s = 0.5e-6  # CUDA runtime API, cudaEventElapsedTime

    def __init__(self, *, cold: bool, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._flush: Any = None
        if cold:
            size = 2 * int(cuda.get_device_properties(cuda.current_device()).L2_cache_size)
            self._flush = (
                torch.empty(size, dtype=torch.int8, device="cuda") if cuda is torch.cuda else cuda.buffer(size)
            )

    def time(self, region: Region, repeats: int) -> Span:
        """Device seconds between the events, and host seconds with synchronisation."""
        parts = [1] * repeats if self._flush is not None else [repeats]
        spans = [self._once(region, count) for count in parts]
        return Span(sum(each.device_s for each in spans), sum(each.wall_s for each in spans))

    def _once(self, region: Region, repeats: int) -> Span:
        region.set_up(repeats)
        if self._flush is not None:
            self._flush.zero_()
        self._cuda.synchronize()
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda._sleep(GAP_CYCLES)  # noqa: SLF001 - torch offers no public device-side sleep
        begin.record()
        region.run(repeats)
        end.record()
        self._cuda.synchronize()
        # The host's time cannot be told apart from the sleep, so it is taken on a run of its own.
        device_s = begin.elapsed_time(end) * 1e-3
        region.clear()
        return Span(device_s, self._wall(region, repeats))

    def _wall(self, region: Region, repeats: int) -> float:
        region.set_up(repeats)
        self._cuda.synchronize()
        begin = time.perf_counter()
        region.run(repeats)
        self._cuda.synchronize()
        end = time.perf_counter()
        region.clear()
        return end - begin


class EmptyCaptureError(RuntimeError):
    """A CUDA graph that holds nothing."""


class GraphReplay(Region):
    """A region's single pass, captured once as a CUDA graph and replayed.

    Errors: `EmptyCaptureError` where one profiled replay launches no kernel.
    """

    def __init__(
        self,
        region: Region,
        cuda: Any = torch.cuda,
        kernels_of: Callable[[Callable[[], Any]], tuple[str, ...]] = cuda_kernels,
    ) -> None:
        side = cuda.Stream()
        with cuda.stream(side):
            for _ in range(3):  # torch's notes on CUDA graphs ask for a warm-up off the default stream
                region.set_up(1)
                region.run(1)
                region.clear()
        cuda.synchronize()
        self._graph = cuda.CUDAGraph()
        region.set_up(1)
        with cuda.graph(self._graph):
            region.run(1)
        if not kernels_of(self._graph.replay):
            raise EmptyCaptureError("the CUDA graph was captured, but replaying it launches no kernel")

    def run(self, repeats: int) -> None:
        """Replay, `repeats` times."""
        replay = self._graph.replay
        for _ in range(repeats):
            replay()


class CudaMemoryMeter:
    """The caching allocator's peak."""

    source = "cuda allocator"

    def settle(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    def mark(self) -> None:
        """Begin a new peak."""
        torch.cuda.reset_peak_memory_stats()

    def used_bytes(self) -> int:
        """Bytes in tensors now."""
        return torch.cuda.memory_allocated()

    def peak_bytes(self) -> int:
        """The most bytes in tensors since the mark."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


@dataclass
class NvmlWatch:
    """NVML's facts of a GPU before and after a launch. Without nvidia-ml-py it says so and voids nothing."""

    index: int
    nvml: Any = None
    uuid: str = ""  # torch's and NVML's indices differ where CUDA_VISIBLE_DEVICES is set
    readings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, index: int) -> NvmlWatch:
        """Start NVML where it is installed."""
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # noqa: BLE001 - the package and its driver fail in their own ways; the record says how
            return cls(index, readings={"unreadable": f"{type(error).__name__}: {error}"})
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        return cls(index, pynvml, f"GPU-{uuid}" if uuid else "")

    def read(self, moment: str) -> None:
        """Store clocks in MHz, temperature in Celsius, power in watts, throttle reasons and other processes."""
        if self.nvml is None:
            return
        nvml = self.nvml
        try:
            by_uuid, by_index = nvml.nvmlDeviceGetHandleByUUID, nvml.nvmlDeviceGetHandleByIndex
            handle = by_uuid(self.uuid) if self.uuid else by_index(self.index)
            self.readings[moment] = {
                "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
                "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                "throttle_reasons": nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
                "processes": len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            }
        except nvml.NVMLError as error:
            self.readings[moment] = {"unreadable": str(error)}

    def void_reason(self) -> str:
        """Thermal or power-brake throttling before or after the launch; empty where there was none."""
        for moment in ("before", "after"):
            bits = self.readings.get(moment, {}).get("throttle_reasons", 0)
            names = [name for bit, name in _VOID_REASONS.items() if bits & bit]
            if names:
                return f"the GPU was throttled {moment} the launch: {', '.join(names)}"
        return ""
