"""The application that commands add themselves to."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Benchmark and compare self-attention implementations: checked for values and gradients before they are timed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing the renderer of rich help would double the time that --help takes
)
