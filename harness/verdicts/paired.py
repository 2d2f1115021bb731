"""The paired gate's rule: a screen that flags, fresh pairs that confirm, and what may be said of each comparison.

A pair is two servers, one of the base and one of the candidate, whose launches of a comparison are measured in turns. Everything
here is a pure function of the pairs so far, so that stored launches can be judged again.

*Screen*: 8 pairs; a direction is flagged where the signed rank of the effect beyond the floor has p <= 0.10. Where they flag
nothing and are too wide for anything to be called equal, it goes on to 16, and all of them flag.
*Confirm*: flagged directions alone, in three looks that share 1 %.
Early, at 0.2 %: every pair of the screen and of the first fresh ones lies beyond the floor. Of identical code n pairs in a row do
so with a chance of 2^-n at most, whatever was looked at in between: n is such that this holds for every direction of the sweep
at once, flagged or not, 13 pairs in all for 8 comparisons, 16 for 60.
First and last, at 0.4 % each: from fresh pairs alone, Holm over all that are flagged, once every screen is complete. After as
many fresh pairs as reach that if all lie beyond the floor: 8 for one flag, 9 for two, 10 for four; and after 16, or 24 where the
screen was noisy, and more where over 16 are flagged. What decides how long a screen is never confirms there: that is left to
pairs that were not looked at before.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from .judgement import DIFFERENT, Effect, Verdict
from .pair import Pair, Series, spread
from .signed_rank import FEWEST_FOR_INTERVAL, p_above, shift_of

#: Fewer pairs in a row beyond the floor are no reason for haste: noise does as much in many a sweep.
SUSPECT_PAIRS = 3
#: Nothing below 1 % is called a difference, and nothing that may be 1 % is called equal.
FLOOR = math.log(1.01)
SCREEN_PAIRS, LONG_SCREEN_PAIRS, SCREEN_LEVEL = 8, 16, 0.10
EARLY_LOOK_LEVEL, FIRST_LOOK_LEVEL, LAST_LOOK_LEVEL = 0.002, 0.004, 0.004
#: However few comparisons there are, so many fresh pairs at least.
FEWEST_FRESH_PAIRS = 4
CONFIRM_PAIRS, NOISY_CONFIRM_PAIRS = 16, 24
#: A screen whose 1.4826 MAD is above this asks for the larger number of fresh pairs.
NOISY = 0.015
#: At the last look so many more than the fewest that could be rejected among the flags.
SPARE_PAIRS = 4


class Direction(IntEnum):
    """Of a hypothesis; its value turns an effect so that it is positive in that direction."""

    SLOWER = 1
    FASTER = -1


@dataclass(frozen=True)
class Ruling:
    """What the rule says of one comparison, and the pairs that it was told from."""

    verdict: Verdict
    reason: str
    effect: Effect | None = None
    pairs: tuple[Pair, ...] = ()


Hypothesis = tuple[str, Direction]


@dataclass(frozen=True)
class Looks:
    """After how many fresh pairs of a flagged comparison is looked at them: known once every screen is complete.

    The fewest pairs that Holm's procedure can reject among so many flags, where all lie beyond the floor, are 1 + log2(flags /
    level) or less; the last look has some to spare, so that a few pairs may lie elsewhere.
    """

    comparisons: int
    flags: int

    @property
    def early(self) -> int:
        """Fresh pairs at the early look, which follow those of the screen."""
        in_all = math.ceil(math.log2(len(Direction) * max(1, self.comparisons) / EARLY_LOOK_LEVEL))
        return max(FEWEST_FRESH_PAIRS, in_all - SCREEN_PAIRS)

    @property
    def first(self) -> int:
        """Fresh pairs at the first look."""
        return math.ceil(math.log2(max(1, self.flags) / FIRST_LOOK_LEVEL))

    def last(self, series: Series) -> int:
        """Fresh pairs that a comparison may ask for, in all: none where nothing is flagged."""
        if not flags_of(series):
            return 0
        least = math.ceil(math.log2(max(1, self.flags) / LAST_LOOK_LEVEL)) + SPARE_PAIRS
        return max(least, NOISY_CONFIRM_PAIRS if spread(series.screen) > NOISY else CONFIRM_PAIRS)


def pairs_of_screen(series: Series) -> int:
    """How many pairs the screen is to have, as far as that can be told now."""
    first = series.screen[:SCREEN_PAIRS]
    is_open = len(first) == SCREEN_PAIRS and not _flagged_by(first) and _is_wide(effect_of(first))
    return LONG_SCREEN_PAIRS if is_open else SCREEN_PAIRS


def is_screened(series: Series) -> bool:
    """Whether the screen is complete."""
    return len(series.screen) >= pairs_of_screen(series)


def flags_of(series: Series) -> tuple[Direction, ...]:
    """The directions that the screen flags; none before it is complete."""
    return _flagged_by(series.screen) if is_screened(series) else ()


def looking_slower(series: Mapping[str, Series]) -> frozenset[str]:
    """Comparisons whose pairs, three or more, all lie beyond the floor: a few more such would settle them early."""
    looks = _looks(series)
    return frozenset(
        key
        for key, each in series.items()
        for pairs in ((*each.screen, *each.after),)
        if SUSPECT_PAIRS <= len(pairs) < SCREEN_PAIRS + looks.early and _all_beyond(pairs, Direction.SLOWER)
    )


def wanted_after(series: Mapping[str, Series]) -> dict[str, int]:
    """How many fresh pairs each comparison asks for, in all. What a look settles asks for no more."""
    looks = _looks(series)
    early = _early_look(series, looks)
    first = _first_look(series, looks, early)

    def wanted(key: str, each: Series) -> int:
        flags = {(key, flag) for flag in flags_of(each)}
        if flags and flags <= early:
            return looks.early
        return looks.first if flags and flags <= early | first else looks.last(each)

    return {key: wanted(key, each) for key, each in series.items()}


def rule(series: Mapping[str, Series], *, is_contaminated: bool = False) -> dict[str, Ruling]:
    """A ruling for each comparison. Where the pairs are not all there, it says less, never more; and nothing is called slower or
    faster where identical code is.
    """
    looks = _looks(series)
    early = _early_look(series, looks)
    first = _first_look(series, looks, early)
    last = _last_look(series, looks, early | first)

    def confirming(key: str, each: Series, direction: Direction) -> tuple[Pair, ...]:
        """The pairs that confirm a direction; none where none do."""
        hypothesis = (key, direction)
        if hypothesis in early:
            return (*each.screen, *each.after[: looks.early])
        if hypothesis in first:
            return each.after[: looks.first]
        return each.after[: looks.last(each)] if hypothesis in last else ()

    def ruling(key: str, each: Series) -> Ruling:
        if not is_screened(each):
            words = f"{len(each.screen)} of {pairs_of_screen(each)} pairs of the screen were measured"
            return Ruling(Verdict.INCONCLUSIVE, words)
        for direction in flags_of(each):
            if pairs := confirming(key, each, direction):
                return _confirmed(direction, pairs)
        return _unconfirmed(each, looks.last(each))

    rulings = {key: ruling(key, each) for key, each in series.items()}
    return {key: _withheld(each) for key, each in rulings.items()} if is_contaminated else rulings


def contamination(control: Sequence[Pair]) -> Effect | None:
    """The effect between two servers of the base, where it lies beyond the floor: identical code that seems to differ."""
    return beyond_floor([pair.effect for pair in control])


def effect_of(pairs: Sequence[Pair]) -> Effect | None:
    """Shift and 95 % interval of the pairs; None where they are too few for one."""
    return _effect([pair.effect for pair in pairs])


def beyond_floor(effects: Sequence[float]) -> Effect | None:
    """Their shift and interval, where that lies beyond the floor; None where it does not, or they are too few."""
    effect = _effect(effects)
    return effect if effect is not None and (effect.low > FLOOR or effect.high < -FLOOR) else None


def _effect(effects: Sequence[float]) -> Effect | None:
    if len(effects) < FEWEST_FOR_INTERVAL:
        return None
    found = shift_of(list(effects))
    return Effect(found.shift, found.low, found.high)


def holm(p_values: Mapping[Hypothesis, float], level: float) -> frozenset[Hypothesis]:
    """What Holm's procedure (1979) rejects: the k-th smallest of m must not exceed level / (m - k + 1)."""
    rejected: set[Hypothesis] = set()
    for hypothesis, p in sorted(p_values.items(), key=lambda item: item[1]):
        if p > level / (len(p_values) - len(rejected)):
            break
        rejected.add(hypothesis)
    return frozenset(rejected)


def _looks(series: Mapping[str, Series]) -> Looks:
    return Looks(len(series), len(_flagged(series)))


def _early_look(series: Mapping[str, Series], looks: Looks) -> frozenset[Hypothesis]:
    """What is settled by all of its pairs; one whose first 8 pairs were not enough of a screen is not."""
    return frozenset(
        (key, direction)
        for key, direction in _flagged(series)
        for each in (series[key],)
        if len(each.screen) == SCREEN_PAIRS and len(each.after) >= looks.early
        if _all_beyond((*each.screen, *each.after[: looks.early]), direction)
    )


def _first_look(series: Mapping[str, Series], looks: Looks, settled: frozenset[Hypothesis]) -> frozenset[Hypothesis]:
    """Of what the early look left open, once all of it has its pairs."""
    flagged, count = [each for each in _flagged(series) if each not in settled], looks.first
    if not _are_screened(series) or any(len(series[key].after) < count for key, _ in flagged):
        return frozenset()
    return holm({(key, each): _p(series[key].after[:count], each) for key, each in flagged}, FIRST_LOOK_LEVEL)


def _last_look(series: Mapping[str, Series], looks: Looks, settled: frozenset[Hypothesis]) -> frozenset[Hypothesis]:
    """Of what the other looks left open. A comparison that has not all its pairs counts in the family and is not rejected."""
    if not _are_screened(series):
        return frozenset()
    p_values = {}
    for key, each in _flagged(series):
        count = looks.last(series[key])
        if (key, each) not in settled:
            p_values[key, each] = _p(series[key].after[:count], each) if len(series[key].after) >= count else 1.0
    return holm(p_values, LAST_LOOK_LEVEL)


def _are_screened(series: Mapping[str, Series]) -> bool:
    """Whether all are, so that no flag can be added."""
    return all(map(is_screened, series.values()))


def _flagged(series: Mapping[str, Series]) -> list[Hypothesis]:
    return [(key, flag) for key, each in series.items() for flag in flags_of(each)]


def _withheld(ruling: Ruling) -> Ruling:
    if ruling.verdict not in DIFFERENT:
        return ruling
    reason = f"{ruling.reason}; the control says that identical code differs here"
    return replace(ruling, verdict=Verdict.INCONCLUSIVE, reason=reason)


def _words_of(count: int) -> str:
    """`1 pair`, `16 pairs`."""
    return f"{count} pair{'' if count == 1 else 's'}"


def _unconfirmed(series: Series, most: int) -> Ruling:
    """Nothing was confirmed: equal where the interval says so, else inconclusive with the reason."""
    is_flagged = bool(flags_of(series))
    counted = series.after[:most] if is_flagged else series.screen
    effect = effect_of(counted)
    words = f"{_words_of(len(counted))}: {effect}" if effect else _words_of(len(counted))
    if is_flagged and len(series.after) < most:
        reason = f"flagged by the screen, and {most} fresh pairs were asked for to confirm it"
    elif effect and effect.low > -FLOOR and effect.high < FLOOR:
        typical = beyond_floor([pair.typical for pair in counted])
        if typical is None:
            return Ruling(Verdict.EQUIVALENT, f"{words}, within 1 %", effect, counted)
        reason = f"yet typical samples are {typical}"
    elif is_flagged:
        reason = "flagged by the screen, not confirmed by fresh pairs"
    else:
        reason = "not shown to be more than 1 % apart, nor within 1 %"
    return Ruling(Verdict.INCONCLUSIVE, f"{words}; {reason}", effect, counted)


def _confirmed(direction: Direction, pairs: tuple[Pair, ...]) -> Ruling:
    effect = effect_of(pairs)
    assert effect is not None
    words = f"{_words_of(len(pairs))}: {effect}"
    typical = statistics.median(pair.typical for pair in pairs)
    if direction * typical < 0:
        turned = Effect(typical, typical, typical)
        return Ruling(Verdict.INCONCLUSIVE, f"{words}; yet typical samples are {turned.words}", effect, pairs)
    return Ruling(Verdict.REGRESSED if direction is Direction.SLOWER else Verdict.IMPROVED, words, effect, pairs)


def _flagged_by(screen: Sequence[Pair]) -> tuple[Direction, ...]:
    return tuple(each for each in Direction if _p(screen, each) <= SCREEN_LEVEL)


def _all_beyond(pairs: Sequence[Pair], direction: Direction) -> bool:
    return all(direction * pair.effect > FLOOR for pair in pairs)


def _p(pairs: Sequence[Pair], direction: Direction) -> float:
    return p_above([direction * pair.effect for pair in pairs], FLOOR)


def _is_wide(effect: Effect | None) -> bool:
    """Whether no shift could make the interval fit within the floors."""
    return effect is not None and effect.high - effect.low >= 2 * FLOOR
