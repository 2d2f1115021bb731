"""A gate while it is measured: servers of both arms side by side, launches in pairs, everything stored as soon as it is known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Protocol

from ...impls import Device
from ..cell import Cell
from ..config import Protocol as MeasurementProtocol
from ..measure.tasks import CellTask
from ..plan import cost_of
from ..plan.cost import SERVER_S
from ..records import Event, Measurement, Notice, Outcome, SessionEnded
from ..run.executor import Executor, NoServerError, ServerError
from ..run.history import MOST_REPEATS
from ..run.journal import now
from ..run.outcomes import measurement_of
from ..run.preparation import Preparation
from ..verdicts.paired import SCREEN_PAIRS
from .benches import Bench, BrokenCandidateError, start_all
from .pairs import Pairs
from .records import CONTROL, ArmLabel, Comparison, Gate, GateLaunch
from .schedule import Next, arms_in_order, next_pair

#: Of a hundred calls, the smallest number in which so many percent are a whole one.
WORK_UNITS = {0: 1, 3: 100, 5: 20, 10: 10}


class Watcher(Protocol):
    """Is told what happens, as it happens."""

    def began(self, cells: int, screen_s: float) -> None:
        """So many comparisons are to be made, and the screen of all of them takes about so long."""
        ...

    def pairing(self, step: Next) -> None:
        """A pair of servers is about to start."""
        ...

    def launched(self, launch: GateLaunch) -> None:
        """A launch was stored."""
        ...

    def noted(self, event: Event) -> None:
        """An event was stored."""
        ...


@dataclass(frozen=True)
class Ending:
    """How the measuring ended: `finished`, or why it did not go on."""

    status: Literal["finished", "interrupted", "time", "no server"]
    words: str = ""


@dataclass(frozen=True)
class _Place:
    """Where a launch belongs."""

    comparison: Comparison
    arm: ArmLabel
    step: Next
    turn: int = 0

    @property
    def cell(self) -> Cell:
        return self.comparison.candidate if self.arm == "candidate" else self.comparison.base


class GateSession:
    """Measures what is still to do, pair by pair, until the rule wants no more."""

    def __init__(
        self, gate: Gate, benches: Mapping[ArmLabel, Bench], protocol: MeasurementProtocol, device: Device, threads: int,
        preparation: Preparation, watcher: Watcher,
    ) -> None:  # fmt: skip
        self._gate, self._benches, self._protocol = gate, benches, protocol
        self._device, self._threads = device, threads
        self._preparation, self._watcher = preparation, watcher
        self._launches = gate.launches()
        self._servers = 1 + max((launch.servers for launch in self._launches), default=-1)
        self._failures: Counter[tuple[str, ArmLabel]] = Counter()

    def carry_out(self) -> Ending:
        """Until the rule wants no more, the time is up, or no server starts. Ctrl-C ends it cleanly with what there is.

        Errors: `StoreError`.
        """
        begin = time.perf_counter()
        try:
            ending = self._all_pairs(begin)
        except KeyboardInterrupt:
            ending = Ending("interrupted")
        except NoServerError as error:
            ending = Ending("no server", str(error))
        finally:
            self._preparation.servers.close()
            self._preparation.clear()
        split = self._preparation.journal.split_s
        wall_s = time.perf_counter() - begin
        status: Literal["finished", "interrupted"] = "finished" if ending.status == "finished" else "interrupted"
        self._event(
            SessionEnded(
                at=now(), status=status, wall_s=wall_s, split_s={**split, "rest": wall_s - sum(split.values())}
            )
        )
        return ending

    def _all_pairs(self, begin: float) -> Ending:
        info = self._gate.info
        self._watcher.began(len(info.comparisons), self._estimate())
        self._prepare()
        while True:
            pairs = Pairs.of(self._launches)
            step = next_pair(info, pairs)
            if step is None:
                return Ending("finished")
            minutes = (time.perf_counter() - begin) / 60
            if info.max_minutes is not None and minutes >= info.max_minutes:
                return Ending("time", f"the time limit of {info.max_minutes:g} minutes was reached")
            self._watcher.pairing(step)
            self._pair(step)

    def _estimate(self) -> float:
        """Seconds of the screen, roughly; both cores start servers, three at once."""
        info = self._gate.info
        cells = [cell for each in (*info.comparisons, info.control) for cell in (each.base, each.candidate)]
        launches = sum(cost_of(cell, self._device, self._protocol).seconds_per_launch for cell in cells)
        return SCREEN_PAIRS * (1.5 * SERVER_S + launches)

    def _prepare(self) -> None:
        """The truths and the machine's ceilings, from servers of the caller."""
        info = self._gate.info
        cells = [cell for each in (*info.comparisons, info.control) for cell in (each.base, each.candidate)]
        dtypes = {cell.problem.dtype for cell in cells}
        self._preparation.find_ceilings(dtypes, cells[0].conditions, {}, None)
        backward = {cell.problem for cell in cells if cell.passes != "forward"}
        self._preparation.find_truths((cell.problem for cell in cells), backward)
        self._preparation.servers.close()

    def _pair(self, step: Next) -> None:
        """Where a server fails, what is left of its pair is measured anew; where the candidate's does not start, it failed."""
        with ExitStack() as stack:
            try:
                begin = time.perf_counter()
                servers = start_all(self._benches, stack)
                self._preparation.journal.split_s["servers"] += time.perf_counter() - begin
                self._all_turns(step, servers)
            except BrokenCandidateError as error:
                if self._gate.info.is_of_implementations or any(
                    each.arm == "candidate" and each.outcome is Outcome.OK for each in self._launches
                ):
                    raise NoServerError(str(error)) from error  # its code can be imported: the machine is at fault
                for comparison in step.comparisons:
                    if comparison.key != CONTROL:
                        self._store(_crashed(str(error)), _Place(comparison, "candidate", step), ends=True)
            except ServerError as error:
                words = f"{error}; the rest of pair {step.pair} of the {step.stage} stage is measured anew"
                self._event(Notice(at=now(), text=words))
        self._servers += 1

    def _all_turns(self, step: Next, servers: Mapping[ArmLabel, Executor]) -> None:
        """Errors: `ServerError`."""
        failed: set[str] = set()
        for comparison, turn in step.all_turns():
            if comparison.key not in failed and not self._turn(comparison, step, turn, servers):
                failed.add(comparison.key)

    def _turn(self, comparison: Comparison, step: Next, turn: int, servers: Mapping[ArmLabel, Executor]) -> bool:
        """Whether both arms were measured. Errors: `ServerError`."""
        is_whole = True
        for arm in arms_in_order(comparison, step.stage, step.pair, self._gate.info.seed, turn):
            place = _Place(comparison, arm, step, turn)
            for attempt in range(MOST_REPEATS + 1):
                begin = time.perf_counter()
                measurement = self._measure(place, servers[arm])
                launch = self._store(measurement, place, attempt, time.perf_counter() - begin)
                if not launch.void:
                    break
            is_whole &= launch.outcome is Outcome.OK
        return is_whole

    def _store(
        self, measurement: Measurement, place: _Place, attempt: int = 0, wall_s: float = 0.0, *, ends: bool = False
    ) -> GateLaunch:
        step, comparison = place.step, place.comparison
        launch = GateLaunch(
            **dict(measurement), comparison=comparison.key, arm=place.arm, stage=step.stage, pair=step.pair, turn=place.turn,
            turns=step.turns[comparison.key], attempt=attempt, servers=self._servers, name=place.cell.name, ended_at=now(),
            wall_s=wall_s, ends=ends,
        )  # fmt: skip
        self._gate.append(launch)
        self._launches.append(launch)
        split, phases = self._preparation.journal.split_s, launch.phases
        split["prepare"] += phases.inputs_s + phases.prepare_s
        split["check"] += phases.check_s
        split["timing"] += phases.timing_s
        self._watcher.launched(launch)
        return launch

    def _measure(self, place: _Place, server: Executor) -> Measurement:
        """Errors: `ServerError`; where two servers in turn fail with this comparison, it crashed."""
        cell, who = place.cell, (place.comparison.key, place.arm)
        failure = self._preparation.failure(cell.problem)
        if failure:
            return Measurement(outcome=Outcome.ERROR, detail=f"the oracle has no truth for this problem: {failure}")
        deadline_s = self._protocol.timeout_s + 10 * cost_of(cell, self._device, self._protocol).seconds_per_launch
        try:
            reply = server.run(self._task(place), deadline_s)
        except ServerError as error:
            self._failures[who] += 1
            if self._failures[who] > 1:
                words = f"two servers in turn failed while they ran it: {error}"
                self._store(_crashed(words), place, ends=True)
            raise
        del self._failures[who]
        return self._preparation.refuse_impossible(cell, measurement_of(reply, deadline_s))

    def _task(self, place: _Place) -> CellTask:
        bench, protocol, cell = self._benches[place.arm], self._protocol, place.cell
        unit = WORK_UNITS[place.comparison.extra_percent]
        extra = unit * place.comparison.extra_percent // 100 if place.arm == "candidate" else 0
        is_own = place.comparison.key == CONTROL  # the harness's own yardstick, whatever is under test
        return CellTask(
            device=str(self._device), threads=self._threads, seed=protocol.seed, cell=cell, plugins=bench.plugins,
            truth_path=str(self._preparation.truth_path(cell.problem)), min_time_s=protocol.min_time_s,
            max_time_s=protocol.max_time_s, precision=protocol.precision, measure_memory=False,
            bounds=None if is_own else bench.bounds, work_unit=unit, extra_calls=extra,
        )  # fmt: skip

    def _event(self, event: Event) -> None:
        self._gate.append(event)
        self._watcher.noted(event)


def _crashed(words: str) -> Measurement:
    return Measurement(outcome=Outcome.CRASHED, detail=words)
