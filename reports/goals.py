"""What a configuration promised beside what was measured: one row for each goal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..harness.cell import Cell
from ..harness.config import Goal, SweepConfig, load_stored, values_of
from ..harness.config.goals import KINDS, OTHER
from ..harness.store import Run
from . import format as fmt
from . import frame
from .tidy import cells_by_id

#: Runs before there were chains have no such column.
CHAIN = "share of chain"
COLUMNS = ("goal", "met", "asked", "measured", "range", "share of limit", CHAIN, "error", "cells", "machine")


def table(run: Run) -> pd.DataFrame:
    """Every goal with what was measured, the shares of the composite limit and the chain, and the error beside the other's."""
    if not run.info.config.get("goals"):
        return pd.DataFrame(columns=list(COLUMNS))
    config = load_stored(run.info.config, tolerate_unknown=True)
    judge = _Judge.of(run, config)
    goals = pd.DataFrame([judge.row(goal) for goal in config.goals], columns=list(COLUMNS), dtype=object)
    return goals if goals[CHAIN].any() else goals.drop(columns=CHAIN)


@dataclass(frozen=True)
class _Value:
    """A number with the range that the launches of its cells leave it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Judge:
    cells: dict[str, Cell]
    rows: dict[str, dict[str, Any]]
    allocator: str
    cpu_flags: frozenset[str]

    @classmethod
    def of(cls, run: Run, config: SweepConfig) -> _Judge:
        strict = run.info.environment.get("strict", {})
        flags = frozenset(str(strict.get("cpu_flags", "")).split())
        return cls(cells_by_id(run), frame.rows_by_id(run), config.protocol.allocator, flags)

    def row(self, goal: Goal) -> dict[str, str]:
        """One goal in words."""
        flag, asked = goal.asked(self.cpu_flags)
        machine = "any" if list(getattr(goal, goal.kind)) == [OTHER] else flag
        said = {"goal": goal.name, "machine": machine, "asked": KINDS[goal.kind].format(asked)}
        wanted = self._of(goal, goal.implementation)
        ranked = [key for key in wanted if self._is_measured(goal, key)]
        missing = len(wanted) - len(ranked)
        count = f"{len(ranked)} of {len(wanted)}" if missing else str(len(ranked))
        if not ranked:
            return dict.fromkeys(COLUMNS, "") | said | {"cells": count, "met": "not measured"}
        found = _MEASURES[goal.kind](self, goal, ranked)
        met = found.value <= asked if goal.kind == "memory_bytes" else found.value >= asked
        return said | {
            "measured": _shown(goal.kind, found.value),
            "range": f"{_shown(goal.kind, found.low).split()[0]} to {_shown(goal.kind, found.high)}",
            "share of limit": self._limit(ranked),
            CHAIN: self._chain(ranked),
            "error": self._errors(goal, ranked),
            "cells": count,
            "met": ("yes" if met else "no") + (", in part" if missing else ""),
        }

    def _of(self, goal: Goal, name: str) -> list[str]:
        own = [] if "allocator" in goal.where.tests else [self.allocator]
        return [
            key
            for key, cell in self.cells.items()
            if cell.implementation == name
            and goal.where.matches(values_of(cell))
            and cell.conditions.allocator in (own or [cell.conditions.allocator])
        ]

    def _is_measured(self, goal: Goal, key: str) -> bool:
        row = self.rows[key]
        if goal.kind == "memory_bytes":
            return row["outcome"] == "OK" and not pd.isna(row["overhead_bytes"])
        if not row["ranked"] or (goal.kind == "limit_share" and pd.isna(row["limit_share"])):
            return False
        return goal.against is None or self._rival(goal, key) is not None

    def _rival(self, goal: Goal, key: str) -> dict[str, Any] | None:
        """The other's row for the same problem, pass and conditions."""
        own = self.cells[key]
        for other in self._of(goal, goal.against or ""):
            cell = self.cells[other]
            if (cell.problem, cell.passes, cell.conditions) == (own.problem, own.passes, own.conditions):
                row = self.rows[other]
                return row if row["ranked"] else None
        return None

    def speedups(self, goal: Goal, keys: Iterable[str]) -> list[_Value]:
        """How many times faster than the other, cell by cell, with the widest range that both allow."""
        values = []
        for key in keys:
            own, other = self.rows[key], self._rival(goal, key)
            assert other is not None
            ratio = other["time_s"] / own["time_s"]
            values.append(_Value(ratio, other["low_s"] / own["high_s"], other["high_s"] / own["low_s"]))
        return values

    def limit_shares(self, keys: Iterable[str]) -> list[_Value]:
        """Composite limit over time, cell by cell."""
        values = []
        for key in keys:
            row = self.rows[key]
            share = row["limit_share"]
            values.append(_Value(share, share * row["time_s"] / row["high_s"], share * row["time_s"] / row["low_s"]))
        return values

    def bandwidths(self, keys: Iterable[str]) -> list[_Value]:
        """GB/s of compulsory forward traffic, cell by cell."""
        values = []
        for key in keys:
            row, size = self.rows[key], self.cells[key].problem.forward_bytes() * 1e-9
            values.append(_Value(size / row["time_s"], size / row["high_s"], size / row["low_s"]))
        return values

    def sizes(self, keys: Iterable[str]) -> list[_Value]:
        """Memory overhead in bytes, cell by cell."""
        return [_Value(size, size, size) for size in (float(self.rows[key]["overhead_bytes"]) for key in keys)]

    def _limit(self, keys: list[str]) -> str:
        known = self._known("limit_share", keys)
        return f"{_mean(known):.2f} (worst {min(known):.2f})" if known else ""

    def _chain(self, keys: list[str]) -> str:
        known = self._known("chain_share", keys)
        return f"{_mean(known):.2f}" if known else ""

    def _known(self, name: str, keys: list[str]) -> list[float]:
        return [self.rows[key][name] for key in keys if not pd.isna(self.rows[key][name])]

    def _errors(self, goal: Goal, keys: list[str]) -> str:
        """The median relative RMS error of out, and the other's."""
        own = [self.rows[key]["relative_error"] for key in keys]
        rivals = [self._rival(goal, key) for key in keys] if goal.against else []
        other = [rival["relative_error"] for rival in rivals if rival is not None]
        words = [_median(own), *([f"theirs {_median(other)}"] if other else [])]
        return ", ".join(word for word in words if word)


def _geometric(values: list[_Value]) -> _Value:
    return _Value(*(_mean([getattr(each, name) for each in values]) for name in ("value", "low", "high")))


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _least(values: list[_Value]) -> _Value:
    return min(values, key=lambda each: each.value)


_MEASURES: dict[str, Callable[[_Judge, Goal, list[str]], _Value]] = {
    "speedup": lambda judge, goal, keys: _geometric(judge.speedups(goal, keys)),
    "worst_speedup": lambda judge, goal, keys: _least(judge.speedups(goal, keys)),
    "limit_share": lambda judge, _, keys: _geometric(judge.limit_shares(keys)),
    "gb_per_s": lambda judge, _, keys: _least(judge.bandwidths(keys)),
    "memory_bytes": lambda judge, _, keys: max(judge.sizes(keys), key=lambda each: each.value),
}


def _shown(kind: str, value: float) -> str:
    if kind == "memory_bytes":
        return f"{value:,.0f} bytes"
    if kind == "gb_per_s":
        return f"{value:.3g} GB/s"
    return f"{value:.3f}" if kind == "limit_share" else fmt.ratio(value)


def _median(errors: list[float]) -> str:
    known = [each for each in errors if each is not None and not pd.isna(each)]
    return f"{statistics.median(known):.1e}" if known else ""
