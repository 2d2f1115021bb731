"""Exit codes of every command, and the one that a sweep's launches earn."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING

from .records import FAILURES, Outcome
from .store import Run
from .verdicts.judgement import Judgement, Verdict

if TYPE_CHECKING:
    from .conformance import Conformance


class Exit(IntEnum):
    """Only REGRESSION ever means slower; a traceback exits 1."""

    PASS = 0
    INTERNAL = 1
    USAGE = 2
    FILES = 3
    NO_SERVER = 4  # no process to measure in could be started: what was measured is kept, resumable
    REGRESSION = 10
    INCONCLUSIVE = 11
    NOT_COMPARABLE = 12
    CELLS_FAILED = 13
    NOTHING_MEASURED = 14
    INTERRUPTED = 130


def of_sweep(run: Run) -> Exit:
    """13 where a cell failed, 14 where none was measured. UNSUPPORTED, OUT_OF_MEMORY and TIMED_OUT are results."""
    from .verdicts.estimate import counted  # numpy, which --help does not need

    cells = {cell.id for cell in run.info.cells}  # a control cell of its own is not what was asked for
    outcomes = {launch.outcome for launch in counted(run.launches()) if launch.cell in cells}
    if outcomes & FAILURES:
        return Exit.CELLS_FAILED
    return Exit.PASS if Outcome.OK in outcomes else Exit.NOTHING_MEASURED


def of_suite(found: Conformance) -> Exit:
    """13 where a case failed, 14 where all were refused."""
    if found.failed:
        return Exit.CELLS_FAILED
    return Exit.PASS if found.right or found.right_values else Exit.NOTHING_MEASURED


def of_judgements(
    judgements: Iterable[Judgement], *, is_contaminated: bool = False, require_conclusive: bool = False
) -> Exit:
    """The code of a comparison. Where several hold: slower, failed, not comparable, nothing, inconclusive."""
    verdicts = {each.verdict for each in judgements}
    if Verdict.REGRESSED in verdicts:
        return Exit.REGRESSION
    if verdicts & {Verdict.FAILED, Verdict.MISSING}:
        return Exit.CELLS_FAILED
    if Verdict.NOT_COMPARABLE in verdicts:
        return Exit.NOT_COMPARABLE
    if not verdicts & {Verdict.IMPROVED, Verdict.EQUIVALENT, Verdict.INCONCLUSIVE}:
        return Exit.NOTHING_MEASURED
    if require_conclusive and (is_contaminated or Verdict.INCONCLUSIVE in verdicts):
        return Exit.INCONCLUSIVE
    return Exit.PASS
