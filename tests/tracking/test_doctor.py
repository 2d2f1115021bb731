"""The doctor: what it reads, measures, advises and says, on machines of many kinds, and that it changes nothing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.harness import doctor, listing
from attnbench.harness.doctor import facts, graphics, launches, processes, series
from attnbench.harness.doctor.costs import Costs
from attnbench.harness.doctor.finding import NOTHING, QUIET_FIRST, Cost, Finding, LaunchSpread, Missing
from attnbench.harness.measure.tasks import ClockReading, NoiseDone, Reply, Task
from attnbench.harness.records import Counters
from attnbench.harness.run.executor import NoServerError, ServerError
from attnbench.impls import Device

Command = Callable[..., subprocess.CompletedProcess[str]]
ROWS = {
    "speed states", "competing load", "interruptions", "steal", "timer", "threads", "throttling", "layout (ASLR)",
    "allocator", "frequency governor", "turbo", "SMT", "GPU clocks",
}  # fmt: skip
#: What a person would change on the doctor's advice.
SETTINGS = (
    "/proc/sys/kernel/randomize_va_space", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/devices/system/cpu/smt/control",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "/sys/devices/system/cpu/intel_pstate/no_turbo",
    "/sys/devices/system/cpu/cpufreq/boost", "/sys/devices/system/clocksource/clocksource0/current_clocksource",
)  # fmt: skip
#: Every process of the doctor that is a Python interpreter tells what it opens to write, starts, moves and removes.
AUDIT = """
import os, sys
log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND)
def tell(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        os.write(log, f"open {arguments[0]}\\n".encode())
    elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.system"):
        os.write(log, f"{event} {arguments[0]}\\n".encode())
    elif event == "subprocess.Popen":
        os.write(log, f"start {' '.join(map(str, arguments[1]))}\\n".encode())
sys.addaudithook(tell)
"""


@pytest.fixture(scope="module")
def looked(
    tmp_path_factory: pytest.TempPathFactory, attnbench_in: Callable[[Path], Command]
) -> tuple[doctor.Diagnosis, list[str], Path]:
    """One real run on this machine: what it said, what its processes wrote and started, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("doctor")
    here, home, hooks = (folder / name for name in ("here", "home", "hooks"))
    for each in (here, home, hooks, folder / "temporary"):
        each.mkdir()
    (hooks / "sitecustomize.py").write_text(AUDIT)
    log = folder / "log"
    log.touch()
    before = settings()
    done = attnbench_in(here)(
        "doctor", "--json", "--servers", "2", "--device", "cpu", timeout=300, HOME=str(home), XDG_CACHE_HOME=str(home),
        TMPDIR=str(folder / "temporary"),
        PYTHONPATH=str(hooks), AUDIT_LOG=str(log), PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert settings() == before
    return doctor.Diagnosis.model_validate_json(done.stdout), log.read_text().splitlines(), folder


def settings() -> dict[str, str]:
    """The settings that this machine shows."""
    return {path: Path(path).read_text() for path in SETTINGS if Path(path).exists()}


def test_every_cause_is_told(looked: tuple[doctor.Diagnosis, list[str], Path]) -> None:
    """Each cause has a row of whole words, and a number only where something was measured."""
    found = looked[0]
    assert {each.what for each in found.findings} == ROWS
    for each in found.findings:
        assert each.found
        assert each.advice
        assert (each.cost.share is None) == each.cost.words.startswith("not measured: "), each
    rows_ = {each.what: each.cost for each in found.findings}
    assert rows_["timer"].share is not None
    assert rows_["interruptions"].share is not None
    for what in ("speed states", "layout (ASLR)", "allocator"):  # a machine at work shows its work in their place
        assert rows_[what].share is not None or "not apart from the load" in rows_[what].words


def test_worst_first(looked: tuple[doctor.Diagnosis, list[str], Path]) -> None:
    """Sorted by what each costs a run here, those that were not measured last."""
    shares = [0.0 if each.handled and each.cost.share else each.cost.share for each in looked[0].findings]
    known = [share for share in shares if share is not None]
    assert known == sorted(known, reverse=True)
    assert None not in shares[: len(known)]


def test_launches_and_what_a_gate_could_see(looked: tuple[doctor.Diagnosis, list[str], Path]) -> None:
    """The smallest slowdown follows from the spread of pairs, by the formula that is printed."""
    found = looked[0]
    assert set(found.launches) == {"naive S=256", "product"}
    assert found.launch_count == 16
    for each in found.launches.values():
        assert each.servers == 2
        assert each.smallest_slowdown == pytest.approx(0.01 + 2.1 * each.pair / math.sqrt(16))
        assert f"{each.smallest_slowdown:.1%}" in found.summary


def test_nothing_is_changed(looked: tuple[doctor.Diagnosis, list[str], Path]) -> None:
    """No setting, no file beside nameless ones, no process beside its own servers; only of itself a worker writes."""
    _, told, folder = looked
    for each in ("here", "home", "temporary"):
        assert not list((folder / each).rglob("*"))
    temporary = str(folder / "temporary")
    assert any(line.startswith("start ") for line in told)
    assert "open /proc/self/oom_score_adj" in told, "workers were not watched"
    for line in told:
        event, _, what = line.partition(" ")
        if event == "start":
            assert "attnbench.harness.measure.server" in what or Path(what.split()[0]).name in QUESTIONS, line
        elif event == "open":
            own = what.isdecimal() or what in ("/dev/null", "/proc/self/oom_score_adj")
            assert own or what.startswith(temporary), line
        else:
            assert what.startswith(temporary), line


#: Programs that libraries ask about the platform, and that change nothing.
QUESTIONS = {"ldconfig", "uname", "lscpu", "nvidia-smi"}


def test_printed_for_a_person(
    looked: tuple[doctor.Diagnosis, list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of four columns, then the formula, and the summary as the last line."""
    listing.print_diagnosis(looked[0])
    printed = capsys.readouterr().out
    assert all(f"│ {row} " in printed for row in ROWS)
    for heading in ("what", "found here", "cost as measured here", "what a person would run"):
        assert heading in printed
    assert launches.FORMULA in printed
    assert printed.splitlines()[-1] == looked[0].summary


def test_usage(attnbench: Command) -> None:
    """One server cannot be compared; a device that is not there is a mistake, told with what there is."""
    assert attnbench("doctor", "--servers", "1").returncode == 2
    absent = attnbench("doctor", "--device", "cuda:99")
    assert absent.returncode == 2
    assert "cuda:99 was asked for" in absent.stderr
    assert "Traceback" not in absent.stderr


def test_no_server_starts(attnbench: Command, tmp_path: Path) -> None:
    """Without a torch that can be imported nothing is measured: code 4, with what the server said."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('this torch is broken')\n")
    done = attnbench("doctor", "--device", "cpu", PYTHONPATH=str(tmp_path / "broken"))
    assert done.returncode == 4, done.stderr
    assert "this torch is broken" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it with 130, and its servers with it."""
    command = [Path(sys.executable).parent / "attnbench", "doctor", "--device", "cpu"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        children: list[str] = []
        deadline = time.monotonic() + 60
        while not children and time.monotonic() < deadline:
            time.sleep(0.1)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (out, err.strip()) == ("", "interrupted")
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)


# What is read.


def tree(folder: Path, files: dict[str, str]) -> Path:
    """A root such as /sys with these files."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text + "\n")
    return folder


CPU, CLOCK = "devices/system/cpu", "devices/system/clocksource/clocksource0"
METAL_PROC = {
    "cpuinfo": "flags\t: fpu avx2",
    "loadavg": "1.50 1.20 1.00 2/300 4000",
    "sys/kernel/randomize_va_space": "2",
}
METAL_SYS = {
    f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave",
    f"{CPU}/intel_pstate/no_turbo": "0",
    f"{CPU}/smt/control": "on",
    **{f"{CPU}/cpu{each}/topology/thread_siblings_list": f"{each % 2},{each % 2 + 2}" for each in range(4)},
    f"{CLOCK}/current_clocksource": "hpet",
    f"{CLOCK}/available_clocksource": "tsc hpet acpi_pm",
    "kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
}


@pytest.fixture
def metal(tmp_path: Path) -> facts.Facts:
    """Two cores of two processors each, that a laptop's defaults govern."""
    environment = {"OMP_NUM_THREADS": "7", "LD_PRELOAD": "libjemalloc.so", "HOME": "/root"}
    proc, sys_ = tree(tmp_path / "proc", METAL_PROC), tree(tmp_path / "sys", METAL_SYS)
    return facts.read(proc, sys_, environment, frozenset(range(4)))


@pytest.fixture
def virtual(tmp_path: Path) -> facts.Facts:
    """A virtual machine of two processors that shows next to nothing."""
    proc = tree(tmp_path / "guest" / "proc", {"cpuinfo": "flags\t: fpu hypervisor avx2"})
    siblings = {f"{CPU}/cpu{each}/topology/thread_siblings_list": str(each) for each in range(2)}
    return facts.read(proc, tree(tmp_path / "guest" / "sys", siblings), {}, frozenset(range(2)))


def test_facts_of_metal(metal: facts.Facts) -> None:
    """The words of the kernel's files; settings of threads and allocator, and no other variable."""
    assert (metal.governor, metal.smt, metal.randomisation, metal.load) == ("powersave", "on", "2", "1.50")
    assert isinstance(metal.turbo, facts.Turbo)
    assert metal.turbo.on
    assert metal.turbo.off == "1"
    assert metal.cores == ((0, 2), (1, 3))
    assert (metal.clock_source, metal.clock_sources) == ("hpet", ("tsc", "hpet", "acpi_pm"))
    assert metal.huge_pages == "madvise"
    assert (metal.thread_settings, metal.allocator_settings) == (
        {"OMP_NUM_THREADS": "7"},
        {"LD_PRELOAD": "libjemalloc.so"},
    )


def test_facts_of_a_virtual_machine(virtual: facts.Facts) -> None:
    """What is not shown is missing with its reason."""
    assert virtual.is_virtual
    assert "a virtual machine shows no cpufreq" in str(virtual.governor)
    assert isinstance(virtual.turbo, Missing)
    assert virtual.sharing == []
    assert "current_clocksource is not there" in str(virtual.clock_source)


def test_facts_of_another_platform(tmp_path: Path) -> None:
    """Without /proc and /sys every fact is missing, and nothing fails."""
    found = facts.read(tmp_path / "no", tmp_path / "none", {}, frozenset({0}))
    assert not found.is_virtual
    for each in (found.governor, found.turbo, found.smt, found.cores, found.randomisation, found.load):
        assert isinstance(each, Missing)
    assert "this kernel shows no cpufreq" in str(found.governor)


def test_boost_of_amd(tmp_path: Path) -> None:
    """`boost` counts the other way around than `no_turbo`."""
    turbo = facts.read(tmp_path, tree(tmp_path / "sys", {f"{CPU}/cpufreq/boost": "1"}), {}, frozenset({0})).turbo
    assert isinstance(turbo, facts.Turbo)
    assert (turbo.on, turbo.off) == (True, "0")


def test_affinity_hides_siblings(tmp_path: Path) -> None:
    """A process that may use one processor of each core shares none."""
    found = facts.read(tmp_path, tree(tmp_path / "sys", METAL_SYS), {}, frozenset({0, 1}))
    assert found.cores == ((0,), (1,))
    assert found.sharing == []


def test_a_busy_process_is_seen() -> None:
    """Who uses a processor is named, with how much; this process is not."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            time.sleep(0.5)
            found = processes.observe(0.5)
        finally:
            busy.kill()
    seen = {each.pid: each.share for each in found.processes}
    assert seen[busy.pid] > processes.NAMED_SHARE
    assert os.getpid() not in seen
    assert found.busy > processes.NAMED_SHARE


# What is made of it.


def counters(**changes: float) -> Counters:
    """Of three quiet seconds."""
    quiet = dict.fromkeys(("minor_faults", "major_faults", "voluntary_switches", "involuntary_switches"), 0)
    return Counters.model_validate(
        {"span_s": 3.0, "cpu_time_s": 6.0, "run_queue_wait_s": 0.0, "steal_s": 0.0, "throttled_s": 0.0}
        | quiet
        | changes
    )


def trace(spread: float, **changes: float) -> NoiseDone:
    """A trace of 600 samples of 5 ms that are independent, and what the system did to it."""
    draw = random.Random(0)
    times = tuple(5e-3 * math.exp(draw.gauss(0, spread)) for _ in range(600))
    return NoiseDone(times_s=times, sample_s=5e-3, calls=600, counters=counters(**changes))


SPREAD = LaunchSpread(
    servers=8, launches_per_server=3, median_s=4e-4, within_server=0.004, between_servers=0.005, of_server=0.0, chance=0.4,
    pair=0.006, smallest_slowdown=0.0132,
)  # fmt: skip
READING = ClockReading(resolution_s=4e-8, call_s=4e-8, span_s=0.5, gaps=10, lost_s=1e-4, longest_gap_s=2e-5)


def costs(**changes: Any) -> Costs:
    """Of a quiet machine, with changes."""
    quiet: dict[str, Any] = {
        "clock": NoiseDone(clock=READING),
        "traces": {"one thread": trace(0.001), "all threads": trace(0.001)},
        "allocators": {"steady": trace(0.001)},
        "launches": {"naive S=256": SPREAD, "product": SPREAD},
        "layouts": SPREAD,
    }
    return Costs(**quiet | changes)


IDLE = processes.Competition(0.0, 4, ())
NO_GPU = Missing("none is used: the device is cpu")


def rows(
    found: facts.Facts,
    measured: Costs,
    competition: processes.Competition = IDLE,
    gpu: graphics.GpuFacts | Missing = NO_GPU,
    threads: int = 2,
) -> dict[str, Finding]:
    """Findings by what they are about."""
    return {each.what: each for each in doctor.findings_of(found, measured, competition, gpu, threads)}


def test_settings_are_advised_by_command(metal: facts.Facts) -> None:
    """A governor, a turbo and a clock source that are not at their steadiest have a command each."""
    found = rows(metal, costs())
    assert found["frequency governor"].advice == "sudo cpupower frequency-set -g performance"
    assert found["turbo"].advice.startswith("echo 1 | sudo tee ")
    assert found["turbo"].advice.endswith("intel_pstate/no_turbo")
    assert found["timer"].advice.startswith("echo tsc | sudo tee ")
    assert found["frequency governor"].cost.share is None


def test_a_quiet_virtual_machine_needs_nothing(virtual: facts.Facts) -> None:
    """Where nothing can be set and little is lost, nothing is advised, beside variables for other programs."""
    found = rows(virtual, costs())
    assert {each.advice for what, each in found.items() if what != "threads"} == {NOTHING}
    assert found["threads"].advice == "in other programs: export OMP_NUM_THREADS=2"


def test_speed_states(metal: facts.Facts, virtual: facts.Facts) -> None:
    """Slow and fast seconds are told from noise of each sample; what to do depends on what can be set here."""
    states = tuple(5e-3 * (1.15 if at // 200 % 2 else 1.0) * (1 + at % 7 * 1e-4) for at in range(600))
    measured = costs(traces={"one thread": trace(0.001), "all threads": trace(0.0)})
    done = measured.traces["all threads"]
    assert isinstance(done, NoiseDone)
    changed = costs(traces={"one thread": trace(0.001), "all threads": done.model_copy(update={"times_s": states})})
    on_metal, inside = rows(metal, changed)["speed states"], rows(virtual, changed)["speed states"]
    assert on_metal.cost.share == pytest.approx(0.15, abs=0.01)
    assert "stay alike for" in on_metal.found
    assert "cpupower" in on_metal.advice
    assert "nothing from inside" in inside.advice
    noisy = rows(virtual, costs(traces={"one thread": trace(0.05), "all threads": trace(0.05)}))["speed states"]
    assert "changes from sample to sample" in noisy.found


def test_competing_load(virtual: facts.Facts) -> None:
    """Who is at work is named with a command; while they are, nothing else is blamed."""
    competition = processes.Competition(1.9, 2, (processes.Process(77, "compiler", 0.95),))
    disturbed = {each: trace(0.1, run_queue_wait_s=1.5) for each in ("one thread", "all threads")}
    reading = NoiseDone(clock=READING.model_copy(update={"lost_s": 0.2}))
    found = rows(virtual, costs(traces=disturbed, clock=reading), competition)
    load = found["competing load"]
    assert load.cost.share == pytest.approx(0.5)
    assert "renice -n 19 -p 77" in load.advice
    assert "compiler 95% (pid 77), 0.95 by the kernel, or by processes that have ended or cannot be seen" in load.found
    assert found["interruptions"].advice == QUIET_FIRST
    assert found["speed states"].advice == QUIET_FIRST
    assert found["speed states"].cost.share is None
    assert next(iter(found)) == "competing load"


def test_launches_under_load(virtual: facts.Facts) -> None:
    """What most launches suffered from others is not said to be layout or allocator; what one launch suffered is."""
    apart = SPREAD.model_copy(update={"of_server": 0.3, "chance": 0.001})
    spreads = {"naive S=256": apart, "product": SPREAD}
    found = rows(virtual, costs(launches=spreads, void_launches=40, launch_count=64))
    for what in ("layout (ASLR)", "allocator"):
        assert found[what].cost.share is None
        assert "disturbed 40 of 64 launches" in found[what].cost.words
    assert "page faults" in found["allocator"].cost.words
    calm = rows(virtual, costs(launches=spreads, void_launches=1, launch_count=64))
    assert calm["layout (ASLR)"].cost.share == pytest.approx(0.3)


def test_threads_and_siblings(metal: facts.Facts) -> None:
    """All threads noisier than one: leave a core. A core for each thread steadier than the kernel's choice: keep to that."""
    noisy = {"one thread": trace(0.002), "all threads": trace(0.04), "pinned": trace(0.004)}
    found = rows(metal, costs(traces=noisy))
    assert found["threads"].advice == "leave a core to the rest: taskset -c 0 attnbench run CONFIG"
    assert found["SMT"].advice == "taskset -c 0,1 attnbench run CONFIG"
    assert found["SMT"].cost.share == pytest.approx(0.036, abs=0.01)
    quiet = {"one thread": trace(0.002), "all threads": trace(0.002), "pinned": trace(0.002)}
    assert rows(metal, costs(traces=quiet))["SMT"].advice == NOTHING


def test_steal_and_throttling(virtual: facts.Facts) -> None:
    """Shares of the traced time; where the platform does not tell, no number."""
    held = {"one thread": trace(0.001), "all threads": trace(0.001, steal_s=0.6, throttled_s=0.3)}
    found = rows(virtual, costs(traces=held))
    assert found["steal"].cost.share == pytest.approx(0.1)
    assert "not shared" in found["steal"].advice
    assert found["throttling"].cost.share == pytest.approx(0.1)
    assert "docker update --cpus" in found["throttling"].advice
    silent = trace(0.001)
    assert silent.counters is not None
    unknown = silent.counters.model_copy(update={"steal_s": None, "throttled_s": None, "run_queue_wait_s": None})
    found = rows(
        virtual,
        costs(traces={"one thread": silent, "all threads": silent.model_copy(update={"counters": unknown})}),
    )
    for what in ("steal", "throttling", "competing load"):
        assert found[what].cost.share is None
        assert found[what].cost.words.startswith("not measured: ")


def test_layout_and_allocator(metal: facts.Facts, virtual: facts.Facts) -> None:
    """Servers that differ beyond chance blame the layout; the allocator is handled, unless another one is preloaded."""
    apart = SPREAD.model_copy(update={"between_servers": 0.3, "of_server": 0.29, "chance": 0.001})
    found = rows(virtual, costs(layouts=apart))
    assert found["layout (ASLR)"].cost.share == 0.0
    assert "not differ beyond chance" in found["layout (ASLR)"].cost.words
    assert found["allocator"].cost.share == pytest.approx(0.295)
    assert found["allocator"].badness == (True, 0.0)
    assert found["allocator"].advice.startswith("in other programs: export MALLOC_MMAP_THRESHOLD_=")
    found = rows(metal, costs(launches={"naive S=256": apart, "product": SPREAD}))
    assert found["layout (ASLR)"].cost.share == pytest.approx(0.29)
    assert "setarch -R" in found["layout (ASLR)"].advice
    assert not found["allocator"].handled
    assert rows(metal, costs(layouts=apart))["allocator"].advice == "env -u LD_PRELOAD attnbench run CONFIG"


def test_what_was_not_measured_has_no_number(metal: facts.Facts) -> None:
    """A worker that ended leaves its reason in every row that needed it."""
    gone = Missing("its worker ended: killed by SIGSEGV")
    failed = costs(
        clock=gone,
        traces={"one thread": gone, "all threads": gone, "pinned": gone},
        allocators={"steady": gone},
        launches={"naive S=256": gone, "product": gone},
        layouts=gone,
    )
    for each in rows(metal, failed).values():
        assert each.cost.share is None
        assert each.cost.words.startswith("not measured: ")
    assert "SIGSEGV" in rows(metal, failed)["allocator"].cost.words
    assert rows(metal, failed)["SMT"].advice == "taskset -c 0,1 attnbench run CONFIG"


def test_order() -> None:
    """By what they cost a run; a handled one costs it nothing; unmeasured ones that ask for something come before others."""

    def row(cost: Cost, advice: str = NOTHING, *, handled: bool = False) -> Finding:
        return Finding(what="", found="", cost=cost, advice=advice, handled=handled)

    worst, small = row(Cost.measured(0.2, "")), row(Cost.measured(0.01, ""))
    handled = row(Cost.measured(0.9, ""), handled=True)
    asks, silent = row(Cost.unmeasured("why"), "do"), row(Cost.unmeasured("why"))
    assert sorted([silent, asks, handled, small, worst], key=lambda each: each.badness, reverse=True) == [
        worst, small, handled, asks, silent,
    ]  # fmt: skip


# The GPU, which is not there.


class SimulatedNvml:
    """NVML of a GPU that a power cap holds back, with another process and a field that it does not offer."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        """As pynvml's."""

    def __getattr__(self, name: str) -> Any:
        if name == "nvmlDeviceGetPersistenceMode":
            raise self.NVMLError("Not Supported")
        answers = {
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetIndex": 3,
            "nvmlDeviceGetClockInfo": 1410,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetPowerManagementLimit": 350_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x04,
            "nvmlDeviceGetComputeRunningProcesses": [
                types.SimpleNamespace(pid=os.getpid()), types.SimpleNamespace(pid=4242),
            ],
        }  # fmt: skip
        return lambda *_: answers[name]


def test_gpu(virtual: facts.Facts) -> None:
    """Clocks, what holds them back and who else computes, each with a command for this very GPU."""
    told = graphics.read("GPU-1", SimulatedNvml())
    assert isinstance(told, graphics.GpuFacts)
    assert isinstance(told.persistence, Missing)
    watched = {"before": {"sm_mhz": 600}, "after": {"sm_mhz": 1755, "throttle_reasons": 0x20}}
    on_gpu = trace(0.05).model_copy(update={"counters": counters().model_copy(update={"gpu": watched})})
    traces = {"one thread": trace(0.001), "all threads": trace(0.001), "GPU": on_gpu}
    found = rows(virtual, costs(traces=traces), gpu=told)
    clocks = found["GPU clocks"]
    assert "SM 1410 MHz, 1755 under load, at most 1980" in clocks.found
    assert "persistence mode unknown" in clocks.found
    assert "sudo nvidia-smi -i 3 -lgc 1755,1755" in clocks.advice
    assert clocks.cost.share is not None
    assert "software thermal slowdown" in found["GPU throttling"].found
    assert "nvidia-smi -i 3 -q -d PERFORMANCE" in found["GPU throttling"].advice
    assert found["GPU processes"].found == "1 others compute on it: pid 4242"
    unwatched = rows(virtual, costs(), gpu=told)
    assert "power cap" in unwatched["GPU throttling"].found
    assert "-pl WATTS" in unwatched["GPU throttling"].advice
    assert unwatched["GPU clocks"].cost.words == "not measured: no GPU is used"


def test_without_nvml(monkeypatch: pytest.MonkeyPatch, virtual: facts.Facts) -> None:
    """Where the driver's library is missing the row says so, and what to install."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = rows(virtual, costs(), gpu=graphics.open_nvml())
    assert "pip install nvidia-ml-py" in found["GPU clocks"].found


# Statistics.


def test_correlation_time() -> None:
    """Independent samples are alike for one; a state of 200 samples for many; equal samples tell nothing."""
    draw = random.Random(1)
    noise = [draw.gauss(1, 0.01) for _ in range(600)]
    assert series.correlation_samples(noise) < 2
    states = [each + 0.15 * (at // 200 % 2) for at, each in enumerate(noise)]
    assert series.correlation_samples(states) > 30
    assert series.correlation_samples([1.0] * 100) == 1.0
    assert series.trace_of([1.0] * 5, 1.0) is None


@given(st.lists(st.floats(1e-6, 1e3), min_size=20, max_size=60), st.sampled_from([0.25, 2.0, 1024.0]))
def test_traces_have_no_unit(times: list[float], scale: float) -> None:
    """Spread and halves are shares: never negative, and the same in any unit of time."""
    one, other = series.trace_of(times, 1.0), series.trace_of([each * scale for each in times], 1.0)
    assert one is not None
    assert one == other
    assert one.spread >= 0
    assert one.halves >= 0
    assert one.correlation_s >= 1


def test_servers_that_differ() -> None:
    """What launches of a server share is told from chance; a pair's deviation is that of neighbours."""
    draw = random.Random(2)
    alike = [[math.exp(draw.gauss(0, 0.01)) for _ in range(3)] for _ in range(8)]
    level = [0.0, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5]
    apart = [[each * math.exp(shift) for each in server] for server, shift in zip(alike, level, strict=True)]
    same, different = launches.spread_of(alike), launches.spread_of(apart)
    assert isinstance(same, LaunchSpread)
    assert isinstance(different, LaunchSpread)
    assert same.chance > 0.05 > different.chance
    assert different.of_server == pytest.approx(0.267, abs=0.02)
    assert different.within_server == pytest.approx(same.within_server)
    assert same.pair == pytest.approx(0.01 * math.sqrt(2), rel=0.4)
    assert different.pair > 0.3


def test_too_few_servers_say_nothing() -> None:
    """One server has nothing to differ from; identical launches leave the floor alone."""
    assert isinstance(launches.spread_of([[1.0, 1.0]]), Missing)
    assert isinstance(launches.spread_of([]), Missing)
    still = launches.spread_of([[1.0], [1.0]])
    assert isinstance(still, LaunchSpread)
    assert still.smallest_slowdown == launches.FLOOR
    assert "nothing is known" in launches.summary_of({})


def test_half_width_is_that_of_the_gate() -> None:
    """The formula's 2.1 is the half-width that the gate's own interval has for normal pairs."""
    from attnbench.harness.verdicts.signed_rank import shift_of

    draw, widths = random.Random(3), []
    for _ in range(400):
        found = shift_of([draw.gauss(0, 1) for _ in range(launches.PAIRS)])
        widths.append((found.high - found.low) / 2)
    expected = launches.HALF_WIDTHS / math.sqrt(launches.PAIRS)
    assert sum(widths) / len(widths) == pytest.approx(expected, rel=0.06)


# Servers that fail.


class Crashing:
    """A server whose workers all end by a signal."""

    pid, start_s = 0, 0.0

    def run(self, task: Task, deadline_s: float) -> Reply:
        return Reply(signal=signal.SIGSEGV)

    def close(self) -> None:
        """Nothing was started."""


class Silent:
    """Takes notes of nothing but how many steps there were."""

    def __init__(self) -> None:
        self.total, self.steps = 0, 0

    def began(self, steps: int) -> None:
        self.total = steps

    def measuring(self, what: str) -> None:
        self.steps += 1


def test_crashing_workers_cost_only_their_numbers() -> None:
    """A diagnosis is made of what is left: facts, reasons, and a summary that promises nothing."""
    notes = Silent()
    found = doctor.diagnose(Device("cpu"), 2, Crashing, notes)
    assert notes.steps == notes.total
    assert set(found.unmeasured_launches) == {"naive S=256", "product"}
    assert "killed by SIGSEGV" in found.unmeasured_launches["product"]
    assert "nothing is known" in found.summary
    assert json.loads(found.model_dump_json())["launches"] == {}


def test_servers_that_stop_starting() -> None:
    """The first must start; where a later one does not, launches say how many did."""
    starts: Iterator[int] = iter(range(100))

    def start() -> Crashing:
        if next(starts) >= 2:
            raise ServerError("no memory for another")
        return Crashing()

    found = doctor.diagnose(Device("cpu"), 4, start, Silent())
    assert "only 1 of 4 servers started: no memory for another" in found.unmeasured_launches["product"]

    def never() -> Crashing:
        raise ServerError("no memory at all")

    with pytest.raises(NoServerError, match="no memory at all"):
        doctor.diagnose(Device("cpu"), 2, never, Silent())
