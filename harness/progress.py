"""What a person sees while a session runs: a live line on a terminal, plain lines elsewhere. Both on standard error."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..impls import AttentionProblem, Pass
from .cell import Cell, Conditions
from .records import CeilingsMeasured, Event, Launch, LimitsMeasured, Notice, Outcome, ServerStarted, TruthComputed

#: What comes before the launches, and may fail.
_PREPARING = TruthComputed | CeilingsMeasured | LimitsMeasured


class Standing:
    """The fastest implementation so far of each problem, pass and conditions, and the time that is left."""

    def __init__(self) -> None:
        self._fastest: dict[tuple[AttentionProblem, Pass, Conditions], tuple[float, str]] = {}
        self._begin = time.monotonic()
        self.done = 0
        self.pending = 0

    def begin(self, pending: int) -> None:
        """So many launches are to be done."""
        self.pending, self.done, self._begin = pending, 0, time.monotonic()

    def add(self, cell: Cell, launch: Launch) -> None:
        """A launch ended; a void one is repeated and does not count."""
        self.done = min(self.pending, self.done + (not launch.void))
        if launch.samples is None or launch.outcome is not Outcome.OK:
            return
        key = (cell.problem, cell.passes, cell.conditions)
        entry = (statistics.median(launch.samples.times_s), cell.arm)
        self._fastest[key] = min(entry, self._fastest.get(key, entry))

    def fastest(self, cell: Cell) -> str:
        """Who leads on this cell's problem."""
        entry = self._fastest.get((cell.problem, cell.passes, cell.conditions))
        return f"fastest {entry[1]} {entry[0] * 1e3:.3g} ms" if entry else ""

    def left(self) -> str:
        """How long the rest will take at the pace so far."""
        if not self.done:
            return ""
        seconds = (time.monotonic() - self._begin) / self.done * (self.pending - self.done)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


class PlainProgress:
    """One line a launch, for logs."""

    def __init__(self) -> None:
        self._standing = Standing()
        self._round = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def began(self, pending: int, total: int, estimated_s: float) -> None:
        """Say how much there is to do."""
        self._standing.begin(pending)
        self._say(f"{pending} of {total} launches to do, about {estimated_s:.0f} s")

    def launching(self, cell: Cell, round_: int) -> None:
        """A new round is worth a line."""
        if round_ != self._round:
            self._round = round_
            self._say(f"round {round_}")

    def launched(self, cell: Cell, launch: Launch) -> None:
        """One line, unless the cell was only skipped."""
        self._standing.add(cell, launch)
        if not launch.skipped:
            standing = self._standing
            rest = f"  {standing.fastest(cell)}  {standing.left()}".rstrip()
            self._say(f"[{standing.done}/{standing.pending}] {cell.name}  {_ending(launch)}{rest}")

    def noted(self, event: Event) -> None:
        """Events that a reader of the log should see."""
        words = _event_words(event)
        if words:
            self._say(words)

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is the output


class LiveProgress:
    """A bar, the cell, its outcome, the fastest so far and the time left; failures stay on the screen."""

    def __init__(self) -> None:
        self._standing = Standing()
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def began(self, pending: int, total: int, estimated_s: float) -> None:
        """Set the bar's length."""
        self._standing.begin(pending)
        self._bar.update(self._task, total=pending, description=f"about {estimated_s:.0f} s")

    def launching(self, cell: Cell, round_: int) -> None:
        """Show what is being measured."""
        words = f"round {round_}  {cell.name}  {self._standing.fastest(cell)}  {self._standing.left()}"
        self._bar.update(self._task, description=escape(words))

    def launched(self, cell: Cell, launch: Launch) -> None:
        """Advance; an outcome that is neither OK nor skipped is printed above the bar."""
        self._standing.add(cell, launch)
        self._bar.update(self._task, completed=self._standing.done)
        if launch.outcome is not Outcome.OK and not launch.skipped:
            self._bar.console.print(escape(f"{cell.name}  {_ending(launch)}"), highlight=False, soft_wrap=True)

    def noted(self, event: Event) -> None:
        """What happens before the launches, and notices."""
        words = _event_words(event)
        if not words:
            return
        if isinstance(event, Notice) or (isinstance(event, _PREPARING) and event.failure):
            self._bar.console.print(escape(words), highlight=False)
        else:
            self._bar.update(self._task, description=escape(words))


def make_progress() -> LiveProgress | PlainProgress:
    """Live on a terminal, plain elsewhere."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


def _ending(launch: Launch) -> str:
    void = "  void, repeated: " + launch.void if launch.void else ""
    if launch.samples is not None and launch.outcome is Outcome.OK:
        return f"{launch.outcome} {statistics.median(launch.samples.times_s) * 1e3:.3g} ms{void}"
    return f"{launch.outcome}{': ' if launch.detail else ''}{launch.detail}"


def _event_words(event: Event) -> str:
    match event:
        case ServerStarted():
            return f"server {event.server} started in {event.seconds:.1f} s"
        case TruthComputed():
            return f"truth of {event.problem}: {event.failure or f'{event.seconds:.2f} s'}"
        case CeilingsMeasured():
            return f"ceilings: {event.failure or f'{event.seconds:.1f} s'}"
        case LimitsMeasured():
            return f"composite limits: {event.failure or f'{event.seconds:.0f} s'}"
        case Notice():
            return event.text
        case _:
            return ""
