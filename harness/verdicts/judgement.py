"""What is said of a comparison: a verdict with its reason in a sentence, and the effect that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum


class Verdict(StrEnum):
    """How a candidate stands to its base. Only REGRESSED means slower."""

    REGRESSED = "REGRESSED"
    IMPROVED = "IMPROVED"
    EQUIVALENT = "EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_COMPARABLE = "NOT_COMPARABLE"
    FAILED = "FAILED"
    MISSING = "MISSING"
    NEW = "NEW"


#: Verdicts that say a difference was shown.
DIFFERENT = frozenset({Verdict.REGRESSED, Verdict.IMPROVED})


@dataclass(frozen=True)
class Effect:
    """log(candidate's time / base's time) with an interval; positive is slower."""

    shift: float
    low: float
    high: float

    def mirrored(self) -> Effect:
        """The same effect with the arms swapped."""
        return Effect(-self.shift, -self.high, -self.low)

    @property
    def words(self) -> str:
        """`slower by 4.9 %` or `faster by 3.0 %`: so much more or less time."""
        return f"{'slower' if self.shift >= 0 else 'faster'} by {_percent(abs(math.expm1(self.shift)))} %"

    def __str__(self) -> str:
        """`slower by 4.9 % [4.1, 5.6]`; an end of the interval that points the other way is negative."""
        ends = [math.expm1(each) for each in (self.low, self.high)]
        low, high = ends if self.shift >= 0 else (-ends[1], -ends[0])
        return f"{self.words} [{_percent(low)}, {_percent(high)}]"


@dataclass(frozen=True)
class Judgement:
    """One comparison's verdict. `cell` is the candidate's cell id, or the base's where there is no candidate."""

    cell: str
    name: str
    verdict: Verdict
    reason: str
    effect: Effect | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing could be told."""
        return self.verdict is Verdict.INCONCLUSIVE

    def demoted(self, verdict: Verdict, reason: str) -> Judgement:
        """The same comparison under a verdict that says less."""
        return replace(self, verdict=verdict, reason=f"{reason}; {self.reason}" if self.reason else reason)


def _percent(change: float) -> str:
    """A change of time in percent, with enough digits to tell 1 from 1.04."""
    return f"{100 * change:.1f}"
