"""A diagnosis as a table: what, found here, cost as measured here, what a person would run."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from .finding import Diagnosis


def table_of(diagnosis: Diagnosis) -> Table:
    """The worst first; lines between, since the words of a row take several."""
    title = f"{diagnosis.machine}: {diagnosis.threads} threads, {diagnosis.device}"
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("what", no_wrap=True)
    for heading, ratio in (("found here", 3), ("cost as measured here", 3), ("what a person would run", 3)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for each in diagnosis.findings:
        table.add_row(*map(escape, (each.what, each.found, each.cost.words, each.advice)))
    return table


def lines_of(diagnosis: Diagnosis) -> list[str]:
    """What stands below the table: what was not measured, and the summary last."""
    reasons = [f"launches of {work} were not measured: {why}" for work, why in diagnosis.unmeasured_launches.items()]
    void = (
        f"{diagnosis.void_launches} of {diagnosis.launch_count} launches were disturbed so much that a run repeats them"
    )
    return [
        "costs are shares of a time and overlap: they do not add up; nothing was changed",
        diagnosis.formula,
        *reasons,
        *([f"{void}: run doctor again on a quiet machine"] if diagnosis.void_launches else []),
        diagnosis.summary,
    ]
