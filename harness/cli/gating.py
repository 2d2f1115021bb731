"""The paired gate: is the candidate slower than the base, faster, the same, or can that not be told here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ..config import ConfigError, load_config
from ..exit_codes import Exit
from ..plugins import load_plugins
from .app import app
from .edge import OnlyOption, PluginOption, SetOption, fail, split_names, stated_errors

if TYPE_CHECKING:
    from ..gate import gates
    from ..gate.session import Ending, Watcher

_ARM = "REV|PATH|WHEEL"
PROOF = Path("results/proof")


@app.command()
def gate(
    config: Annotated[
        str,
        typer.Argument(metavar="[CONFIG]", help="A YAML file, or the name of a shipped config; prove with --prove."),
    ] = "",
    base: Annotated[str | None, typer.Option(metavar=_ARM, help="What the candidate is held against.")] = None,
    candidate: Annotated[str | None, typer.Option(metavar=_ARM, help="What may be slower.")] = None,
    base_impl: Annotated[str | None, typer.Option(metavar="NAME", help="An implementation in place of a base.")] = None,
    candidate_impl: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another one, on the same problems.")
    ] = None,
    factor: Annotated[
        str, typer.Option(metavar="NAME", help="The distribution that differs; the arms' own project if not given.")
    ] = "",
    plugin: PluginOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
    max_minutes: Annotated[float | None, typer.Option(min=0.1, help="Stop then; what is open is INCONCLUSIVE.")] = None,
    exit_first: Annotated[
        bool,
        typer.Option(
            "-x", "--exit-first", help="Stop once a cell is shown to be slower; what looks slower is measured first."
        ),
    ] = False,
    require_conclusive: Annotated[bool, typer.Option("--require-conclusive", help="Exit 11 if inconclusive.")] = False,
    prove: Annotated[
        bool, typer.Option("--prove", help="Prove the gate on this machine, with sweeps of one code.")
    ] = False,
    sweeps: Annotated[
        int, typer.Option(min=0, help="With --prove: sweeps to measure; 0 shows those that are kept.")
    ] = 1,
    under_load: Annotated[
        bool, typer.Option("--under-load", help="With --prove: while another process loads one core on and off.")
    ] = False,
    simulate: Annotated[
        int, typer.Option(min=0, help="With --prove: sweeps to simulate as well, 10000 in minutes.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="ROOT", help="Where to: results/runs, or results/proof with --prove.")
    ] = None,
) -> None:
    """Measure two versions in pairs on this machine and judge them: exit 10 only where a cell is slower."""
    with stated_errors():
        from ..gate import gates, proof, proof_records

        if prove:
            if base or candidate or base_impl or candidate_impl:
                raise ConfigError("--prove compares this code with itself; leave out the arms")
            measure = proof.first_found if exit_first else proof.sweep
            load: proof_records.Load = "toggling" if under_load else "quiet"
            _prove(partial(measure, config or "prove", set_ or [], load), sweeps, out or PROOF, simulate)
        if not config:
            raise ConfigError("a CONFIG is needed: a YAML file, or the name of a shipped config such as ci")
        names = _asked(base, candidate, base_impl, candidate_impl, factor, only)
        failed = load_plugins(plugin or [])
        is_of_implementations = base_impl is not None
        chosen = [name.partition("[")[0] for name in names] if is_of_implementations else split_names(only)
        loaded = load_config(config, overrides=set_ or (), only=chosen, tolerate_unknown=bool(failed))
        asked = gates.Asked(*names, is_of_implementations, factor, tuple(plugin or ()), max_minutes, exit_first)
        try:
            ready = gates.begin(loaded, out or Path("results/runs"), asked, failed)
        except gates.NothingToGateError as error:
            fail(error, Exit.NOTHING_MEASURED)
        carry_out_gate(ready, require_conclusive=require_conclusive)


def carry_out_gate(ready: gates.Ready, *, require_conclusive: bool) -> NoReturn:
    """Measure, write what is read, print it, and end with the code that the verdicts earn."""
    from ..console import console
    from ..gate.progress import GateProgress
    from ..gate.sources import ArmError

    try:
        ending = ready.carry_out(GateProgress())
    except ArmError as error:
        if not ready.gate.launches():
            shutil.rmtree(ready.gate.path, ignore_errors=True)  # nothing was measured, and nobody would look for it
        fail(error, Exit.USAGE)
    from ...reports import gate as report

    result = ready.result()
    page = report.write_all(ready.gate)
    report.document(ready.gate, result).show(console())
    for notice in ready.gate.notices:
        print(f"notice: {notice}", file=sys.stderr)
    print(f"page: {page}")
    code = result.exit_code(require_conclusive=require_conclusive)
    if ending.status in ("interrupted", "no server"):
        words = f"{ending.status}{': ' if ending.words else ''}{ending.words}"
        print(f"{words}; go on with: attnbench resume {ready.gate.path}", file=sys.stderr)
        code = Exit.INTERRUPTED if ending.status == "interrupted" else Exit.NO_SERVER
    elif ending.words:
        print(f"{ending.words}; go on with: attnbench resume {ready.gate.path}", file=sys.stderr)
    if code is Exit.PASS and (result.is_contaminated or any(each.is_open for each in result.judgements)):
        print("warning: not everything could be told here; --require-conclusive makes that exit 11", file=sys.stderr)
    print(ready.gate.path)
    raise typer.Exit(code)


def _asked(
    base: str | None, candidate: str | None, base_impl: str | None, candidate_impl: str | None, factor: str, only: str | None
) -> tuple[str, str]:  # fmt: skip
    """The two arms. Errors: `ConfigError` where they are not two of one kind."""
    if base is not None and candidate is not None and base_impl is None and candidate_impl is None:
        return base, candidate
    if base_impl is not None and candidate_impl is not None and base is None and candidate is None:
        if factor or only:
            raise ConfigError("--base-impl and --candidate-impl choose what is measured; leave out --factor and --only")
        return base_impl, candidate_impl
    raise ConfigError(
        "two arms are needed: --base and --candidate (a revision, a folder or a wheel each), or --base-impl and "
        "--candidate-impl (two implementations)"
    )


def _prove(measure: Callable[[Watcher], tuple[Any, Ending]], sweeps: int, out: Path, simulate: int) -> NoReturn:
    """Measure sweeps of one code, keep them, and print what all that are kept prove."""
    from ...reports import proof as report
    from ..console import console
    from ..environment import machine_slug
    from ..gate import proof_records
    from ..gate.progress import GateProgress

    code = Exit.PASS
    for number in range(sweeps):
        print(f"sweep {number + 1} of {sweeps}", file=sys.stderr)
        kept, ending = measure(GateProgress())
        if kept is None:
            code = {"interrupted": Exit.INTERRUPTED, "no server": Exit.NO_SERVER}.get(ending.status, Exit.CELLS_FAILED)
            break
        print(proof_records.append_to(out, machine_slug(), kept), file=sys.stderr)
    report.document(proof_records.read_sweeps(out), proof_records.read_first_found(out), simulate).show(console())
    raise typer.Exit(code)
