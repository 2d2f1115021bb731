"""What this machine shows of what makes times differ: files of /proc and /sys, and settings of this process. Reads only."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .finding import Missing

PROC, SYS = Path("/proc"), Path("/sys")
Fact = str | Missing
#: Variables that set threads, where they run, and how they wait; and those that choose the allocator.
THREAD_VARIABLES = re.compile(r"(OMP|GOMP|KMP|MKL|OPENBLAS)_\w+|TORCH_NUM_THREADS")
ALLOCATOR_VARIABLES = re.compile(r"MALLOC_\w+|LD_PRELOAD|GLIBC_TUNABLES")


@dataclass(frozen=True)
class Turbo:
    """Whether it is on, and the file and word that would turn it off."""

    on: bool
    file: str
    off: str


@dataclass(frozen=True)
class Facts:
    """A fact in the system's own words, or why it cannot be read.

    `cores`: the logical processors of each physical core that this process may use.
    """

    is_virtual: bool
    governor: Fact
    turbo: Turbo | Missing
    smt: Fact
    cores: tuple[tuple[int, ...], ...] | Missing
    randomisation: Fact
    clock_source: Fact
    clock_sources: tuple[str, ...]
    huge_pages: Fact
    load: Fact
    thread_settings: Mapping[str, str]
    allocator_settings: Mapping[str, str]

    @property
    def sharing(self) -> list[tuple[int, ...]]:
        """Cores of which this process may use more than one logical processor."""
        return [] if isinstance(self.cores, Missing) else [core for core in self.cores if len(core) > 1]


def read(
    proc: Path = PROC,
    sys: Path = SYS,
    environment: Mapping[str, str] = os.environ,
    allowed: frozenset[int] | None = None,
) -> Facts:
    """Facts below these roots; `allowed` are the logical processors that this process may use, None for its own affinity."""
    allowed = _own_processors() if allowed is None else allowed
    is_virtual = bool(re.search(r"^flags\s*:.*\bhypervisor\b", _read(proc / "cpuinfo") or "", re.MULTILINE))
    processors = sys / "devices/system/cpu"
    clock = sys / "devices/system/clocksource/clocksource0"
    load = (_read(proc / "loadavg") or "").split()
    return Facts(
        is_virtual=is_virtual,
        governor=_governor(processors, is_virtual=is_virtual),
        turbo=_turbo(processors, is_virtual=is_virtual),
        smt=_fact(processors / "smt/control"),
        cores=_cores(processors, allowed),
        randomisation=_fact(proc / "sys/kernel/randomize_va_space"),
        clock_source=_fact(clock / "current_clocksource"),
        clock_sources=tuple((_read(clock / "available_clocksource") or "").split()),
        huge_pages=_chosen(_fact(sys / "kernel/mm/transparent_hugepage/enabled")),
        load=load[0] if load else Missing(f"{proc / 'loadavg'} is not there"),
        thread_settings=_set(environment, THREAD_VARIABLES),
        allocator_settings=_set(environment, ALLOCATOR_VARIABLES),
    )


def _own_processors() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _governor(processors: Path, *, is_virtual: bool) -> Fact:
    """The governors of all processors, each once."""
    found = {_read(file) for file in processors.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {None}
    return ", ".join(sorted(filter(None, found))) or _no_frequencies(is_virtual=is_virtual)


def _turbo(processors: Path, *, is_virtual: bool) -> Turbo | Missing:
    no_turbo, boost = processors / "intel_pstate/no_turbo", processors / "cpufreq/boost"
    if (word := _read(no_turbo)) is not None:
        return Turbo(on=word == "0", file=str(no_turbo), off="1")
    if (word := _read(boost)) is not None:
        return Turbo(on=word == "1", file=str(boost), off="0")
    return _no_frequencies(is_virtual=is_virtual)


def _no_frequencies(*, is_virtual: bool) -> Missing:
    if is_virtual:
        return Missing("a virtual machine shows no cpufreq; its host sets the clock")
    return Missing("this kernel shows no cpufreq")


def _cores(processors: Path, allowed: frozenset[int]) -> tuple[tuple[int, ...], ...] | Missing:
    found = set()
    for file in processors.glob("cpu[0-9]*/topology/thread_siblings_list"):
        siblings = tuple(sorted(_listed(_read(file) or "") & allowed))
        found |= {siblings} if siblings else set()
    return tuple(sorted(found)) or Missing("this platform does not show which processors share a core")


def _listed(text: str) -> set[int]:
    """The numbers of a list such as `0-2,8`."""
    numbers: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _chosen(fact: Fact) -> Fact:
    """The word in brackets of `always [madvise] never`."""
    match = None if isinstance(fact, Missing) else re.search(r"\[(\w+)\]", fact)
    return match[1] if match else fact


def _set(environment: Mapping[str, str], pattern: re.Pattern[str]) -> dict[str, str]:
    return {key: environment[key] for key in sorted(environment) if pattern.fullmatch(key)}


def _fact(file: Path) -> Fact:
    return _read(file) or Missing(f"{file} is not there")


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None
