"""The CUDA path: order and arithmetic against a simulated device, and the real thing where there is one."""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import types
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from attnbench.harness import contract, environment
from attnbench.harness.cell import Cell, Conditions
from attnbench.harness.config import ConfigError, load_config
from attnbench.harness.measure import ceilings, counters, launch, process, proof, worker
from attnbench.harness.measure.conformance import run_case, truth_of
from attnbench.harness.measure.cuda import CudaClock, CudaMemoryMeter, EmptyCaptureError, GraphReplay, NvmlWatch
from attnbench.harness.measure.oracle import Truth
from attnbench.harness.measure.regions import Region
from attnbench.harness.measure.tasks import CeilingsTask, CellTask, Probe, Reply, Task, TruthTask
from attnbench.harness.measure.timing import Budget, CpuClock, Span, sample
from attnbench.harness.peaks import peak_flops_per_s
from attnbench.harness.plan import cost_of, make_plan
from attnbench.harness.records import Ceilings, Measurement, Outcome, RunInfo
from attnbench.harness.run.machine import Machine
from attnbench.harness.run.session import Session
from attnbench.harness.store import Run
from attnbench.harness.verdicts.estimate import counted
from attnbench.harness.verdicts.plausibility import beats_physics
from attnbench.impls import AttentionProblem, Device, get, names
from attnbench.reports import clock_check

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


class SimulatedCuda:
    """Logs what is asked of it. The device is at `now_ms`, 2 ms a pass; it lags behind the host by what it slept.

    The host needs `queueing_ms` to queue a sample, so that a shorter sleep does not hide it; `stray_s` is how long the
    device works on after the region's own stream, `idle_s` what the host waits though nothing is left to do. Both pass on
    the host's clock, `host_s`, which is simulated too: a real sleep takes as long as a loaded machine likes.
    """

    def __init__(self, queueing_ms: float = 0.0, stray_s: float = 0.0, idle_s: float = 0.0) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0
        self.slept_ms = 0.0
        self._waited_s = 0.0
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
        self._stray_s, self._idle_s = stray_s, idle_s

    def synchronize(self) -> None:
        if self.log[-1:] == ["end"]:
            self._waited_s += self._idle_s + self._stray_s * self.log[-3].startswith("run")
        self.log.append("synchronize")

    def host_s(self) -> float:
        return self._waited_s + self.now_ms * 1e-3

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
    clock = CudaClock(cuda=cuda)
    cuda.log.clear()
    span = clock.time(Pass(cuda), 5)
    assert span.device_s == pytest.approx(10e-3)
    assert cuda.log[:6] == ["set up", "synchronize", "sleep", "record", "run 5", "record"]


def test_sleep_is_doubled_until_it_hides_the_launches() -> None:
    """A host that needs 5 ms to queue a sample is hidden by 8 ms of sleep, which later samples begin with."""
    cuda = SimulatedCuda(queueing_ms=5.0)
    clock = CudaClock(cuda=cuda)
    cuda.log.clear()
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
    samples = sample(Pass(cuda), CudaClock(cuda=cuda, host_s=cuda.host_s), Budget(0.0, 0.0, 0.01))
    problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=16, seq_kv=16, head_dim=16)
    cell = Cell(implementation="sdpa", problem=problem, passes="forward")
    ceilings = Ceilings(gemm_flops_per_s={"float32": 1e12}, memory_bytes_per_s=1e12, empty_call_s=1e-6)
    measured = Measurement(outcome=Outcome.OK, samples=samples)
    assert "outlived the timed region" in beats_physics(cell, measured, ceilings)
    honest = samples.model_copy(update={"outlived_s": 5e-6})
    assert beats_physics(cell, measured.model_copy(update={"samples": honest}), ceilings) == ""


def test_waiting_for_an_idle_device_is_no_work() -> None:
    """On some hosts a synchronisation alone takes 70 us: that is told from work on another stream, and the cell is ranked."""
    cuda = SimulatedCuda(idle_s=1e-3)
    samples = sample(Pass(cuda), CudaClock(cuda=cuda, host_s=cuda.host_s), Budget(0.0, 0.0, 0.01))
    assert samples.outlived_s == pytest.approx(0.0, abs=1e-9)


def test_cold_flushes_before_each_pass_outside_the_events() -> None:
    """A cold sample is one pass, behind a flush of twice the L2 cache for the events and again for the host's clock."""
    cuda = SimulatedCuda()
    clock = CudaClock(cold=True, cuda=cuda)
    cuda.log.clear()
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
    """Kernels and copies are told apart, by time; the runtime calls of the host are neither, and take no device time."""
    events = [
        types.SimpleNamespace(key=key, device_type=device, self_device_time_total=time_us)
        for key, device, time_us in (
            ("cudaLaunchKernel", DeviceType.CPU, 0), ("small_kernel", DeviceType.CUDA, 1),
            ("Memset (Device)", DeviceType.CUDA, 9), ("flash_fwd_kernel", DeviceType.CUDA, 5),
            ("aten::mm", DeviceType.CPU, 6),
        )
    ]  # fmt: skip
    assert proof.profile_of(events) == proof.Profile(
        ("flash_fwd_kernel", "small_kernel"), ("Memset (Device)",), pytest.approx(15e-6)
    )


def test_profile_is_taken_under_the_clocks_conditions() -> None:
    """What is profiled is one pass, set up and with a cold cache before the profiler looks."""
    cuda = SimulatedCuda()
    clock = CudaClock(cold=True, cuda=cuda)
    cuda.log.clear()
    seen = clock.profile(Pass(cuda), lambda call: proof.Profile((str(call()),)))
    assert seen.kernels
    assert cuda.log == ["set up", "flush", "synchronize", "run 1"]


def test_profiler_that_sees_nothing_is_told_from_a_call_that_launches_nothing() -> None:
    """A kernel that surely runs is profiled too: where it shows, the call launched nothing; where not, nobody can tell."""
    kernel = types.SimpleNamespace(key="ones_kernel", device_type=DeviceType.CUDA, self_device_time_total=1)

    def call() -> None:
        raise AssertionError("the profiler is a fake: it runs nothing")

    assert proof.profiled(call, lambda asked: [] if asked is call else [kernel]).is_empty
    with pytest.raises(proof.BlindProfilerError, match="CUPTI"):
        proof.profiled(call, lambda asked: [])


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


class TracedNvml(SimulatedNvml):
    """NVML with a trace of throttle reasons, one for each time that it is asked."""

    def __init__(self, trace: Iterable[int]) -> None:
        super().__init__(0)
        self._trace = iter(trace)

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlDeviceGetCurrentClocksThrottleReasons":
            return lambda handle: next(self._trace)
        return super().__getattr__(name)


class HostClock(CudaClock):
    """A CUDA clock where there is no CUDA: the host's time, and the profile that it is given."""

    seen = proof.Profile(("attention_kernel",), (), 2e-4)

    def __init__(self, *, cold: bool = False) -> None:
        self.most_repeats = 100

    def time(self, region: Region, repeats: int) -> Span:
        return CpuClock().time(region, repeats)

    def profile(self, region: Region, profile: object = None) -> proof.Profile:
        return self.seen


class InProcess:
    """An executor whose worker is this process; the machine has no ceilings."""

    pid, start_s = 0, 0.0

    def run(self, task: Task, deadline_s: float) -> Reply:
        if isinstance(task, CeilingsTask):
            none = Ceilings(gemm_flops_per_s={}, memory_bytes_per_s=1e12, empty_call_s=1e-9)
            return Reply(result=Probe(ceilings=none, torch_facts={}).model_dump_json())
        return Reply(result=worker.perform(task))

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def gpu_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker believes that it measures on a GPU: its clock and NVML are simulated, attention runs on the CPU."""
    for name in ("fix_allocator", "fix_threads", "fix_precision", "protect_host", "quiet_compilers"):
        monkeypatch.setattr(process, name, lambda *_, **__: None)
    monkeypatch.setattr(counters, "void_reason", lambda *_: "")  # whatever this machine does meanwhile
    monkeypatch.setattr(launch._Draft, "_is_on_cuda", staticmethod(lambda _: True))
    monkeypatch.setattr(launch, "CudaClock", HostClock)
    monkeypatch.setattr(NvmlWatch, "open", lambda index: NvmlWatch(index, SimulatedNvml(0)))


PROBLEM = AttentionProblem(heads_q=1, heads_kv=1, seq_q=16, seq_kv=16, head_dim=16)


def measured(folder: Path, conditions: Conditions = Conditions(), **changes: Any) -> Measurement:  # noqa: B008 - frozen
    """One launch of naive attention in this process."""
    common = {"device": "cpu", "threads": 1, "seed": 0}
    truth = str(folder / "truth.pt")
    worker.perform(TruthTask(**common, problem=PROBLEM, backward=False, truth_path=truth))
    cell = Cell(implementation="naive", problem=PROBLEM, passes="forward", conditions=conditions)
    budget = {"min_time_s": 0.001, "max_time_s": 0.01, "precision": 0.01, "measure_memory": False}
    return launch.measure_cell(CellTask(**common, **budget, cell=cell, truth_path=truth, name_kernels=True, **changes))


@pytest.mark.usefixtures("gpu_worker")
def test_throttle_trace_voids_the_right_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over three rounds: thermal and brake reasons void and repeat a launch, idle and the power cap do not.

    The launch that counts in a round is the first that was not throttled; the others stay in the record with their reason.
    """
    idle, cap, thermal, hardware_thermal, brake = 0x01, 0x04, 0x20, 0x40, 0x80
    before_and_after = [
        (idle, 0),  # round 0
        (0, thermal | cap), (cap, cap),  # round 1: the launch that heated up, and its repetition at the power cap
        (brake, 0), (0, hardware_thermal), (0, idle),  # round 2
    ]  # fmt: skip
    nvml = TracedNvml(bits for launch in before_and_after for bits in launch)
    monkeypatch.setattr(NvmlWatch, "open", lambda index: NvmlWatch(index, nvml))
    (tmp_path / "traced.yaml").write_text(
        "name: traced\nimplementations: naive\nsweeps: {heads: 1, seq_len: 16, head_dim: 16}\n"
        "protocol: {launches: 3, min_time_s: 0.001, max_time_s: 0.01, measure: time}\n"
    )
    config, cpu = load_config(str(tmp_path / "traced.yaml")).config, Device("cpu")
    plan = make_plan(config, cpu, control=False)
    info = RunInfo(
        id="traced", name="traced", created_at="", config_source="", config_text="", config={}, device="cpu", versions={},
        environment={}, cells=plan.cells, control=(), seed=0, attnbench_version="0",
    )  # fmt: skip
    run = Run.create(tmp_path, info)
    silent: Any = types.SimpleNamespace(**dict.fromkeys(("began", "launching", "launched", "noted"), lambda *_: None))
    Session(run, plan, config.protocol, Machine(cpu, threads=1), InProcess, silent).carry_out()
    launches = list(run.launches())
    assert [(each.round, each.attempt, each.void) for each in launches] == [
        (0, 0, ""),
        (1, 0, "the GPU was throttled after the launch: software thermal slowdown"),
        (1, 1, ""),
        (2, 0, "the GPU was throttled before the launch: hardware power brake"),
        (2, 1, "the GPU was throttled after the launch: hardware thermal slowdown"),
        (2, 2, ""),
    ]
    assert [(each.round, each.attempt) for each in counted(launches)] == [(0, 0), (1, 1), (2, 2)]
    assert all(each.outcome is Outcome.OK and each.kernels == (("attention_kernel",) if each.round == 0 else ())
               for each in launches)  # fmt: skip


@pytest.mark.usefixtures("gpu_worker")
def test_capture_of_nothing_ends_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the graph holds no kernel the launch is an error in words, and has no time."""
    replay = functools.partial(GraphReplay, cuda=SimulatedCuda(), kernels_of=lambda call: ())
    monkeypatch.setattr(launch, "GraphReplay", replay)
    ended = measured(tmp_path, Conditions(cuda_graph=True))
    assert (ended.outcome, ended.samples) == (Outcome.ERROR, None)
    assert "the CUDA graph was captured, but replaying it launches no kernel" in ended.detail


@pytest.mark.usefixtures("gpu_worker")
def test_kernel_that_did_not_run_ends_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timed pass that launches nothing was not attention: no time is kept of it. One that copies alone is judged elsewhere."""
    monkeypatch.setattr(HostClock, "seen", proof.Profile())
    launch = measured(tmp_path)
    assert (launch.outcome, launch.samples) == (Outcome.ERROR, None)
    assert "launches no kernel and moves no bytes" in launch.detail
    monkeypatch.setattr(HostClock, "seen", proof.Profile((), ("Memcpy DtoD",), 1e-6))
    launch = measured(tmp_path)
    assert (launch.outcome, launch.kernels) == (Outcome.OK, ())
    assert launch.samples is not None


@pytest.mark.usefixtures("gpu_worker")
def test_kernels_are_timed_where_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of five profiles; a profiler that sees nothing is an error where it was asked for, and else is let be."""
    seconds = iter((9e-4, 1e-4, 3e-4, 2e-4, 5e-4))
    monkeypatch.setattr(HostClock, "profile", lambda *_: proof.Profile(("attention_kernel",), (), next(seconds)))
    assert measured(tmp_path, measure_kernels=True).kernel_time_s == 3e-4

    def blind(*_: object) -> proof.Profile:
        raise proof.BlindProfilerError("torch's profiler shows no kernel on this device")

    monkeypatch.setattr(HostClock, "profile", blind)
    assert measured(tmp_path, measure_kernels=True).outcome is Outcome.ERROR
    launch = measured(tmp_path)
    assert (launch.outcome, launch.kernels, launch.kernel_time_s) == (Outcome.OK, (), None)


def test_gpu_check_takes_minutes() -> None:
    """Even where every package is there, every launch is estimated to end within five minutes in all."""
    config = load_config("gpu_check").config
    gpu = Device("cuda", capability=(9, 0), memory_bytes=80 * 2**30, platform="cuda")
    plan = make_plan(config, gpu, control=False)
    assert not plan.broken
    assert sum(cost_of(cell, gpu, config.protocol).seconds_per_launch for cell in plan.cells) < 300


def test_kernels_are_refused_off_cuda(tmp_path: Path) -> None:
    """On a CPU there is no such profiler: what is allowed is said, with the line."""
    file = tmp_path / "kernels.yaml"
    file.write_text(
        "name: kernels\nimplementations: naive\nsweeps: {heads: 1, seq_len: 16, head_dim: 16}\n"
        "protocol: {measure: [time, kernels]}\n"
    )
    with pytest.raises(
        ConfigError, match="kernels: needs a CUDA device, this run is on cpu; allowed here: time, memory"
    ) as no:
        make_plan(load_config(str(file)).config, Device("cpu"))
    assert ":4: protocol.measure" in str(no.value)
    file.write_text(file.read_text().replace("[time, kernels]", "kernels"))
    with pytest.raises(ConfigError, match="kernels is compared with the time"):
        load_config(str(file))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_gpu_check_without_a_gpu_says_so(attnbench: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`plan` and `run` of it end as for any device that is not there."""
    for command in ("plan", "run"):
        done = attnbench(command, "gpu_check")
        assert done.returncode == 2
        assert "device cuda was asked for, but" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.cuda
@needs_cuda
def test_event_clock_agrees_with_the_host() -> None:
    """On a long product, events and the synchronised host clock agree within a fifth."""
    clock, product = CudaClock(), Product()
    clock.time(product, 3)
    span = clock.time(product, 20)
    assert span.device_s == pytest.approx(span.wall_s, rel=0.2)


@pytest.mark.cuda
@pytest.mark.skipif(not environment.torch_has_cuda(), reason="torch is built for the CPU here")
def test_device_is_found_without_torch() -> None:
    """The device that the driver shows is the one that torch sees."""
    device = environment.find_device("cuda")
    assert device.name == torch.cuda.get_device_name(device.index)
    assert device.capability == torch.cuda.get_device_capability(device.index)


@pytest.mark.cuda
@needs_cuda
def test_ceilings_of_the_device_are_below_its_data_sheet() -> None:
    """16-bit products reach at least a quarter of the data sheet's rate, where there is one, and never exceed it."""
    device = environment.find_device("cuda")
    peak = peak_flops_per_s(device, 1, "ieee", "").get("bfloat16")
    if peak is None:
        pytest.skip(f"no data sheet of {device.name}")
    measured = ceilings.measure(str(device), ["bfloat16"], None).gemm_flops_per_s["bfloat16"]
    assert peak / 4 < measured <= 1.1 * peak


class Product(Region):
    """A product long enough for any clock."""

    def __init__(self) -> None:
        self._left = torch.randn(4096, 4096, device="cuda")

    def run(self, repeats: int) -> None:
        for _ in range(repeats):
            self._left @ self._left


class Nothing(Region):
    """A pass that launches nothing."""

    def run(self, repeats: int) -> None:
        """Nothing."""


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("cold", [False, True])
def test_event_clock_agrees_with_the_profiler(cold: bool) -> None:
    """On a long product both see the same time, with a cold cache too."""
    clock = CudaClock(cold=cold)
    samples = sample(Product(), clock, Budget(0.05, 0.5, 0.01))
    seconds = statistics.median(clock.profile(Product()).seconds for _ in range(5))
    assert clock_check.verdict(statistics.median(samples.times_s), seconds) == clock_check.AGREE


@pytest.mark.cuda
@needs_cuda
def test_graph_holds_what_was_captured() -> None:
    """A captured product replays its kernel and takes its time; a capture of nothing is found."""
    replay = GraphReplay(Product())
    assert proof.cuda_kernels(lambda: replay.run(1))
    direct, replayed = (sample(region, CudaClock(), Budget(0.05, 0.5, 0.01)) for region in (Product(), replay))
    assert statistics.median(replayed.times_s) == pytest.approx(statistics.median(direct.times_s), rel=0.1)
    with pytest.raises(EmptyCaptureError):
        GraphReplay(Nothing())


@pytest.mark.cuda
@needs_cuda
def test_nvml_tells_of_this_gpu() -> None:
    """Clocks and temperature are numbers, unless nvidia-ml-py is not installed."""
    watch = NvmlWatch.open(torch.cuda.current_device())
    watch.read("before")
    if "unreadable" in watch.readings:
        pytest.skip(watch.readings["unreadable"])
    assert watch.readings["before"]["sm_mhz"] > 0
    assert 0 < watch.readings["before"]["temperature_c"] < 120


@functools.cache
def truth(problem: AttentionProblem) -> Truth:
    """A case's truth, computed once."""
    return truth_of(problem)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.filterwarnings("default")  # packages warn of their own deprecations while they compile
@pytest.mark.parametrize("problem", contract.few_cases(12), ids=str)
@pytest.mark.parametrize("name", [name for name in names() if not name.startswith("fake_")])
def test_is_right_on_the_gpu(name: str, problem: AttentionProblem) -> None:
    """Every implementation that is available on this GPU is right in a selection of the contract's cases, or refuses one."""
    device = environment.find_device("cuda")
    missing = get(name).unavailable(device)
    if missing:
        pytest.skip("; ".join(missing))
    result = run_case(get(name), problem, device, truth(problem))
    assert not result.faults
    if result.refusals:
        pytest.skip("; ".join(result.refusals))


@pytest.mark.cuda
@needs_cuda
def test_gpu_check_shows_what_disagrees(attnbench: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The shipped configuration runs, and ends with the clock beside the profiler."""
    done = attnbench("run", "gpu_check", "--only", "naive,sdpa,sdpa_flash", timeout=600)
    assert done.returncode == 0, done.stderr
    assert "The event clock beside a profiler" in done.stdout
