"""A cell that is checked in this process, and then called under a clock that is not the harness's own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from ...impls import AttentionProblem, get
from ..cell import Cell, Conditions, Float32
from . import counters, memory, process, proof
from .check import check, check_follows
from .cuda import CudaClock
from .inputs import Inputs, draw, problem_seed, turned
from .oracle import Selection, Truth, find_truth
from .reuse import reuses_answers
from .subject import Subject
from .timing import Clock, CpuClock

#: How often the inputs are turned that the output must follow before the timing, and after it.
_SECOND, _THIRD = 1, 2
#: Truths that are kept: cells of one problem come one after the other.
_TRUTHS = 4


class WrongError(Exception):
    """The check's faults, in a sentence each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))


@dataclass(frozen=True)
class CheckedCell:
    """A cell whose values and gradients were right. `run` is one pass of what `set_up` made, and is what may be timed.

    `set_up` is None but for the pass backward, where it builds the graph outside the clock. On CUDA `run` waits for the device.
    """

    subject: Subject
    seed: int
    float32: Float32
    run: Callable[..., Any]
    set_up: Callable[[], Any] | None
    checked_share: float
    backend: str
    span: counters.CounterSpan = field(default_factory=counters.CounterSpan)

    @property
    def is_emulated(self) -> bool:
        """Whether an interpreter runs a GPU package's kernels, so that a time says nothing."""
        return bool(self.subject.implementation.emulates)

    def void_reason(self) -> str:
        """Why what was timed so far says little of the cell, by a worker's rules; empty where it does."""
        return counters.void_reason(self.span.end())

    def faults_after(self, median_s: float | None, budget_s: float) -> list[str]:
        """What is wrong once it was timed: answers that are kept, or dropped, later than the first check saw.

        Without a median there is no telling whether answers are reused, nor where the process did not have its cores.
        """
        inputs = _inputs(self.subject.problem, self.seed)
        third = turned(inputs, _THIRD)
        reused = ""
        if median_s is not None:
            reused = reuses_answers(self.subject, self._clock(), (inputs, third), median_s, budget_s)
            reused = "" if self.void_reason() else reused
        faults = [f"after the timing, {each}" for each in check_follows(self.subject, third, self.seed, self.float32)]
        return faults or ([reused] if reused else [])

    def overhead_bytes(self) -> int | None:
        """Peak bytes beyond inputs and outputs, by the allocator of CUDA.

        None on a CPU: its meter changes the allocator of the whole process, in which other cells are still to be timed.
        """
        if self.subject.device.type != "cuda":
            return None
        meter = memory.meter_for(self.subject.device)
        return None if meter is None else memory.measure(self.subject, meter).overhead_bytes

    def _clock(self) -> Clock:
        return CudaClock(cold=False) if self.subject.device.type == "cuda" else CpuClock()


@contextmanager
def checked(cell: Cell, device: str, *, threads: int, seed: int) -> Iterator[CheckedCell]:
    """Prepare and check a cell; while the block lasts, the process is as the cell's conditions ask, but for the allocator.

    `device` is torch's word. Errors: `WrongError` where the check finds a fault, `RefusedError`, and whatever the
    implementation raises.
    """
    with _process(cell.conditions, threads), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")
        implementation = get(cell.implementation, cell.options)
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        subject = Subject(implementation, cell.problem, cell.passes, device)
        subject.place(_inputs(cell.problem, seed))
        with implementation.context():
            subject.prepare()
            share, backend = _check(subject, seed, cell.conditions.float32)
            run, set_up = _calls(subject)
            with torch.set_grad_enabled(subject.has_backward):
                yield CheckedCell(subject, seed, cell.conditions.float32, run, set_up, share, backend)


def fix_allocator(conditions: Conditions) -> None:
    """Set the allocator's thresholds for the rest of this process; they cannot be undone."""
    process.fix_allocator(conditions.allocator)


def _check(subject: Subject, seed: int, float32: Float32) -> tuple[float, str]:
    """The checked share and the backend that ran, after both checks of a worker. Errors: `WrongError`."""
    problem = subject.problem
    truth = _truth(problem, seed, backward=subject.has_backward, float32=float32)
    drawn = _inputs(problem, seed)
    inputs = drawn._replace(grad_out=truth.selection.restrict_grad_out(drawn.grad_out, problem))
    operators: set[str] = set()
    with proof.recorded(operators) if subject.implementation.traced else nullcontext():
        first = subject.outputs(inputs.grad_out)
    if subject.device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    faults = check(subject, inputs, truth, first).faults
    if not faults:
        backend = subject.implementation.backend(frozenset(operators)) or ""
        faults = check_follows(subject, turned(drawn, _SECOND), seed, float32)
    if faults:
        raise WrongError(faults)
    return truth.selection.share(problem), backend


def _calls(subject: Subject) -> tuple[Callable[..., Any], Callable[[], Any] | None]:
    """The pass, and what it takes that is built outside the clock, with nothing else between the clock and the call."""
    call, leaves, grad_out, grad = subject.call, subject.leaves, subject.grad_out, torch.autograd.grad
    if subject.passes == "forward":
        return _waiting(call, subject), None
    if subject.passes == "forward_backward":
        return _waiting(lambda: grad(call(), leaves, grad_out), subject), None
    return _waiting(lambda out: grad(out, leaves, grad_out), subject), call


def _waiting(call: Callable[..., Any], subject: Subject) -> Callable[..., Any]:
    """The call, and on CUDA the end of what it launched: a host's clock would see the launches alone."""
    if subject.device.type != "cuda":
        return call

    def run(*given: Any) -> None:
        call(*given)
        torch.cuda.synchronize()

    return run


@contextmanager
def _process(conditions: Conditions, threads: int) -> Iterator[None]:
    """Threads and precision as the conditions ask, and as they were afterwards: other tests share the process."""
    cuda = torch.backends.cuda.matmul
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    reduced = cuda.allow_fp16_reduced_precision_reduction, cuda.allow_bf16_reduced_precision_reduction
    compilers = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS")
    process.fix_threads(threads)
    process.fix_precision(conditions)
    process.quiet_compilers()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        cuda.allow_fp16_reduced_precision_reduction, cuda.allow_bf16_reduced_precision_reduction = reduced
        if compilers is None:
            del os.environ["TORCHINDUCTOR_COMPILE_THREADS"]


def _inputs(problem: AttentionProblem, seed: int) -> Inputs:
    return draw(problem, problem_seed(problem, seed))


@lru_cache(maxsize=_TRUTHS)
def _truth(problem: AttentionProblem, seed: int, *, backward: bool, float32: Float32) -> Truth:
    selection = Selection.within(problem, backward=backward, seed=problem_seed(problem, seed))
    return find_truth(problem, _inputs(problem, seed), selection, backward=backward, float32=float32)
