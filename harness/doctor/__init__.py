"""What makes this machine noisy, what each cause costs as measured here, and what a person would run. Changes nothing."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

from ...impls import Device
from .. import control_groups, environment, gpus
from ..run.executor import Executor
from . import graphics, memory, processes, processor, system
from .costs import Costs, Notes, Workers, measure, steps
from .facts import Facts, read
from .finding import Diagnosis, Finding, LaunchSpread, Missing
from .launches import FORMULA, summary_of

__all__ = ["Diagnosis", "Finding", "LaunchSpread", "Missing", "diagnose", "findings_of"]


def diagnose(device: Device, servers: int, start: Callable[[], Executor], notes: Notes) -> Diagnosis:
    """Look at this machine and measure; takes about five seconds and four for each server. Errors: `NoServerError`."""
    begin, threads = time.perf_counter(), environment.usable_threads()
    facts = read()
    pinned = processor.first_of_each(facts)
    notes.began(2 + steps(servers, device, pinned))
    notes.measuring("who else is at work")
    at_first = processes.observe()
    costs = measure(Workers(start, device, threads, notes), pinned, servers)
    notes.measuring("who is at work by now")
    competition = max(at_first, processes.observe(), key=lambda each: each.busy)
    launches: dict[str, LaunchSpread] = {
        work: each for work, each in costs.launches.items() if isinstance(each, LaunchSpread)
    }
    return Diagnosis(
        machine=environment.machine_name(environment.describe(device)),
        device=str(device),
        threads=threads,
        seconds=time.perf_counter() - begin,
        findings=findings_of(facts, costs, competition, _gpu(device), threads),
        launches=launches,
        launch_count=costs.launch_count,
        void_launches=costs.void_launches,
        unmeasured_launches={work: each.reason for work, each in costs.launches.items() if isinstance(each, Missing)},
        formula=FORMULA,
        summary=summary_of(launches),
    )


def findings_of(
    facts: Facts, costs: Costs, competition: processes.Competition, gpu: graphics.GpuFacts | Missing, threads: int
) -> tuple[Finding, ...]:
    """All findings, the worst first."""
    found = [
        *processor.findings(facts, costs, threads),
        *system.findings(facts, costs, competition, control_groups.cpus(), threads),
        *memory.findings(facts, costs, has_glibc=platform.libc_ver()[0] == "glibc"),
        *graphics.findings(gpu, costs),
    ]
    return tuple(sorted(found, key=lambda each: each.badness, reverse=True))


def _gpu(device: Device) -> graphics.GpuFacts | Missing:
    """Facts of the GPU that is used; why there are none."""
    if device.kind != "cuda":
        return Missing(f"none is used: the device is {device}")
    if device.platform == "rocm":
        return Missing("NVML tells of NVIDIA's GPUs alone; see: rocm-smi")
    nvml = graphics.open_nvml()
    return nvml if isinstance(nvml, Missing) else graphics.read(gpus.cuda()[device.index].uuid, nvml)
