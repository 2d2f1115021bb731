"""What is stored of a run: its description, its launches and its events. Times in seconds, sizes in bytes.

Schema history: 1, the first.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .cell import Cell

SCHEMA_VERSION = 1
#: A clock may say zero; a ratio of times needs more.
LEAST_S = 1e-12


class Record(BaseModel):
    """Anything that is stored: frozen, of known fields alone, without NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True, allow_inf_nan=False
    )


class Outcome(StrEnum):
    """How a launch ended. Only OK is ever ranked."""

    OK = "OK"
    UNSUPPORTED = "UNSUPPORTED"
    INCORRECT = "INCORRECT"
    IMPLAUSIBLE = "IMPLAUSIBLE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMED_OUT = "TIMED_OUT"
    CRASHED = "CRASHED"
    ERROR = "ERROR"


#: Outcomes that are failures of a sweep (exit code 13); the others but OK are results of it.
FAILURES = frozenset({Outcome.INCORRECT, Outcome.IMPLAUSIBLE, Outcome.CRASHED, Outcome.ERROR})


class Samples(Record):
    """Timed repetitions: `times_s[i]` is the i-th sample's time for one call, averaged over `repeats` inner calls.

    Where two launches were measured in turns, `turns` says how many samples each turn has.
    """

    repeats: int
    times_s: tuple[float, ...]
    turns: tuple[int, ...] = ()
    stop: Literal["precision", "budget", "other arm"]  # in turns one of the two decides
    warmup_calls: int
    warmup_s: float
    wall_times_s: tuple[float, ...] = ()  # CUDA: the same samples by the host's clock, synchronised
    outlived_s: float = 0.0  # CUDA: median of how long work went on after the region's own stream was done
    gap_hidden: bool = True  # CUDA: False where the device waited for the host inside a sample


class Accuracy(Record):
    """The rule of correctness for one tensor (out, dq, dk, dv); errors are absolute, against float64."""

    max_error: float
    max_bound: float
    rms_error: float
    rms_bound: float | None = None  # None below 4,096 elements, where the rule does not ask
    rms_reference: float
    elements: int
    # Of the block of rows that is nearest to its own bound, or furthest beyond; None where no head has a whole block.
    block_rms_error: float | None = None
    block_rms_bound: float | None = None


class Memory(Record):
    """Peak bytes beyond inputs and outputs. `saved` is what forward leaves for backward, where there is a backward."""

    source: str
    overhead_bytes: int
    saved_bytes: int | None = None


class Counters(Record):
    """What the operating system did to the launch while it was timed; None where the platform does not show it.

    `span_s` are the seconds that it was timed for: where launches took turns, its own turns alone.
    """

    span_s: float
    cpu_time_s: float
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int
    run_queue_wait_s: float | None = None
    steal_s: float | None = None
    throttled_s: float | None = None
    gpu: dict[str, Any] = {}


class Phases(Record):
    """Where the wall time of a launch went. `first_call_s` is a part of `check_s`."""

    inputs_s: float = 0.0
    prepare_s: float = 0.0
    first_call_s: float = 0.0
    check_s: float = 0.0
    timing_s: float = 0.0
    memory_s: float = 0.0


class Measurement(Record):
    """What a worker reports: all of a launch but its place in the run."""

    outcome: Outcome
    detail: str = ""
    samples: Samples | None = None
    accuracy: dict[str, Accuracy] = {}
    checked_share: float | None = None  # of the output's elements
    memory: Memory | None = None
    counters: Counters | None = None
    phases: Phases = Phases()
    void: str = ""  # why this attempt does not count; empty where it does
    backend: str = ""
    kernels: tuple[str, ...] = ()
    kernel_time_s: float | None = None  # of one pass, by a profiler: all that the device did for it, copies included
    threads: int | None = None
    processors: tuple[int, ...] = ()  # that it kept to while it was timed; none: all that it may use
    origin: str = ""  # the file of the implementation's class, where a gate asks for it
    emulated: bool = False  # a GPU package's kernels ran in an interpreter: checked, without a time


class Launch(Measurement):
    """One forked process that measured one cell once; a line of `launches.jsonl`."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    cell: str
    round: int
    attempt: int
    implementation: str
    name: str
    server: str = ""
    position: int
    skipped: bool = False  # not measured in this round, because of how an earlier one ended
    started_at: str
    wall_s: float = 0.0


class Ceilings(Record):
    """What the machine itself does, measured in the run, and what it could do at most where that is known."""

    gemm_flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    exp_per_s: float | None = None
    empty_call_s: float
    peak_flops_per_s: dict[str, float] = {}
    last_level_cache_bytes: int | None = None

    def best_with(self, other: Ceilings) -> Ceilings:
        """The higher of each rate, and the shorter empty call: what disturbs a measurement only ever slows it down."""
        rates = self.gemm_flops_per_s
        return self.model_copy(
            update={
                "gemm_flops_per_s": {
                    key: max(rate, other.gemm_flops_per_s.get(key, rate)) for key, rate in rates.items()
                },
                "memory_bytes_per_s": max(self.memory_bytes_per_s, other.memory_bytes_per_s),
                "exp_per_s": max(filter(None, (self.exp_per_s, other.exp_per_s)), default=None),
                "empty_call_s": min(self.empty_call_s, other.empty_call_s),
            }
        )


class ServerStarted(Record):
    """A fresh interpreter that workers are forked from."""

    event: Literal["server"] = "server"
    at: str
    server: str
    round: int | None
    pid: int
    seconds: float


class TruthComputed(Record):
    """The oracle's answer for one problem."""

    event: Literal["truth"] = "truth"
    at: str
    problem: str
    checked_share: float | None
    seconds: float
    failure: str = ""


class CeilingsMeasured(Record):
    """The machine's ceilings, once a session."""

    event: Literal["ceilings"] = "ceilings"
    at: str
    ceilings: Ceilings | None
    torch_facts: dict[str, str] = {}
    seconds: float
    failure: str = ""


class CompositeLimit(Record):
    """The least time that a problem's parts take on this machine, each at its best: `seconds` is their sum.

    `rows` of a block and the dtype of `products` are those of the best combination. `chain_s` is the least time of the parts one
    after another, with what they need besides, in that dtype; older runs have none.
    """

    problem: str
    passes: str
    seconds: float
    products_s: float
    softmax_s: float
    traffic_s: float
    rows: int
    products: str
    chain_s: float | None = None


class LimitsMeasured(Record):
    """The composite limits of a round."""

    event: Literal["limits"] = "limits"
    at: str
    round: int
    limits: tuple[CompositeLimit, ...]
    seconds: float
    failure: str = ""


class Notice(Record):
    """Something a reader of the run should know."""

    event: Literal["notice"] = "notice"
    at: str
    text: str


class SessionEnded(Record):
    """The end of one `run` or `resume`, and where its wall time went."""

    event: Literal["end"] = "end"
    at: str
    status: Literal["finished", "interrupted"]
    wall_s: float
    split_s: dict[str, float]


Event = Annotated[
    ServerStarted | TruthComputed | CeilingsMeasured | LimitsMeasured | Notice | SessionEnded,
    Field(discriminator="event"),
]


class Description(Record):
    """What was fixed before the first launch, of a run as of a gate."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    id: str
    name: str
    created_at: str
    config_source: str
    config_text: str
    overrides: tuple[str, ...] = ()
    config: dict[str, Any]
    device: str
    plugins: tuple[str, ...] = ()
    versions: dict[str, str]
    environment: dict[str, Any]
    seed: int
    attnbench_version: str


class RunInfo(Description):
    """`run.json`."""

    cells: tuple[Cell, ...]
    control: tuple[str, ...]
