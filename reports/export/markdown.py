"""Markdown: winners, goals, published figures, the clock's check and results, for a README or a pull request."""

from __future__ import annotations

from ...harness.store import Run
from .. import clock_check, frame, goals, published, tables


def write(run: Run) -> str:
    """The tables that have rows, under their headings."""
    cells = frame.cells(run)
    every = {
        "Fastest for each problem": tables.winners(cells),
        "Goals": goals.table(run),
        "Beside what is published": published.table(run),
        "The event clock beside a profiler": clock_check.table(run),
        "Results": tables.results(cells),
    }
    return "\n".join(f"## {title}\n\n{tables.markdown(table)}" for title, table in every.items() if len(table))
