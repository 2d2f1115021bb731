"""A gate while it is measured: servers of both arms side by side, launches in pairs, everything stored as soon as it is known."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
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
from ..verdicts.judgement import Verdict
from ..verdicts.paired import SCREEN_PAIRS
from .benches import Bench, BrokenCandidateError, start_all
from .judging import judge
from .meeting import Answer, run_in_turns
from .pairs import Pairs
from .records import CONTROL, ArmLabel, Comparison, Gate, GateLaunch
from .schedule import Next, Scheduled, arms_in_order, next_pair

#: In how many calls one more is made, for a slowdown of so many percent; 1 in 33 is 3.03 %. Of a hundred, three would make each
#: sample of a cheap cell as long as two turns.
WORK_UNITS = {0: 1, 3: 33, 5: 20, 10: 10}


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

    scheduled: Scheduled
    arm: ArmLabel

    @property
    def comparison(self) -> Comparison:
        return self.scheduled.comparison

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
            if step is None or (info.exit_first and self._has_regressed()):
                return Ending("finished")
            minutes = (time.perf_counter() - begin) / 60
            if info.max_minutes is not None and minutes >= info.max_minutes:
                return Ending("time", f"the time limit of {info.max_minutes:g} minutes was reached")
            self._watcher.pairing(step)
            self._pair(step)

    def _has_regressed(self) -> bool:
        info = self._gate.info
        judgements = judge(info.comparisons, info.refused, self._launches).judgements
        return any(each.verdict is Verdict.REGRESSED for each in judgements)

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
        begin = time.perf_counter()
        comparisons = [each.comparison for each in step.scheduled]
        cells = [cell for each in comparisons for cell in (each.base, each.candidate)]
        try:
            with ExitStack() as stack:
                forward_only = all(cell.passes == "forward" for cell in cells)
                servers = start_all(self._benches, stack, forward_only=forward_only)
                self._preparation.journal.split_s["servers"] += time.perf_counter() - begin
                for scheduled in step.scheduled:
                    self._both_arms(scheduled, servers)
        except BrokenCandidateError as error:
            if self._gate.info.is_of_implementations or any(
                each.arm == "candidate" and each.outcome is Outcome.OK for each in self._launches
            ):
                raise NoServerError(str(error)) from error  # its code can be imported: the machine is at fault
            for scheduled in step.scheduled:
                if scheduled.comparison.key != CONTROL:
                    self._store(_crashed(str(error)), _Place(scheduled, "candidate"), ends=True)
        except ServerError as error:
            self._event(Notice(at=now(), text=f"{error}; what is left of this pair of servers is measured anew"))
        self._servers += 1

    def _both_arms(self, scheduled: Scheduled, servers: Mapping[ArmLabel, Executor]) -> None:
        """Both launches in turns, again while one of them is void. Errors: `ServerError`."""
        places = [_Place(scheduled, arm) for arm in arms_in_order(scheduled, self._gate.info.seed)]
        for attempt in range(MOST_REPEATS + 1):
            begin = time.perf_counter()
            measurements = self._measure(places, servers, self._processors(scheduled.pair // 2 + attempt))
            wall_s = time.perf_counter() - begin
            launches = [
                self._store(measurement, place, attempt, wall_s / len(places))
                for place, measurement in zip(places, measurements, strict=True)
            ]
            self._split(launches, wall_s)
            if any(launch.outcome is not Outcome.OK for launch in launches) or not any(each.void for each in launches):
                break

    def _processors(self, number: int) -> tuple[int, ...]:
        """What both launches keep to: where they have one thread, one processor, another one from pair to pair."""
        if self._threads > 1 or self._device.kind != "cpu" or not hasattr(os, "sched_getaffinity"):
            return ()
        allowed = sorted(os.sched_getaffinity(0))
        return (allowed[number % len(allowed)],)

    def _store(
        self, measurement: Measurement, place: _Place, attempt: int = 0, wall_s: float = 0.0, *, ends: bool = False
    ) -> GateLaunch:
        scheduled = place.scheduled
        launch = GateLaunch(
            **dict(measurement), comparison=place.comparison.key, arm=place.arm, stage=scheduled.stage, pair=scheduled.pair,
            attempt=attempt, servers=self._servers, name=place.cell.name, ended_at=now(), wall_s=wall_s, ends=ends,
        )  # fmt: skip
        self._gate.append(launch)
        self._launches.append(launch)
        self._watcher.launched(launch)
        return launch

    def _split(self, launches: Sequence[GateLaunch], wall_s: float) -> None:
        """What is neither preparing nor checking is timing: the arms work in turn."""
        split = self._preparation.journal.split_s
        prepare_s = sum(launch.phases.inputs_s + launch.phases.prepare_s for launch in launches)
        check_s = sum(launch.phases.check_s for launch in launches)
        split["prepare"] += prepare_s
        split["check"] += check_s
        split["timing"] += max(0.0, wall_s - prepare_s - check_s)

    def _measure(
        self, places: Sequence[_Place], servers: Mapping[ArmLabel, Executor], processors: tuple[int, ...]
    ) -> list[Measurement]:
        """Errors: `ServerError`; where two servers in turn fail with this comparison, it crashed."""
        failures = [self._preparation.failure(place.cell.problem) for place in places]
        if any(failures):
            words = f"the oracle has no truth for this problem: {'; '.join(filter(None, failures))}"
            return [Measurement(outcome=Outcome.ERROR, detail=words)] * len(places)
        first, second = places
        work_s = sum(cost_of(place.cell, self._device, self._protocol).seconds_per_launch for place in places)
        deadline_s = self._protocol.timeout_s + 10 * work_s
        answers = run_in_turns(
            (servers[first.arm], servers[second.arm]), (self._task(first), self._task(second)), processors, deadline_s
        )
        for place, answer in zip(places, answers, strict=True):
            self._count_failures(place, answer)
        broken = [answer for answer in answers if isinstance(answer, ServerError)]
        if broken:
            raise broken[0]
        return [
            self._preparation.refuse_impossible(place.cell, measurement_of(answer, deadline_s))
            for place, answer in zip(places, answers, strict=True)
            if not isinstance(answer, ServerError)
        ]

    def _count_failures(self, place: _Place, answer: Answer) -> None:
        """A server that fails twice in turn with one comparison: that arm crashes it."""
        who = (place.comparison.key, place.arm)
        if not isinstance(answer, ServerError):
            del self._failures[who]
            return
        self._failures[who] += 1
        if self._failures[who] > 1:
            words = f"two servers in turn failed while they ran it: {answer}"
            self._store(_crashed(words), place, ends=True)

    def _task(self, place: _Place) -> CellTask:
        bench, protocol, cell = self._benches[place.arm], self._protocol, place.cell
        unit = WORK_UNITS[place.comparison.extra_percent]
        extra = int(place.comparison.extra_percent > 0 and place.arm == "candidate")
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
