"""What a gate measures next: the pairs that are still wanted, and the order of everything in them. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..verdicts.paired import FIRST_LOOK_PAIRS, SCREEN_PAIRS, wanted_after
from .pairs import Pairs
from .records import CONTROL, ArmLabel, Comparison, Stage


@dataclass(frozen=True)
class Next:
    """One pair of servers, and the comparisons that each measures in this order."""

    stage: Stage
    pair: int
    comparisons: tuple[Comparison, ...]


def next_pair(comparisons: Sequence[Comparison], control: Comparison, pairs: Pairs, seed: int) -> Next | None:
    """The next pair of servers; None where everything that the rule wants is there.

    The screen goes on until each comparison has its pairs; a comparison that ended is left out. The control is in every pair.
    """
    alive = [each for each in comparisons if each.key not in pairs.ends]
    series = {each.key: pairs.of_comparison(each.key) for each in alive}
    unscreened = [each for each in alive if not series[each.key].is_screened]
    if unscreened:
        number = min(len(series[each.key].screen) for each in unscreened)
        todo = [each for each in unscreened if len(series[each.key].screen) == number]
        return _next("screen", number, todo, control, pairs, seed)
    wanted = wanted_after(series)
    lacking = [each for each in alive if len(series[each.key].after) < wanted[each.key]]
    if not lacking:
        return None
    number = min(len(series[each.key].after) for each in lacking)
    todo = [each for each in lacking if len(series[each.key].after) == number]
    return _next("after", number, todo, control, pairs, seed)


def most_pairs() -> int:
    """The pairs of servers that a gate without a flagged comparison needs at least and, where intervals are wide, at most."""
    return SCREEN_PAIRS + FIRST_LOOK_PAIRS


def arms_in_order(comparison: Comparison, stage: Stage, pair: int, seed: int) -> tuple[ArmLabel, ArmLabel]:
    """Base first or last: of two pairs in turn one each, AB BA or BA AB as the seed has it."""
    quad, place = divmod(pair, 2)
    swaps = random.Random(f"{seed}:{comparison.key}:{stage}:{quad}").random() < 0.5
    other: ArmLabel = "control" if comparison.key == CONTROL else "candidate"
    return (other, "base") if swaps != bool(place) else ("base", other)


def _next(
    stage: Stage, number: int, todo: list[Comparison], control: Comparison, pairs: Pairs, seed: int
) -> Next:  # fmt: skip
    shuffled = [*todo, control] if CONTROL not in pairs.ends else list(todo)
    random.Random(f"{seed}:{stage}:{number}").shuffle(shuffled)
    return Next(stage, number, tuple(shuffled))
