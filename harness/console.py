"""The console that tables are printed on."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

#: Wide enough for a table, where a log has no width of its own.
LOG_WIDTH = 160


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the command line: rich would exit 1, which means a bug here."""
        raise BrokenPipeError


def console() -> Console:
    """As wide as the terminal; in a log, wide enough for a table."""
    found = _Console()
    return found if found.is_terminal else _Console(width=LOG_WIDTH)
