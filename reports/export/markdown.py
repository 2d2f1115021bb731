"""Markdown: winners and results, for a README or a pull request."""

from __future__ import annotations

from ...harness.store import Run
from .. import frame, tables


def write(run: Run) -> str:
    """Two tables under their headings."""
    cells = frame.cells(run)
    winners, results = tables.markdown(tables.winners(cells)), tables.markdown(tables.results(cells))
    return f"## Fastest for each problem\n\n{winners}\n## Results\n\n{results}"
