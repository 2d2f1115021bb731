"""Tables: who wins each problem, all results, coverage; as frames, Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from rich.markup import escape
from rich.table import Table

from . import format as fmt

#: Winners shown in a terminal; the page has all.
MOST_ROWS = 40
_TERMINAL = ("problem", "pass", "winner", "time", "interval", "throughput", "against the next")


def winners(cells: pd.DataFrame) -> pd.DataFrame:
    """For each problem and pass: the fastest ranked arm, the next one, and by how much; a tie where intervals overlap."""
    rows = []
    for (problem, passes, conditions), group in cells.groupby(["problem", "pass", "conditions"], sort=False):
        ranked = group[group["ranked"]].sort_values("time_s")
        row = {"problem": problem, "pass": passes, "conditions": conditions, "ranked": f"{len(ranked)} of {len(group)}"}
        if ranked.empty:
            rows.append(row | {"winner": "none", "against the next": "nothing to rank"})
            continue
        best = ranked.iloc[0]
        row |= {"winner": best["arm"], "time": fmt.seconds(best["time_s"]), "interval": _interval(best),
                "throughput": fmt.flops_per_s(best["flops_per_s"]), "against the next": _margin(ranked)}  # fmt: skip
        rows.append(row)
    columns = [
        "problem",
        "pass",
        "conditions",
        "winner",
        "time",
        "interval",
        "throughput",
        "against the next",
        "ranked",
    ]
    table = pd.DataFrame(rows, columns=columns, dtype=object).fillna("")
    return table if table["conditions"].any() else table.drop(columns="conditions")


def results(cells: pd.DataFrame) -> pd.DataFrame:
    """Every cell with what was measured, in words."""
    table = pd.DataFrame(
        {
            "problem": cells["problem"],
            "pass": cells["pass"],
            "conditions": cells["conditions"],
            "implementation": cells["arm"],
            "backend": cells["backend"],
            "outcome": cells["outcome"],
            "time": [fmt.seconds(each) for each in cells["time_s"]],
            "interval": [_interval(each) for _, each in cells.iterrows()],
            "throughput": [fmt.flops_per_s(each) for each in cells["flops_per_s"]],
            "memory overhead": [fmt.size(each) for each in cells["overhead_bytes"]],
            "saved for backward": [fmt.size(each) for each in cells["saved_bytes"]],
            "error, of allowed": [fmt.share(each) for each in _worst_error(cells)],
            "of the composite limit": [fmt.share(each) for each in cells["limit_share"]],
            "of the chain": [fmt.share(each) for each in cells["chain_share"]],
        }
    )
    is_used = {
        "conditions": table["conditions"].any(),
        "of the composite limit": cells["limit_share"].any(),
        "of the chain": cells["chain_share"].any(),
    }
    return table.drop(columns=[column for column, used in is_used.items() if not used])


def reasons(cells: pd.DataFrame) -> pd.DataFrame:
    """Why cells did not run or are not ranked: one row for an arm, an outcome and a reason, with the count of cells."""
    failed = cells[cells["outcome"] != "OK"]
    grouped = failed.groupby(["arm", "outcome", "detail"], sort=False).agg(
        cells=("cell", "size"), example=("name", "first")
    )
    return grouped.reset_index().rename(columns={"arm": "implementation"})


def accuracy(cells: pd.DataFrame) -> pd.DataFrame:
    """For each arm and dtype: the largest share of the allowed error, and the speed beside it as the median throughput."""
    ok = cells[cells["ranked"]]
    if ok.empty:
        return pd.DataFrame(columns=["implementation", "dtype", "out", "dq", "dk", "dv", "cells", "median throughput"])
    rows = []
    for (arm, dtype), group in ok.groupby(["arm", "dtype"], sort=False):
        shares = {name: fmt.share(group[f"error_{name}"].max()) for name in ("out", "dq", "dk", "dv")}
        rows.append({"implementation": arm, "dtype": dtype, **shares, "cells": len(group),
                     "median throughput": fmt.flops_per_s(group["flops_per_s"].median())})  # fmt: skip
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table; pipes, tags and line ends in cells cannot break it."""
    lines = [_line(table.columns), _line("---" for _ in table.columns)]
    lines += [_line(row) for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def winners_table(cells: pd.DataFrame) -> Table:
    """The winners, for a terminal."""
    return for_terminal(winners(cells)[list(_TERMINAL)], "Fastest, of those that passed the check")


def for_terminal(frame: pd.DataFrame, title: str, rest: str = "on the page", most_rows: int = MOST_ROWS) -> Table:
    """A frame for a terminal; `rest` says where all rows are, if they are more than `most_rows`."""
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        table.add_column(str(column), overflow="fold")
    for row in frame.head(most_rows).itertuples(index=False):
        table.add_row(*(escape(str(value)) for value in row))
    if len(frame) > most_rows:
        table.caption = f"and {len(frame) - most_rows} more {rest}"
    return table


def _margin(ranked: pd.DataFrame) -> str:
    """How the winner stands to the next: a tie where their intervals overlap, nothing where either has too few launches."""
    if len(ranked) < 2:
        return "alone"
    best, second = ranked.iloc[0], ranked.iloc[1]
    if best["estimate"].is_thin or second["estimate"].is_thin:
        return f"too few launches to tell from {second['arm']}"
    if best["estimate"].overlaps(second["estimate"]):
        return f"a tie with {second['arm']}"
    return f"{fmt.ratio(second['time_s'] / best['time_s'])} as fast as {second['arm']}"


def _interval(row: pd.Series) -> str:
    if not row["launches"]:
        return fmt.NOTHING
    mark = (", thin" if row["estimate"].is_thin else "") + (f", {row['void']} void" if row["void"] else "")
    return f"{fmt.interval(row['low_s'], row['high_s'])} ({row['interval']} of {row['launches']}{mark})"


def _worst_error(cells: pd.DataFrame) -> pd.Series:
    return cells[[f"error_{name}" for name in ("out", "dq", "dk", "dv")]].astype(float).max(axis=1)


def escaped(value: object) -> str:
    """A value as Markdown that shows it: a pipe ends no cell, `<` begins no tag, `](` no link, and `@` calls nobody."""
    line = " ".join(str(value).splitlines())
    return (
        line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(").replace("@", "&#64;")
    )


def _line(values: Iterable[object]) -> str:
    return "| " + " | ".join(map(escaped, values)) + " |"
