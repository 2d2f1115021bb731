"""Whether repeated calls reuse an answer: a call on changed inputs must not take much longer than a repeated one."""

from __future__ import annotations

import math
import time

from .inputs import Inputs
from .regions import region_of
from .subject import Subject
from .timing import Clock

#: Calls on changed inputs at most, until one is short enough, each with so many repeated ones after it: what slows both, as an
#: interruption does, accuses nobody.
PROBES, REPEATS = 25, 3
#: No more probes after this long: they end at the first that is short, so that only a suspect comes here.
LONGEST_S = 2.0
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
    changed_s = repeated_s = math.inf
    region, begin = region_of(subject), time.perf_counter()
    for probe in range(PROBES):
        subject.change_inputs(pair[probe % 2])
        changed_s = min(changed_s, clock.time(region, 1).device_s)
        if changed_s <= _allowed(median_s):
            return ""
        repeated_s = min(repeated_s, *(clock.time(region, 1).device_s for _ in range(REPEATS)))
        if time.perf_counter() - begin > LONGEST_S:
            break
    if changed_s <= _allowed(repeated_s):
        return ""
    return (
        f"a repeated call took {median_s:.3g} s, then {repeated_s:.3g} s, a call on changed inputs {changed_s:.3g} s: "
        f"answers are reused (allowed: {FACTOR:g} times, or {LEAST_S * 1e6:g} µs, more)"
    )


def _allowed(repeated_s: float) -> float:
    return max(FACTOR * repeated_s, repeated_s + LEAST_S)
