"""What is compared: pairs of launches that were measured in turns, and the series of them that a rule reads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ..records import LEAST_S


@dataclass(frozen=True)
class Pair:
    """Two launches, one of each arm, that took turns of a few milliseconds.

    `effect` is the median over turns of log(candidate / base) of a turn's fastest samples: what disturbs a turn only ever adds
    time, and what changes from turn to turn meets both arms. `typical` is the same of a turn's medians. `medians_s` are the
    seconds of base and candidate.
    """

    effect: float
    typical: float
    medians_s: tuple[float, float]

    @classmethod
    def of_turns(cls, base: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]]) -> Self:
        """From the times of each turn, in seconds. Errors: `ValueError` where the arms have not equally many turns."""
        return cls(
            effect=_median_ratio(map(min, base), map(min, candidate)),
            typical=_median_ratio(map(statistics.median, base), map(statistics.median, candidate)),
            medians_s=(_median_of(base), _median_of(candidate)),
        )

    def mirrored(self) -> Self:
        """The same with the arms exchanged."""
        base_s, candidate_s = self.medians_s
        return type(self)(-self.effect, -self.typical, (candidate_s, base_s))


@dataclass(frozen=True)
class Series:
    """The pairs of one comparison in the order they were measured: of the screen, and after it."""

    screen: tuple[Pair, ...] = ()
    after: tuple[Pair, ...] = ()

    def mirrored(self) -> Self:
        """The same with the arms exchanged."""
        return type(self)(tuple(each.mirrored() for each in self.screen), tuple(each.mirrored() for each in self.after))


def spread(pairs: Sequence[Pair]) -> float:
    """1.4826 times the median absolute deviation: the standard deviation, were the effects normal."""
    effects = [pair.effect for pair in pairs]
    middle = statistics.median(effects)
    return 1.4826 * statistics.median(abs(each - middle) for each in effects)


def _median_ratio(base: map[float], candidate: map[float]) -> float:
    return statistics.median(
        math.log(max(LEAST_S, other) / max(LEAST_S, own)) for own, other in zip(base, candidate, strict=True)
    )


def _median_of(turns: Sequence[Sequence[float]]) -> float:
    return max(LEAST_S, statistics.median(time for turn in turns for time in turn))
