"""One task in a process of its own: the edge where whatever an implementation does becomes an outcome."""

from __future__ import annotations

import importlib
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...impls import AttentionProblem, Implementation, OptionValue, RefusedError, get, load_plugin, names
from ..cell import Conditions
from ..environment import find_device
from ..records import Measurement, Outcome, Phases, Samples
from . import ceilings, composite, counters, memory, noise, process, proof
from .baton import Baton
from .check import check, check_follows
from .conformance import run_case
from .cuda import CudaClock, GraphReplay, NvmlWatch
from .failure import outcome_of
from .inputs import Inputs, draw, problem_seed, turned
from .oracle import Selection, Truth, find_truth
from .origin import origin_of
from .regions import Region, region_of
from .reuse import reuses_answers
from .subject import Subject
from .tasks import (
    CaseDone,
    CasesDone,
    CasesTask,
    CeilingsTask,
    CellTask,
    LimitsDone,
    LimitsTask,
    NoiseTask,
    Probe,
    Task,
    TruthDone,
    TruthTask,
)
from .timing import Budget, Clock, CpuClock, Work, sample
from .turns import keep_to, sample_in_turns

#: How often the inputs are turned that the output must follow before the timing, and after it.
_SECOND, _THIRD = 1, 2
#: Passes whose kernels are timed by a profiler; the median counts.
PROFILED_PASSES = 5


def perform(task: Task) -> str:
    """Do a task; the result as JSON."""
    if isinstance(task, CellTask):
        return measure_cell(task).model_dump_json()
    if isinstance(task, CasesTask):
        return CasesDone(cases=tuple(_check_cases(task))).model_dump_json()
    if isinstance(task, NoiseTask):
        _fix_process(task.conditions, task.threads)
        return noise.measure(task).model_dump_json()
    process.fix_threads(task.threads)
    if isinstance(task, TruthTask):
        process.protect_host(limit_memory=True)
        return _store_truth(task).model_dump_json()
    process.fix_precision(task.conditions)
    if isinstance(task, LimitsTask):
        process.fix_allocator(task.conditions.allocator)
        return LimitsDone(limits=composite.measure(task.works)).model_dump_json()
    return _probe(task).model_dump_json()


def measure_cell(task: CellTask) -> Measurement:
    """Supports, inputs, prepare, check, time, memory. Whatever is raised becomes an outcome with its reason."""
    baton = Baton(task.turns) if task.turns else None
    if baton and not baton.is_first:
        baton.wait()
    _fix_process(task.cell.conditions, task.threads)
    draft = _Draft(task, baton)
    try:
        draft.measure()
    except Exception as error:  # noqa: BLE001 - the worker's edge: whatever an implementation raises is its outcome
        draft.end(*outcome_of(error))
    return draft.measurement()


def _check_cases(task: CasesTask) -> Iterator[CaseDone]:
    begin = time.monotonic()
    _fix_process(Conditions(device="cuda" if task.device.startswith("cuda") else "cpu"), task.threads)
    for number, problem in enumerate(task.problems):
        if number and time.monotonic() - begin > task.begin_within_s:
            break
        yield _check_case(task, problem)


def _check_case(task: CasesTask, problem: AttentionProblem) -> CaseDone:
    """Supports, inputs, prepare, check. Whatever is raised becomes an outcome with its reason."""
    try:
        implementation = _implementation(task.implementation, task.options, task.plugins)
        if task.device.startswith("cuda"):
            torch.cuda.set_device(task.device)
        result = run_case(implementation, problem, find_device(task.device), seed=task.seed)
    except Exception as error:  # noqa: BLE001 - the worker's edge, as for cells
        outcome, detail = outcome_of(error)
        return CaseDone(outcome=outcome, details=(detail,))
    if result.refusals:
        return CaseDone(passes=result.passes, outcome=Outcome.UNSUPPORTED, details=result.refusals)
    outcome = Outcome.INCORRECT if result.faults else Outcome.OK
    return CaseDone(passes=result.passes, outcome=outcome, details=result.faults)


def _fix_process(conditions: Conditions, threads: int) -> None:
    process.fix_allocator(conditions.allocator)
    process.protect_host(limit_memory=conditions.device == "cpu")
    process.fix_threads(threads)
    process.fix_precision(conditions)
    process.quiet_compilers()


def _implementation(
    name: str, options: Mapping[str, OptionValue], plugins: Sequence[str], *, is_bounded: bool = False
) -> Implementation:
    """Plugins are loaded only until one of them brings the implementation: a plugin touches no other cell.

    In a gate's arm a module is one that the arm has installed; elsewhere the current folder may have it too.
    """
    for plugin in plugins:
        if name in names():
            break
        if is_bounded and not plugin.endswith(".py"):
            importlib.import_module(plugin)
        else:
            load_plugin(plugin)
    return get(name, options)


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
            implementation = _implementation(
                cell.implementation, cell.options, self.task.plugins, is_bounded=bounds is not None
            )
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


def _store_truth(task: TruthTask) -> TruthDone:
    seed = problem_seed(task.problem, task.seed)
    selection = Selection.within(task.problem, backward=task.backward, seed=seed)
    truth = find_truth(task.problem, draw(task.problem, seed), selection, backward=task.backward, float32=task.float32)
    truth.save(Path(task.truth_path))
    return TruthDone(checked_share=selection.share(task.problem))


def _probe(task: CeilingsTask) -> Probe:
    if task.device.startswith("cuda"):
        torch.cuda.set_device(task.device)
    facts = {
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": str(torch.backends.mkldnn.is_available()),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "hip": str(torch.version.hip),
        "debug": str(torch.version.debug),
        "git": str(torch.version.git_version),
    }
    return Probe(ceilings=ceilings.measure(task.device, task.dtypes, task.last_level_cache_bytes), torch_facts=facts)


warnings.filterwarnings("ignore", module="torch")
