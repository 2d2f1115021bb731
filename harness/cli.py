"""The command line: parse, call, print, exit code. A table of contents of what the suite does."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ..impls import BrokenImplementationError, OptionError, UnknownImplementationError, choices
from . import environment
from .config import ConfigError, ConfigFileError, config_schema, load_config
from .exit_codes import Exit, of_suite, of_sweep
from .plugin_template import PluginNameError, write_plugin
from .plugins import load_plugins
from .store import Run, StoreError

if TYPE_CHECKING:
    from .run import runs

app = typer.Typer(
    help="Benchmark and compare self-attention implementations: checked for values and gradients before they are timed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing the renderer of rich help would double the time that --help takes
)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
PluginOption = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="MODULE", help="Import implementations: a module or a .py file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the config: protocol.launches=5.")
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="NAME,...", help="Measure only these implementations.")
]


@app.command()
def run(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(metavar="ROOT", help="Where the run's folder is made.")] = Path("results/runs"),
    plugin: PluginOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
) -> None:
    """Measure a sweep; leaves records, tables, plots and a page in the run's folder, printed last."""
    with _stated_errors():
        from .run import runs

        failed = load_plugins(plugin or [])
        loaded = load_config(config, overrides=set_ or (), only=_names(only), tolerate_unknown=bool(failed))
        _carry_out(runs.begin(loaded, out, plugin or [], failed), retry_failed=False)


@app.command()
def resume(
    run: RunArgument,
    plugin: PluginOption = None,
    retry_failed: Annotated[bool, typer.Option(help="Measure cells again that failed.")] = False,
) -> None:
    """Go on with an interrupted run, from its stored config."""
    with _stated_errors():
        from .run import runs

        failed = load_plugins(plugin or [])
        _carry_out(runs.reopen(Run.open(run), plugin or [], failed), retry_failed=retry_failed)


@app.command()
def plan(config: ConfigArgument, plugin: PluginOption = None, set_: SetOption = None, only: OnlyOption = None) -> None:
    """Show what `run` would measure: cells, refusals with their reasons, estimated time and memory. Needs no torch."""
    with _stated_errors():
        from . import listing
        from .plan import make_plan

        failed = load_plugins(plugin or [])
        loaded = load_config(config, overrides=set_ or (), only=_names(only), tolerate_unknown=bool(failed))
        device = environment.find_device(loaded.config.device)
        listing.print_plan(make_plan(loaded.config, device).explained(failed), loaded.config, device)


@app.command("list")
def list_(
    plugin: PluginOption = None,
    names: Annotated[bool, typer.Option("--names", help="Only the names of those that can run, one a line.")] = False,
) -> None:
    """List the implementations, and whether each can run on this machine or every reason why not."""
    with _stated_errors():
        from . import listing

        failed = load_plugins(plugin or [])
        device = environment.find_device("auto")
        if names:
            print(*listing.available_names(device), sep="\n")
        else:
            listing.print_implementations(device)
        raise typer.Exit(Exit.CELLS_FAILED if failed else Exit.PASS)


@app.command()
def conformance(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An implementation; `attnbench list` shows them.")],
    plugin: PluginOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the implementation.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="What one case may take.")] = 120,
    all_: Annotated[bool, typer.Option("--all", help="Every case, even if each is compiled.")] = False,
    record: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep what was shown, for `verified`.")] = None,
) -> None:
    """Check one implementation against the contract suite: what is right, refused or failed, and the smallest that fails."""
    with _stated_errors():
        from . import listing, verification
        from .conformance import ask, run_suite
        from .run.executor import NoServerError
        from .suite_progress import SuiteProgress

        load_plugins(plugin or [])
        asked = ask(name, set_ or [], plugin or [], device, timeout)
        try:
            with SuiteProgress() as progress:
                found = run_suite(asked, progress, whole=all_)
        except NoServerError as error:
            _fail(error, Exit.NO_SERVER)
        listing.print_conformance(found)
        ending = of_suite(found)
        if record is not None and ending is Exit.NOTHING_MEASURED:
            print("nothing is recorded: every case was refused", file=sys.stderr)
        elif record is not None:
            print(verification.write(verification.record_of(found), record))
        raise typer.Exit(ending)


@app.command()
def verified(
    records: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where `conformance --record` wrote.")] = Path(
        "results/verification"
    ),
) -> None:
    """Print where each implementation has been verified, as a Markdown table."""
    with _stated_errors():
        from . import verification

        print(verification.matrix(verification.read(records), verification.own_names()))


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The implementation's name, such as my_kernel.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the distribution's folder is made.")] = Path(),
) -> None:
    """Write a distribution with one implementation that passes `conformance`, for your kernel to be put in."""
    with _stated_errors():
        folder = write_plugin(name, out)
        print(f"pip install -e '{folder}' && attnbench conformance {name}")
        print(folder)


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write page, tables and figures here.")] = None,
    baseline: Annotated[str | None, typer.Option(metavar="NAME", help="What speed-ups are relative to.")] = None,
) -> None:
    """Write the page of one run anew, or page, tables and figures of runs into a folder."""
    with _stated_errors():
        from ..reports import page

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
    format_: Annotated[str, typer.Option("--format", metavar="csv|parquet|markdown", help="What to write.")] = "csv",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to; standard output if not given.")] = None,
) -> None:
    """Write a run's launches (csv, parquet) or its tables (markdown)."""
    with _stated_errors():
        from ..reports.export import FormatError
        from ..reports.export import export as export_run

        try:
            data = export_run(Run.open(run), format_)
        except FormatError as error:
            _fail(error, Exit.USAGE)
        content = data.encode() if isinstance(data, str) else data
        if out is None:
            sys.stdout.buffer.write(content)
        else:
            _write(out, content)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep configs, for editors."""
    print(json.dumps(config_schema(), indent=2))


def main() -> None:
    """The console script's entry."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.PASS)


def _carry_out(ready: runs.Ready, *, retry_failed: bool) -> NoReturn:
    from . import listing
    from .progress import make_progress

    with make_progress() as progress:
        ending = ready.carry_out(progress, retry_failed=retry_failed)
    listing.print_results(ready.run)
    listing.print_split(ending.event)
    from ..reports import page

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


@contextmanager
def _stated_errors() -> Iterator[None]:
    """Errors of the user or the disk: what was asked, what is allowed, what to do; never a traceback."""
    try:
        yield
    except (ConfigFileError, StoreError) as error:
        _fail(error, Exit.FILES)
    except (ConfigError, environment.DeviceError, UnknownImplementationError, OptionError, PluginNameError) as error:
        _fail(error, Exit.USAGE)
    except BrokenImplementationError as error:
        _fail(error, Exit.CELLS_FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(Exit.INTERRUPTED) from None


def _refuse_unknown(baseline: str, arms: list[str]) -> None:
    if baseline not in arms:
        raise ConfigError(f"unknown baseline {baseline!r}{choices(baseline, arms, 'measured')}")


def _fail(error: Exception, code: Exit) -> NoReturn:
    print(f"attnbench: {error}", file=sys.stderr)
    raise typer.Exit(code) from error


def _names(only: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in only.split(",") if name.strip()) if only else ()


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
