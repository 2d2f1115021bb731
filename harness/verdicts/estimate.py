"""From launches to estimates: the statistical unit is the launch."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..records import Launch, Outcome

#: From this many launches on there is a 95 % interval: a bootstrap of three covers 83 %.
FEWEST_FOR_INTERVAL = 6
#: Fewer launches than this are shown, and marked.
FEWEST = 3
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """The median of launch medians, in seconds for one call. `interval` says what low and high are."""

    median: float
    low: float
    high: float
    interval: Literal["range", "95 %"]
    launches: int
    servers: int

    @property
    def is_thin(self) -> bool:
        """Too few launches to say much."""
        return self.launches < FEWEST

    def overlaps(self, other: Estimate) -> bool:
        """Whether the intervals share a point, so that neither is shown to be faster."""
        return self.low <= other.high and other.low <= self.high


def counted(launches: Iterable[Launch]) -> list[Launch]:
    """Of the attempts at each (cell, round) the one that counts: the first that is not void, else the last."""
    attempts: dict[tuple[str, int], list[Launch]] = defaultdict(list)
    for launch in launches:
        attempts[launch.cell, launch.round].append(launch)
    chosen = []
    for tries in attempts.values():
        # A failure that was measured again counts as it ended last.
        final = [each for each in tries if not each.void and each.outcome is Outcome.OK] or tries[-1:]
        chosen.append(final[0])
    return chosen


def estimate(launches: Sequence[Launch]) -> Estimate | None:
    """The estimate of one cell from its counted launches; None where none was timed."""
    timed = [each for each in launches if each.samples is not None and each.outcome is Outcome.OK]
    if not timed:
        return None
    medians = [statistics.median(each.samples.times_s) for each in timed if each.samples is not None]
    low, high = _interval(medians)
    return Estimate(
        median=statistics.median(medians),
        low=low,
        high=high,
        interval="95 %" if len(medians) >= FEWEST_FOR_INTERVAL else "range",
        launches=len(medians),
        servers=len({each.server for each in timed}),
    )


def unranked_because(launches: Sequence[Launch]) -> str:
    """Why a cell is not ranked, from its counted launches; empty where it is."""
    for launch in launches:
        if launch.outcome is not Outcome.OK:
            return f"{launch.outcome} in round {launch.round}"
        if launch.emulated:
            return "emulated: checked, not timed"
    if not any(each.outcome is Outcome.OK and each.samples is not None for each in launches):
        outcome = launches[0].outcome if launches else None
        return "not timed" if outcome is Outcome.OK else str(outcome or "not measured")
    return ""


def _interval(medians: list[float]) -> tuple[float, float]:
    """The range below six launches, else a percentile bootstrap of the median with a fixed seed."""
    if len(medians) < FEWEST_FOR_INTERVAL:
        return min(medians), max(medians)
    generator = np.random.default_rng(0)
    drawn = generator.choice(np.asarray(medians), size=(RESAMPLES, len(medians)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)
