"""How cells are measured: launches, budgets, deadlines and conditions."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..cell import Allocator, Float32
from .fields import Axis, either, number, whole, word

Measure = Literal["time", "memory", "limit", "kernels"]
_HOUR_S = 3600.0


class Protocol(BaseModel):
    """The protocol of a run; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    launches: Annotated[int, whole(1, 1000)] = Field(
        3, description="Rounds, each one fresh process for every cell; an interval needs 6, a verdict 8."
    )
    min_time_s: Annotated[float, number(_HOUR_S, "seconds")] = Field(
        0.05, description="Seconds that sampling of a cell takes at least in one launch."
    )
    max_time_s: Annotated[float, number(_HOUR_S, "seconds")] = Field(
        0.5, description="Seconds after which sampling stops, precise or not."
    )
    precision: Annotated[float, number(0.5)] = Field(
        0.01, description="Relative half-width of the median's interval at which sampling stops."
    )
    timeout_s: Annotated[float, number(24 * _HOUR_S, "seconds")] = Field(
        60.0, description="Seconds a launch may take beyond ten times its estimate; then it ends as TIMED_OUT."
    )
    seed: Annotated[int, whole(0, 2**32 - 1)] = Field(0, description="Seed of the inputs and of the order of cells.")
    threads: Annotated[int | Literal["all"], either(word("all"), whole(1, 4096))] = Field(
        "all", description="CPU threads; all is the physical cores that affinity and quota allow."
    )
    allocator: Annotated[Allocator, word(*get_args(Allocator))] = Field(
        "steady",
        description="glibc's thresholds: steady as in a long-lived process, resident keeps freed memory mapped.",
    )
    float32: Annotated[Float32, word(*get_args(Float32))] = Field(
        "ieee", description="Arithmetic of float32 products on a GPU."
    )
    measure: Annotated[tuple[Measure, ...], Axis(word(*get_args(Measure)))] = Field(
        ("time", "memory"),
        description="What is measured: time, memory, the composite limit of each problem (on a CPU), and beside the time that "
        "of the kernels by a profiler (on CUDA).",
    )

    @property
    def rounds(self) -> int:
        """Launches of each cell: one where memory alone is measured, which does not vary from launch to launch as time does."""
        return self.launches if "time" in self.measure else 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_time_s > self.max_time_s:
            raise ValueError(
                f"min_time_s {self.min_time_s:g} is above max_time_s {self.max_time_s:g}; lower the former"
            )
        if "kernels" in self.measure and "time" not in self.measure:
            raise ValueError("measure: kernels is compared with the time; write [time, kernels]")
        return self
