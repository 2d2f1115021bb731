"""What the doctor finds: a fact, what it costs as measured here, and what a person would run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, ConfigDict

#: Below half of the smallest difference that a gate ever reports, nobody needs to do anything.
WORTH = 0.005
NOTHING = "nothing"
QUIET_FIRST = "first quieten the competing load, then look again"


@dataclass(frozen=True)
class Missing:
    """A fact or a measurement that is not there, and why."""

    reason: str

    def __str__(self) -> str:
        return f"not readable here: {self.reason}"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cost(_Frozen):
    """`share` of a time by which it makes times of the same code differ, or None where that was not measured."""

    share: float | None
    words: str

    @classmethod
    def measured(cls, share: float, words: str) -> Self:
        """A share that is below nothing is nothing."""
        return cls(share=max(0.0, share), words=words)

    @classmethod
    def unmeasured(cls, why: str | Missing) -> Self:
        """No number without a measurement: the reason in its place."""
        return cls(share=None, words=f"not measured: {why.reason if isinstance(why, Missing) else why}")

    @property
    def matters(self) -> bool:
        """Whether it was measured and is worth an action."""
        return self.share is not None and self.share >= WORTH


class Finding(_Frozen):
    """One cause of noise. `handled`: attnbench already keeps it from its own times; the cost is what others pay."""

    what: str
    found: str
    cost: Cost
    advice: str
    handled: bool = False

    @property
    def badness(self) -> tuple[bool, float]:
        """Measured ones by what they cost a run here; then those that were not measured but ask for something."""
        if self.cost.share is None:
            return (False, float(self.advice != NOTHING))
        return (True, 0.0 if self.handled else self.cost.share)


class LaunchSpread(_Frozen):
    """How far apart launches of identical code lie: standard deviations of log times, as shares.

    `pair` is that of log(next server / this server), which is what a gate sees where nothing has changed; `of_server` is what
    launches of a server share, and `chance` the probability that servers seem so different where they do not differ.
    """

    servers: int
    launches_per_server: int
    median_s: float
    within_server: float
    between_servers: float
    of_server: float
    chance: float
    pair: float
    smallest_slowdown: float


class Diagnosis(_Frozen):
    """Everything the doctor says; findings are sorted, the worst first."""

    schema_version: int = 1
    machine: str
    device: str
    threads: int
    seconds: float
    findings: tuple[Finding, ...]
    launches: dict[str, LaunchSpread]
    launch_count: int = 0
    void_launches: int = 0
    unmeasured_launches: dict[str, str] = {}
    formula: str
    summary: str
