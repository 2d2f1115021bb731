"""Statistics of a trace: samples of the same work, one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Below this many samples halves and correlations say nothing.
FEWEST = 20
#: Samples alike for longer than this many of them come from a state, not from each sample's own noise.
STATE_SAMPLES = 10


@dataclass(frozen=True)
class Trace:
    """`spread` is 1.4826 MAD over the median; `halves` the slow half's median over the fast half's, less 1; time in seconds."""

    spread: float
    halves: float
    correlation_s: float
    sample_s: float
    count: int

    @property
    def has_states(self) -> bool:
        """Whether speed changes much more slowly than from sample to sample."""
        return self.correlation_s > STATE_SAMPLES * self.sample_s

    @property
    def duration_words(self) -> str:
        """How long samples stay alike."""
        if not self.has_states:
            return "changes from sample to sample"
        return f"samples stay alike for {self.correlation_s:.2g} s"


def trace_of(times: Sequence[float], sample_s: float) -> Trace | None:
    """Of times in their order, each sample lasting `sample_s`; None of too few."""
    if len(times) < FEWEST or min(times) <= 0:
        return None
    middle = statistics.median(times)
    ordered, half = sorted(times), len(times) // 2
    return Trace(
        spread=1.4826 * statistics.median(abs(each - middle) for each in times) / middle,
        halves=statistics.median(ordered[-half:]) / statistics.median(ordered[:half]) - 1,
        correlation_s=correlation_samples(times) * sample_s,
        sample_s=sample_s,
        count=len(times),
    )


def correlation_samples(times: Sequence[float]) -> float:
    """The integrated autocorrelation time, in samples: 1 where each is independent of the one before.

    Sokal, Monte Carlo Methods in Statistical Mechanics (1996), section 3: the sum stops at 5 times what it has reached.
    Ranks stand for the times, so that one interrupted sample does not hide a state.
    """
    ranks = _ranks(times)
    middle = statistics.fmean(ranks)
    centred = [each - middle for each in ranks]
    variance = sum(each * each for each in centred)
    if variance == 0:
        return 1.0
    total = 1.0
    for lag in range(1, len(centred) // 2):
        products = (a * b for a, b in zip(centred, centred[lag:], strict=False))
        total += 2 * sum(products) / variance
        if lag >= 5 * total:
            break
    return max(1.0, total)


def _ranks(times: Sequence[float]) -> list[float]:
    """The rank of each, ties sharing their mean."""
    order = sorted(times)
    places: dict[float, list[int]] = {}
    for place, each in enumerate(order):
        places.setdefault(each, []).append(place)
    return [statistics.fmean(places[each]) for each in times]
