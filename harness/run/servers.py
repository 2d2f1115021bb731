"""The servers of a session: a new one for each round, and in place of one that ended."""

from __future__ import annotations

from collections.abc import Callable

from ..measure.tasks import Reply, Task
from ..records import Notice, ServerStarted
from .executor import Executor, NoServerError, ServerError
from .journal import Journal, now


class Servers:
    """Numbers servers through a run's sessions, so that a name means one interpreter."""

    def __init__(self, start: Callable[[], Executor], journal: Journal, started_before: int) -> None:
        self._start = start
        self._journal = journal
        self._count = started_before
        self._round: int | None = None
        self._current: Executor | None = None
        self.name = ""

    def new_round(self, round_: int) -> None:
        """End the server there is; the round's own starts with its first task."""
        self.close()
        self._round = round_

    def run(self, task: Task, deadline_s: float) -> Reply:
        """Carry out a task, on a second server where the first fails.

        Errors: `ServerError` where that fails too, and the next task gets a new one; `NoServerError` where it does not start.
        """
        try:
            return self._try(task, deadline_s)
        except (ServerError, NoServerError) as error:
            self._journal.event(Notice(at=now(), text=f"{error}; its task goes to a new server"))
            return self._try(task, deadline_s)

    def _try(self, task: Task, deadline_s: float) -> Reply:
        server = self._current or self._begin()
        try:
            return server.run(task, deadline_s)
        except ServerError:
            self.close()
            raise

    def close(self) -> None:
        """End the server there is."""
        if self._current is not None:
            self._current.close()
        self._current = None

    def _begin(self) -> Executor:
        try:
            server = self._current = self._start()
        except ServerError as error:
            raise NoServerError(str(error)) from error
        self.name = f"s{self._count}"
        self._count += 1
        started = ServerStarted(at=now(), server=self.name, round=self._round, pid=server.pid, seconds=server.start_s)
        self._journal.event(started, "servers", server.start_s)
        return server
