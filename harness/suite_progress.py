"""What a person sees while the contract suite runs, on standard error: a bar on a terminal, and every case that fails."""

from __future__ import annotations

import sys
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .conformance import Case


class SuiteProgress:
    """In a log the bar is left out: how much there is to do, failures, and the search for the smallest remain."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("starting", total=None)
        self._searches = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def began(self, arm: str, total: int) -> None:
        """Say how much there is to do."""
        self._bar.update(self._task, total=total)
        self._say(f"{arm}: {total} cases, small ones first")

    def tried(self, case: Case) -> None:
        """Advance; a failure is printed."""
        self._bar.update(self._task, advance=1, description=escape(str(case.problem)))
        if case.failed:
            self._say(str(case))

    def shrinking(self, case: Case) -> None:
        """Show how small the failing case has become."""
        if not self._searches:
            self._searches = True
            self._say("looking for a smaller case that fails")
        self._bar.update(self._task, description=escape(f"smaller: {case.problem}"))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
