"""What a run finds out before it measures: the machine's ceilings once, and the truth of every problem."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ...impls import AttentionProblem, Pass
from ..cell import Cell, Conditions, Float32
from ..measure.tasks import CeilingsTask, LimitsDone, LimitsTask, Probe, Task, TruthDone, TruthTask
from ..records import Ceilings, CeilingsMeasured, LimitsMeasured, Measurement, Outcome, TruthComputed
from ..store import StoreError
from ..verdicts.plausibility import beats_physics
from .executor import ServerError
from .journal import Journal, now
from .outcomes import failure_of
from .servers import Servers

#: Seconds that the oracle or the ceilings may take, and the composite limit of one problem and pass.
DEADLINE_S, LIMIT_S = 600.0, 60.0
#: How often a session measures its ceilings again because a cell is above them.
MOST_LOOKS = 2
_PROBE_BYTES = 65536
_Result = TypeVar("_Result", bound=BaseModel)


@dataclass
class Preparation:
    """Keeps truths in files while the session lasts; workers of all rounds read them."""

    servers: Servers
    journal: Journal
    folder: Path
    device: str
    threads: int
    seed: int
    float32: Float32
    ceilings: Ceilings | None = None
    _task: CeilingsTask | None = None
    _looks: int = 0
    _failures: dict[AttentionProblem, str] = field(default_factory=dict)

    def find_ceilings(
        self, dtypes: Collection[str], conditions: Conditions, peaks: dict[str, float], cache_bytes: int | None
    ) -> None:
        """Measure the machine, unless that was done. float32 is always among the dtypes: some CPUs have no fast
        16-bit product to compare with.
        """
        if self.ceilings is not None:
            return
        self._task = CeilingsTask(
            device=self.device, threads=self.threads, seed=self.seed, dtypes=tuple(sorted({"float32", *dtypes})),
            conditions=conditions, last_level_cache_bytes=cache_bytes,
        )  # fmt: skip
        self._measure_ceilings(peaks)

    def refuse_impossible(self, cell: Cell, measurement: Measurement) -> Measurement:
        """The measurement, as IMPLAUSIBLE where it beats physics.

        Ceilings that were measured while the machine was busy are too low: before a cell is blamed they are measured again, and
        the best counts.
        """
        impossible = self._impossible(cell, measurement)
        while impossible and self._looks < MOST_LOOKS and self.ceilings is not None:
            self._looks += 1
            self._measure_ceilings(self.ceilings.peak_flops_per_s)
            impossible = self._impossible(cell, measurement)
        if impossible:
            return measurement.model_copy(update={"outcome": Outcome.IMPLAUSIBLE, "detail": impossible})
        return measurement

    def _impossible(self, cell: Cell, measurement: Measurement) -> str:
        if measurement.outcome is not Outcome.OK or self.ceilings is None:
            return ""
        return beats_physics(cell, measurement, self.ceilings)

    def _measure_ceilings(self, peaks: dict[str, float]) -> None:
        assert self._task is not None
        probe, failure, seconds = self._ask(self._task, Probe)
        if probe is not None:
            found = probe.ceilings.model_copy(update={"peak_flops_per_s": peaks})
            self.ceilings = found if self.ceilings is None else self.ceilings.best_with(found)
        event = CeilingsMeasured(
            at=now(),
            ceilings=self.ceilings,
            torch_facts=probe.torch_facts if probe else {},
            seconds=seconds,
            failure=failure,
        )
        self.journal.event(event, "ceilings", seconds)

    def find_truths(self, problems: Iterable[AttentionProblem], with_backward: Collection[AttentionProblem]) -> None:
        """The truth of every problem that is not known yet."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {self.folder}: {error.strerror}") from error
        for problem in dict.fromkeys(problems):
            if problem not in self._failures:
                self._find_truth(problem, backward=problem in with_backward)

    def find_limits(self, works: Iterable[tuple[AttentionProblem, Pass]], conditions: Conditions, round_: int) -> None:
        """The composite limits of a round, in the state that the machine is in then."""
        task = LimitsTask(
            device=self.device, threads=self.threads, seed=self.seed, conditions=conditions,
            works=tuple(dict.fromkeys(works)),
        )  # fmt: skip
        done, failure, seconds = self._ask(task, LimitsDone, DEADLINE_S + LIMIT_S * len(task.works))
        limits = done.limits if done else ()
        event = LimitsMeasured(at=now(), round=round_, limits=limits, seconds=seconds, failure=failure)
        self.journal.event(event, "limits", seconds)

    def truth_path(self, problem: AttentionProblem) -> Path:
        """Where a problem's truth lies."""
        return self.folder / f"{str(problem).replace('/', '_')}.pt"

    def failure(self, problem: AttentionProblem) -> str:
        """Why a problem has no truth; empty where it has one."""
        return self._failures.get(problem, "")

    def clear(self) -> None:
        """Remove the truths."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find_truth(self, problem: AttentionProblem, *, backward: bool) -> None:
        task = TruthTask(
            device=self.device, threads=self.threads, seed=self.seed,
            problem=problem, backward=backward, float32=self.float32, truth_path=str(self.truth_path(problem)),
        )  # fmt: skip
        done, failure, seconds = self._ask(task, TruthDone)
        if failure:
            self._refuse_full_disk()
        self._failures[problem] = failure
        share = done.checked_share if done else None
        event = TruthComputed(at=now(), problem=str(problem), checked_share=share, seconds=seconds, failure=failure)
        self.journal.event(event, "truth", seconds)

    def _refuse_full_disk(self) -> None:
        """A worker's truth that does not fit fills the disk to the end; then the disk is at fault, not the problem."""
        probe = self.folder / "probe"
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
            probe.unlink()
        except OSError as error:
            raise StoreError(f"cannot write the truths of problems under {self.folder}: {error.strerror}") from error

    def _ask(
        self, task: Task, kind: type[_Result], deadline_s: float = DEADLINE_S
    ) -> tuple[_Result | None, str, float]:
        """The result or the failure, and the seconds it took beyond a server's start."""
        before, begin = self.journal.split_s["servers"], time.perf_counter()
        result, failure = None, ""
        try:
            reply = self.servers.run(task, deadline_s)
            if reply.result is None:
                failure = failure_of(reply, deadline_s)
            else:
                result = kind.model_validate_json(reply.result)
        except ServerError as error:
            failure = str(error)
        started = self.journal.split_s["servers"] - before
        return result, failure, time.perf_counter() - begin - started
