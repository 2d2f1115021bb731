"""The gate's rule on simulated sweeps: noise as a proof measured it, and noise that is worse than any seen. Pure.

What is told: sweeps of identical code with an alarm, intervals that cover the truth, and sweeps whose verdicts do not mirror
when the arms are swapped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..verdicts.judgement import Verdict
from ..verdicts.paired import Pair, Ruling, Series, Timing, rule, wanted_after
from .proof_records import ProofSweep

CELLS = 8
#: Two speed states 15 % apart, and how many pairs straddle a change; a quiet launch's deviation; degrees of freedom of the tails.
_STATES, _STRADDLING, _DEVIATION, _FREEDOM = math.log(1.15), 0.05, 0.0065, 3
_MIRRORED = {Verdict.REGRESSED: Verdict.IMPROVED, Verdict.IMPROVED: Verdict.REGRESSED}

#: Draws the noise of one pair: log(candidate / base) of identical code.
Noise = Callable[[random.Random], float]


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
    """Effects of identical code as they were measured, each in either direction with equal chance; None where there are none."""
    effects = [
        pair.effect
        for sweep in sweeps
        for kept in sweep.same.values()
        for pair in (*kept.series.screen, *kept.series.after)
    ]
    if not effects:
        return None
    return lambda generator: generator.choice(effects) * generator.choice((-1, 1))


def modelled_noise(generator: random.Random) -> float:
    """Heavy tails, and pairs that straddle a change between two speed states."""
    normal = generator.gauss(0, 1) - generator.gauss(0, 1)
    chi = sum(generator.gauss(0, 1) ** 2 for _ in range(_FREEDOM)) / _FREEDOM
    noise = _DEVIATION * normal / math.sqrt(chi)
    return noise + (generator.choice((-_STATES, _STATES)) if generator.random() < _STRADDLING else 0.0)


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
    times = [math.exp(shift + noise(generator)) for _ in range(count)]
    return tuple(Pair(Timing(1.0, 1.0), Timing(time, time)) for time in times)


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
