"""Who else uses the processors now: two readings of every process, a second apart."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

READING_S = 1.0
#: A process that uses less of a processor is not named.
NAMED_SHARE = 0.02
MOST_NAMED = 3


@dataclass(frozen=True)
class Process:
    """Another process, and how much of one processor it used."""

    pid: int
    name: str
    share: float


@dataclass(frozen=True)
class Competition:
    """`busy` processors in all, this process left out; processes that can be seen, the busiest first.

    A container sees only its own processes, so that `busy` may be more than they explain.
    """

    busy: float
    processors: int
    processes: tuple[Process, ...]

    @property
    def unseen(self) -> float:
        """Processors that are busy with what is not among the processes."""
        return max(0.0, self.busy - sum(each.share for each in self.processes))


def observe(seconds: float = READING_S) -> Competition:
    """Look twice, `seconds` apart, doing nothing in between."""
    before, busy_before, begin = _readings(), _busy_s(), time.perf_counter()
    time.sleep(seconds)
    after, busy_after, span = _readings(), _busy_s(), time.perf_counter() - begin
    # A process that was not there before has used all that it used since; its name may change, an id may be used again.
    used = {process: (cpu_s - before.get(process, 0.0)) / span for process, cpu_s in after.items()}
    own = used.pop(psutil.Process(), 0.0)
    named = (_named(process, share) for process, share in used.items() if share >= NAMED_SHARE)
    return Competition(
        busy=max(0.0, (busy_after - busy_before) / span - own),
        processors=psutil.cpu_count() or 1,
        processes=tuple(sorted((each for each in named if each), key=lambda each: -each.share)),
    )


def _named(process: psutil.Process, share: float) -> Process | None:
    """None for a thread of the kernel, which has no command line and which nobody can stop, and for one that has ended."""
    try:
        return Process(process.pid, process.name(), share) if process.cmdline() else None
    except psutil.AccessDenied:
        return Process(process.pid, "a process of another user", share)
    except psutil.Error:
        return None


def _readings() -> dict[psutil.Process, float]:
    """The CPU seconds of every process that can be seen."""
    found = {}
    for process in psutil.process_iter():
        try:
            times = process.cpu_times()
            found[process] = times.user + times.system
        except psutil.Error:  # it has ended, or is not ours to see
            continue
    return found


def _busy_s() -> float:
    """CPU seconds that processes of this machine used, on all processors."""
    times = psutil.cpu_times()
    unused = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    counted_twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - unused - counted_twice)
