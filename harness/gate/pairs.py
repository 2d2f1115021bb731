"""From a gate's launches to the pairs that are judged, and what happened to comparisons that have none."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..records import Outcome
from ..verdicts.paired import Pair, Series, Timing, Turn
from .records import CONTROL, ArmLabel, GateLaunch, Stage

_Place = tuple[Stage, int]
#: The launches of one pair by turn and arm.
_Chosen = dict[tuple[int, ArmLabel], GateLaunch]
#: A clock may say zero; a ratio of times needs more.
_LEAST_S = 1e-12


@dataclass
class Pairs:
    """What has been measured: the pairs of each comparison, and the launch that ended a comparison in an arm."""

    series: dict[str, Series] = field(default_factory=dict)
    ends: dict[str, dict[ArmLabel, GateLaunch]] = field(default_factory=dict)

    @classmethod
    def of(cls, launches: Iterable[GateLaunch]) -> Pairs:
        """Of the attempts at a launch the first that is not void counts, else the last; part of a pair does not count, nor does
        one that was measured anew from other servers. A failure ends a comparison once both arms have been asked.
        """
        chosen: dict[tuple[str, Stage, int], _Chosen] = defaultdict(dict)
        pairs = cls()
        for launch in launches:
            at = chosen[launch.comparison, launch.stage, launch.pair]
            if any(each.servers != launch.servers for each in at.values()):
                at.clear()
            place = launch.turn, launch.arm
            if place not in at or at[place].void:
                at[place] = launch
        found: dict[str, dict[_Place, Pair]] = defaultdict(dict)
        for (key, stage, number), at in chosen.items():
            if len({arm for _, arm in at}) > 1 or any(launch.ends for launch in at.values()):
                for (_, arm), launch in at.items():
                    if launch.outcome is not Outcome.OK:
                        pairs.ends.setdefault(key, {}).setdefault(arm, launch)
            pair = _pair(at, "control" if key == CONTROL else "candidate")
            if pair is not None:
                found[key][stage, number] = pair
        pairs.series = {key: _series(each) for key, each in found.items()}
        return pairs

    def of_comparison(self, key: str) -> Series:
        """The pairs of one comparison; none yet is none."""
        return self.series.get(key, Series())

    @property
    def control(self) -> tuple[Pair, ...]:
        """The pairs of base against base."""
        series = self.of_comparison(CONTROL)
        return (*series.screen, *series.after)


def timing_of(launch: GateLaunch) -> Timing | None:
    """What a launch says of time; None where it was not timed."""
    if launch.outcome is not Outcome.OK or launch.samples is None:
        return None
    times = launch.samples.times_s
    return Timing(max(_LEAST_S, statistics.median(times)), max(_LEAST_S, min(times)))


def _pair(launches: _Chosen, other: ArmLabel) -> Pair | None:
    """None where a launch of it is lacking or was not timed."""
    turns = []
    for number in range(next(iter(launches.values())).turns):
        base, candidate = launches.get((number, "base")), launches.get((number, other))
        first, second = base and timing_of(base), candidate and timing_of(candidate)
        if not first or not second:
            return None
        turns.append(Turn(first, second))
    return Pair(tuple(turns))


def _series(pairs: dict[_Place, Pair]) -> Series:
    """In the order of their numbers; the two stages apart."""
    ordered = sorted(pairs.items(), key=lambda item: item[0][1])
    return Series(
        screen=tuple(pair for (stage, _), pair in ordered if stage == "screen"),
        after=tuple(pair for (stage, _), pair in ordered if stage == "after"),
    )
