"""The contract suite for one implementation, and the smallest case that fails.

Cases share a process, which a GPU takes seconds to begin, as long as all are right or refused; where one is not, or ends its
process, each of them is tried again in a process of its own, and that is what counts.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from ..impls import (
    AttentionProblem,
    BrokenImplementationError,
    Device,
    Implementation,
    OptionError,
    OptionValue,
    UnknownImplementationError,
    get,
)
from . import contract, environment
from .config import ConfigError
from .config.document import read_value
from .measure.tasks import CaseDone, CasesDone, CasesTask, Reply
from .records import Outcome
from .run.executor import Executor, NoServerError, ServerError
from .run.fork_server import ForkServer
from .run.outcomes import last_words, measurement_of

#: Cases for an implementation that compiles each shape, and the tries to find a smaller one that fails.
FEW_CASES = 12
MOST_TRIES = 60
#: The suite stops after so many cases that hang, and the search for a smaller one after so many more.
MOST_HANGS = 3
#: Cases that share a process, unless each is compiled; the share of a case's time after which no further one is begun there.
GROUP, BEGIN_WITHIN = 24, 0.25
SEED = 0


@dataclass(frozen=True)
class Asked:
    """What the suite is for: an implementation with its options, where it runs, and how long one case may take."""

    implementation: Implementation
    options: dict[str, OptionValue]
    plugins: tuple[str, ...]
    device: Device
    deadline_s: float

    @property
    def arm(self) -> str:
        """The implementation with its options, as cells name it."""
        return arm_of(self.implementation.name, self.options)

    def task(self, problems: Sequence[AttentionProblem]) -> CasesTask:
        """Cases, as a worker takes them."""
        return CasesTask(
            implementation=self.implementation.name, options=self.options, plugins=self.plugins,
            problems=tuple(problems), begin_within_s=BEGIN_WITHIN * self.deadline_s, device=str(self.device),
            threads=environment.usable_threads(), seed=SEED,
        )  # fmt: skip

    def suite(self, *, whole: bool) -> tuple[AttentionProblem, ...]:
        """The cases, small ones first; a selection for what compiles each shape, unless the whole suite is wanted."""
        if self.implementation.compiled and not whole:
            problems = contract.few_cases(FEW_CASES)
        else:
            fast = self.device.kind == "cuda" or "avx512_fp16" in environment.cpu_flags()
            problems = contract.cases(fast_float16=fast)
        return tuple(sorted(problems, key=lambda problem: (contract.work(problem), str(problem))))


@dataclass(frozen=True)
class Case:
    """A problem, and how the implementation ended on it."""

    problem: AttentionProblem
    done: CaseDone

    @property
    def failed(self) -> bool:
        """Whether it is neither right nor refused."""
        return self.done.outcome not in (Outcome.OK, Outcome.UNSUPPORTED)

    @property
    def fault(self) -> tuple[Outcome, str]:
        """The kind of its fault: a smaller case must share it. An error is known by its type."""
        details = self.done.details
        return self.done.outcome, details[0].split(":")[0] if details and self.done.outcome is Outcome.ERROR else ""

    def __str__(self) -> str:
        words = "; ".join(self.done.details)
        return f"{self.problem}  {self.done.passes}  {self.done.outcome}{': ' if words else ''}{words}"


@dataclass(frozen=True)
class Conformance:
    """What the suite found."""

    asked: Asked
    cases: tuple[Case, ...]
    not_run: int
    smallest: Case | None

    @cached_property
    def right(self) -> tuple[Case, ...]:
        """Cases with right values, and right gradients."""
        return tuple(case for case in self.cases if case.done.outcome is Outcome.OK and case.done.passes != "forward")

    @cached_property
    def right_values(self) -> tuple[Case, ...]:
        """Cases with right values whose gradients are refused."""
        return tuple(case for case in self.cases if case.done.outcome is Outcome.OK and case.done.passes == "forward")

    @cached_property
    def refused(self) -> tuple[Case, ...]:
        """Cases that the implementation refuses."""
        return tuple(case for case in self.cases if case.done.outcome is Outcome.UNSUPPORTED)

    @cached_property
    def failed(self) -> tuple[Case, ...]:
        """All other cases."""
        return tuple(case for case in self.cases if case.failed)

    @cached_property
    def reasons(self) -> dict[str, int]:
        """Every reason for a refusal with the cases that it holds for, most frequent first; a case may have several."""
        counted = Counter(reason for case in self.refused for reason in case.done.details)
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


class Watcher(Protocol):
    """Who is told of cases as they end."""

    def began(self, arm: str, total: int) -> None:
        """So many cases are to be tried."""
        ...

    def tried(self, case: Case) -> None:
        """A case of the suite ended."""
        ...

    def shrinking(self, case: Case) -> None:
        """A failing case is the smallest so far."""
        ...


def arm_of(name: str, options: dict[str, OptionValue]) -> str:
    """An implementation with its options: `xformers[operator=cutlass]`."""
    words = ",".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name}[{words}]" if words else name


def ask(name: str, settings: Sequence[str], plugins: Sequence[str], device: str, deadline_s: float) -> Asked:
    """What the command line asks for; an emulated implementation runs on the CPU.

    Errors: `UnknownImplementationError`, `OptionError`, `BrokenImplementationError`, `ConfigError`, `DeviceError`.
    """
    if not re.fullmatch("auto|cpu|cuda|cuda:[0-9]{1,3}", device):
        raise environment.DeviceError(f"device {device!r} was asked for; allowed: auto, cpu, cuda, cuda:N")
    options = _options(settings)
    try:
        implementation = get(name, options)
    except (UnknownImplementationError, OptionError, BrokenImplementationError):
        raise
    except Exception as error:
        raise BrokenImplementationError(
            f"implementation {name!r} could not be made: {type(error).__name__}: {error}"
        ) from error
    found = environment.find_device("cpu" if implementation.emulates else device)
    return Asked(implementation, options, tuple(plugins), found, deadline_s)


def run_suite(asked: Asked, watcher: Watcher, *, whole: bool = False) -> Conformance:
    """Try every case, then look for a smaller one that fails as the smallest does. Errors: `NoServerError`."""
    problems = asked.suite(whole=whole)
    watcher.began(asked.arm, len(problems))
    workers = _Workers(asked)
    try:
        cases = []
        for case in _until_hangs(workers, problems):
            watcher.tried(case)
            cases.append(case)
        smallest = next((case for case in cases if case.failed), None)
        if smallest is not None:
            tries = FEW_CASES if asked.implementation.compiled else MOST_TRIES
            smallest = _Search(smallest, workers, watcher, tries).smallest()
    finally:
        workers.close()
    return Conformance(asked, tuple(cases), len(problems) - len(cases), smallest)


def _options(settings: Sequence[str]) -> dict[str, OptionValue]:
    options: dict[str, OptionValue] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        value = read_value(text, f"--set {setting}") if equals else None
        if not key.strip() or not isinstance(value, OptionValue):
            raise ConfigError(f"--set {setting}: not of the form OPTION=VALUE; write such as --set operator=cutlass")
        options[key.strip()] = value
    return options


def _until_hangs(workers: _Workers, problems: Sequence[AttentionProblem]) -> Iterator[Case]:
    hangs = 0
    for case in workers.attempt_all(problems):
        yield case
        hangs += case.done.outcome is Outcome.TIMED_OUT
        if hangs == MOST_HANGS:
            return


class _Workers:
    """Tries cases on a fork server, and on a new one where that ended."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._server: Executor | None = None

    def attempt_all(self, problems: Sequence[AttentionProblem]) -> Iterator[Case]:
        """Every case as it ends. Errors: `NoServerError`."""
        size = 1 if self._asked.implementation.compiled else GROUP
        while problems:
            group = problems[:size]
            cases = self._attempt_together(group) if size > 1 else ()
            if not cases or any(case.failed for case in cases):
                yield from map(self.attempt, group)
                problems = problems[size:]
            else:
                yield from cases
                problems = problems[len(cases) :]

    def attempt(self, problem: AttentionProblem) -> Case:
        """One case; whatever it does to its process, or to the server, is how it ended. Errors: `NoServerError`."""
        try:
            reply = self._run([problem])
        except ServerError as error:
            return Case(problem, CaseDone(outcome=Outcome.CRASHED, details=(f"its server went too: {error}",)))
        return Case(problem, _done(reply, self._asked.deadline_s))

    def _attempt_together(self, problems: Sequence[AttentionProblem]) -> tuple[Case, ...]:
        """The cases that were begun; none where their process did not come to its end."""
        try:
            reply = self._run(problems)
        except ServerError:
            return ()
        if reply.result is None:
            return ()
        cases = CasesDone.model_validate_json(reply.result).cases
        return tuple(Case(problem, done) for problem, done in zip(problems, cases, strict=False))

    def _run(self, problems: Sequence[AttentionProblem]) -> Reply:
        server = self._server or self._start()
        try:
            return server.run(self._asked.task(problems), self._asked.deadline_s)
        except ServerError:
            self.close()
            raise

    def close(self) -> None:
        """End the server there is."""
        if self._server is not None:
            self._server.close()
        self._server = None

    def _start(self) -> Executor:
        # Nothing is timed here, and a thread that spins while it waits takes a busy machine from those that work.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            self._server = ForkServer()
        except ServerError as error:
            raise NoServerError(str(error)) from error
        return self._server


def _done(reply: Reply, deadline_s: float) -> CaseDone:
    """What the worker reported, or why it did not."""
    if reply.result is not None:
        (case,) = CasesDone.model_validate_json(reply.result).cases
        return case
    if reply.timed_out:
        words = f"had not ended after {deadline_s:g} s (--timeout){last_words(reply)}"
        return CaseDone(outcome=Outcome.TIMED_OUT, details=(words,))
    ended = measurement_of(reply, deadline_s)
    return CaseDone(outcome=ended.outcome, details=(ended.detail,))


@dataclass
class _Search:
    """Makes a failing case smaller, part by part, as long as what is left fails in the same way."""

    case: Case
    workers: _Workers
    watcher: Watcher
    tries: int
    hangs: int = MOST_HANGS
    seen: set[AttentionProblem] = field(default_factory=set)

    def smallest(self) -> Case:
        """The case from which no part can be taken, or the smallest when the tries are used up."""
        before = None
        while before is not self.case:
            before = self.case
            for part in contract.PARTS:
                while self._shrink(part):
                    self.watcher.shrinking(self.case)
        return self.case

    def _shrink(self, part: str) -> bool:
        for problem in contract.simpler(self.case.problem, part):
            if problem in self.seen:
                continue
            if not self.tries or not self.hangs:
                return False
            self.seen.add(problem)
            self.tries -= 1
            case = self.workers.attempt(problem)
            self.hangs -= case.done.outcome is Outcome.TIMED_OUT
            if case.fault == self.case.fault:
                self.case = case
                return True
        return False
