"""The page of a run: one self-contained HTML file; and a folder of page, tables and figures."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from ..harness.environment import machine_name
from ..harness.records import CeilingsMeasured, Event, Notice, SessionEnded, TruthComputed
from ..harness.store import Run, StoreError
from . import clock_check, frame, goals, published, tables
from . import format as fmt
from .contract import timed_region
from .coverage import Coverage
from .tidy import load

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(run: Run, out: Path | None = None, baseline: str | None = None) -> Path:
    """Write `report.html`, in the run's folder unless `out` names a file. Errors: `StoreError`."""
    path = out or run.path / "report.html"
    write_text(path, render(run, baseline))
    return path


def write_report(runs: Sequence[Run], out: Path, baseline: str | None = None) -> Path:
    """Write a folder: for each run its page, tables as Markdown and CSV, and figures; and an index. Errors: `StoreError`."""
    pages = []
    for run in runs:
        folder = out / run.info.id
        _make(folder / "figures")
        cells = frame.cells(run)
        write_page(run, folder / "report.html", baseline)
        for name, table in _tables(run, cells).items():
            write_text(folder / f"{name}.md", tables.markdown(table))
            write_text(folder / f"{name}.csv", table.to_csv(index=False))
        write_text(folder / "launches.csv", load(run).to_csv(index=False))
        for plot in _plots(cells, run, baseline):
            write_text(folder / "figures" / f"{plot.name}.svg", plot.svg)
        pages.append({"href": f"{run.info.id}/report.html", "words": _title(run)})
    write_text(out / "index.html", rendered("index.html.jinja", {"pages": pages}))
    return out / "index.html"


def _tables(run: Run, cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables that have rows, by name."""
    every = {
        "winners": tables.winners(cells), "goals": goals.table(run), "published": published.table(run),
        "clock_check": clock_check.table(run), "results": tables.results(cells),
    }  # fmt: skip
    return {name: table for name, table in every.items() if len(table)}


def render(run: Run, baseline: str | None = None) -> str:
    """The page as text. It makes no request: styles and figures are inside it."""
    cells = frame.cells(run)
    return rendered("report.html.jinja", _content(run, cells, baseline))


def _content(run: Run, cells: pd.DataFrame, baseline: str | None) -> dict[str, Any]:
    info, events = run.info, run.events()
    ends = [event for event in events if isinstance(event, SessionEnded)]
    protocol = info.config.get("protocol") or {}
    drift = frame.control_drift(run)
    return {
        "title": _title(run),
        "info": info,
        "machine": machine_name(info.environment),
        "status": ends[-1].status if ends else "not ended: killed, or still going on",
        "outcomes": Counter(cells["outcome"]).most_common(),
        "failed": sorted({*cells["outcome"]} - {"OK", "UNSUPPORTED"}),
        "winners": tables.winners(cells),
        "figures": [(plot, Markup(plot.svg)) for plot in _plots(cells, run, baseline)],  # noqa: S704 - matplotlib escaped it
        "coverage": Coverage.of(cells),
        "reasons": tables.reasons(cells),
        "accuracy": tables.accuracy(cells),
        "results": _results(cells),
        "goals": goals.table(run),
        "published": published.table(run),
        "clock_check": clock_check.table(run),
        "published_source": (info.config.get("published") or {}).get("source", ""),
        "drift": None if drift is None else fmt.share(drift),
        "ceilings": _ceilings(run),
        "shares": _shares(events),
        "void": int(sum(bool(launch.void) for launch in run.launches())),
        "notices": [*_notices(events), *run.notices],
        "contract": timed_region(full_protocol(protocol), info.device),
        "protocol": {key: words_of(value) for key, value in full_protocol(protocol).items()},
        "environment": {key: words_of(value) for key, value in _facts(run).items()},
        "split": [(name, f"{seconds:.1f} s", fmt.share(seconds / ends[-1].wall_s)) for name, seconds in
                  ends[-1].split_s.items()] if ends and ends[-1].wall_s else [],
    }  # fmt: skip


def _results(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """All results by problem, with the kernels that ran where a device names them: too long for a table in Markdown."""
    table = tables.results(cells)
    table = table.assign(kernels=cells["kernels"]) if cells["kernels"].any() else table
    keys = [name for name in ("problem", "pass", "conditions") if name in table]
    groups = table.groupby(keys, sort=False)
    return [(", ".join(str(value) for value in values if value), group.drop(columns=keys)) for values, group in groups]


def _notices(events: Sequence[Event]) -> list[str]:
    """What was noted, and what could not be prepared."""
    notes = [event.text for event in events if isinstance(event, Notice)]
    for event in events:
        if isinstance(event, CeilingsMeasured) and event.failure:
            notes.append(
                f"the machine's ceilings could not be measured, nothing was judged implausible: {event.failure}"
            )
        if isinstance(event, TruthComputed) and event.failure:
            notes.append(f"the oracle has no truth for {event.problem}: {event.failure}")
    return notes


def _shares(events: Sequence[Event]) -> list[str]:
    """The problems that were checked in part, each with its share once; a resumed run computes its truths again."""
    shares = [(event.problem, event.checked_share) for event in events if isinstance(event, TruthComputed)]
    partial = (f"{problem} {100 * share:.1f} %" for problem, share in shares if share is not None and share < 1)
    return list(dict.fromkeys(partial))


def _title(run: Run) -> str:
    return f"{run.info.name}: attention on {machine_name(run.info.environment)}, {run.info.created_at[:10]}"


def full_protocol(given: dict[str, Any]) -> dict[str, Any]:
    """The protocol with its defaults, as it was carried out."""
    from ..harness.config import Protocol

    return Protocol.model_validate(given).model_dump(mode="json")


def _ceilings(run: Run) -> list[tuple[str, str]]:
    found = frame.ceilings(run)
    if found is None:
        return []
    rows = [(f"matrix product, {dtype}", fmt.flops_per_s(rate)) for dtype, rate in found.gemm_flops_per_s.items()]
    rows += [(f"theoretical peak, {dtype}", fmt.flops_per_s(rate)) for dtype, rate in found.peak_flops_per_s.items()]
    rows.append(("memory, read", f"{fmt.size(found.memory_bytes_per_s)}/s"))
    if found.exp_per_s:
        rows.append(("exponentials, float32", f"{found.exp_per_s / 1e9:.2f} G/s"))
    return [*rows, ("empty call", fmt.seconds(found.empty_call_s))]


def _facts(run: Run) -> dict[str, Any]:
    info = run.info
    environment = {key: value for key, value in info.environment.get("strict", {}).items() if key != "cpu_flags"}
    torch_facts: dict[str, Any] = {}
    for event in run.events():
        if isinstance(event, CeilingsMeasured):
            torch_facts = {f"torch {key}": value for key, value in event.torch_facts.items()}
    versions = {f"version of {name}": version for name, version in info.versions.items()}
    return {**environment, "threads": info.environment.get("threads"), **versions, **torch_facts}


def words_of(value: Any) -> str:
    """A stored fact or setting for people; nested ones as JSON. What the platform does not show is said by its reason."""
    if isinstance(value, dict) and value.keys() == {"unreadable"}:
        return str(value["unreadable"])
    if isinstance(value, list):
        return ", ".join(map(words_of, value)) or fmt.NOTHING
    if value in ({}, None, "None"):
        return fmt.NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plots(cells: pd.DataFrame, run: Run, baseline: str | None) -> list[Any]:
    from . import plots

    return plots.all_plots(cells, frame.ceilings(run), baseline)


def rendered(template: str, content: dict[str, Any]) -> str:
    """A template filled; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(content)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write so that a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
