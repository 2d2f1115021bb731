"""Adaptive sampling of a region by a clock, and the CPU's clock."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from ..records import Samples
from .regions import Region

#: A sample lasts at least this long, or a thousand times the timer's resolution.
SAMPLE_S = 1e-3
#: A sample so many times longer than it needs to be is long enough, however slow the first one is.
FAR_BEYOND = 100
#: Warm-up ends when two samples agree this well.
WARM_AGREEMENT = 0.05
#: Below this count of samples the median has no 95 % interval.
FEWEST_FOR_INTERVAL = 6


@dataclass(frozen=True)
class Span:
    """What one sample took: `device_s` by the device's clock, `wall_s` by the host's."""

    device_s: float
    wall_s: float
    outlived_s: float = 0.0  # CUDA: how long the device worked on after the region's own stream was done
    gap_hidden: bool = True  # CUDA: whether the host had queued the whole sample before the device began it


class Clock(Protocol):
    """Times a region; `resolution_s` is the shortest span that it tells apart, `most_repeats` its most in one sample."""

    resolution_s: float
    most_repeats: int

    def time(self, region: Region, repeats: int) -> Span:
        """Seconds of `repeats` passes, in all."""
        ...


class CpuClock:
    """`time.perf_counter_ns`."""

    most_repeats = 1_000_000

    def __init__(self) -> None:
        self.resolution_s = max(time.get_clock_info("perf_counter").resolution, 1e-9)

    def time(self, region: Region, repeats: int) -> Span:
        """Set up, then time the run alone."""
        region.set_up(repeats)
        begin = time.perf_counter_ns()
        region.run(repeats)
        end = time.perf_counter_ns()
        region.clear()
        seconds = (end - begin) * 1e-9
        return Span(seconds, seconds)


@dataclass(frozen=True)
class Budget:
    """When to stop: seconds at least and at most, and the relative half-width of the median's interval."""

    min_time_s: float
    max_time_s: float
    precision: float


@dataclass(frozen=True)
class Work:
    """Of each `unit` calls that a sample counts, `extra` more are made: a slowdown by work, to prove a gate with."""

    unit: int = 1
    extra: int = 0

    def counted(self, repeats: int) -> int:
        """The next whole number of units."""
        return math.ceil(repeats / self.unit) * self.unit

    def made(self, counted: int) -> int:
        """The calls that are made where so many are counted."""
        return counted + counted // self.unit * self.extra


def sample(region: Region, clock: Clock, budget: Budget, work: Work = Work()) -> Samples:
    """Find the inner repeats, warm up, and take samples until they are precise enough or the budget ends."""
    with no_garbage_collection():
        begin = time.perf_counter()
        repeats, warm_calls = warm_up(region, clock, begin + budget.max_time_s / 4)
        warm_s = time.perf_counter() - begin
        repeats = work.counted(repeats)
        spans, stop = _take(region, clock, work.made(repeats), budget)
    times = tuple(span.device_s / repeats for span in spans)
    walls = tuple(span.wall_s / repeats for span in spans)
    return Samples(
        repeats=repeats,
        times_s=times,
        stop=stop,
        warmup_calls=warm_calls,
        warmup_s=warm_s,
        wall_times_s=() if walls == times else walls,
        outlived_s=statistics.median(span.outlived_s for span in spans),
        gap_hidden=all(span.gap_hidden for span in spans),
    )


def half_width(times: list[float]) -> float:
    """Half of the median's 95 % interval by order statistics, relative to the median; infinite for fewer than six."""
    low, high = median_interval(times)
    middle = sorted(times)[len(times) // 2]
    return (high - low) / 2 / middle if middle > 0 else math.inf


def median_interval(values: Iterable[float]) -> tuple[float, float]:
    """The median's 95 % interval by order statistics; all numbers for fewer than six values."""
    ordered = sorted(values)
    count = len(ordered)
    if count < FEWEST_FOR_INTERVAL:
        return -math.inf, math.inf
    # The normal approximation of the binomial: ranks n/2 -+ 1.96 sqrt(n)/2 (Conover, Practical Nonparametric Statistics).
    low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return ordered[low], ordered[count - 1 - low]


def warm_up(region: Region, clock: Clock, deadline: float) -> tuple[int, int]:
    """Find the inner repeats and run until two samples agree, or a time of `perf_counter`: repeats, and calls made.

    A warm region may be faster than a cold one, so that a sample which has become too short asks for more repeats.
    """
    target = max(SAMPLE_S, 1000 * clock.resolution_s)
    most = min(region.most_repeats, clock.most_repeats)
    repeats, seconds, calls = _calibrate(region, clock, target, most, 1)
    while time.perf_counter() < deadline:
        last, seconds = seconds, clock.time(region, repeats).device_s
        calls += repeats
        if seconds < target and repeats < most:
            repeats, seconds, more = _calibrate(region, clock, target, most, repeats)
            calls += more
        elif abs(seconds - last) <= WARM_AGREEMENT * max(seconds, last):
            break
    return repeats, calls


def _calibrate(region: Region, clock: Clock, target: float, most: int, repeats: int) -> tuple[int, float, int]:
    """Inner repeats so that a sample is long enough; the last sample's seconds; calls made."""
    calls = 0
    while True:
        seconds = clock.time(region, repeats).device_s
        calls += repeats
        if seconds < FAR_BEYOND * target:
            # The shorter of two: one slow first sample must not pass for a long one.
            seconds = min(seconds, clock.time(region, repeats).device_s)
            calls += repeats
        if seconds >= target or repeats >= most:
            return repeats, seconds, calls
        wanted = math.ceil(1.2 * target / max(seconds, 1e-9) * repeats)
        repeats = min(most, max(2 * repeats, min(wanted, 100 * repeats)))


def _take(
    region: Region, clock: Clock, repeats: int, budget: Budget
) -> tuple[list[Span], Literal["precision", "budget"]]:
    spans: list[Span] = []
    begin = time.perf_counter()
    while True:
        spans.append(clock.time(region, repeats))
        elapsed = time.perf_counter() - begin
        if elapsed >= budget.min_time_s and half_width([each.device_s for each in spans]) < budget.precision:
            return spans, "precision"
        if elapsed >= budget.max_time_s:
            return spans, "budget"


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """What is garbage now is collected; what becomes it inside is left."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
