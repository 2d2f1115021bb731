"""Commands that judge: how a run stands to another, or to a baseline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ...impls import choices
from .. import baselines
from ..config import ConfigError
from ..console import console
from ..exit_codes import Exit, of_judgements
from ..plugins import load_plugins
from ..store import Run
from ..verdicts.judgement import Verdict
from .app import app
from .edge import PluginOption, stated_errors

if TYPE_CHECKING:
    from ..comparison import Comparison

FORMATS = ("terminal", "markdown")
RootOption = Annotated[Path, typer.Option("--root", metavar="DIR", help="Where baselines are kept.")]


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="BASE CANDIDATE", help="Folders of two runs; with --baseline, of the candidate."),
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Judge against this baseline, if the environment is the same.")
    ] = None,
    root: RootOption = baselines.ROOT,
    factor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What may be of another version; if not given, a cell's own distribution."),
    ] = None,
    require_conclusive: Annotated[bool, typer.Option("--require-conclusive", help="Exit 11 if inconclusive.")] = False,
    format_: Annotated[str, typer.Option("--format", metavar="terminal|markdown", help="What to print.")] = "terminal",
    replay: Annotated[bool, typer.Option("--replay", help="Judge the launches of one stored gate again.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Judge a run against another or a baseline: effects, intervals, verdicts. Advisory; `gate` measures both sides."""
    with stated_errors():
        if format_ not in FORMATS:
            raise ConfigError(f"unknown format {format_!r}{choices(format_, FORMATS, 'formats')}")
        if replay:
            _replay(runs, format_, require_conclusive=require_conclusive)
        _refuse_other_than(runs, baseline, factor or [])
        load_plugins(plugin or [])
        if baseline is None:
            found, opened = _of_runs(*runs)
        else:
            found, opened = _of_baseline(root, baseline, runs[0], factor or [])
        _print(found, format_)
        for notice in dict.fromkeys(notice for each in opened for notice in each.notices):
            print(f"notice: {notice}", file=sys.stderr)
        raise typer.Exit(_ending(found, require_conclusive=require_conclusive))


def _replay(gates: list[Path], format_: str, *, require_conclusive: bool) -> NoReturn:
    """Judge a gate's launches again, and say whether that gives what is stored, byte for byte."""
    if len(gates) != 1:
        raise ConfigError(f"{len(gates)} folders were given with --replay; write attnbench compare GATE --replay")
    from ...reports import gate as report
    from ..gate.gates import result_of
    from ..gate.records import Gate

    gate = Gate.open(gates[0])
    result = result_of(gate)
    shown = report.document(gate, result)
    if format_ == "markdown":
        print(shown.markdown(), end="")
    else:
        shown.show(console())
    file = gate.path / report.VERDICTS_FILE
    stored = file.read_text(encoding="utf-8") if file.is_file() else None
    if stored is not None:
        same = "the same, byte for byte" if stored == report.verdicts_json(result) else "others than these"
        print(f"the verdicts stored in {file.name} are {same}", file=sys.stderr)
    raise typer.Exit(result.exit_code(require_conclusive=require_conclusive))


def _refuse_other_than(runs: list[Path], baseline: str | None, factors: list[str]) -> None:
    if baseline is None and factors:
        raise ConfigError(
            "--factor says what may differ from a baseline; two runs are judged whatever differs: leave it out"
        )
    if len(runs) != (2 if baseline is None else 1):
        asked = " ".join(map(str, runs))
        raise ConfigError(
            f"{len(runs)} runs were given ({asked}){' with --baseline' if baseline else ''}; "
            "write attnbench compare BASE CANDIDATE, or attnbench compare RUN --baseline NAME"
        )


def _of_runs(base: Path, candidate: Path) -> tuple[Comparison, tuple[Run, ...]]:
    from ..comparison import compare_runs

    opened = Run.open(base), Run.open(candidate)
    return compare_runs(*opened), opened


def _of_baseline(root: Path, name: str, run: Path, factors: list[str]) -> tuple[Comparison, tuple[Run, ...]]:
    from ..comparison import compare_with_baseline

    base, candidate = baselines.find(root, name), Run.open(run)
    return compare_with_baseline(name, base, candidate, factors), (base, candidate)


def _print(found: Comparison, format_: str) -> None:
    from ...reports.comparison import document

    said = document(found)
    if format_ == "markdown":
        print(said.markdown(), end="")
    else:
        said.show(console())


def _ending(found: Comparison, *, require_conclusive: bool) -> Exit:
    """The code, and on standard error what a log should say of it."""
    judgements = found.judged.judgements
    code = of_judgements(judgements, require_conclusive=require_conclusive)
    fields = ", ".join(each.field for each in found.differences)
    if found.is_refused:
        print(f"attnbench: {found.candidate.id} cannot be compared with baseline {found.baseline}: these differ: {fields}; "
              f"measure both sides here: {found.instead}", file=sys.stderr)  # fmt: skip
        return code if code in (Exit.REGRESSION, Exit.CELLS_FAILED) else Exit.NOT_COMPARABLE
    if not found.baseline and found.differences:
        print(f"warning: the environments differ: {fields}", file=sys.stderr)
    inconclusive = sum(each.verdict is Verdict.INCONCLUSIVE for each in judgements)
    if inconclusive:
        print(f"warning: {inconclusive} of {len(judgements)} cells are inconclusive", file=sys.stderr)
    return code
