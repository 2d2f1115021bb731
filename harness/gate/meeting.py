"""Where two workers of a pair meet: two named pipes, held open until both have come or one of them is gone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..measure.tasks import CellTask, Reply, Turns
from ..run.executor import Executor, ServerError
from ..store import StoreError

Answer = Reply | ServerError


def run_in_turns(
    servers: tuple[Executor, Executor], tasks: tuple[CellTask, CellTask], processors: tuple[int, ...], deadline_s: float
) -> tuple[Answer, Answer]:
    """Let two servers carry out a task each, whose workers take turns; how each of them ended.

    Where one hangs the other waits as long: then each is asked alone. Errors: `StoreError`.
    """
    with _pipes() as (to_first, to_second):
        turns = (
            Turns(inbox=to_first, outbox=to_second, is_first=True, processors=processors),
            Turns(inbox=to_second, outbox=to_first, is_first=False, processors=processors),
        )
        meeting = _Meeting(to_first, to_second)
        together = [task.model_copy(update={"turns": each}) for task, each in zip(tasks, turns, strict=True)]
        answers = meeting.hold(servers, together, deadline_s)
    if all(isinstance(answer, Reply) and answer.timed_out for answer in answers):
        answers = tuple(_answer(server, task, deadline_s) for server, task in zip(servers, tasks, strict=True))
    first, second = answers
    return first, second


def _answer(server: Executor, task: CellTask, deadline_s: float) -> Answer:
    try:
        return server.run(task, deadline_s)
    except ServerError as error:
        return error


class _Meeting:
    """Holds both ends of both pipes, so that opening one waits for nobody and nobody seems gone who has not come yet.

    Errors: `StoreError` where they cannot be opened.
    """

    def __init__(self, *pipes: str) -> None:
        self._held: list[int] = []
        try:
            for pipe in pipes:
                self._held.append(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
        except OSError as error:
            self._leave()
            raise _no_pipes(error) from error

    def hold(self, servers: Sequence[Executor], tasks: Sequence[CellTask], deadline_s: float) -> tuple[Answer, ...]:
        """Until both workers have ended."""
        with ThreadPoolExecutor(len(servers)) as pool:
            futures = [
                pool.submit(self._attend, server, task, deadline_s) for server, task in zip(servers, tasks, strict=True)
            ]
            try:
                return tuple(future.result() for future in futures)
            except BaseException:  # Ctrl-C: nobody waits for what hangs
                for server in servers:
                    server.kill()
                raise

    def _attend(self, server: Executor, task: CellTask, deadline_s: float) -> Answer:
        """Carry out a task; whoever is left learns that its worker is gone."""
        try:
            return _answer(server, task, deadline_s)
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._held:
            with suppress(IndexError):  # the other thread was faster
                os.close(self._held.pop())


@contextmanager
def _pipes() -> Iterator[tuple[str, str]]:
    """Errors: `StoreError`."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-turns-"))
            pipes = str(Path(folder) / "to-first"), str(Path(folder) / "to-second")
            for pipe in pipes:
                os.mkfifo(pipe, 0o600)
        except OSError as error:
            raise _no_pipes(error) from error
        yield pipes


def _no_pipes(error: OSError) -> StoreError:
    return StoreError(f"two workers cannot be given pipes to meet in: {error}")
