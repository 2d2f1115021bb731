"""The coverage matrix: every arm against every problem, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

CODES = {
    "OK": "ok", "UNSUPPORTED": "un", "INCORRECT": "wrong", "IMPLAUSIBLE": "impl", "OUT_OF_MEMORY": "mem",
    "TIMED_OUT": "time", "CRASHED": "crash", "ERROR": "err", "not measured": "–",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One arm on one problem: a short code, the outcome and why."""

    code: str
    outcome: str
    why: str


@dataclass(frozen=True)
class Coverage:
    """Rows are problems with their pass, columns arms; None where the sweep asked for no such cell."""

    arms: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Field | None, ...]], ...]

    @property
    def legend(self) -> dict[str, str]:
        """The codes that there are, each with its outcome."""
        return {field.code: field.outcome for _, fields in self.rows for field in fields if field}

    @classmethod
    def of(cls, cells: pd.DataFrame) -> Coverage:
        """From one row for each cell."""
        arms = tuple(dict.fromkeys(cells["arm"]))
        rows = []
        for (problem, passes, conditions), group in cells.groupby(["problem", "pass", "conditions"], sort=False):
            fields = {
                row["arm"]: Field(CODES.get(row["outcome"], row["outcome"]), row["outcome"], row["detail"])
                for _, row in group.iterrows()
            }
            title = f"{problem} {passes}" + (f" {conditions}" if conditions else "")
            rows.append((title, tuple(fields.get(arm) for arm in arms)))
        return cls(arms, tuple(rows))
