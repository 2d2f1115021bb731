"""Published figures beside what was measured here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from ..harness.config import load_stored, values_of
from ..harness.config.goals import OTHER, Bound
from ..harness.store import Run
from . import format as fmt
from . import frame
from .tidy import cells_by_id

_COLUMNS = (
    "implementation", "problem", "pass", "overhead, published", "overhead, here", "time, published", "time, here",
    "against naive, here",
)  # fmt: skip


def table(run: Run) -> pd.DataFrame:
    """One row for each published figure whose cell was planned; what was not measured says how it ended."""
    if not run.info.config.get("published"):
        return pd.DataFrame(columns=list(_COLUMNS))
    config = load_stored(run.info.config, tolerate_unknown=True)
    assert config.published is not None
    cells, rows = cells_by_id(run), frame.rows_by_id(run)
    found = []
    for figure in config.published.figures:
        for key, cell in cells.items():
            if cell.implementation == figure.implementation and figure.where.matches(values_of(cell)):
                row = rows[key]
                found.append(
                    {
                        "implementation": row["arm"], "problem": row["problem"], "pass": row["pass"],
                        "overhead, published": fmt.size(_value(figure.memory_bytes)),
                        "overhead, here": fmt.size(row["overhead_bytes"]) if _is(row["overhead_bytes"]) else row["outcome"],
                        "time, published": fmt.seconds(_value(figure.time_s)),
                        "time, here": fmt.seconds(row["time_s"]) if _is(row["time_s"]) else fmt.NOTHING,
                        "against naive, here": _against_naive(rows.values(), row),
                    }
                )  # fmt: skip
    return pd.DataFrame(found, columns=list(_COLUMNS), dtype=object)


def _against_naive(rows: Iterable[dict[str, Any]], row: dict[str, Any]) -> str:
    keys = ("problem", "pass", "conditions")
    same = [each for each in rows if each["arm"] == "naive" and all(each[key] == row[key] for key in keys)]
    if not same or not same[0]["ranked"] or not row["ranked"] or row["arm"] == "naive":
        return fmt.NOTHING
    return f"{fmt.ratio(same[0]['time_s'] / row['time_s'])} as fast"


def _value(bound: Bound | None) -> float | None:
    return None if bound is None else bound[OTHER]


def _is(value: Any) -> bool:
    return value is not None and not pd.isna(value)
