"""What a gate measures next: the pairs that are still wanted, and the order of everything in them. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..verdicts.pair import Series
from ..verdicts.paired import is_screened, looking_slower, wanted_after
from .pairs import Pairs
from .records import CONTROL, ArmLabel, Comparison, GateInfo, Stage


@dataclass(frozen=True)
class Scheduled:
    """A pair of one comparison: the next of its screen, or the next after it."""

    comparison: Comparison
    stage: Stage
    pair: int

    @classmethod
    def following(cls, comparison: Comparison, series: Series) -> Scheduled:
        """The pair that a series lacks next."""
        if is_screened(series):
            return cls(comparison, "after", len(series.after))
        return cls(comparison, "screen", len(series.screen))


@dataclass(frozen=True)
class Next:
    """What one pair of servers measures, in this order."""

    scheduled: tuple[Scheduled, ...]


def next_pair(info: GateInfo, pairs: Pairs) -> Next | None:
    """What the next pair of servers measures; None where everything that the rule wants is there.

    Servers cost more than launches: they serve screens and fresh pairs alike. A comparison that ended is left out. The control is
    in every pair.
    """
    alive = [each for each in info.comparisons if each.key not in pairs.ends]
    series = {each.key: pairs.of_comparison(each.key) for each in alive}
    families = [[key for key in family if key in series] for family in info.families or (tuple(series),)]
    due = _suspects(families, series) if info.exit_first else []
    due = due or [*_unscreened(series), *_unconfirmed(families, series)]
    if not due:
        return None
    scheduled = [Scheduled.following(each, series[each.key]) for each in alive if each.key in due]
    if CONTROL not in pairs.ends:
        scheduled.append(Scheduled(info.control, "screen", len(pairs.of_comparison(CONTROL).screen)))
    scheduled.sort(key=lambda each: each.comparison.key)
    place = [f"{each.comparison.key}:{each.stage}:{each.pair}" for each in scheduled]
    random.Random(f"{info.seed}:{place}").shuffle(scheduled)
    return Next(tuple(scheduled))


def arms_in_order(scheduled: Scheduled, seed: int) -> tuple[ArmLabel, ArmLabel]:
    """Base first or last: of two pairs in turn one each, AB BA or BA AB as the seed has it."""
    key, (quad, place) = scheduled.comparison.key, divmod(scheduled.pair, 2)
    swaps = random.Random(f"{seed}:{key}:{scheduled.stage}:{quad}").random() < 0.5
    other: ArmLabel = "control" if key == CONTROL else "candidate"
    return (other, "base") if swaps != bool(place % 2) else ("base", other)


def _unscreened(series: Mapping[str, Series]) -> list[str]:
    return _fewest({key: len(each.screen) for key, each in series.items() if not is_screened(each)})


def _unconfirmed(families: Sequence[Sequence[str]], series: Mapping[str, Series]) -> list[str]:
    """What lacks fresh pairs in any of the sweeps that it is judged in."""
    wanted = [wanted_after({key: series[key] for key in family}).items() for family in families]
    return _fewest(
        {key: len(series[key].after) for each in wanted for key, count in each if len(series[key].after) < count}
    )


def _suspects(families: Sequence[Sequence[str]], series: Mapping[str, Series]) -> list[str]:
    """What would soon be settled if it went on as it began."""
    keys = {key for family in families for key in looking_slower({key: series[key] for key in family})}
    return _fewest({key: len(series[key].screen) + len(series[key].after) for key in keys})


def _fewest(counts: Mapping[str, int]) -> list[str]:
    """Those that have the fewest pairs: all are to have as many."""
    return [key for key, count in counts.items() if count == min(counts.values())]
