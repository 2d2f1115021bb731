"""Commands about the machine that measures."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import environment
from ..exit_codes import Exit
from .app import app
from .edge import fail, stated_errors


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The same as data.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    servers: Annotated[
        int, typer.Option(min=2, max=64, metavar="N", help="Fresh servers to compare; fewer are quicker and say less.")
    ] = 8,
) -> None:
    """Show what makes this machine noisy, what each cause costs as measured here, and what to run. Changes nothing."""
    with stated_errors():
        from .. import listing
        from ..doctor import diagnose
        from ..doctor.progress import DoctorProgress
        from ..run.executor import NoServerError
        from ..run.fork_server import ForkServer

        try:
            with DoctorProgress() as progress:
                found = diagnose(environment.find_device(device), servers, ForkServer, progress)
        except NoServerError as error:
            fail(error, Exit.NO_SERVER)
        if as_json:
            print(found.model_dump_json(indent=2))
        else:
            listing.print_diagnosis(found)
