"""What carries out tasks: the interface that local fork servers fill, and clusters may."""

from __future__ import annotations

from typing import Protocol

from ..measure.tasks import Reply, Task


class ServerError(Exception):
    """A server that does not start, ended, or hangs; the message says what it printed."""


class NoServerError(Exception):
    """No server starts here at all: nothing more can be measured, and no cell is to blame."""


class Executor(Protocol):
    """Carries out tasks one at a time, each in a process of its own that is forked from one fresh interpreter."""

    pid: int
    start_s: float

    def run(self, task: Task, deadline_s: float) -> Reply:
        """How the task's worker ended. Errors: `ServerError`."""
        ...

    def kill(self) -> None:
        """End whatever runs, at once; a task that is under way ends in `ServerError`."""
        ...

    def close(self) -> None:
        """End, with everything that was started."""
        ...
