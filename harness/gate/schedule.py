"""What a gate measures next: the pairs that are still wanted, and the order of everything in them. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..verdicts.pair import Series
from ..verdicts.paired import is_screened, wanted_after
from .pairs import Pairs
from .records import CONTROL, ArmLabel, Comparison, GateInfo, Stage


@dataclass(frozen=True)
class Next:
    """One pair of servers, and the comparisons that it measures in this order."""

    stage: Stage
    pair: int
    comparisons: tuple[Comparison, ...]


def next_pair(info: GateInfo, pairs: Pairs) -> Next | None:
    """The next pair of servers; None where everything that the rule wants is there.

    The screen goes on until each comparison has its pairs; a comparison that ended is left out. The control is in every pair.
    """
    comparisons, control, seed = info.comparisons, info.control, info.seed
    alive = [each for each in comparisons if each.key not in pairs.ends]
    series = {each.key: pairs.of_comparison(each.key) for each in alive}
    unscreened = [each for each in alive if not is_screened(series[each.key])]
    if unscreened:
        number = min(len(series[each.key].screen) for each in unscreened)
        todo = [each for each in unscreened if len(series[each.key].screen) == number]
        return _next("screen", number, todo, control, pairs, seed)
    wanted = _wanted(info.families or (tuple(series),), series)
    lacking = [each for each in alive if len(series[each.key].after) < wanted[each.key]]
    if not lacking:
        return None
    number = min(len(series[each.key].after) for each in lacking)
    todo = [each for each in lacking if len(series[each.key].after) == number]
    return _next("after", number, todo, control, pairs, seed)


def arms_in_order(comparison: Comparison, stage: Stage, pair: int, seed: int) -> tuple[ArmLabel, ArmLabel]:
    """Base first or last: of two pairs in turn one each, AB BA or BA AB as the seed has it."""
    quad, place = divmod(pair, 2)
    swaps = random.Random(f"{seed}:{comparison.key}:{stage}:{quad}").random() < 0.5
    other: ArmLabel = "control" if comparison.key == CONTROL else "candidate"
    return (other, "base") if swaps != bool(place % 2) else ("base", other)


def _wanted(families: Sequence[Sequence[str]], series: Mapping[str, Series]) -> dict[str, int]:
    """The pairs after the screen that each comparison needs for every sweep that it is judged in."""
    wanted = dict.fromkeys(series, 0)
    for family in families:
        found = wanted_after({key: series[key] for key in family if key in series})
        wanted |= {key: max(count, wanted[key]) for key, count in found.items()}
    return wanted


def _next(stage: Stage, number: int, todo: list[Comparison], control: Comparison, pairs: Pairs, seed: int) -> Next:
    shuffled = [*todo, control] if CONTROL not in pairs.ends else list(todo)
    random.Random(f"{seed}:{stage}:{number}").shuffle(shuffled)
    return Next(stage, number, tuple(shuffled))
