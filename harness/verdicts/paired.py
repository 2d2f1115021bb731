"""The paired gate's rule: a screen that flags, fresh pairs that confirm, and what may be said of each comparison.

A pair is two servers, one of the base and one of the candidate. A turn is one launch from each, next to each other in time.
Per pair e is the median of log(candidate / base) over its turns. Everything here is a pure function of the pairs so far, so
that stored launches can be judged again.

*Screen*: 8 pairs of one turn; a direction is flagged where the signed rank of e beyond the floor has p <= 0.10. Where the pairs
differ too much to tell, the screen is made again: 8 pairs of as many turns as the noise asks for, which alone flag. Launches cost
less than the servers of a pair, and so every later pair of that comparison has as many.
*Confirm*: flagged directions alone, decided from fresh pairs alone, Holm over all that are flagged, in two looks that share 1 %.
At 0.4 % after as many fresh pairs as reach that if all lie beyond the floor: 8 for one flag, 9 for two, 10 for four. At 0.6 %
after 16, or 24 where the screen that flags was noisy, and more where over 16 are flagged.
What is not flagged, too wide to be called equal and screened once gets 8 more pairs: precision alone decides that, never
significance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

from .judgement import DIFFERENT, Effect, Verdict
from .signed_rank import FEWEST_FOR_INTERVAL, p_above, shift_of

#: Nothing below 1 % is called a difference, and nothing that may be 1 % is called equal.
FLOOR = math.log(1.01)
SCREEN_PAIRS, SCREEN_LEVEL = 8, 0.10
FIRST_LOOK_LEVEL = 0.004
CONFIRM_PAIRS, NOISY_CONFIRM_PAIRS, LAST_LOOK_LEVEL = 16, 24, 0.006
#: A screen whose 1.4826 MAD is above this is made again; where that is noisy too, it asks for the larger number of pairs.
NOISY = 0.015
PRECISION_PAIRS = 8
#: A pair takes as many turns as would bring its deviation down to this, were they independent; at most so many.
QUIET, MOST_TURNS = 0.0075, 5
#: At the last look so many more than the fewest that could be rejected among the flags.
SPARE_PAIRS = 4


class Direction(IntEnum):
    """Of a hypothesis; its value turns an effect so that it is positive in that direction."""

    SLOWER = 1
    FASTER = -1


@dataclass(frozen=True)
class Timing:
    """One launch: the median and the least of its samples, in seconds."""

    median_s: float
    least_s: float


@dataclass(frozen=True)
class Turn:
    """Two launches next to each other in time."""

    base: Timing
    candidate: Timing

    @property
    def effect(self) -> float:
        """log(candidate / base)."""
        return math.log(self.candidate.median_s / self.base.median_s)

    def mirrored(self) -> Turn:
        """The same with the arms exchanged."""
        return Turn(self.candidate, self.base)


@dataclass(frozen=True)
class Pair:
    """The turns of two servers: at least one."""

    turns: tuple[Turn, ...]

    @cached_property
    def effect(self) -> float:
        """The median of its turns': a change of speed between turns leaves it alone; of three or more, one within a turn too."""
        return statistics.median(turn.effect for turn in self.turns)

    @property
    def medians_s(self) -> tuple[float, float]:
        """Seconds of base and candidate: the medians of their launches' medians."""
        return (
            statistics.median(turn.base.median_s for turn in self.turns),
            statistics.median(turn.candidate.median_s for turn in self.turns),
        )

    def mirrored(self) -> Pair:
        """The same with the arms exchanged."""
        return Pair(tuple(turn.mirrored() for turn in self.turns))


@dataclass(frozen=True)
class Series:
    """The pairs of one comparison in the order they were measured: of the screen, and after it."""

    screen: tuple[Pair, ...] = ()
    after: tuple[Pair, ...] = ()

    @cached_property
    def pairs_of_screen(self) -> int:
        """Pairs that the screen takes: known when the first eight are there."""
        is_noisy = len(self.screen) >= SCREEN_PAIRS and spread(self.screen[:SCREEN_PAIRS]) > NOISY
        return 2 * SCREEN_PAIRS if is_noisy else SCREEN_PAIRS

    @property
    def is_screened(self) -> bool:
        """Whether the screen is complete."""
        return len(self.screen) >= self.pairs_of_screen

    @property
    def screened(self) -> tuple[Pair, ...]:
        """The eight pairs that flag; none before the screen is complete."""
        return self.screen[self.pairs_of_screen - SCREEN_PAIRS : self.pairs_of_screen] if self.is_screened else ()

    @cached_property
    def flags(self) -> tuple[Direction, ...]:
        """The directions that the screen flags; none before it is complete."""
        return tuple(each for each in Direction if self.is_screened and _p(self.screened, each) <= SCREEN_LEVEL)

    @property
    def counted(self) -> tuple[Pair, ...]:
        """The pairs that the effect is told from: fresh ones alone where the screen flagged something."""
        return self.after if self.flags else (*self.screened, *self.after)

    @property
    def turns(self) -> int:
        """Turns of the next pair: one while the noise is not known, then as many as it asks for."""
        if len(self.screen) < SCREEN_PAIRS:
            return 1
        return min(MOST_TURNS, max(1, math.ceil((spread(self.screen[:SCREEN_PAIRS]) / QUIET) ** 2)))

    def mirrored(self) -> Series:
        """The same with the arms exchanged."""
        return Series(tuple(each.mirrored() for each in self.screen), tuple(each.mirrored() for each in self.after))


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
    """After how many pairs of a flagged comparison is looked at them: known when the screen ends, before any fresh pair.

    The fewest pairs that Holm's procedure can reject among so many flags, where all lie beyond the floor, are 1 + log2(flags /
    level) or less; the last look has some to spare, so that a few pairs may lie elsewhere.
    """

    flags: int

    @property
    def first(self) -> int:
        """Pairs at the first look."""
        return math.ceil(math.log2(max(1, self.flags) / FIRST_LOOK_LEVEL))

    def last(self, series: Series) -> int:
        """Pairs after the screen that a comparison may ask for, in all."""
        if series.flags:
            least = math.ceil(math.log2(max(1, self.flags) / LAST_LOOK_LEVEL)) + SPARE_PAIRS
            return max(least, NOISY_CONFIRM_PAIRS if spread(series.screened) > NOISY else CONFIRM_PAIRS)
        is_screened_once = series.is_screened and series.pairs_of_screen == SCREEN_PAIRS
        return PRECISION_PAIRS if is_screened_once and _is_wide(effect_of(series.screened)) else 0


def wanted_after(series: Mapping[str, Series]) -> dict[str, int]:
    """How many pairs after the screen each comparison asks for, in all. What the first look settles asks for no more."""
    looks = _looks(series)
    settled = _first_look(series, looks)
    return {
        key: looks.first if each.flags and all((key, flag) in settled for flag in each.flags) else looks.last(each)
        for key, each in series.items()
    }


def rule(series: Mapping[str, Series], *, is_contaminated: bool = False) -> dict[str, Ruling]:
    """A ruling for each comparison. Where the pairs are not all there, it says less, never more; and nothing is called slower or
    faster where identical code is.
    """
    looks = _looks(series)
    first = _first_look(series, looks)
    last = _last_look(series, looks, first)
    rulings = {key: _ruling(key, each, looks, first, last) for key, each in series.items()}
    return {key: _withheld(each) for key, each in rulings.items()} if is_contaminated else rulings


def contamination(control: Sequence[Pair]) -> Effect | None:
    """The effect between two servers of the base, where it lies beyond the floor: identical code that seems to differ."""
    effect = effect_of(control)
    return effect if effect is not None and (effect.low > FLOOR or effect.high < -FLOOR) else None


def effect_of(pairs: Sequence[Pair]) -> Effect | None:
    """Shift and 95 % interval of the pairs; None where they are too few for one."""
    if len(pairs) < FEWEST_FOR_INTERVAL:
        return None
    found = shift_of([pair.effect for pair in pairs])
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
    return Looks(len(_flagged(series)))


def _first_look(series: Mapping[str, Series], looks: Looks) -> frozenset[Hypothesis]:
    flagged, count = _flagged(series), looks.first
    if any(len(series[key].after) < count for key, _ in flagged):
        return frozenset()
    return holm({(key, each): _p(series[key].after[:count], each) for key, each in flagged}, FIRST_LOOK_LEVEL)


def _last_look(series: Mapping[str, Series], looks: Looks, settled: frozenset[Hypothesis]) -> frozenset[Hypothesis]:
    """Of what the first look left open. A comparison that has not all its pairs counts in the family and is not rejected."""
    p_values = {}
    for key, each in _flagged(series):
        count = looks.last(series[key])
        if (key, each) not in settled:
            p_values[key, each] = _p(series[key].after[:count], each) if len(series[key].after) >= count else 1.0
    return holm(p_values, LAST_LOOK_LEVEL)


def _flagged(series: Mapping[str, Series]) -> list[Hypothesis]:
    return [(key, flag) for key, each in series.items() for flag in each.flags]


def _ruling(
    key: str, series: Series, looks: Looks, first: frozenset[Hypothesis], last: frozenset[Hypothesis]
) -> Ruling:
    if not series.is_screened:
        return Ruling(
            Verdict.INCONCLUSIVE, f"{len(series.screen)} of {series.pairs_of_screen} pairs of the screen were measured"
        )
    for direction in series.flags:
        if (key, direction) in first:
            return _confirmed(direction, series.after[: looks.first])
        if (key, direction) in last:
            return _confirmed(direction, series.after[: looks.last(series)])
    return _unconfirmed(series, looks.last(series))


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
    counted = series.after[:most] if series.flags else series.counted
    effect = effect_of(counted)
    words = f"{_words_of(len(counted))}: {effect}" if effect else _words_of(len(counted))
    if series.flags and len(series.after) < most:
        reason = f"flagged by the screen, and {most} fresh pairs were asked for to confirm it"
    elif effect and effect.low > -FLOOR and effect.high < FLOOR:
        return Ruling(Verdict.EQUIVALENT, f"{words}, within 1 %", effect, counted)
    elif series.flags:
        reason = "flagged by the screen, not confirmed by fresh pairs"
    else:
        reason = "not shown to be more than 1 % apart, nor within 1 %"
    return Ruling(Verdict.INCONCLUSIVE, f"{words}; {reason}", effect, counted)


def _confirmed(direction: Direction, pairs: tuple[Pair, ...]) -> Ruling:
    effect = effect_of(pairs)
    assert effect is not None
    words = f"{_words_of(len(pairs))}: {effect}"
    least = _effect_of_least(pairs)
    if direction * least < 0:
        turned = Effect(least, least, least)
        return Ruling(Verdict.INCONCLUSIVE, f"{words}; yet the fastest samples are {turned.words}", effect, pairs)
    return Ruling(Verdict.REGRESSED if direction is Direction.SLOWER else Verdict.IMPROVED, words, effect, pairs)


def _effect_of_least(pairs: Iterable[Pair]) -> float:
    """log of the fastest sample over the fastest sample."""
    turns = [turn for pair in pairs for turn in pair.turns]
    return math.log(min(turn.candidate.least_s for turn in turns) / min(turn.base.least_s for turn in turns))


def _p(pairs: Sequence[Pair], direction: Direction) -> float:
    return p_above([direction * pair.effect for pair in pairs], FLOOR)


def spread(pairs: Sequence[Pair]) -> float:
    """1.4826 times the median absolute deviation: the standard deviation, were the effects normal."""
    effects = [pair.effect for pair in pairs]
    middle = statistics.median(effects)
    return 1.4826 * statistics.median(abs(each - middle) for each in effects)


def _is_wide(effect: Effect | None) -> bool:
    """Whether no shift could make the interval fit within the floors."""
    return effect is not None and effect.high - effect.low >= 2 * FLOOR
