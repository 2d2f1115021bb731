"""The gate's rule on simulated sweeps: noise as a proof measured it, and noise that is worse than any seen. Pure.

What is told: sweeps of identical code with an alarm, intervals that cover the truth, and sweeps whose verdicts do not mirror
when the arms are swapped.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..verdicts.judgement import Verdict
from ..verdicts.paired import Pair, Ruling, Series, Timing, rule, wanted_after
from .proof_records import ProofSweep

CELLS = 8
#: Two speed states 15 % apart, and how many pairs straddle a change; a quiet launch's deviation; degrees of freedom of the tails.
_STATES, _STRADDLING, _DEVIATION, _FREEDOM = (1.0, 1.15), 0.05, 0.0065, 3
_MIRRORED = {Verdict.REGRESSED: Verdict.IMPROVED, Verdict.IMPROVED: Verdict.REGRESSED}

#: Draws a pair of launches of identical code.
Noise = Callable[[random.Random], Pair]


@dataclass
class Simulated:
    """Counts over sweeps of `CELLS` cells; `slower` is log of the slowdown of one of them, 0 for identical code."""

    slower: float
    sweeps: int = 0
    alarms: int = 0
    intervals: int = 0
    covering: int = 0
    unmirrored: int = 0
    fresh_pairs: int = 0  # after the screen, of the first cell
    verdicts: dict[Verdict, int] = field(default_factory=dict)


def measured_noise(sweeps: Iterable[ProofSweep]) -> Noise | None:
    """Pairs of identical code as they were measured, in either order with equal chance; None where there are none."""
    pairs = [
        _relative(pair, series)
        for series in (kept.series for sweep in sweeps for kept in sweep.same.values())
        for pair in (*series.screen, *series.after)
    ]

    def draw(generator: random.Random) -> Pair:
        pair = generator.choice(pairs)
        return pair if generator.random() < 0.5 else Pair(pair.candidate, pair.base)

    return draw if pairs else None


def modelled_noise(generator: random.Random) -> Pair:
    """Launches with heavy tails in two speed states, some pairs of which straddle a change."""
    state = generator.choice(_STATES)
    other = sum(_STATES) - state if generator.random() < _STRADDLING else state
    return Pair(_launch(generator, state), _launch(generator, other))


def _launch(generator: random.Random, state: float) -> Timing:
    """Its fastest sample hardly varies; its median does."""
    chi = sum(generator.gauss(0, 1) ** 2 for _ in range(_FREEDOM)) / _FREEDOM
    median = state * math.exp(_DEVIATION * generator.gauss(0, 1) / math.sqrt(chi))
    return Timing(median, min(median, 0.99 * state))


def _relative(pair: Pair, series: Series) -> Pair:
    """In units of the comparison's own time, so that pairs of several cells can be drawn together."""
    unit = statistics.median(each.base.median_s for each in series.screen)
    base, candidate = pair.base, pair.candidate
    return Pair(
        Timing(base.median_s / unit, base.least_s / unit), Timing(candidate.median_s / unit, candidate.least_s / unit)
    )


def simulate(noise: Noise, sweeps: int, slower: float = 0.0, seed: int = 0) -> Simulated:
    """Draw sweeps and judge them; the first cell is slower where that is asked."""
    generator = random.Random(seed)
    found = Simulated(slower)
    for _ in range(sweeps):
        shifts = [slower, *[0.0] * (CELLS - 1)]
        series = _sweep(generator, noise, shifts)
        found.fresh_pairs += len(series["0"].after)
        _count(found, shifts, rule(series), rule({key: _swapped(each) for key, each in series.items()}))
    return found


def _sweep(generator: random.Random, noise: Noise, shifts: Sequence[float]) -> dict[str, Series]:
    """Pairs as the schedule would have measured them."""
    truths = {str(at): shift for at, shift in enumerate(shifts)}
    series = {key: Series(_pairs(generator, noise, shift, 8)) for key, shift in truths.items()}
    while True:
        wanted = wanted_after(series)
        lacking = [key for key, each in series.items() if len(each.after) < wanted[key]]
        if not lacking:
            return series
        for key in lacking:
            series[key] = Series(series[key].screen, series[key].after + _pairs(generator, noise, truths[key], 1))


def _pairs(generator: random.Random, noise: Noise, shift: float, count: int) -> tuple[Pair, ...]:
    return tuple(_slowed(noise(generator), math.exp(shift)) for _ in range(count))


def _slowed(pair: Pair, factor: float) -> Pair:
    return Pair(pair.base, Timing(pair.candidate.median_s * factor, pair.candidate.least_s * factor))


def _swapped(series: Series) -> Series:
    return Series(
        *(tuple(Pair(pair.candidate, pair.base) for pair in pairs) for pairs in (series.screen, series.after))
    )


def _count(found: Simulated, shifts: Sequence[float], said: dict[str, Ruling], mirrored: dict[str, Ruling]) -> None:
    found.sweeps += 1
    unchanged = [said[str(at)].verdict for at, shift in enumerate(shifts) if not shift]
    found.alarms += any(verdict in _MIRRORED for verdict in unchanged)
    for at, shift in enumerate(shifts):
        effect = said[str(at)].effect
        if effect is not None:
            found.intervals += 1
            found.covering += effect.low <= shift <= effect.high
    verdict = said["0"].verdict
    found.verdicts[verdict] = found.verdicts.get(verdict, 0) + 1
    found.unmirrored += any(not _is_mirrored(said[key], mirrored[key]) for key in said)


def _is_mirrored(one: Ruling, other: Ruling) -> bool:
    if _MIRRORED.get(one.verdict, one.verdict) is not other.verdict:
        return False
    if one.effect is None or other.effect is None:
        return one.effect is other.effect
    turned = other.effect.mirrored()
    return math.isclose(one.effect.shift, turned.shift, rel_tol=1e-9, abs_tol=1e-12)
