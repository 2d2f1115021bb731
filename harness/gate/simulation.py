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
from ..verdicts.pair import Pair, Series
from ..verdicts.paired import Ruling, is_screened, rule, wanted_after
from .proof_records import ProofSweep

CELLS = 8
#: Two speed states 15 % apart, and how many pairs straddle a change; a quiet arm's deviation; degrees of freedom of the tails.
_STATES, _STRADDLING, _DEVIATION, _FREEDOM = (1.0, 1.15), 0.05, 0.0065, 3
_MIRRORED = {Verdict.REGRESSED: Verdict.IMPROVED, Verdict.IMPROVED: Verdict.REGRESSED}

#: For one comparison of identical code, what draws its pairs: some are noisier than others.
Noise = Callable[[random.Random], Callable[[], Pair]]


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
    """For each comparison the pairs of one that was measured, in either order with equal chance; None where there are none."""
    measured = [
        (*series.screen, *series.after) for series in (kept.series for sweep in sweeps for kept in sweep.same.values())
    ]

    def comparison(generator: random.Random) -> Callable[[], Pair]:
        pairs = generator.choice(measured)

        def draw() -> Pair:
            pair = generator.choice(pairs)
            return pair if generator.random() < 0.5 else pair.mirrored()

        return draw

    return comparison if measured else None


def modelled_noise(generator: random.Random) -> Callable[[], Pair]:
    """Pairs of a single turn: each arm with heavy tails in one of two speed states, and some straddle a change."""

    def draw() -> Pair:
        state = generator.choice(_STATES)
        other = sum(_STATES) - state if generator.random() < _STRADDLING else state
        base_s, candidate_s = state * _tail(generator), other * _tail(generator)
        effect = math.log(candidate_s / base_s)
        return Pair(effect, effect, (base_s, candidate_s))

    return draw


def _tail(generator: random.Random) -> float:
    """Of Student's distribution."""
    chi = sum(generator.gauss(0, 1) ** 2 for _ in range(_FREEDOM)) / _FREEDOM
    return math.exp(_DEVIATION * generator.gauss(0, 1) / math.sqrt(chi))


def simulate(noise: Noise, sweeps: int, slower: float = 0.0, seed: int = 0) -> Simulated:
    """Draw sweeps and judge them; the first cell is slower where that is asked."""
    generator = random.Random(seed)
    found = Simulated(slower)
    for _ in range(sweeps):
        shifts = [slower, *[0.0] * (CELLS - 1)]
        series = _sweep(generator, noise, shifts)
        found.fresh_pairs += len(series["0"].after)
        _count(found, shifts, rule(series), rule({key: each.mirrored() for key, each in series.items()}))
    return found


def _sweep(generator: random.Random, noise: Noise, shifts: Sequence[float]) -> dict[str, Series]:
    """Pairs as the schedule would have measured them."""
    draws = {str(at): (noise(generator), shift) for at, shift in enumerate(shifts)}
    series = {key: _screen(draw, shift) for key, (draw, shift) in draws.items()}
    while True:
        wanted = wanted_after(series)
        lacking = [key for key, each in series.items() if len(each.after) < wanted[key]]
        if not lacking:
            return series
        for key in lacking:
            old = series[key]
            series[key] = Series(old.screen, (*old.after, _pair(*draws[key])))


def _screen(draw: Callable[[], Pair], shift: float) -> Series:
    series = Series()
    while not is_screened(series):
        series = Series((*series.screen, _pair(draw, shift)))
    return series


def _pair(draw: Callable[[], Pair], shift: float) -> Pair:
    pair = draw()
    base_s, candidate_s = pair.medians_s
    return Pair(pair.effect + shift, pair.typical + shift, (base_s, candidate_s * math.exp(shift)))


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
