"""What a person sees while the doctor measures, on standard error: a bar on a terminal, nothing in a log."""

from __future__ import annotations

import sys
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class DoctorProgress:
    """Counts steps of a total that is told first."""

    def __init__(self) -> None:
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("starting", total=None)
        self._begun = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def began(self, steps: int) -> None:
        """Say how much there is to do."""
        self._bar.update(self._task, total=steps)

    def measuring(self, what: str) -> None:
        """One more step begins; those before it are done."""
        self._bar.update(self._task, completed=self._begun, description=escape(what))
        self._begun += 1
