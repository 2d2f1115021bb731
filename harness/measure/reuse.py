"""Whether repeated calls reuse an answer: a call on changed inputs must not take much longer than a repeated one."""

from __future__ import annotations

import math
import time

from .inputs import Inputs
from .regions import region_of
from .subject import Subject
from .timing import Clock

#: Calls on changed inputs at most, until one is short enough: an interruption accuses nobody.
PROBES = 25
#: A first call after a change of inputs may honestly be slower: threads sleep, caches hold other things.
FACTOR = 3.0
LEAST_S = 200e-6


def reuses_answers(
    subject: Subject, clock: Clock, pair: tuple[Inputs, Inputs], median_s: float, budget_s: float
) -> str:
    """Why a repeated call of `median_s` cannot have done its work, in a sentence; empty where it can.

    Says nothing of an implementation that copies its inputs: it prepares anew, and compiles perhaps, at each change. Nor of a
    call beyond the budget, which is no lookup.
    """
    if subject.implementation.copies_inputs or median_s >= budget_s:
        return ""
    allowed = max(FACTOR * median_s, median_s + LEAST_S)
    shortest, region, begin = math.inf, region_of(subject), time.perf_counter()
    for probe in range(PROBES):
        subject.change_inputs(pair[probe % 2])
        shortest = min(shortest, clock.time(region, 1).device_s)
        if shortest <= allowed:
            return ""
        if time.perf_counter() - begin > budget_s:
            break
    return (
        f"a repeated call took {median_s:.3g} s, a call on changed inputs {shortest:.3g} s: answers are reused "
        f"(allowed: {FACTOR:g} times, or {LEAST_S * 1e6:g} µs, more)"
    )
