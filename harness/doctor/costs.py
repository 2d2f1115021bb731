"""What noise costs here, measured in workers of fork servers, as a run's launches are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from pydantic import ValidationError

from ...impls import AttentionProblem, Device
from ..cell import Allocator, Conditions, DeviceKind
from ..measure.counters import void_reason
from ..measure.tasks import NoiseDone, NoiseTask
from ..run.executor import Executor, NoServerError, ServerError
from ..run.outcomes import failure_of
from .finding import LaunchSpread, Missing
from .launches import spread_of

Work = Literal["naive S=256", "product"]
Traced = Literal["one thread", "all threads", "pinned", "GPU"]
#: Where layout shows most: scores of this size meet the thresholds of a fresh heap.
SMALL = AttentionProblem(heads_q=4, heads_kv=4, seq_q=256, seq_kv=256, head_dim=64, dtype="float32")
#: Scores of 33 MB, beyond the largest threshold of mmap that glibc takes by itself.
LARGE = AttentionProblem(heads_q=8, heads_kv=8, seq_q=1024, seq_kv=1024, head_dim=64, dtype="float32")
CLOCK_S, TRACE_S, LAUNCH_S, LARGE_S = 0.5, 3.0, 0.2, 0.4
LAUNCHES = 3
#: From this share of disturbed launches on, their spread is no longer said to come from layout or allocator.
MOST_VOID = 0.1
#: A worker that takes so long hangs, or this machine is of no use for measuring.
DEADLINE_S = 60.0


class Notes(Protocol):
    """Who is told how much there is to do, and what is measured now."""

    def began(self, steps: int) -> None:
        """So many steps."""
        ...

    def measuring(self, what: str) -> None:
        """One more step begins."""
        ...


@dataclass(frozen=True)
class Costs:
    """Each measurement, or why it is not there. `layouts`: launches of `SMALL` under `system` thresholds, on the CPU."""

    clock: NoiseDone | Missing
    traces: Mapping[Traced, NoiseDone | Missing]
    allocators: Mapping[Allocator, NoiseDone | Missing]
    launches: Mapping[Work, LaunchSpread | Missing]
    layouts: LaunchSpread | Missing
    void_launches: int = 0  # that a run would have measured again
    launch_count: int = 0

    def disturbed(self, trace: Traced = "all threads") -> bool:
        """Whether others took so much of a trace that a run would not count such a launch."""
        done = self.traces.get(trace)
        return isinstance(done, NoiseDone) and _is_void(done)

    @property
    def load_on_launches(self) -> str:
        """Why launches tell of the load more than of anything else; empty where they were left in peace mostly."""
        if self.void_launches <= MOST_VOID * self.launch_count:
            return ""
        return f"not apart from the load, which disturbed {self.void_launches} of {self.launch_count} launches"


@dataclass
class Workers:
    """One server at a time, and workers forked from it."""

    start: Callable[[], Executor]
    device: Device
    threads: int
    notes: Notes
    _server: Executor | None = field(default=None, init=False)

    def renew(self) -> None:
        """A fresh interpreter. Errors: `NoServerError`."""
        self.close()
        try:
            self._server = self.start()
        except ServerError as error:
            raise NoServerError(str(error)) from error

    def close(self) -> None:
        """End the server there is."""
        if self._server is not None:
            self._server.close()
        self._server = None

    def ask(self, work: Literal["clock", "trace", "product", "attention"], seconds: float, *, on: str = "cpu",
            threads: int | None = None, problem: AttentionProblem | None = None, allocator: Allocator = "steady",
            processors: tuple[int, ...] = ()) -> NoiseDone | Missing:  # fmt: skip
        """What a worker measured, or how it ended. Errors: `NoServerError`."""
        kind: DeviceKind = "cpu" if on == "cpu" else "cuda"
        task = NoiseTask(
            device=on, threads=threads or self.threads, seed=0, work=work, seconds=seconds, problem=problem,
            conditions=Conditions(device=kind, allocator=allocator), processors=processors,
        )  # fmt: skip
        if self._server is None:
            self.renew()
        assert self._server is not None
        try:
            reply = self._server.run(task, DEADLINE_S)
        except ServerError as error:
            self.close()
            return Missing(str(error))
        if reply.result is None:
            return Missing(f"its worker ended: {failure_of(reply, DEADLINE_S)}")
        try:
            return NoiseDone.model_validate_json(reply.result)
        except ValidationError as error:
            return Missing(f"its worker's report cannot be read: {error.errors()[0]['msg']}")


def measure(workers: Workers, pinned: tuple[int, ...], servers: int) -> Costs:
    """All costs; `pinned` names one processor of each core where cores have several. Errors: `NoServerError` at the first."""
    try:
        workers.notes.measuring("a first server, and its clock")
        workers.renew()
        clock = workers.ask("clock", CLOCK_S)
        traces = _traces(workers, pinned)
        workers.notes.measuring("allocators")
        allocators = {each: workers.ask("attention", LARGE_S, problem=LARGE, allocator=each) for each in _ALLOCATORS}
        launches = _launches(workers, servers)
    finally:
        workers.close()
    works: tuple[Work, ...] = get_args(Work)
    spreads = {work: launches.spread(work) for work in works}
    return Costs(clock, traces, allocators, spreads, launches.spread("layout"), launches.void, launches.count)


_ALLOCATORS: tuple[Allocator, ...] = get_args(Allocator)


def steps(servers: int, device: Device, pinned: tuple[int, ...]) -> int:
    """How many times `measure` tells what it does."""
    return 4 + bool(pinned) + (device.kind == "cuda") + servers


def _traces(workers: Workers, pinned: tuple[int, ...]) -> dict[Traced, NoiseDone | Missing]:
    note = workers.notes.measuring
    traces: dict[Traced, NoiseDone | Missing] = {}
    note("one thread")
    traces["one thread"] = workers.ask("trace", TRACE_S, threads=1)
    note("all threads")
    traces["all threads"] = workers.ask("trace", TRACE_S)
    if pinned:
        note("one thread of each core")
        traces["pinned"] = workers.ask("trace", TRACE_S, threads=len(pinned), processors=pinned)
    if workers.device.kind == "cuda":
        note("the GPU")
        traces["GPU"] = workers.ask("trace", TRACE_S, on=str(workers.device))
    return traces


@dataclass
class _Launches:
    """Seconds by work and server, what went wrong, and how many launches a run would have repeated."""

    times: dict[str, list[list[float]]] = field(
        default_factory=lambda: {each: [] for each in (*get_args(Work), "layout")}
    )
    failures: dict[str, Missing] = field(default_factory=dict)
    void: int = 0
    count: int = 0

    def add(self, work: str, done: list[NoiseDone | Missing]) -> None:
        """The launches of one server; where one of them failed, the server does not count for this work."""
        known = [each for each in done if isinstance(each, NoiseDone) and each.times_s]
        self.count += len(known)
        self.void += sum(map(_is_void, known))
        for each in done:
            if isinstance(each, Missing):
                self.failures[work] = each
        if len(known) == len(done):
            self.times[work].append([statistics.median(each.times_s) for each in known])

    def spread(self, work: str) -> LaunchSpread | Missing:
        """Where the servers are too few, the reason is what went wrong."""
        found = spread_of(self.times[work])
        return self.failures.get(work, found) if isinstance(found, Missing) else found


def _launches(workers: Workers, servers: int) -> _Launches:
    """Launches of the same code from servers one after the other, the works in turn, so that drift falls on both alike."""
    launches, device = _Launches(), str(workers.device)
    for number in range(servers):
        workers.notes.measuring(f"server {number + 1} of {servers}")
        try:
            workers.renew()
            asked = _ask_for_launches(workers, device)
        except NoServerError as error:
            why = Missing(f"only {number} of {servers} servers started: {error}")
            launches.failures |= dict.fromkeys(launches.times, why)
            break
        for work, done in asked.items():
            launches.add(work, done)
    return launches


def _ask_for_launches(workers: Workers, device: str) -> dict[str, list[NoiseDone | Missing]]:
    """Of one server: the works in turn, and two launches where glibc's thresholds are as they come."""
    asked: dict[str, list[NoiseDone | Missing]] = {"naive S=256": [], "product": [], "layout": []}
    for _ in range(LAUNCHES):
        asked["naive S=256"].append(workers.ask("attention", LAUNCH_S, on=device, problem=SMALL))
        asked["product"].append(workers.ask("product", LAUNCH_S, on=device))
    for _ in range(2):
        asked["layout"].append(workers.ask("attention", LAUNCH_S, problem=SMALL, allocator="system"))
    return asked


def _is_void(done: NoiseDone) -> bool:
    return done.counters is not None and bool(void_reason(done.counters))
