"""A cell: one point of a sweep, and its identity."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..impls import AttentionProblem, OptionValue, Pass

Allocator = Literal["steady", "resident", "system"]
Cache = Literal["warm", "cold"]
Float32 = Literal["ieee", "tf32"]
DeviceKind = Literal["cpu", "cuda"]


class Conditions(BaseModel):
    """What a cell is measured under, beside its problem. A default is left out of the cell's id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceKind = "cpu"
    cache: Cache = "warm"
    cuda_graph: bool = False
    threads: int | Literal["all"] = "all"
    allocator: Allocator = "steady"
    float32: Float32 = "ieee"

    def __str__(self) -> str:
        given = self.model_dump(exclude_defaults=True)
        return ",".join(f"{key}={value}" for key, value in given.items())


class Cell(BaseModel):
    """An implementation with its options, a problem, a pass and the conditions."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    implementation: str
    options: dict[str, OptionValue] = {}
    revision: int = 1
    problem: AttentionProblem
    passes: Pass = Field(alias="pass")
    conditions: Conditions = Conditions()

    @cached_property
    def id(self) -> str:
        """Hash of the canonical JSON without fields at their default, so that a new optional field keeps old ids."""
        canonical = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def arm(self) -> str:
        """The implementation with its options: `xformers[operator=cutlass]`."""
        options = ",".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.implementation}[{options}]" if options else self.implementation

    @property
    def name(self) -> str:
        """`chunked/b1-h8/2-s1024-d64-bfloat16-causal/forward`, and conditions that are not the default."""
        return f"{self.arm}/{self.group}"

    @property
    def group(self) -> str:
        """What implementations are compared on: problem, pass, and conditions that are not the default."""
        conditions = str(self.conditions)
        return f"{self.problem}/{self.passes}" + (f"/{conditions}" if conditions else "")

    @property
    def axes(self) -> dict[str, str | int]:
        """The sizes and words of problem, pass and conditions, by name."""
        problem = self.problem
        return {
            "batch": problem.batch,
            "heads_q": problem.heads_q,
            "heads_kv": problem.heads_kv,
            "seq_q": problem.seq_q,
            "seq_kv": problem.seq_kv,
            "head_dim": problem.head_dim,
            "dtype": problem.dtype,
            "mask": str(problem.mask),
            "pass": self.passes,
            "conditions": str(self.conditions),
        }
