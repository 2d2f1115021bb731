"""Commands that turn stored runs into something read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ...impls import choices
from ..config import ConfigError, config_schema
from ..exit_codes import Exit
from ..store import Run
from .app import app
from .edge import RunArgument, fail, stated_errors, write_file

_FORMATS = "csv, parquet, markdown, pytest-benchmark or github-action-benchmark."


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write page, tables and figures here.")] = None,
    baseline: Annotated[str | None, typer.Option(metavar="NAME", help="What speed-ups are relative to.")] = None,
) -> None:
    """Write the page of one run anew, or page, tables and figures of runs into a folder."""
    with stated_errors():
        from ...reports import page

        opened = [Run.open(each) for each in run]
        if baseline is not None:
            _refuse_unknown(baseline, sorted({cell.arm for each in opened for cell in each.info.cells}))
        if out is None:
            for each in opened:
                print(page.write_page(each, baseline=baseline))
        else:
            print(page.write_report(opened, out, baseline=baseline))


@app.command()
def export(
    run: RunArgument,
    format_: Annotated[str, typer.Option("--format", metavar="NAME", help=_FORMATS)] = "csv",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to; standard output if not given.")] = None,
) -> None:
    """Write a run's launches (csv, parquet), its tables (markdown), or the times of its cells for another tool.

    A cell that failed, was refused or ran out of time or memory has no time: it is no entry of either tool's file.
    """
    with stated_errors():
        from ...reports.export import FormatError
        from ...reports.export import export as export_run

        try:
            data = export_run(Run.open(run), format_)
        except FormatError as error:
            fail(error, Exit.USAGE)
        content = data.encode() if isinstance(data, str) else data
        if out is None:
            sys.stdout.buffer.write(content)
        else:
            write_file(out, content)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep configs, for editors."""
    print(json.dumps(config_schema(), indent=2))


def _refuse_unknown(baseline: str, arms: list[str]) -> None:
    if baseline not in arms:
        raise ConfigError(f"unknown baseline {baseline!r}{choices(baseline, arms, 'measured')}")
