"""What the parent asks of a worker. Plain data, sent as JSON; no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...impls import AttentionProblem, OptionValue, Pass
from ..cell import Cell, Conditions, Float32
from ..records import Ceilings, CompositeLimit, Counters, Outcome

#: The first line of a server: torch is imported, requests may come.
READY = '{"ready":true}'
#: The argument of a server that need not be quick at a first backward pass.
FORWARD_ONLY = "--forward-only"


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    device: str  # torch's words: cpu, cuda:0
    threads: int
    seed: int


class Bounds(BaseModel):
    """Where the code under test must come from: the folder of a gate's arm, and the distribution that differs between arms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    factor: str


class Turns(BaseModel):
    """Two workers work in turn: named pipes to hear from the other and to tell it, and who is first.

    While they measure both keep to the same `processors`; none: all that they may use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inbox: str
    outbox: str
    is_first: bool
    processors: tuple[int, ...] = ()


class CellTask(_Task):
    """Check, time and weigh one cell.

    A gate's arm has `bounds`, and takes `turns` with the other. Its proof injects a slowdown by work: for each `work_unit` calls
    that are counted, `extra_calls` more are made.
    """

    task: Literal["cell"] = "cell"
    cell: Cell
    plugins: tuple[str, ...] = ()
    truth_path: str
    min_time_s: float
    max_time_s: float
    precision: float
    measure_time: bool = True
    measure_memory: bool = True
    name_kernels: bool = False
    measure_kernels: bool = False
    bounds: Bounds | None = None
    turns: Turns | None = None
    work_unit: int = 1
    extra_calls: int = 0


class CasesTask(_Task):
    """Check cases of the contract suite, one after the other; none is begun when `begin_within_s` are over."""

    task: Literal["cases"] = "cases"
    implementation: str
    options: dict[str, OptionValue] = {}
    plugins: tuple[str, ...] = ()
    problems: tuple[AttentionProblem, ...]
    begin_within_s: float


class TruthTask(_Task):
    """Compute a problem's truth and store it."""

    task: Literal["truth"] = "truth"
    problem: AttentionProblem
    backward: bool
    float32: Float32 = "ieee"
    truth_path: str


class CeilingsTask(_Task):
    """Measure the machine's ceilings."""

    task: Literal["ceilings"] = "ceilings"
    dtypes: tuple[str, ...]
    conditions: Conditions
    last_level_cache_bytes: int | None


class LimitsTask(_Task):
    """Measure the composite limits of some problems."""

    task: Literal["limits"] = "limits"
    conditions: Conditions
    works: tuple[tuple[AttentionProblem, Pass], ...]


class NoiseTask(_Task):
    """Measure what makes times differ: read the clock, trace one product, or launch a product or attention, for `seconds`."""

    task: Literal["noise"] = "noise"
    work: Literal["clock", "trace", "product", "attention"]
    seconds: float
    conditions: Conditions
    problem: AttentionProblem | None = None  # of attention
    processors: tuple[int, ...] = ()  # that the worker keeps to; empty for all that it may use


Task = Annotated[CellTask | CasesTask | TruthTask | CeilingsTask | LimitsTask | NoiseTask, Field(discriminator="task")]


class CaseDone(BaseModel):
    """How a case ended: the pass that was tried, and every reason or fault where it was not right."""

    passes: Pass = "forward_backward"
    outcome: Outcome
    details: tuple[str, ...] = ()


class CasesDone(BaseModel):
    """How the cases ended that were begun."""

    cases: tuple[CaseDone, ...]


class TruthDone(BaseModel):
    """A truth was stored; the share of the output's elements that it covers."""

    checked_share: float


class LimitsDone(BaseModel):
    """The composite limits, in the order asked."""

    limits: tuple[CompositeLimit, ...]


class ClockReading(BaseModel):
    """A clock that was read without a pause for `span_s`: a gap is a step of more than 10 us, `lost_s` all gaps together."""

    resolution_s: float
    call_s: float
    span_s: float
    gaps: int
    lost_s: float
    longest_gap_s: float


class NoiseDone(BaseModel):
    """Seconds of one call in each sample, in order, and what the operating system did to all `calls` and their warm-up."""

    times_s: tuple[float, ...] = ()
    sample_s: float = 0.0
    calls: int = 0
    counters: Counters | None = None
    clock: ClockReading | None = None


class Probe(BaseModel):
    """The machine as torch sees it: ceilings, and the libraries that torch was built with."""

    ceilings: Ceilings
    torch_facts: dict[str, str]


class Reply(BaseModel):
    """How a worker ended: what it reported, or why it could not. `output_tail` is the last it printed."""

    result: str | None = None  # JSON of Measurement, CaseDone, TruthDone, LimitsDone, NoiseDone or Probe
    signal: int | None = None
    exit_code: int | None = None
    timed_out: bool = False
    killed_for_memory: bool = False
    output_tail: str = ""
    wall_s: float = 0.0
