"""The advisory judgement of two stored runs.

Runs are not paired: all launches of one share the state that the machine was in then. So a change counts only beyond 5 %, and
beyond what the control cells of the two runs may be apart; and no rate of false alarms is claimed. `attnbench gate` claims one.

*Effect*: the Hodges-Lehmann shift of the logarithms of launch medians, one value a server, with the exact interval of the
rank-sum test. It asks that the servers of a run are alike and assumes no distribution; with 8 against 8 it covers 95 %, where a
bootstrap of medians is a tenth wider (simulated); it needs no seed, and the paired gate takes its like.

*EQUIVALENT* means 1 %, as it does for the gate: one word must not mean two sizes. It says that the recorded times agree, and is
not said where the control cells leave room for a drift of 5 %, which would hide a change of that size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..records import FAILURES
from .judgement import Effect, Judgement, Verdict
from .rank_sum import shift_between
from .standing import Side, Standing, pairs, what_moved

#: Both sides need so many launches, each from a server of its own.
FEWEST_LAUNCHES = 8
#: No change within this counts, however narrow its interval.
LEAST_CHANGE = math.log(1.05)
EQUAL = math.log(1.01)


@dataclass(frozen=True)
class Drift:
    """How far apart two runs are by the control cell that is furthest apart."""

    effect: Effect

    @property
    def most(self) -> float:
        """The largest drift, either way, that the interval leaves room for; a logarithm."""
        return max(abs(self.effect.low), abs(self.effect.high))

    @property
    def limit(self) -> float:
        """What a change has to lie beyond."""
        return max(LEAST_CHANGE, self.most)

    @property
    def words(self) -> str:
        """The limit for people."""
        drifted = self.most > LEAST_CHANGE
        return f"the {100 * math.expm1(self.most):.1f} % that control cells may have drifted" if drifted else "5 %"


@dataclass(frozen=True)
class Compared:
    """A cell on both sides with what is said of it; no judgement where neither side has a time, but why."""

    base: Standing
    candidate: Standing
    judgement: Judgement | None
    untimed: str = ""


@dataclass(frozen=True)
class Judged:
    """Every cell of either run in the order of their configurations; no drift where no control cell was timed in both."""

    cells: tuple[Compared, ...]
    drift: Drift | None

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        """Of the cells that are judged."""
        return tuple(each.judgement for each in self.cells if each.judgement is not None)


def judge(base: Side, candidate: Side, barred: Mapping[str, str]) -> Judged:
    """Judge every cell. `barred` maps implementations to why their times cannot be compared."""
    drift = drift_between(base, candidate)
    return Judged(tuple(_compared(*pair, drift, barred) for pair in pairs(base, candidate)), drift)


def drift_between(base: Side, candidate: Side) -> Drift | None:
    """The drift of the control cells that both runs timed; None where there is none."""
    shared = [(base.control[key], candidate.control[key]) for key in base.control if key in candidate.control]
    drifts = [Drift(_shift(*pair)[0]) for pair in shared if all(standing.is_timed for standing in pair)]
    return max(drifts, key=lambda drift: drift.most, default=None)


def _compared(base: Standing, candidate: Standing, drift: Drift | None, barred: Mapping[str, str]) -> Compared:
    cell = candidate.cell or base.cell
    assert cell is not None
    found = _without_times(base, candidate) or _with_times(base, candidate, drift, barred)
    if found is None:
        return Compared(base, candidate, None, candidate.why_untimed)
    verdict, reason, effect = found
    return Compared(base, candidate, Judgement(cell.id, cell.name, verdict, reason, effect))


_Finding = tuple[Verdict, str, Effect | None]


def _without_times(base: Standing, candidate: Standing) -> _Finding | None:
    """What is said of a cell because a side has no time; None where both have, or neither and nothing failed."""
    ended = candidate.ended
    if ended is not None and (base.is_timed or ended.outcome in FAILURES):
        before = "the base had a time" if base.is_timed else f"in the base: {base.why_untimed}"
        return Verdict.FAILED, f"{ended.outcome}{f', {ended.detail}' if ended.detail else ''}; {before}", None
    if base.is_timed and not candidate.is_timed:
        return Verdict.MISSING, f"{candidate.why_untimed}; the base had a time", None
    if candidate.is_timed and not base.is_timed:
        return Verdict.NEW, f"in the base: {base.why_untimed}", None
    return None


def _with_times(base: Standing, candidate: Standing, drift: Drift | None, barred: Mapping[str, str]) -> _Finding | None:
    if base.cell is None or candidate.cell is None or not (base.is_timed and candidate.is_timed):
        return None
    if base.cell.id != candidate.cell.id:
        return Verdict.NOT_COMPARABLE, f"not the cell it was: {what_moved(base.cell, candidate.cell)}", None
    if candidate.cell.implementation in barred:
        return Verdict.NOT_COMPARABLE, barred[candidate.cell.implementation], None
    effect, is_interval = _shift(base, candidate)
    verdict, remark = _verdict(effect, min(_independent(base), _independent(candidate)), drift)
    void = sum(bool(launch.void) for launch in (*base.launches, *candidate.launches))
    counts = f"{len(base.launches)} and {len(candidate.launches)} launches{f' ({void} void)' if void else ''}"
    kind = "" if is_interval else ", the range"
    ran = "" if base.backend == candidate.backend else f"; ran {base.backend or 'unknown'}, now {candidate.backend}"
    return verdict, f"{counts}: {effect}{kind}; {remark}{ran}", effect


def _verdict(effect: Effect, independent: int, drift: Drift | None) -> tuple[Verdict, str]:
    if independent < FEWEST_LAUNCHES:
        return (
            Verdict.INCONCLUSIVE,
            f"a verdict needs {FEWEST_LAUNCHES} launches from {FEWEST_LAUNCHES} servers on both sides",
        )
    if drift is None:
        return Verdict.INCONCLUSIVE, "no control cell was timed in both runs, so that the machine's drift is not known"
    if effect.low > drift.limit or effect.high < -drift.limit:
        return Verdict.REGRESSED if effect.shift > 0 else Verdict.IMPROVED, f"beyond {drift.words}"
    if effect.low <= -EQUAL or effect.high >= EQUAL:
        return Verdict.INCONCLUSIVE, f"neither beyond {drift.words} nor within 1 %"
    if drift.most > LEAST_CHANGE:
        return Verdict.INCONCLUSIVE, f"within 1 %, but {drift.words} may hide a change"
    return Verdict.EQUIVALENT, "within 1 %"


def _independent(standing: Standing) -> int:
    return min(len(standing.launches), len(standing.server_medians_s))


def _shift(base: Standing, candidate: Standing) -> tuple[Effect, bool]:
    return shift_between(*([math.log(each) for each in side.server_medians_s] for side in (base, candidate)))
