"""Stored runs as a tidy frame: one row for each launch that counts."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pandas as pd

from ..harness.cell import Cell
from ..harness.records import Launch
from ..harness.store import Run
from ..harness.verdicts.estimate import counted


def load(run: Path | str | Run) -> pd.DataFrame:
    """A run's counted launches, in the order they ended; times in seconds, sizes in bytes. Errors: `StoreError`."""
    opened = run if isinstance(run, Run) else Run.open(Path(run))
    cells = cells_by_id(opened)
    rows = [row(cells[launch.cell], launch) for launch in counted(opened.launches()) if launch.cell in cells]
    frame = pd.DataFrame(rows, columns=_columns())
    frame["is_control"] = frame["cell"].isin(opened.info.control)
    return frame


def cells_by_id(run: Run) -> dict[str, Cell]:
    """The planned cells of a run, by id."""
    return {cell.id: cell for cell in run.info.cells}


def cell_facts(cell: Cell) -> dict[str, Any]:
    """A cell's axes, one column each."""
    facts = {"cell": cell.id, "name": cell.name, "implementation": cell.implementation, "arm": cell.arm}
    return {**facts, "problem": str(cell.problem), **cell.axes, "flops": cell.problem.flops(cell.passes)}


def row(cell: Cell, launch: Launch) -> dict[str, Any]:
    """One launch: the cell's axes and what was measured."""
    time_s = statistics.median(launch.samples.times_s) if launch.samples else None
    memory = launch.memory
    errors = {
        f"{kind}_{name}": getattr(launch.accuracy[name], kind) if name in launch.accuracy else None
        for name in ("out", "dq", "dk", "dv")
        for kind in ("max_error", "max_bound", "rms_error", "rms_bound")
    }
    return (
        cell_facts(cell)
        | {
            "round": launch.round,
            "attempt": launch.attempt,
            "server": launch.server,
            "outcome": str(launch.outcome),
            "detail": launch.detail,
            "skipped": launch.skipped,
            "void": launch.void,
            "time_s": time_s,
            "flops_per_s": cell.problem.flops(cell.passes) / time_s if time_s else None,
            "bytes_per_s": cell.problem.forward_bytes() / time_s if time_s and cell.passes == "forward" else None,
            "overhead_bytes": memory.overhead_bytes if memory else None,
            "saved_bytes": memory.saved_bytes if memory else None,
            "prepare_s": launch.phases.prepare_s,
            "first_call_s": launch.phases.first_call_s,
            "checked_share": launch.checked_share,
            "backend": launch.backend,
            "kernels": "; ".join(launch.kernels),
            "emulated": launch.emulated,
            "started_at": launch.started_at,
        }
        | errors
    )


def _columns() -> list[str]:
    from ..harness.records import Outcome
    from ..impls import AttentionProblem

    problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=1, seq_kv=1, head_dim=1)
    cell = Cell(implementation="", problem=problem, passes="forward")
    empty = Launch(
        outcome=Outcome.OK, cell="", round=0, attempt=0, implementation="", name="", position=0, started_at=""
    )
    return list(row(cell, empty))
