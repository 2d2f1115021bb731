"""Stored baselines as tables: all of them, and what one asks of a run and holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from rich.console import Console

from ..harness.baselines import size_bytes
from ..harness.environment import machine_name
from ..harness.fingerprint import fingerprint, torch_facts
from ..harness.records import Notice
from ..harness.store import Run
from . import format as fmt
from . import frame
from .tables import for_terminal


def row(baseline: Run) -> dict[str, Any]:
    """A baseline in a list of them. Errors: `StoreError`."""
    info = baseline.info
    return {
        "baseline": baseline.path.name,
        "sweep": info.name,
        "measured": info.created_at,
        "cells": len(info.cells),
        "most launches": int(frame.cells(baseline)["launches"].max()) if info.cells else 0,
        "size": fmt.size(size_bytes(baseline)),
        "machine": machine_name(info.environment),
    }


def listing(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row for each baseline."""
    return pd.DataFrame(rows)


def fields(baseline: Run) -> pd.DataFrame:
    """The strict fields that a run must equal, but for the versions of what is under test."""
    strict = fingerprint(baseline.info.environment, baseline.info.versions, torch_facts(baseline.events()))
    return pd.DataFrame(list(_flat("", strict)), columns=["field", "value"])


def cells(baseline: Run) -> pd.DataFrame:
    """Every cell with its estimate."""
    found = frame.cells(baseline)
    times = [fmt.seconds(each) for each in found["time_s"]]
    return pd.DataFrame(
        {"cell": found["name"], "outcome": found["outcome"], "time": times, "launches": found["launches"]}
    )


def notices(baseline: Run) -> list[str]:
    """What the baseline says of itself."""
    return [event.text for event in baseline.events() if isinstance(event, Notice)]


def show(tables: Mapping[str, pd.DataFrame], console: Console) -> None:
    """Print tables with every row, each under its title."""
    for title, table in tables.items():
        console.print(for_terminal(table, title, most_rows=len(table)))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value.keys() == {"unreadable"}:
        yield prefix, f"unreadable ({value['unreadable']})"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
