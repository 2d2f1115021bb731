"""A comparison of two runs as something read: in short, then the effects, the environments, and what is on one side alone."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import pandas as pd

from ..harness.comparison import Comparison
from ..harness.verdicts.compare import Compared
from ..harness.verdicts.estimate import estimate
from ..harness.verdicts.judgement import Effect, Judgement, Verdict
from ..harness.verdicts.standing import Standing
from . import format as fmt
from .document import Document

ADVISORY = (
    "Advisory: two stored runs are not paired, and no rate of false alarms is claimed; attnbench gate measures both sides "
    "in pairs."
)
_CELLS = ("cell", "base", "candidate", "verdict", "why")


def document(comparison: Comparison) -> Document:
    """All that is said of a comparison."""
    base = f"baseline {comparison.baseline}" if comparison.baseline else comparison.base.id
    judged = comparison.judged
    return Document(
        f"{comparison.candidate.id} against {base}",
        tuple(_lines(comparison)),
        {
            "Environments": differences(comparison),
            "Effects, the largest first": effects(judged.cells),
            "By implementation": by_implementation(judged.cells),
            "Failed, missing, new, or not comparable": without_effect(judged.cells, is_refused=comparison.is_refused),
            "Without a time on either side": untimed(judged.cells),
        },
    )


def differences(comparison: Comparison) -> pd.DataFrame:
    """The strict fields that differ."""
    rows = [(each.field, each.base, each.candidate) for each in comparison.differences]
    return pd.DataFrame(rows, columns=["field", "base", "candidate"])


def effects(cells: Iterable[Compared]) -> pd.DataFrame:
    """Cells that were judged by their times: what is slower from the worst on, what is faster from the best on, then the rest."""
    order = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.INCONCLUSIVE, Verdict.EQUIVALENT)
    found = [(judgement, effect, each) for judgement, effect, each in _with_effect(cells)]
    found.sort(key=lambda row: (order.index(row[0].verdict), -abs(row[1].shift), row[0].name))
    rows = [_row(judgement, each) for judgement, _, each in found]
    return pd.DataFrame(rows, columns=list(_CELLS))


def without_effect(cells: Iterable[Compared], *, is_refused: bool) -> pd.DataFrame:
    """Cells that could not be judged by their times, each with why; where all are refused for one reason, that is said once."""
    order = [Verdict.FAILED, Verdict.MISSING, *([] if is_refused else [Verdict.NOT_COMPARABLE]), Verdict.NEW]
    found = [(each.judgement, each) for each in cells if each.judgement and each.judgement.verdict in order]
    found.sort(key=lambda row: order.index(row[0].verdict))
    return pd.DataFrame([_row(*each) for each in found], columns=list(_CELLS))


def by_implementation(cells: Iterable[Compared]) -> pd.DataFrame:
    """For each implementation the geometric mean of its cells' changes, the worst and the best, and how many of each verdict."""
    groups: dict[str, list[tuple[Judgement, Effect]]] = defaultdict(list)
    for judgement, effect, each in _with_effect(cells):
        groups[each.candidate.cell.arm if each.candidate.cell else ""].append((judgement, effect))
    rows = []
    for arm, group in groups.items():
        shifts = [effect.shift for _, effect in group]
        verdicts = Counter(judgement.verdict for judgement, _ in group)
        rows.append((arm, len(group), fmt.change(statistics.fmean(shifts)), fmt.change(max(shifts)),
                     fmt.change(min(shifts)), _counts(verdicts)))  # fmt: skip
    columns = ["implementation", "cells", "time, geometric mean", "worst", "best", "verdicts"]
    return pd.DataFrame(rows, columns=columns)


def untimed(cells: Iterable[Compared]) -> pd.DataFrame:
    """How many cells of each implementation have no time on either side, by why."""
    counts: Counter[tuple[str, str]] = Counter()
    for each in cells:
        cell = each.candidate.cell or each.base.cell
        if each.judgement is None and cell is not None:
            counts[cell.arm, each.untimed] += 1
    rows = [(arm, why, count) for (arm, why), count in counts.items()]
    return pd.DataFrame(rows, columns=["implementation", "why", "cells"])


def _lines(comparison: Comparison) -> Iterator[str]:
    judged = comparison.judged
    yield f"{len(judged.judgements)} cells: {_counts(Counter(each.verdict for each in judged.judgements)) or 'none judged'}"
    found = [(effect, judgement) for judgement, effect, _ in _with_effect(judged.cells)]
    if found:
        for word, (effect, judgement) in (
            ("worst", max(found, key=lambda each: each[0].shift)),
            ("best", min(found, key=lambda each: each[0].shift)),
        ):
            yield f"{word}: {judgement.name}, {effect}"
    drift = judged.drift
    if drift is None:
        yield "control cells: none was timed in both runs, so that the machine's drift is not known"
    else:
        yield f"control cells: {drift.effect}; a change counts beyond {drift.words}"
    yield from _of_environments(comparison)
    yield ADVISORY


def _of_environments(comparison: Comparison) -> Iterator[str]:
    count = len(comparison.differences)
    if comparison.baseline and comparison.is_refused:
        yield f"not comparable: strict fields differ ({count}); measure both sides here: {comparison.instead}"
    elif comparison.baseline and count:
        yield f"some implementations are not comparable: strict fields differ ({count})"
    elif count:
        yield (f"warning: strict fields of the environments differ ({count}), which may be all of an effect; "
               f"measure both sides here: {comparison.instead}")  # fmt: skip


def _with_effect(cells: Iterable[Compared]) -> Iterator[tuple[Judgement, Effect, Compared]]:
    for each in cells:
        if each.judgement is not None and each.judgement.effect is not None:
            yield each.judgement, each.judgement.effect, each


def _row(judgement: Judgement, each: Compared) -> tuple[str, ...]:
    return judgement.name, _time(each.base), _time(each.candidate), str(judgement.verdict), judgement.reason


def _time(standing: Standing) -> str:
    found = estimate(standing.launches) if standing.is_timed else None
    return fmt.seconds(found.median if found else None)


def _counts(verdicts: Counter[Verdict]) -> str:
    return ", ".join(f"{verdicts[each]} {each}" for each in Verdict if verdicts[each])
