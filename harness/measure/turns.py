"""Two workers measure one after the other in turns of milliseconds, so that both see the same states of the machine.

Its speed changes within milliseconds where a hardware thread's sibling belongs to someone else: two launches next to each other
may then differ by a third, two turns next to each other seldom do.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from pathlib import Path
from typing import Literal

from ..records import LEAST_S, Samples
from .baton import Baton
from .regions import Region
from .timing import Budget, Clock, Span, Work, median_interval, no_garbage_collection, warm_up

#: A turn is whole samples of at least this long in all: a few of them, of which one is undisturbed.
TURN_S = 5e-3
#: OpenMP's threads spin for milliseconds after their work, on a core that the other worker needs.
_REST_S, _LONGEST_REST_S = 0.5e-3, 0.05
_THREADS = Path("/proc/self/task")


def sample_in_turns(region: Region, clock: Clock, budget: Budget, work: Work, baton: Baton) -> Samples:
    """Warm up and take turns until their effect is precise enough or the budget ends, which the second worker decides.

    Who begins changes from turn to turn: second first, first second, and so on (ABBA). The other worker must not be gone.
    """
    with no_garbage_collection():
        turns = _Turns(region, clock, budget, work, baton)
        return turns.as_first() if baton.is_first else turns.as_second()


class _Turns:
    """One worker's turns, and what the other told of its own."""

    def __init__(self, region: Region, clock: Clock, budget: Budget, work: Work, baton: Baton) -> None:
        self._region, self._clock, self._budget, self._work, self._baton = region, clock, budget, work, baton
        self._repeats = self._warm_calls = 0
        self._warm_s = self._spent_s = 0.0
        self._turns: list[list[Span]] = []
        self._theirs: list[float] = []

    def as_first(self) -> Samples:
        """Ends when the other has ended: it holds the baton from its last turn on."""
        self._warm_up()
        self._take(1, is_warm=True)
        self._hand_over(1)
        self._baton.wait()
        while not self._baton.is_alone:
            self._take(2)
            self._hand_over(2)
            self._baton.wait()
        return self._samples("other arm")

    def as_second(self) -> Samples:
        """Decides after a turn that makes both have as many, and keeps the baton."""
        self._warm_up()
        self._hand_over(0)
        while True:
            self._theirs += self._baton.wait()
            self._take(1)
            if self._baton.is_alone or self._spent_s >= self._budget.max_time_s:
                return self._samples("budget")
            if self._spent_s >= self._budget.min_time_s and self._is_precise():
                return self._samples("precision")
            self._take(1, is_warm=True)
            self._hand_over(2)

    def _samples(self, stop: Literal["precision", "budget", "other arm"]) -> Samples:
        """Everything that was measured, by turn."""
        spans = [span for turn in self._turns for span in turn]
        times = tuple(span.device_s / self._repeats for span in spans)
        walls = tuple(span.wall_s / self._repeats for span in spans)
        return Samples(
            repeats=self._repeats,
            times_s=times,
            turns=tuple(map(len, self._turns)),
            stop=stop,
            warmup_calls=self._warm_calls,
            warmup_s=self._warm_s,
            wall_times_s=() if walls == times else walls,
            outlived_s=statistics.median(span.outlived_s for span in spans),
            gap_hidden=all(span.gap_hidden for span in spans),
        )

    def _warm_up(self) -> None:
        begin = time.perf_counter()
        repeats, calls = warm_up(self._region, self._clock, begin + self._budget.max_time_s / 4)
        self._warm_s, self._warm_calls = time.perf_counter() - begin, calls
        self._repeats = self._work.counted(repeats)

    def _take(self, count: int, *, is_warm: bool = False) -> None:
        """So many turns, after a sample that does not count: the other has used the caches."""
        begin, repeats = time.perf_counter(), self._work.made(self._repeats)
        is_long = bool(self._turns) and self._turns[-1][-1].wall_s >= TURN_S
        if not is_warm and not is_long:
            self._clock.time(self._region, repeats)
            self._warm_calls += repeats
        for _ in range(count):
            turn: list[Span] = []
            while math.fsum(span.wall_s for span in turn) < TURN_S:
                turn.append(self._clock.time(self._region, repeats))
            self._turns.append(turn)
        self._spent_s += time.perf_counter() - begin

    def _hand_over(self, count: int) -> None:
        _rest()
        last = self._turns[len(self._turns) - count :]
        self._baton.hand_over(tuple(self._least(turn) for turn in last))

    def _is_precise(self) -> bool:
        mine = [self._least(turn) for turn in self._turns]
        low, high = median_interval(math.log(own / theirs) for theirs, own in zip(self._theirs, mine, strict=True))
        return (high - low) / 2 < self._budget.precision

    def _least(self, turn: list[Span]) -> float:
        return max(LEAST_S, min(span.device_s for span in turn) / self._repeats)


def keep_to(processors: tuple[int, ...]) -> None:
    """Let every thread of this process run on these alone, where the platform can.

    As batch work, which preempts nobody when it wakes: who has handed over must come to its rest before the other begins.
    """
    if processors and hasattr(os, "sched_setaffinity"):
        for thread in map(int, _threads()):
            with contextlib.suppress(OSError):  # a thread that has ended, or a sandbox that forbids it
                os.sched_setaffinity(thread, processors)
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def _rest() -> None:
    """Until the other threads of this process sleep, or so long that they will not."""
    own, deadline = str(os.getpid()), time.perf_counter() + _LONGEST_REST_S
    while time.perf_counter() < deadline:
        if not any(_is_running(thread) for thread in _threads() if thread != own):
            return
        time.sleep(_REST_S)


def _threads() -> list[str]:
    try:
        return [thread.name for thread in _THREADS.iterdir()]
    except OSError:  # a platform without it
        return []


def _is_running(thread: str) -> bool:
    try:
        return (_THREADS / thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (OSError, IndexError):  # it has ended
        return False
