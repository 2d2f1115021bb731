"""The CUDA path: order and arithmetic against a simulated device, and the real thing where there is one."""

from __future__ import annotations

import os
import time
import types
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from attnbench.harness import environment
from attnbench.harness.cell import Cell
from attnbench.harness.measure import ceilings, proof
from attnbench.harness.measure.cuda import CudaClock, CudaMemoryMeter, EmptyCaptureError, GraphReplay, NvmlWatch
from attnbench.harness.measure.regions import Region
from attnbench.harness.measure.timing import Budget, sample
from attnbench.harness.peaks import peak_flops_per_s
from attnbench.harness.records import Ceilings, Measurement, Outcome
from attnbench.harness.verdicts.plausibility import beats_physics
from attnbench.impls import AttentionProblem


class SimulatedCuda:
    """Logs what is asked of it. The device is at `now_ms`, 2 ms a pass; it lags behind the host by what it slept.

    The host needs `queueing_ms` to queue a sample, so that a shorter sleep does not hide it; `stray_s` is real time that
    the device works on after the region's own stream.
    """

    def __init__(self, queueing_ms: float = 0.0, stray_s: float = 0.0) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0
        self.slept_ms = 0.0
        outer = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.at_ms = 0.0

            def record(self) -> None:
                outer.log.append("record")
                self.at_ms = outer.now_ms

            def query(self) -> bool:
                return outer.slept_ms < queueing_ms

            def synchronize(self) -> None:
                outer.log.append("end")

            def elapsed_time(self, other: Event) -> float:
                return other.at_ms - self.at_ms

        class CUDAGraph:
            def replay(self) -> None:
                outer.log.append("replay")
                outer.now_ms += 2

        class Stream:
            def wait_stream(self, other: object) -> None:
                outer.log.append("wait for stream")

        self.Event, self.CUDAGraph, self.Stream, self.current_stream = Event, CUDAGraph, Stream, Stream
        self._stray_s = stray_s

    def synchronize(self) -> None:
        if self.log[-1:] == ["end"]:
            time.sleep(self._stray_s)
        self.log.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        self.log.append("sleep")
        self.slept_ms = cycles / 2e6
        self.now_ms += self.slept_ms

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

    def reset_peak_memory_stats(self) -> None:
        self.log.append("new peak")

    def memory_allocated(self) -> int:
        return 1000

    def max_memory_allocated(self) -> int:
        return 5000


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
    span = CudaClock(cuda=cuda).time(Pass(cuda), 5)
    assert span.device_s == pytest.approx(10e-3)
    assert cuda.log[:6] == ["set up", "synchronize", "sleep", "record", "run 5", "record"]


def test_sleep_is_doubled_until_it_hides_the_launches() -> None:
    """A host that needs 5 ms to queue a sample is hidden by 8 ms of sleep, which later samples begin with."""
    cuda = SimulatedCuda(queueing_ms=5.0)
    clock = CudaClock(cuda=cuda)
    span = clock.time(Pass(cuda), 5)
    assert span.gap_hidden
    assert cuda.log.count("sleep") == 4
    assert cuda.slept_ms == 8.0
    cuda.log.clear()
    clock.time(Pass(cuda), 5)
    assert cuda.log.count("sleep") == 1


def test_gap_that_no_sleep_hides_is_recorded() -> None:
    """A pass of more launches than the driver queues makes the host wait for the device; the record says so."""
    cuda = SimulatedCuda(queueing_ms=1e9)
    samples = sample(Pass(cuda), CudaClock(cuda=cuda), Budget(0.0, 0.0, 0.01))
    assert not samples.gap_hidden


def test_work_on_another_stream_is_implausible() -> None:
    """What goes on after the region's stream is done was not timed, and the cell is not ranked."""
    cuda = SimulatedCuda(stray_s=2e-3)
    samples = sample(Pass(cuda), CudaClock(cuda=cuda), Budget(0.0, 0.0, 0.01))
    problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=16, seq_kv=16, head_dim=16)
    cell = Cell(implementation="sdpa", problem=problem, passes="forward")
    ceilings = Ceilings(gemm_flops_per_s={"float32": 1e12}, memory_bytes_per_s=1e12, empty_call_s=1e-6)
    measured = Measurement(outcome=Outcome.OK, samples=samples)
    assert "outlived the timed region" in beats_physics(cell, measured, ceilings)
    honest = samples.model_copy(update={"outlived_s": 5e-6})
    assert beats_physics(cell, measured.model_copy(update={"samples": honest}), ceilings) == ""


def test_cold_flushes_before_each_pass_outside_the_events() -> None:
    """A cold sample is one pass, behind a flush of twice the L2 cache for the events and again for the host's clock."""
    cuda = SimulatedCuda()
    clock = CudaClock(cold=True, cuda=cuda)
    assert clock.most_repeats == 1
    span = clock.time(Pass(cuda), 1)
    assert span.device_s == pytest.approx(2e-3)
    assert cuda.log[:5] == ["set up", "flush", "synchronize", "sleep", "record"]
    assert cuda.log[-4:] == ["flush", "synchronize", "run 1", "synchronize"]


def test_graph_is_replayed() -> None:
    """A captured pass is replayed once a repetition, and not run again."""
    cuda = SimulatedCuda()
    replay = GraphReplay(Pass(cuda), cuda=cuda, kernels_of=lambda call: ("attention_kernel",))
    assert cuda.log[0] == "wait for stream"
    cuda.log.clear()
    replay.run(4)
    assert cuda.log == ["replay"] * 4


def test_graph_that_captured_nothing_is_an_error() -> None:
    """Where a replay launches no kernel, nothing was captured: that is said, not timed."""
    cuda = SimulatedCuda()
    with pytest.raises(EmptyCaptureError, match="launches no kernel"):
        GraphReplay(Pass(cuda), cuda=cuda, kernels_of=lambda call: ())


def test_kernels_are_what_the_device_ran() -> None:
    """Of a profile the device's own kernels are named, by time; copies, fills and runtime calls of the host are not."""
    events = [
        types.SimpleNamespace(key=key, device_type=device, self_device_time_total=time_us)
        for key, device, time_us in (
            ("cudaLaunchKernel", DeviceType.CPU, 0), ("small_kernel", DeviceType.CUDA, 1),
            ("Memset (Device)", DeviceType.CUDA, 9), ("flash_fwd_kernel", DeviceType.CUDA, 5),
            ("aten::mm", DeviceType.CPU, 6),
        )
    ]  # fmt: skip
    assert proof.kernel_names(events) == ("flash_fwd_kernel", "small_kernel")


def test_memory_is_the_allocators_peak() -> None:
    """The peak is read after the device is done, from a mark of its own."""
    cuda = SimulatedCuda()
    meter = CudaMemoryMeter(cuda)
    meter.mark()
    assert (meter.used_bytes(), meter.peak_bytes()) == (1000, 5000)
    assert cuda.log == ["new peak", "synchronize"]


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
            return lambda handle: [types.SimpleNamespace(pid=os.getpid()), types.SimpleNamespace(pid=1)]
        if name == "nvmlDeviceGetPowerUsage":
            raise self.NVMLError("Not Supported")
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


def test_one_unsupported_field_loses_no_other() -> None:
    """A GPU without a power sensor still shows its clocks; the worker itself is no other process."""
    watch = NvmlWatch(0, SimulatedNvml(0))
    watch.read("before")
    assert watch.readings["before"]["power_w"] == "unreadable: Not Supported"
    assert watch.readings["before"]["sm_mhz"] == 1000
    assert watch.readings["before"]["other_processes"] == 1


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

    clock = CudaClock()
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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_ceilings_of_the_device_are_below_its_data_sheet() -> None:
    """16-bit products reach at least a quarter of the data sheet's rate, where there is one, and never exceed it."""
    device = environment.find_device("cuda")
    peak = peak_flops_per_s(device, 1, "ieee", "").get("bfloat16")
    if peak is None:
        pytest.skip(f"no data sheet of {device.name}")
    measured = ceilings.measure(str(device), ["bfloat16"], None).gemm_flops_per_s["bfloat16"]
    assert peak / 4 < measured <= 1.1 * peak
