"""What a configuration promises of its results, and what others have published: both are shown beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .fields import Listed, Reader, text
from .where import Where

#: The kind of machine that no named CPU flag tells.
OTHER = "other"
_NAME = text(".{1,80}", "a name of at most 80 characters")
Bound = dict[str, float]


def _bound() -> Reader:
    """A number above 0, or one for each kind of machine, by CPU flags."""

    def accept(given: Any) -> Bound | None:
        bound = given if isinstance(given, dict) else {OTHER: given}
        numbers = all(type(each) in {int, float} and math.isfinite(each) and each > 0 for each in bound.values())
        return {key: float(each) for key, each in bound.items()} if numbers and list(bound)[-1:] == [OTHER] else None

    number = {"type": "number", "exclusiveMinimum": 0}
    schema = {"anyOf": [number, {"type": "object", "additionalProperties": number, "required": [OTHER]}]}
    return Reader(accept, f"a number above 0, or numbers by CPU flag with {OTHER} as the last", schema)


_Bound = Annotated[Bound | None, _bound()]
#: Each kind of goal: its words, with `{}` for the number.
KINDS = {
    "speedup": "speed-up >= {:.3g} x",
    "worst_speedup": "each speed-up >= {:.3g} x",
    "limit_share": "share of limit >= {:.2f}",
    "gb_per_s": "each >= {:.3g} GB/s",
    "memory_bytes": "each <= {:,.0f} bytes",
}


class Goal(BaseModel):
    """One promise about one implementation. A number may depend on the CPU: `{avx512_fp16: 1.4, other: 1.0}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, _NAME] = Field(description="What the table calls it.")
    implementation: Annotated[str, _NAME] = Field(description="Whose results are meant.")
    against: Annotated[str | None, _NAME] = Field(None, description="What speed-ups are relative to.")
    where: Where = Field(Where(), description="Which cells count; all of them unless keys are given.")
    speedup: _Bound = Field(None, description="The least geometric mean of speed-ups over the cells.")
    worst_speedup: _Bound = Field(None, description="The least speed-up that any of the cells may have.")
    limit_share: _Bound = Field(None, description="The least geometric mean of the shares of the composite limit.")
    gb_per_s: _Bound = Field(None, description="The least bandwidth that any of the cells may reach.")
    memory_bytes: _Bound = Field(None, description="The most memory overhead that any of the cells may have.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"{', '.join(given) or 'none'} is given; allowed: exactly one of {', '.join(KINDS)}")
        if (self.against is None) == given[0].endswith("speedup"):
            raise ValueError("against must be given for a speed-up, and for nothing else")
        return self

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def asked(self, cpu_flags: Collection[str]) -> tuple[str, float]:
        """The kind of machine, a CPU flag or `other`, and what is asked of it: the first flag that the CPU has."""
        bound: Bound = getattr(self, self.kind)
        flag = next(flag for flag in bound if flag in cpu_flags or flag == OTHER)
        return flag, bound[flag]


class Figure(BaseModel):
    """One published figure: whose, for which cells, and its values in bytes and seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    implementation: Annotated[str, _NAME] = Field(description="The implementation that plays its part here.")
    where: Where = Field(description="The cell that it is shown beside.")
    memory_bytes: _Bound = Field(None, description="Memory overhead.")
    time_s: _Bound = Field(None, description="Time of one call.")


class Published(BaseModel):
    """What a source says, beside which results are shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[str, text(".{1,300}", "a text of at most 300 characters")] = Field(
        description="Where the figures are from, and the machine they were measured on."
    )
    figures: Annotated[tuple[Figure, ...], Field(min_length=1), Listed()] = Field(description="The figures.")
