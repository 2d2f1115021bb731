"""The journal of a session: what happens is stored, counted towards the wall time's split, and told to an observer."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..cell import Cell
from ..records import Event, Launch

#: Where the wall time of a session goes; the rest is scheduling, storing and the processes' own start and end.
SPLIT = ("servers", "truth", "ceilings", "limits", "prepare", "check", "timing", "memory")


class Log(Protocol):
    """Where records are appended, durably: the folder of a run or a gate."""

    def append(self, record: Any) -> None:
        """Errors: `StoreError`."""
        ...


class Observer(Protocol):
    """Is told what happens, as it happens."""

    def began(self, pending: int, total: int, estimated_s: float) -> None:
        """Launches still to do, of how many, and how long that may take."""
        ...

    def launching(self, cell: Cell, round_: int) -> None:
        """A launch begins."""
        ...

    def launched(self, cell: Cell, launch: Launch) -> None:
        """A launch was stored."""
        ...

    def noted(self, event: Event) -> None:
        """An event was stored."""
        ...


@dataclass
class Journal:
    """Stores first, then tells. Errors: `StoreError`."""

    log: Log
    observer: Observer
    split_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPLIT, 0.0))

    def launch(self, cell: Cell, launch: Launch) -> None:
        """A launch ended."""
        self.log.append(launch)
        phases = launch.phases
        self.split_s["prepare"] += phases.inputs_s + phases.prepare_s
        self.split_s["check"] += phases.check_s
        self.split_s["timing"] += phases.timing_s
        self.split_s["memory"] += phases.memory_s
        self.observer.launched(cell, launch)

    def event(self, event: Event, part: str = "", seconds: float = 0.0) -> None:
        """Something else happened, and took `seconds` of a part of the split."""
        if part:
            self.split_s[part] += seconds
        self.log.append(event)
        self.observer.noted(event)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
