"""The CUDA path: order and arithmetic against a simulated device, and the real thing where there is one."""

from __future__ import annotations

import types
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from attnbench.harness import environment
from attnbench.harness.measure.cuda import CudaClock, EmptyCaptureError, GraphReplay, NvmlWatch
from attnbench.harness.measure.regions import Region


class SimulatedCuda:
    """Logs what is asked of it; device time passes only in `run`, 2 ms a pass."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0
        outer = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.at_ms = 0.0

            def record(self) -> None:
                outer.log.append("record")
                self.at_ms = outer.now_ms

            def elapsed_time(self, other: Event) -> float:
                return other.at_ms - self.at_ms

        class CUDAGraph:
            def replay(self) -> None:
                outer.log.append("replay")
                outer.now_ms += 2

        self.Event, self.CUDAGraph = Event, CUDAGraph
        self.Stream = lambda: "side stream"

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        self.log.append("sleep")
        self.now_ms += cycles / 1e6

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> Any:
        return types.SimpleNamespace(L2_cache_size=4096)

    def buffer(self, size: int) -> Any:
        assert size == 2 * 4096
        return types.SimpleNamespace(zero_=lambda: self.log.append("flush"))

    @contextmanager
    def stream(self, stream: object) -> Any:
        yield

    @contextmanager
    def graph(self, graph: object) -> Any:
        self.log.append("capture")
        yield


class Pass(Region):
    """A pass of 2 ms."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda

    def set_up(self, repeats: int) -> None:
        self._cuda.log.append("set up")

    def run(self, repeats: int) -> None:
        self._cuda.log.append(f"run {repeats}")
        self._cuda.now_ms += 2 * repeats


def test_events_exclude_the_sleep_and_the_set_up() -> None:
    """The sleep that hides launching comes before the first event, and no time of it is counted."""
    cuda = SimulatedCuda()
    span = CudaClock(cold=False, cuda=cuda).time(Pass(cuda), 5)
    assert span.device_s == pytest.approx(10e-3)
    assert cuda.log[:6] == ["set up", "synchronize", "sleep", "record", "run 5", "record"]


def test_cold_flushes_before_each_pass_outside_the_events() -> None:
    """A cold sample times each pass apart, each behind a flush of twice the L2 cache."""
    cuda = SimulatedCuda()
    span = CudaClock(cold=True, cuda=cuda).time(Pass(cuda), 3)
    assert span.device_s == pytest.approx(6e-3)
    assert cuda.log.count("flush") == 3
    first = cuda.log.index("flush")
    assert cuda.log[first : first + 5] == ["flush", "synchronize", "sleep", "record", "run 1"]


def test_graph_is_replayed() -> None:
    """A captured pass is replayed once a repetition, and not run again."""
    cuda = SimulatedCuda()
    replay = GraphReplay(Pass(cuda), cuda=cuda, kernels_of=lambda call: ("attention_kernel",))
    cuda.log.clear()
    replay.run(4)
    assert cuda.log == ["replay"] * 4


def test_graph_that_captured_nothing_is_an_error() -> None:
    """Where a replay launches no kernel, nothing was captured: that is said, not timed."""
    cuda = SimulatedCuda()
    with pytest.raises(EmptyCaptureError, match="launches no kernel"):
        GraphReplay(Pass(cuda), cuda=cuda, kernels_of=lambda call: ())


class SimulatedNvml:
    """NVML with given throttle reasons."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self, reasons: int) -> None:
        self._reasons = reasons

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlDeviceGetCurrentClocksThrottleReasons":
            return lambda handle: self._reasons
        if name == "nvmlDeviceGetComputeRunningProcesses":
            return lambda handle: []
        return lambda *_: 1000


@pytest.mark.parametrize(
    ("reasons", "void"),
    [(0x00, ""), (0x01, ""), (0x04, ""), (0x20, "software thermal slowdown"), (0x80, "hardware power brake")],
    ids=["none", "idle", "power cap", "thermal", "power brake"],
)
def test_thermal_and_brake_reasons_void(reasons: int, void: str) -> None:
    """Idle clocks and the power cap are the device's own state; thermal and power-brake reasons void a launch."""
    watch = NvmlWatch(0, SimulatedNvml(reasons))
    watch.read("before")
    watch.read("after")
    assert void in watch.void_reason()
    assert bool(watch.void_reason()) == bool(void)


def test_without_nvml_nothing_is_void() -> None:
    """Where the driver's library is missing the record says why, and launches count."""
    watch = NvmlWatch(0, readings={"unreadable": "ModuleNotFoundError: No module named 'pynvml'"})
    watch.read("before")
    assert watch.void_reason() == ""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_event_clock_agrees_with_the_host() -> None:
    """On a long product, events and the synchronised host clock agree within a fifth."""
    left = torch.randn(4096, 4096, device="cuda")

    class Product(Region):
        def run(self, repeats: int) -> None:
            for _ in range(repeats):
                left @ left

    clock = CudaClock(cold=False)
    clock.time(Product(), 3)
    span = clock.time(Product(), 20)
    assert span.device_s == pytest.approx(span.wall_s, rel=0.2)


@pytest.mark.cuda
@pytest.mark.skipif(not environment.torch_has_cuda(), reason="torch is built for the CPU here")
def test_device_is_found_without_torch() -> None:
    """The device that the driver shows is the one that torch sees."""
    device = environment.find_device("cuda")
    assert device.name == torch.cuda.get_device_name(device.index)
    assert device.capability == torch.cuda.get_device_capability(device.index)
