"""What makes times differ here: the clock itself, a trace of one product, and launches of the same code."""

from __future__ import annotations

import gc
import itertools
import math
import os
import time

import torch

from ...impls import get
from .counters import CounterSpan
from .cuda import CudaClock, NvmlWatch
from .inputs import draw, problem_seed
from .regions import Region, region_of
from .subject import Subject
from .tasks import ClockReading, NoiseDone, NoiseTask
from .timing import Budget, Clock, CpuClock, sample

#: A sample of a trace: much longer than the timer's resolution, much shorter than what is looked for.
TRACE_SAMPLE_S = 5e-3
#: A trace begins when threads have started and clocks have risen.
TRACE_WARMUP_S = 0.3
#: Sides of the product: a few milliseconds on one core; a GPU is not filled by less.
CPU_SIDE, GPU_SIDE = 512, 4096
#: A step of the clock beyond this is an interruption: reading it takes a tenth of a microsecond, a timer tick a few.
GAP_NS = 10_000
#: As a sweep's default.
PRECISION = 0.01
_CALLS = 100_000


def measure(task: NoiseTask) -> NoiseDone:
    """Do the work of the task in this process, which ends with it."""
    if task.processors:
        os.sched_setaffinity(0, task.processors)
    gc.disable()
    if task.work == "clock":
        return NoiseDone(clock=_read_clock(task.seconds))
    if task.device.startswith("cuda"):
        torch.cuda.set_device(task.device)
    with torch.no_grad():
        region = _attention(task) if task.work == "attention" else _Product(task.device)
        return _trace(region, task) if task.work == "trace" else _launch(region, task)


class _Product(Region):
    """A square float32 product into memory that is there: no allocation, the same work each time."""

    def __init__(self, device: str) -> None:
        side = GPU_SIDE if device.startswith("cuda") else CPU_SIDE
        self._left, self._right = (torch.randn(side, side, device=device) for _ in range(2))
        self._out = torch.empty_like(self._left)

    def run(self, repeats: int) -> None:
        left, right, out, product = self._left, self._right, self._out, torch.mm
        for _ in itertools.repeat(None, repeats):
            product(left, right, out=out)


def _attention(task: NoiseTask) -> Region:
    """Naive attention: it allocates its scores, as most code does."""
    assert task.problem is not None, "attention needs a problem"
    subject = Subject(get("naive"), task.problem, "forward", task.device)
    subject.place(draw(task.problem, problem_seed(task.problem, task.seed)))
    subject.prepare()
    return region_of(subject)


def _launch(region: Region, task: NoiseTask) -> NoiseDone:
    """As a cell is timed, until it is precise or `seconds` have passed."""
    span = CounterSpan()
    samples = sample(region, _clock(task), Budget(task.seconds / 4, task.seconds, PRECISION))
    return NoiseDone(
        times_s=samples.times_s,
        sample_s=samples.repeats * samples.times_s[0],
        calls=samples.warmup_calls + samples.repeats * len(samples.times_s),
        counters=span.end(),
    )


def _trace(region: Region, task: NoiseTask) -> NoiseDone:
    """Samples of about 5 ms without a pause for `seconds`; a GPU's state before and after them."""
    clock = _clock(task)
    repeats = min(_repeats(region, clock), clock.most_repeats)
    watch = NvmlWatch.open(torch.cuda.current_device()) if task.device.startswith("cuda") else None
    if watch:
        watch.read("before")
    span, times = CounterSpan(), []
    end = time.perf_counter() + task.seconds
    while time.perf_counter() < end:
        times.append(clock.time(region, repeats).device_s / repeats)
    counted = span.end()
    if watch:
        watch.read("after")
        counted = counted.model_copy(update={"gpu": watch.readings})
    return NoiseDone(
        times_s=tuple(times),
        sample_s=counted.span_s / len(times),
        calls=repeats * len(times),
        counters=counted,
    )


def _repeats(region: Region, clock: Clock) -> int:
    """Warm up, and find how many calls last about as long as a sample should."""
    fastest, end = math.inf, time.perf_counter() + TRACE_WARMUP_S
    while time.perf_counter() < end:
        fastest = min(fastest, clock.time(region, 1).device_s)
    return max(1, round(TRACE_SAMPLE_S / max(fastest, 1e-9)))


def _clock(task: NoiseTask) -> Clock:
    return CudaClock() if task.device.startswith("cuda") else CpuClock()


def _read_clock(seconds: float) -> ClockReading:
    """Steps of `perf_counter_ns`: the smallest is its resolution, long ones are time that someone else had."""
    read, smallest, gaps, lost, longest = time.perf_counter_ns, GAP_NS, 0, 0, 0
    begin = last = read()
    end = begin + int(seconds * 1e9)
    while last < end:
        now = read()
        step, last = now - last, now
        if step > GAP_NS:
            gaps, lost, longest = gaps + 1, lost + step, max(longest, step)
        elif 0 < step < smallest:
            smallest = step
    return ClockReading(
        resolution_s=smallest * 1e-9,
        call_s=min(_call_s() for _ in range(5)),
        span_s=(last - begin) * 1e-9,
        gaps=gaps,
        lost_s=lost * 1e-9,
        longest_gap_s=longest * 1e-9,
    )


def _call_s() -> float:
    """Seconds of one read of the clock."""
    read = time.perf_counter
    begin = read()
    for _ in itertools.repeat(None, _CALLS):
        read()
    return (read() - begin) / _CALLS
