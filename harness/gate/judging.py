"""From a gate's pairs to its verdicts: the rule's rulings, and what failures, refusals and contamination make of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..exit_codes import Exit, of_judgements
from ..records import FAILURES, Outcome
from ..verdicts.judgement import Effect, Judgement, Verdict
from ..verdicts.pair import Pair
from ..verdicts.paired import contamination, effect_of, rule
from .pairs import Pairs
from .records import CONTROL, ArmLabel, Comparison, GateLaunch


@dataclass(frozen=True)
class GateResult:
    """The verdict of each comparison, those that neither arm can run with their reasons, and what the control says.

    `control` is the effect between two servers of the base; None where there are too few pairs. `times_s` are the medians of base
    and candidate, in seconds, over the pairs that a verdict was told from, by cell.
    """

    judgements: tuple[Judgement, ...]
    refused: Mapping[str, str]
    control: Effect | None
    is_contaminated: bool
    control_failure: str = ""
    pairs: int = 0
    times_s: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def exit_code(self, *, require_conclusive: bool = False) -> Exit:
        """The code that a gate ends with; where not one pair was measured and nothing failed, that is nothing measured."""
        if not self.pairs and not any(each.verdict in (Verdict.FAILED, Verdict.MISSING) for each in self.judgements):
            return Exit.NOTHING_MEASURED
        return of_judgements(
            self.judgements, is_contaminated=self.is_contaminated, require_conclusive=require_conclusive
        )


def judge(
    comparisons: Iterable[Comparison], refused: Mapping[str, tuple[str, ...]], launches: Iterable[GateLaunch]
) -> GateResult:
    """Judge what was measured; the same launches give the same result."""
    pairs = Pairs.of(launches)
    control_end = pairs.ends.get(CONTROL, {})
    is_contaminated = contamination(pairs.control) is not None or bool(control_end)
    judgements: list[Judgement] = []
    neither = {name: "; ".join(reasons) for name, reasons in refused.items()}
    alive = [each for each in comparisons if each.key not in pairs.ends]
    rulings = rule({each.key: pairs.of_comparison(each.key) for each in alive}, is_contaminated=is_contaminated)
    times_s = {}
    for comparison in comparisons:
        if comparison.key in rulings:
            ruling, cell = rulings[comparison.key], comparison.candidate.id
            judgements.append(Judgement(cell, comparison.name, ruling.verdict, ruling.reason, ruling.effect))
            if ruling.pairs:
                times_s[cell] = _medians(ruling.pairs)
            continue
        count = len(pairs.of_comparison(comparison.key).screen) + len(pairs.of_comparison(comparison.key).after)
        ended = _ended(comparison, pairs.ends[comparison.key], count)
        if isinstance(ended, str):
            neither[comparison.name] = ended
        else:
            judgements.append(ended)
    measured = sum(len(each.screen) + len(each.after) for key, each in pairs.series.items() if key != CONTROL)
    failure = "; ".join(f"{arm}: {_words(launch)}" for arm, launch in control_end.items())
    return GateResult(tuple(judgements), neither, effect_of(pairs.control), is_contaminated, failure, measured, times_s)


def _medians(pairs: Sequence[Pair]) -> tuple[float, float]:
    medians = [pair.medians_s for pair in pairs]
    return statistics.median(base for base, _ in medians), statistics.median(candidate for _, candidate in medians)


def _ended(comparison: Comparison, ends: Mapping[ArmLabel, GateLaunch], pairs: int) -> Judgement | str:
    """What is said of a comparison that ended; the reason alone where neither arm can run it."""
    base, candidate = ends.get("base"), ends.get("candidate")
    judgement = Judgement(comparison.candidate.id, comparison.name, Verdict.NEW, "")
    if candidate is not None and candidate.outcome in FAILURES:
        before = f"; the base ended {base.outcome}" if base else ""
        return judgement.demoted(Verdict.FAILED, f"the candidate ended {_words(candidate)}{before}")
    if candidate is not None and base is not None:
        return f"neither arm can run it: the base ended {_words(base)}, the candidate {_words(candidate)}"
    if candidate is not None:
        verdict = Verdict.MISSING if candidate.outcome is Outcome.UNSUPPORTED else Verdict.FAILED
        return judgement.demoted(verdict, f"the base has it; the candidate ended {_words(candidate)}")
    if pairs:
        words = f"the base ended {_words(base)} after {pairs} pairs; measure again"
        return judgement.demoted(Verdict.INCONCLUSIVE, words)
    return judgement.demoted(Verdict.NEW, f"the base ended {_words(base)}; there is nothing to compare with")


def _words(launch: GateLaunch | None) -> str:
    if launch is None:
        return "without a record"
    return f"{launch.outcome}: {launch.detail}" if launch.detail else str(launch.outcome)
