"""From a gate's launches to the pairs that are judged, and what happened to comparisons that have none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from ..records import Outcome
from ..verdicts.pair import Pair, Series
from .records import CONTROL, ArmLabel, GateLaunch, Stage

_Place = tuple[Stage, int]
#: The launches of one attempt at a pair.
_Attempt = dict[ArmLabel, GateLaunch]


@dataclass
class Pairs:
    """What has been measured: the pairs of each comparison, and the launch that ended a comparison in an arm."""

    series: dict[str, Series] = field(default_factory=dict)
    ends: dict[str, dict[ArmLabel, GateLaunch]] = field(default_factory=dict)

    @classmethod
    def of(cls, launches: Iterable[GateLaunch]) -> Pairs:
        """Of the attempts at a pair the first that is not void counts, else the last; part of a pair does not count, nor does one
        that was measured anew from other servers. A failure ends a comparison once both arms have been asked.
        """
        attempts: dict[tuple[str, Stage, int], dict[int, _Attempt]] = defaultdict(lambda: defaultdict(dict))
        pairs = cls()
        for launch in launches:
            at = attempts[launch.comparison, launch.stage, launch.pair]
            if any(each.servers != launch.servers for attempt in at.values() for each in attempt.values()):
                at.clear()
            at[launch.attempt][launch.arm] = launch
        found: dict[str, dict[_Place, Pair]] = defaultdict(dict)
        for (key, stage, number), at in attempts.items():
            chosen = _chosen(list(at.values()))
            if len(chosen) > 1 or any(launch.ends for launch in chosen.values()):
                for arm, launch in chosen.items():
                    if launch.outcome is not Outcome.OK:
                        pairs.ends.setdefault(key, {}).setdefault(arm, launch)
            pair = _pair(chosen, "control" if key == CONTROL else "candidate")
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


def turns_of(launch: GateLaunch | None) -> list[tuple[float, ...]]:
    """The times of a launch by turn, in seconds; none where it was not timed. One that took no turns has a single one."""
    if launch is None or launch.outcome is not Outcome.OK or launch.samples is None:
        return []
    times = iter(launch.samples.times_s)
    return [tuple(islice(times, count)) for count in launch.samples.turns or (len(launch.samples.times_s),)]


def _chosen(attempts: list[_Attempt]) -> _Attempt:
    """The first that is whole and valid, else the last that is whole, else the last."""
    whole = [each for each in attempts if len(each) > 1]
    valid = [each for each in whole if not any(launch.void for launch in each.values())]
    return [*attempts, *whole, *valid[:1]][-1]


def _pair(launches: _Attempt, other: ArmLabel) -> Pair | None:
    """None where a launch of it is lacking or was not timed, or where they did not take turns with each other."""
    base, candidate = turns_of(launches.get("base")), turns_of(launches.get(other))
    return Pair.of_turns(base, candidate) if base and len(base) == len(candidate) else None


def _series(pairs: dict[_Place, Pair]) -> Series:
    """In the order of their numbers; the two stages apart."""
    ordered = sorted(pairs.items(), key=lambda item: item[0][1])
    return Series(
        screen=tuple(pair for (stage, _), pair in ordered if stage == "screen"),
        after=tuple(pair for (stage, _), pair in ordered if stage == "after"),
    )
