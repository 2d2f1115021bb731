"""The cells of a run as tools for tracking take them: those that have a time, and those that must not be given one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...harness.cell import Cell
from ...harness.records import Launch, Outcome
from ...harness.store import Run
from ...harness.verdicts.estimate import Estimate
from .. import frame

_MEASURED = ("overhead_bytes", "saved_bytes", "checked_share")


@dataclass(frozen=True)
class Timed:
    """A ranked cell: its launches' medians in seconds, in the order of the rounds, and what is known of it beside them."""

    cell: Cell
    medians_s: tuple[float, ...]
    estimate: Estimate
    facts: dict[str, Any]

    @property
    def flops_per_s(self) -> float:
        """Of the median."""
        return self.cell.problem.flops(self.cell.passes) / self.estimate.median


@dataclass(frozen=True)
class Untimed:
    """A cell without a time, and why."""

    cell: Cell
    outcome: str
    detail: str


def timed_cells(run: Run) -> tuple[list[Timed], list[Untimed]]:
    """All planned cells in the configuration's order. A cell that failed in any round has no time. Errors: `StoreError`."""
    timed, untimed = [], []
    rows, launches = frame.rows_by_id(run), frame.by_cell(run)
    for cell in run.info.cells:
        row = rows[cell.id]
        if row["ranked"]:
            timed.append(Timed(cell, _medians(launches[cell.id]), row["estimate"], _facts(row)))
        else:
            untimed.append(Untimed(cell, row["outcome"], row["detail"] or row["unranked_because"]))
    return timed, untimed


def _medians(launches: Iterable[Launch]) -> tuple[float, ...]:
    counted = sorted(
        (each for each in launches if each.outcome is Outcome.OK and each.samples), key=lambda each: each.round
    )
    return tuple(statistics.median(each.samples.times_s) for each in counted if each.samples)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """Outcome, void launches, backend and what was measured; a figure that is not there is left out."""
    facts = {"outcome": row["outcome"], "void_launches": int(row["void"]), "backend": row["backend"]}
    measured = {key: row[key] for key in _MEASURED if row[key] is not None and not math.isnan(row[key])}
    return facts | {key: int(value) if key.endswith("_bytes") else float(value) for key, value in measured.items()}
