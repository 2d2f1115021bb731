"""A session: one `run` or `resume`, from what is still to do to the last launch stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..cell import Cell
from ..config import Protocol
from ..measure.tasks import CellTask
from ..plan import Plan, cost_of, order
from ..records import Launch, Measurement, Notice, Outcome, ServerStarted, SessionEnded
from ..store import Run
from .executor import Executor, NoServerError, ServerError
from .history import MOST_REPEATS, History
from .journal import Journal, Observer, now
from .machine import Machine
from .outcomes import measurement_of
from .preparation import Preparation
from .servers import Servers


@dataclass(frozen=True)
class Ending:
    """How a session ended: the event that was stored, and why it could not go on where it could not."""

    event: SessionEnded
    stopped: str = ""


class Session:
    """Carries out a plan: rounds of shuffled cells, a new server each round, everything stored as soon as it is known."""

    def __init__(
        self, run: Run, plan: Plan, protocol: Protocol, machine: Machine,
        start_server: Callable[[], Executor], observer: Observer, *, retry_failed: bool = False,
    ) -> None:  # fmt: skip
        self._run, self._plan, self._protocol, self._machine = run, plan, protocol, machine
        self._cells = list({cell.id: cell for cell in (*plan.cells, *plan.control)}.values())
        self._history = History(run.launches(), retry_failed=retry_failed)
        self._journal = Journal(run, observer)
        started = sum(isinstance(event, ServerStarted) for event in run.events())
        self._servers = Servers(start_server, self._journal, started)
        self._preparation = Preparation(
            self._servers,
            self._journal,
            run.path / "truth",
            str(machine.device),
            machine.threads,
            protocol.seed,
            protocol.float32,
        )

    def carry_out(self) -> Ending:
        """Everything that is still to do. Ctrl-C, or that no server starts, ends it cleanly with what there is.

        Errors: `StoreError`.
        """
        begin = time.perf_counter()
        status: Literal["finished", "interrupted"] = "finished"
        stopped = ""
        try:
            self._all_rounds()
        except KeyboardInterrupt:
            status = "interrupted"
        except NoServerError as error:
            status, stopped = "interrupted", str(error)
            self._journal.event(Notice(at=now(), text=f"the session ended early: {stopped}"))
        finally:
            self._servers.close()
            self._preparation.clear()
        wall_s = time.perf_counter() - begin
        split = {**self._journal.split_s, "rest": wall_s - sum(self._journal.split_s.values())}
        ended = SessionEnded(at=now(), status=status, wall_s=wall_s, split_s=split)
        self._journal.event(ended)
        return Ending(ended, stopped)

    def _all_rounds(self) -> None:
        rounds = {round_: self._todo(round_) for round_ in range(self._protocol.rounds)}
        pending = [cell for todo in rounds.values() for _, cell in todo if self._unmeasured_end(cell) is None]
        seconds = sum(self._estimate(cell) for cell in pending)
        total = len(self._cells) * self._protocol.rounds
        self._journal.observer.began(sum(map(len, rounds.values())), total, seconds)
        for round_, todo in rounds.items():
            self._servers.new_round(round_)
            measured = [cell for _, cell in todo if self._unmeasured_end(cell) is None]
            if measured:
                self._prepare(measured, round_)
            for position, cell in todo:
                self._one(cell, round_, position)

    def _todo(self, round_: int) -> list[tuple[int, Cell]]:
        """(position, cell) of a round that are still to do, in the round's own order."""
        ordered = order(self._cells, self._protocol.seed, round_)
        return [(at, cell) for at, cell in enumerate(ordered) if not self._history.is_done(cell.id, round_)]

    def _prepare(self, cells: Sequence[Cell], round_: int) -> None:
        if "time" in self._protocol.measure:
            dtypes = {cell.problem.dtype for cell in cells}
            machine = self._machine
            self._preparation.find_ceilings(
                dtypes, cells[0].conditions, machine.peak_flops_per_s, machine.last_level_cache_bytes
            )
        with_backward = {cell.problem for cell in self._cells if cell.passes != "forward"}
        self._preparation.find_truths((cell.problem for cell in cells), with_backward)
        if "limit" in self._protocol.measure and self._machine.device.kind == "cpu":
            works = ((cell.problem, cell.passes) for cell in cells)
            self._preparation.find_limits(works, cells[0].conditions, round_)

    def _one(self, cell: Cell, round_: int, position: int) -> None:
        """A (cell, round): measured, repeated while it is void, or recorded as what is known of it already."""
        end = self._unmeasured_end(cell)
        first = self._history.next_attempt(cell.id, round_)
        if end is not None:
            measurement, skipped = end
            self._record(Launch(**dict(measurement), **_place(cell, round_, position, first), skipped=skipped,
                                started_at=now()), cell)  # fmt: skip
            return
        self._journal.observer.launching(cell, round_)
        for attempt in range(first, max(first, MOST_REPEATS) + 1):
            started_at, begin = now(), time.perf_counter()
            measurement = self._measure(cell, round_)
            self._record(Launch(**dict(measurement), **_place(cell, round_, position, attempt), started_at=started_at,
                                server=self._servers.name, wall_s=time.perf_counter() - begin), cell)  # fmt: skip
            if not measurement.void:
                return

    def _record(self, launch: Launch, cell: Cell) -> None:
        self._journal.launch(cell, launch)
        self._history.add(launch)

    def _unmeasured_end(self, cell: Cell) -> tuple[Measurement, bool] | None:
        """How a cell ends without a process, and whether an earlier round is why."""
        earlier = self._history.ended(cell.id)
        if earlier is not None:
            outcome, round_ = earlier
            return Measurement(outcome=outcome, detail=f"skipped: it ended {outcome} in round {round_}"), True
        if cell.id in self._plan.refused:
            return Measurement(outcome=Outcome.UNSUPPORTED, detail="; ".join(self._plan.refused[cell.id])), False
        if cell.id in self._plan.broken:
            return Measurement(outcome=Outcome.ERROR, detail=self._plan.broken[cell.id]), False
        return None

    def _measure(self, cell: Cell, round_: int) -> Measurement:
        failure = self._preparation.failure(cell.problem)
        if failure:
            return Measurement(outcome=Outcome.ERROR, detail=f"the oracle has no truth for this problem: {failure}")
        # The estimate is rough and first calls compile: ten times it, beyond what the protocol allows any cell.
        deadline_s = self._protocol.timeout_s + 10 * self._estimate(cell)
        try:
            reply = self._servers.run(self._task(cell, round_), deadline_s)
        except ServerError as error:
            return Measurement(outcome=Outcome.CRASHED, detail=f"two servers in turn failed while they ran it: {error}")
        return self._preparation.refuse_impossible(cell, measurement_of(reply, deadline_s))

    def _task(self, cell: Cell, round_: int) -> CellTask:
        protocol = self._protocol
        return CellTask(
            device=str(self._machine.device),
            threads=self._machine.threads,
            seed=protocol.seed,
            cell=cell,
            plugins=self._run.info.plugins,
            truth_path=str(self._preparation.truth_path(cell.problem)),
            min_time_s=protocol.min_time_s,
            max_time_s=protocol.max_time_s,
            precision=protocol.precision,
            measure_time="time" in protocol.measure,
            measure_memory="memory" in protocol.measure,
            name_kernels=round_ == 0,
            measure_kernels="kernels" in protocol.measure,
        )

    def _estimate(self, cell: Cell) -> float:
        return cost_of(cell, self._machine.device, self._protocol).seconds_per_launch


def _place(cell: Cell, round_: int, position: int, attempt: int) -> dict[str, str | int]:
    return {
        "cell": cell.id, "name": cell.name, "implementation": cell.implementation,
        "round": round_, "position": position, "attempt": attempt,
    }  # fmt: skip
