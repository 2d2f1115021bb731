"""What is stored of a gate: `gate.json`, launches and events. Times in seconds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..cell import Cell
from ..records import SCHEMA_VERSION, Description, Measurement, Record
from ..store import Folder

#: The key of the comparison between two servers of the base.
CONTROL = "control"

ArmLabel = Literal["base", "candidate", "control"]
#: Before what the screen says is known, and after it: pairs that confirm.
Stage = Literal["screen", "after"]


class Comparison(Record):
    """Two cells that are measured in pairs: the same one of two arms, or two implementations of one problem.

    `extra_percent`: of the candidate's calls that are counted, so many percent more are made (a proof's injected slowdown).
    """

    key: str
    name: str
    base: Cell
    candidate: Cell
    extra_percent: int = 0


class ArmInfo(Record):
    """What an arm was made of. `digest` is that of the files under test: a gate does not go on with others."""

    given: str
    revision: str = ""
    factor: str = ""
    digest: str = ""


class GateLaunch(Measurement):
    """One forked process of one arm of a pair; a line of `launches.jsonl`. Both arms have the same attempts."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    comparison: str
    arm: ArmLabel
    stage: Stage
    pair: int
    attempt: int
    servers: int  # counts the pairs of servers of a gate: all launches of a pair have the same
    name: str
    ended_at: str
    ends: bool = False  # whatever the other arm did: no further launch of this comparison can be made
    wall_s: float = 0.0


class GateInfo(Description):
    """`gate.json`."""

    comparisons: tuple[Comparison, ...]
    control: Comparison
    refused: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    base: ArmInfo
    candidate: ArmInfo
    is_of_implementations: bool = False
    families: tuple[tuple[str, ...], ...] = ()  # a proof judges several sweeps of one gate's launches, by their keys
    max_minutes: float | None = None
    exit_first: bool = False  # what looks slower is measured first, and nothing more once something is


class Gate(Folder[GateInfo, GateLaunch]):
    """One gate's folder."""

    description_file = "gate.json"
    words = "gate"
    info_type = GateInfo
    launch_type = GateLaunch
