"""Commands that measure a sweep, or say what that would do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .. import environment
from ..config import load_config
from ..exit_codes import Exit, of_sweep
from ..plugins import load_plugins
from ..store import Run
from .app import app
from .edge import ConfigArgument, OnlyOption, PluginOption, RunArgument, SetOption, split_names, stated_errors

if TYPE_CHECKING:
    from ..run import runs


@app.command()
def run(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(metavar="ROOT", help="Where the run's folder is made.")] = Path("results/runs"),
    plugin: PluginOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
) -> None:
    """Measure a sweep; leaves records, tables, plots and a page in the run's folder, printed last."""
    with stated_errors():
        from ..run import runs

        failed = load_plugins(plugin or [])
        loaded = load_config(config, overrides=set_ or (), only=split_names(only), tolerate_unknown=bool(failed))
        _carry_out(runs.begin(loaded, out, plugin or [], failed), retry_failed=False)


@app.command()
def resume(
    run: RunArgument,
    plugin: PluginOption = None,
    retry_failed: Annotated[bool, typer.Option(help="Measure a run's cells again that failed.")] = False,
    require_conclusive: Annotated[
        bool, typer.Option("--require-conclusive", help="Exit 11 if a gate is inconclusive.")
    ] = False,
) -> None:
    """Go on with an interrupted run or gate, from its stored config."""
    with stated_errors():
        from ..gate import gates
        from ..gate.records import Gate
        from ..run import runs
        from .gating import carry_out_gate

        failed = load_plugins(plugin or [])
        if gates.is_gate(run):
            carry_out_gate(gates.reopen(Gate.open(run), plugin or []), require_conclusive=require_conclusive)
        _carry_out(runs.reopen(Run.open(run), plugin or [], failed), retry_failed=retry_failed)


@app.command()
def plan(config: ConfigArgument, plugin: PluginOption = None, set_: SetOption = None, only: OnlyOption = None) -> None:
    """Show what `run` would measure: cells, refusals with their reasons, estimated time and memory. Needs no torch."""
    with stated_errors():
        from .. import listing
        from ..plan import make_plan

        failed = load_plugins(plugin or [])
        loaded = load_config(config, overrides=set_ or (), only=split_names(only), tolerate_unknown=bool(failed))
        device = environment.find_device(loaded.config.device)
        listing.print_plan(make_plan(loaded.config, device).explained(failed), loaded.config, device)


@app.command("list")
def list_(
    plugin: PluginOption = None,
    names: Annotated[bool, typer.Option("--names", help="Only the names of those that can run, one a line.")] = False,
) -> None:
    """List the implementations, and whether each can run on this machine or every reason why not."""
    with stated_errors():
        from .. import listing

        failed = load_plugins(plugin or [])
        device = environment.find_device("auto")
        if names:
            print(*listing.available_names(device), sep="\n")
        else:
            listing.print_implementations(device)
        raise typer.Exit(Exit.CELLS_FAILED if failed else Exit.PASS)


def _carry_out(ready: runs.Ready, *, retry_failed: bool) -> NoReturn:
    from .. import listing
    from ..progress import make_progress

    with make_progress() as progress:
        ending = ready.carry_out(progress, retry_failed=retry_failed)
    listing.print_results(ready.run)
    listing.print_split(ending.event)
    from ...reports import page

    written = page.write_page(ready.run)
    for notice in ready.run.notices:
        print(f"notice: {notice}", file=sys.stderr)
    print(f"page: {written}")
    is_whole = ending.event.status == "finished"
    if not is_whole:
        reason = f"no server starts: {ending.stopped}" if ending.stopped else "interrupted"
        print(f"{reason}; go on with: attnbench resume {ready.run.path}", file=sys.stderr)
    print(ready.run.path)
    cut_short = Exit.NO_SERVER if ending.stopped else Exit.INTERRUPTED
    raise typer.Exit(of_sweep(ready.run) if is_whole else cut_short)
