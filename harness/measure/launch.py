"""One launch of a cell: prepared, checked, timed, checked again and weighed; what was reached before a failure is kept."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...impls import Implementation, RefusedError
from ..environment import find_device
from ..records import Measurement, Outcome, Phases, Samples
from . import counters, memory, process, proof
from .baton import Baton
from .check import check, check_follows
from .cuda import CudaClock, GraphReplay, NvmlWatch
from .failure import outcome_of
from .inputs import Inputs, draw, problem_seed, turned
from .oracle import Truth
from .origin import find, origin_of
from .regions import Region, region_of
from .reuse import reuses_answers
from .subject import Subject
from .tasks import CellTask
from .timing import Budget, Clock, CpuClock, Work, sample
from .turns import keep_to, sample_in_turns

#: How often the inputs are turned that the output must follow before the timing, and after it.
_SECOND, _THIRD = 1, 2
#: Passes whose kernels are timed by a profiler; the median counts.
PROFILED_PASSES = 5


def measure_cell(task: CellTask) -> Measurement:
    """Supports, inputs, prepare, check, time, memory. Whatever is raised becomes an outcome with its reason."""
    baton = Baton(task.turns) if task.turns else None
    if baton and not baton.is_first:
        baton.wait()
    process.fix(task.cell.conditions, task.threads)
    draft = _Draft(task, baton)
    try:
        draft.measure()
    except Exception as error:  # noqa: BLE001 - the worker's edge: whatever an implementation raises is its outcome
        draft.end(*outcome_of(error))
    return draft.measurement()


@dataclass
class _Draft:
    """A measurement while it is made; what was reached before a failure is kept."""

    task: CellTask
    baton: Baton | None = None
    fields: dict[str, object] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    outcome: Outcome = Outcome.OK
    detail: str = ""
    inputs: Inputs = field(init=False)

    def end(self, outcome: Outcome, detail: str) -> None:
        self.outcome, self.detail = outcome, detail

    def measurement(self) -> Measurement:
        phases = Phases.model_validate(self.phases)
        return Measurement.model_validate(
            {"outcome": self.outcome, "detail": self.detail, "phases": phases, "threads": self.task.threads}
            | self.fields
        )

    def measure(self) -> None:
        subject = self._subject()
        with subject.implementation.context():
            if subject.implementation.emulates:
                self.fields["emulated"] = True
                self._check(subject)
                return
            if not self.task.measure_time:
                self._only_weigh(subject)
                return
            if not self._check(subject):
                return
            if self._time(subject) and self._check_again(subject) and self.task.measure_memory:
                self._weigh(subject, memory.meter_for(subject.device))

    def _subject(self) -> Subject:
        cell = self.task.cell
        with self._phase("prepare_s"):
            bounds = self.task.bounds
            implementation = find(cell.implementation, cell.options, self.task.plugins, is_bounded=bounds is not None)
            if bounds is not None:
                self.fields["origin"] = origin_of(implementation, bounds)
                self._refuse(implementation)
        with self._phase("inputs_s"):
            if self.task.device.startswith("cuda"):
                torch.cuda.set_device(self.task.device)
            subject = Subject(implementation, cell.problem, cell.passes, self.task.device)
            self.inputs = draw(cell.problem, problem_seed(cell.problem, self.task.seed))
            subject.place(self.inputs)
        return subject

    def _refuse(self, implementation: Implementation) -> None:
        """An arm of a gate may refuse what the plan, made by the caller's code, does not. Errors: `RefusedError`."""
        cell = self.task.cell
        reasons = implementation.supports(cell.problem, cell.passes, find_device(self.task.device)).reasons
        if reasons:
            raise RefusedError("; ".join(map(str, reasons)))

    def _check(self, subject: Subject) -> bool:
        problem = self.task.cell.problem
        with self._phase("prepare_s"):
            subject.prepare()
        with self._phase("check_s"):
            truth = Truth.load(Path(self.task.truth_path))
            restricted = truth.selection.restrict_grad_out(self.inputs.grad_out, problem)
            inputs = self.inputs._replace(grad_out=restricted)
            operators: set[str] = set()
            with self._phase("first_call_s"):
                # What is checked is what is named: the operators of this very call.
                with proof.recorded(operators) if subject.implementation.traced else nullcontext():
                    first = subject.outputs(inputs.grad_out)
                if subject.device.type == "cuda":
                    # Its own stream alone: what works on another must have made it wait.
                    torch.cuda.current_stream().synchronize()
            verdict = check(subject, inputs, truth, first)
            del first, inputs, restricted
            self.fields |= {"accuracy": verdict.accuracy, "checked_share": truth.selection.share(problem)}
            faults = verdict.faults
            if not faults:
                self.fields["backend"] = subject.implementation.backend(frozenset(operators)) or ""
                if self.task.measure_time:
                    faults = self._follows(subject, turned(self.inputs, _SECOND))
        return self._is_right(faults)

    def _check_again(self, subject: Subject) -> bool:
        """After the timing: answers that were right before it and are kept or dropped later are found here."""
        with self._phase("check_s"):
            samples = self.fields["samples"]
            assert isinstance(samples, Samples)
            third = turned(self.inputs, _THIRD)
            median_s, budget_s = statistics.median(samples.times_s), self.task.max_time_s
            # A void launch is measured again: what it says of times is not held against anyone.
            reused = ""
            if not self.fields["void"]:
                reused = reuses_answers(subject, self._clock(subject), (self.inputs, third), median_s, budget_s)
            faults = self._follows(subject, third)
        if not self._is_right([f"after the timing, {fault}" for fault in faults]):
            del self.fields["samples"]  # nobody knows what was timed
            return False
        if reused:
            self.end(Outcome.IMPLAUSIBLE, reused)
        return not reused

    def _follows(self, subject: Subject, changed: Inputs) -> list[str]:
        return check_follows(subject, changed, self.task.seed, self.task.cell.conditions.float32)

    def _is_right(self, faults: list[str]) -> bool:
        if faults:
            self.end(Outcome.INCORRECT, "; ".join(faults))
        return not faults

    @staticmethod
    def _is_on_cuda(subject: Subject) -> bool:
        return subject.device.type == "cuda"

    def _clock(self, subject: Subject) -> Clock:
        return CudaClock(cold=self.task.cell.conditions.cache == "cold") if self._is_on_cuda(subject) else CpuClock()

    def _time(self, subject: Subject) -> bool:
        """Samples, and the kernels that a pass launches; False where it launches none, so that nobody knows what was timed."""
        clock, region = self._clock(subject), region_of(subject)
        with self._phase("prepare_s"):
            if self.task.cell.conditions.cuda_graph:
                region = GraphReplay(region)
            watch = NvmlWatch.open(subject.device.index or 0) if self._is_on_cuda(subject) else None
        with self._phase("timing_s"):
            if watch:
                watch.read("before")
            if self.baton and self.baton.is_first:
                self.baton.hand_over()
                self.baton.wait()
            span = counters.CounterSpan()
            samples = self._samples(region, clock)
            counted = span.end()
            allowed = counters.QUEUE_SHARE
            if samples.turns:
                allowed = counters.QUEUE_SHARE_IN_TURNS
                own_s = samples.warmup_s + samples.repeats * sum(samples.times_s)
                counted = counted.model_copy(update={"span_s": own_s})
            self.fields["samples"] = samples
            if watch:
                watch.read("after")
                counted = counted.model_copy(update={"gpu": watch.readings})
        self.fields |= {"counters": counted}
        self.fields["void"] = counters.void_reason(counted, allowed) or (watch.void_reason() if watch else "")
        with self._phase("check_s"):
            return not isinstance(clock, CudaClock) or self._names_kernels(clock, region)

    def _samples(self, region: Region, clock: Clock) -> Samples:
        """In turns with the other arm, until it is gone."""
        task = self.task
        budget = Budget(task.min_time_s, task.max_time_s, task.precision)
        work = Work(task.work_unit, task.extra_calls)
        if self.baton is None or self.baton.is_alone:
            return sample(region, clock, budget, work)
        assert task.turns
        keep_to(task.turns.processors)
        self.fields["processors"] = task.turns.processors
        return sample_in_turns(region, clock, budget, work, self.baton)

    def _names_kernels(self, clock: CudaClock, region: Region) -> bool:
        """What a pass launches, by name and, where that is asked, in seconds."""
        passes = PROFILED_PASSES if self.task.measure_kernels else int(self.task.name_kernels)
        try:
            profiles = [clock.profile(region) for _ in range(passes)]
        except proof.BlindProfilerError:
            if self.task.measure_kernels:
                raise
            return True
        if not profiles:
            return True
        self.fields["kernels"] = profiles[0].kernels
        if self.task.measure_kernels:
            self.fields["kernel_time_s"] = statistics.median(each.seconds for each in profiles)
        if profiles[0].is_empty:
            del self.fields["samples"]
            self.end(
                Outcome.ERROR, "the timed pass launches no kernel and moves no bytes: what was timed is no attention"
            )
        return not profiles[0].is_empty

    def _only_weigh(self, subject: Subject) -> None:
        """Two calls, which may take minutes each: one to check, which warms up too, and one to weigh."""
        meter = memory.meter_for(subject.device)
        if self._check(subject) and self.task.measure_memory:
            self._weigh(subject, meter, is_warm=True)

    def _weigh(self, subject: Subject, meter: memory.MemoryMeter | None, *, is_warm: bool = False) -> None:
        if meter is not None:
            with self._phase("memory_s"):
                self.fields["memory"] = memory.measure(subject, meter, is_warm=is_warm)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - begin


warnings.filterwarnings("ignore", module="torch")
