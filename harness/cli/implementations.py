"""Commands about one implementation: is it right, where was that shown, and how to begin one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..exit_codes import Exit, of_suite
from ..plugin_template import write_plugin
from ..plugins import load_plugins
from .app import app
from .edge import PluginOption, fail, stated_errors


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
    with stated_errors():
        from .. import listing, verification
        from ..conformance import ask, run_suite
        from ..run.executor import NoServerError
        from ..suite_progress import SuiteProgress

        load_plugins(plugin or [])
        asked = ask(name, set_ or [], plugin or [], device, timeout)
        try:
            with SuiteProgress() as progress:
                found = run_suite(asked, progress, whole=all_)
        except NoServerError as error:
            fail(error, Exit.NO_SERVER)
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
    with stated_errors():
        from .. import verification

        print(verification.matrix(verification.read(records), verification.own_names()))


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The implementation's name, such as my_kernel.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the distribution's folder is made.")] = Path(),
) -> None:
    """Write a distribution with one implementation that passes `conformance`, for your kernel to be put in."""
    with stated_errors():
        folder = write_plugin(name, out)
        print(f"pip install -e '{folder}' && attnbench conformance {name}")
        print(folder)
