"""Commands about stored baselines: keep a run as one, list, show and remove them."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from .. import baselines
from ..console import console
from ..exit_codes import Exit
from ..store import Run, StoreError
from .app import app
from .edge import RunArgument, stated_errors
from .judging import RootOption

group = typer.Typer(
    help="Keep runs as baselines that later runs are compared with.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(group, name="baseline")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The baseline's name.")]


@group.command()
def save(
    run: RunArgument,
    name: NameArgument,
    root: RootOption = baselines.ROOT,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the baseline of this name.")] = False,
) -> None:
    """Keep a run as a baseline: its description, and the median of every launch; small enough to commit."""
    with stated_errors():
        source = Run.open(run)
        made = baselines.save(source, root, name, replace=replace)
        for notice in source.notices:
            print(f"notice: {notice}", file=sys.stderr)
        for weakness in baselines.weaknesses(made):
            print(f"warning: {weakness}", file=sys.stderr)
        print(f"{len(made.info.cells)} cells, {baselines.size_bytes(made) / 1e3:.0f} kB")
        print(made.path)


@group.command("list")
def list_(root: RootOption = baselines.ROOT) -> None:
    """List the baselines: when and where they were measured, and how much."""
    with stated_errors():
        from ...reports import baseline

        found: list[dict[str, Any]] = []
        damaged: list[StoreError] = []
        for name in baselines.names(root):
            try:
                found.append(baseline.row(baselines.find(root, name)))
            except StoreError as error:
                damaged.append(error)
        if found:
            baseline.show({"Baselines": baseline.listing(found)}, console())
        elif not damaged:
            print(f"no baselines in {root}; keep a run as one with: attnbench baseline save RUN NAME")
        for each in damaged:
            print(f"attnbench: {each}", file=sys.stderr)
        raise typer.Exit(Exit.FILES if damaged else Exit.PASS)


@group.command()
def show(name: NameArgument, root: RootOption = baselines.ROOT) -> None:
    """Show a baseline: its strict fields, which a run must equal, and its cells."""
    with stated_errors():
        from ...reports import baseline

        found = baselines.find(root, name)
        baseline.show({"What a run must equal": baseline.fields(found), "Cells": baseline.cells(found)}, console())
        for notice in (*baseline.notices(found), *found.notices):
            print(f"notice: {notice}", file=sys.stderr)
        for weakness in baselines.weaknesses(found):
            print(f"warning: {weakness}", file=sys.stderr)


@group.command()
def remove(name: NameArgument, root: RootOption = baselines.ROOT) -> None:
    """Remove a baseline."""
    with stated_errors():
        baselines.remove(root, name)
        print(f"removed {root / name}")
