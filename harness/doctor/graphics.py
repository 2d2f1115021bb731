"""Findings about an NVIDIA GPU, as its driver tells: clocks, throttle reasons, and who else computes on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..measure.tasks import NoiseDone
from .costs import Costs
from .finding import NOTHING, Cost, Finding, Missing
from .processor import read_trace

#: nvml.h, nvmlClocksEventReasons; idle clocks are left out, since this GPU idles while it is looked at.
REASONS = {
    0x02: "application clocks", 0x04: "power cap", 0x08: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "hardware power brake", 0x100: "display clocks",
}  # fmt: skip
_APART = "not apart from the GPU's speed states, which say what it costs"


@dataclass(frozen=True)
class GpuFacts:
    """Clocks in MHz, power in watts, processes by id; a fact that the driver does not tell is `Missing`."""

    index: int | Missing
    sm_mhz: int | Missing
    most_sm_mhz: int | Missing
    memory_mhz: int | Missing
    persistence: bool | Missing
    power_limit_w: float | Missing
    reasons: int | Missing
    processes: tuple[int, ...] | Missing


def open_nvml() -> Any | Missing:
    """The driver's library, started; why not where it is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - the package and its driver fail in their own ways; the reader is told how
        return Missing(f"NVML: {type(error).__name__}: {error}; pip install nvidia-ml-py")
    return pynvml


def read(uuid: str, nvml: Any) -> GpuFacts | Missing:
    """Facts of the GPU with this UUID."""
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        return Missing(str(error))

    def ask(question: Callable[[], Any]) -> Any | Missing:
        try:
            return question()
        except (nvml.NVMLError, AttributeError) as error:  # older bindings lack a function, older GPUs a sensor
            return Missing(str(error))

    return GpuFacts(
        index=ask(lambda: nvml.nvmlDeviceGetIndex(handle)),
        sm_mhz=ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        most_sm_mhz=ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_mhz=ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        persistence=ask(lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle))),
        power_limit_w=ask(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000),
        reasons=ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        processes=ask(lambda: tuple(
            each.pid for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if each.pid != os.getpid()
        )),
    )  # fmt: skip


def findings(facts: GpuFacts | Missing, costs: Costs) -> list[Finding]:
    """In no order; one row where there is nothing to tell."""
    states = _states(facts, costs)
    if isinstance(facts, Missing):
        return [states]
    return [states, _throttling(facts, costs), _others(facts)]


def _states(facts: GpuFacts | Missing, costs: Costs) -> Finding:
    """A trace of products, and the clock before and under it."""
    what = "GPU clocks"
    found, under_load = facts.reason if isinstance(facts, Missing) else "", _under_load(costs, "sm_mhz")
    if isinstance(facts, GpuFacts):
        found = (
            f"SM {_said(facts.sm_mhz)} MHz, {_said(under_load)} under load, at most {_said(facts.most_sm_mhz)};"
            f" memory {_said(facts.memory_mhz)} MHz; persistence mode {_switch(facts.persistence)}"
        )
    trace = read_trace(costs.traces.get("GPU", Missing("no GPU is used")))
    if isinstance(trace, Missing):
        return Finding(what=what, found=found, cost=Cost.unmeasured(trace), advice=NOTHING)
    words = f"the slow half of a trace takes {trace.halves:.1%} longer than the fast half; {trace.duration_words}"
    cost = Cost.measured(trace.halves, words)
    return Finding(what=what, found=found, cost=cost, advice=_lock(facts, under_load) if cost.matters else NOTHING)


def _lock(facts: GpuFacts | Missing, under_load: Any) -> str:
    """Persistence, and the clock that this GPU held under load."""
    gpu = _selected(facts)
    mhz = under_load if isinstance(under_load, int) else "MHZ"
    return f"sudo nvidia-smi{gpu} -pm 1; sudo nvidia-smi{gpu} -lgc {mhz},{mhz} (undo: -rgc)"


def _throttling(facts: GpuFacts, costs: Costs) -> Finding:
    """Reasons under load count, and those at rest where the load was not watched."""
    under_load = _under_load(costs, "throttle_reasons")
    bits = under_load if isinstance(under_load, int) else facts.reasons
    found: str = str(bits)
    advice = NOTHING
    if isinstance(bits, int):
        names = [name for bit, name in REASONS.items() if bits & bit]
        found = f"held back by: {', '.join(names)}" if names else "nothing holds it back"
        if bits & 0x04:
            gpu = _selected(facts)
            advice = f"see its limits: nvidia-smi{gpu} -q -d POWER; raise: sudo nvidia-smi{gpu} -pl WATTS"
        elif names:
            advice = f"see why: nvidia-smi{_selected(facts)} -q -d PERFORMANCE,TEMPERATURE"
    found += f"; power limit {_said(facts.power_limit_w)} W"
    return Finding(what="GPU throttling", found=found, cost=Cost.unmeasured(_APART), advice=advice)


def _others(facts: GpuFacts) -> Finding:
    pids = facts.processes
    if isinstance(pids, Missing):
        return Finding(what="GPU processes", found=str(pids), cost=Cost.unmeasured(pids), advice=NOTHING)
    found = f"{len(pids)} others compute on it" + (f": pid {', '.join(map(str, pids))}" if pids else "")
    advice = "stop them, or take another: CUDA_VISIBLE_DEVICES=N attnbench run CONFIG" if pids else NOTHING
    return Finding(what="GPU processes", found=found, cost=Cost.unmeasured(_APART), advice=advice)


def _under_load(costs: Costs, name: str) -> Any:
    """What NVML said in the worker after the trace."""
    done = costs.traces.get("GPU")
    if not isinstance(done, NoiseDone) or done.counters is None:
        return Missing("no trace of the GPU")
    after = done.counters.gpu.get("after", {})
    return after.get(name, Missing(str(after.get("unreadable", done.counters.gpu.get("unreadable", "not told")))))


def _selected(facts: GpuFacts | Missing) -> str:
    known = isinstance(facts, GpuFacts) and isinstance(facts.index, int)
    return f" -i {facts.index}" if known and isinstance(facts, GpuFacts) else ""


def _said(value: object) -> str:
    return "?" if isinstance(value, Missing | str) else f"{value:g}" if isinstance(value, float) else str(value)


def _switch(value: bool | Missing) -> str:
    return "unknown" if isinstance(value, Missing) else "on" if value else "off"
