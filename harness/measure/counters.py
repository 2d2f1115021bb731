"""What the operating system does to a launch while it is timed, and when that makes the launch void."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from .. import control_groups
from ..records import Counters

try:
    import resource
except ImportError:  # a platform without it has no counters
    resource = None  # type: ignore[assignment]

#: A launch is void when a thread of it waited in the run queue for more than this share of the timed span.
QUEUE_SHARE = 0.02
#: Where launches take turns: of so many turns that were disturbed neither their median nor the fastest samples say anything.
QUEUE_SHARE_IN_TURNS = 0.2


@dataclass(frozen=True)
class _Reading:
    at_s: float
    usage: tuple[float, int, int, int, int]
    queue_s: dict[str, float] | None
    steal_s: float | None
    throttled_s: float | None


class CounterSpan:
    """Reads the counters when made; `end` reads again and gives the difference."""

    def __init__(self) -> None:
        self._begin = _read()

    def end(self) -> Counters:
        """The counters since this was made."""
        begin, end = self._begin, _read()
        cpu, minor, major, voluntary, involuntary = (b - a for a, b in zip(begin.usage, end.usage, strict=True))
        return Counters(
            span_s=end.at_s - begin.at_s,
            cpu_time_s=cpu,
            minor_faults=int(minor),
            major_faults=int(major),
            voluntary_switches=int(voluntary),
            involuntary_switches=int(involuntary),
            run_queue_wait_s=_longest_wait(begin.queue_s, end.queue_s),
            steal_s=_difference(begin.steal_s, end.steal_s),
            throttled_s=_difference(begin.throttled_s, end.throttled_s),
        )


def void_reason(counters: Counters, allowed: float = QUEUE_SHARE) -> str:
    """Why a launch does not count; empty where it does. Fixed beforehand, and blind to the times that were measured."""
    wait, span = counters.run_queue_wait_s, counters.span_s
    if wait is not None and span > 0 and wait > allowed * span:
        return f"a thread waited in the run queue for {wait / span:.1%} of the timed span (allowed {allowed:.0%})"
    if counters.throttled_s:
        return f"the control group was throttled for {counters.throttled_s:.3g} s"
    return ""


def _read() -> _Reading:
    return _Reading(time.perf_counter(), _usage(), _queue(), _steal(), control_groups.throttled_s())


def _usage() -> tuple[float, int, int, int, int]:
    if resource is None:
        return (time.process_time(), 0, 0, 0, 0)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    return (cpu, usage.ru_minflt, usage.ru_majflt, usage.ru_nvcsw, usage.ru_nivcsw)


def _queue() -> dict[str, float] | None:
    """Seconds that each thread has waited in the run queue; None where the kernel does not tell."""
    waits = {}
    try:
        for thread in Path("/proc/self/task").iterdir():
            waits[thread.name] = int((thread / "schedstat").read_text().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return None
    return waits


def _longest_wait(begin: dict[str, float] | None, end: dict[str, float] | None) -> float | None:
    if begin is None or end is None:
        return None
    return max(wait - begin.get(thread, 0.0) for thread, wait in end.items())


def _steal() -> float | None:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def _difference(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
