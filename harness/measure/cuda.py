"""CUDA: the event clock, a cold cache, graph capture, the allocator's peak, and what NVML says of a launch.

`torch.cuda` and the host's clock are parameters, so that order and arithmetic are tested against a device that is not there.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .proof import Profile, cuda_kernels, profiled
from .regions import Region, once
from .timing import Span

#: A device-side sleep before each sample, in cycles: about 1 ms at first, and doubled, up to half a second, as long as the
#: device begins a sample before the host has queued it.
GAP_CYCLES, MOST_GAP_CYCLES = 2_000_000, 1_000_000_000
#: Tries at how long the host waits for a device that has nothing left to do; their median counts, as that of samples does.
IDLE_TRIES = 8
#: A driver queues about a thousand launches before it makes the host wait; a pass has a handful.
MOST_REPEATS = 128
#: Throttle reasons of NVML that void a launch: thermal and power brake (nvml.h, nvmlClocksEventReasons).
_VOID_REASONS = {0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
                 0x80: "hardware power brake"}  # fmt: skip


class CudaClock:
    """CUDA events around a sample, the launch gap hidden behind a device-side sleep.

    `cold` flushes twice the L2 cache before a pass, outside the events, so that a cold sample is one pass.
    """

    resolution_s = 0.5e-6  # CUDA runtime API, cudaEventElapsedTime

    def __init__(
        self, *, cold: bool = False, cuda: Any = torch.cuda, host_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cuda, self._host_s = cuda, host_s
        self._gap_cycles = GAP_CYCLES
        self._flush: Any = None
        self.most_repeats = 1 if cold else MOST_REPEATS
        if cold:
            size = 2 * int(cuda.get_device_properties(cuda.current_device()).L2_cache_size)
            self._flush = (
                torch.empty(size, dtype=torch.int8, device="cuda") if cuda is torch.cuda else cuda.buffer(size)
            )
        self._idle_s = statistics.median(self._by_events(_Nothing(), 1).outlived_s for _ in range(IDLE_TRIES))

    def time(self, region: Region, repeats: int) -> Span:
        """Device seconds between the events, and host seconds with synchronisation."""
        while True:
            span = self._by_events(region, repeats)
            if span.gap_hidden or self._gap_cycles >= MOST_GAP_CYCLES:
                break
            self._gap_cycles *= 2
        # The host's time cannot be told apart from the sleep, so it is taken on a run of its own.
        outlived_s = max(0.0, span.outlived_s - self._idle_s)
        return replace(span, wall_s=self._by_host(region, repeats), outlived_s=outlived_s)

    def profile(self, region: Region, profile: Callable[[Callable[[], Any]], Profile] = profiled) -> Profile:
        """What one pass launches, under this clock's conditions. Errors: `BlindProfilerError`."""
        with self._ready(region, 1):
            return profile(lambda: region.run(1))

    def _by_events(self, region: Region, repeats: int) -> Span:
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        with self._ready(region, repeats):
            self._cuda._sleep(self._gap_cycles)  # noqa: SLF001 - torch offers no public device-side sleep
            begin.record()
            region.run(repeats)
            end.record()
            gap_hidden = not begin.query()
            end.synchronize()
            own = self._host_s()
            self._cuda.synchronize()
            outlived_s = self._host_s() - own
        return Span(begin.elapsed_time(end) * 1e-3, 0.0, outlived_s, gap_hidden)

    def _by_host(self, region: Region, repeats: int) -> float:
        with self._ready(region, repeats):
            begin = self._host_s()
            region.run(repeats)
            self._cuda.synchronize()
            return self._host_s() - begin

    @contextmanager
    def _ready(self, region: Region, repeats: int) -> Iterator[None]:
        """Set up, the cache flushed where it is to be cold, and the device idle."""
        region.set_up(repeats)
        if self._flush is not None:
            self._flush.zero_()
        self._cuda.synchronize()
        yield
        region.clear()


class _Nothing(Region):
    """A pass that leaves the device nothing to do: what the host then waits for is not work."""

    def run(self, repeats: int) -> None:
        """Nothing."""


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
        self._region = region  # the graph reads what it set up
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(3):  # torch's notes on CUDA graphs ask for a warm-up off the default stream
                once(region)
        cuda.current_stream().wait_stream(side)
        cuda.synchronize()
        self._graph = cuda.CUDAGraph()
        region.set_up(1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty", UserWarning)  # an error says so below
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

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda

    def settle(self) -> None:
        """Wait for the device."""
        self._cuda.synchronize()

    def mark(self) -> None:
        """Begin a new peak."""
        self._cuda.reset_peak_memory_stats()

    def used_bytes(self) -> int:
        """Bytes in tensors now."""
        return int(self._cuda.memory_allocated())

    def peak_bytes(self) -> int:
        """The most bytes in tensors since the mark."""
        self._cuda.synchronize()
        return int(self._cuda.max_memory_allocated())


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
        """Store clocks in MHz, temperature in Celsius, power in watts, throttle reasons and other processes.

        A field that the driver does not offer is stored as unreadable, and takes no other with it.
        """
        if self.nvml is None:
            return
        nvml = self.nvml
        try:
            by_uuid, by_index = nvml.nvmlDeviceGetHandleByUUID, nvml.nvmlDeviceGetHandleByIndex
            handle = by_uuid(self.uuid) if self.uuid else by_index(self.index)
        except nvml.NVMLError as error:
            self.readings[moment] = {"unreadable": str(error)}
            return
        fields: dict[str, Callable[[], float]] = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            "other_processes": lambda: sum(
                each.pid != os.getpid() for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            ),
        }
        self.readings[moment] = {name: self._field(read) for name, read in fields.items()}

    def _field(self, read: Callable[[], float]) -> float | str:
        try:
            return read()
        except (self.nvml.NVMLError, AttributeError) as error:  # older bindings lack a function, older GPUs a sensor
            return f"unreadable: {error}"

    def void_reason(self) -> str:
        """Thermal or power-brake throttling before or after the launch; empty where there was none."""
        for moment in ("before", "after"):
            bits = self.readings.get(moment, {}).get("throttle_reasons", 0)
            names = [name for bit, name in _VOID_REASONS.items() if isinstance(bits, int) and bits & bit]
            if names:
                return f"the GPU was throttled {moment} the launch: {', '.join(names)}"
        return ""
