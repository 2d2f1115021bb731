"""An implementation with its options as a plan sees it: what it is called, and whether it can run a cell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from ...impls import (
    AttentionProblem,
    BrokenImplementationError,
    Device,
    Implementation,
    OptionValue,
    Pass,
    UnknownImplementationError,
    get,
)
from ..cell import Cell, Conditions
from ..config.sweep import ImplementationEntry


@dataclass(frozen=True)
class Arm:
    """`implementation` is None where none could be made, and `failure` says why."""

    name: str
    options: dict[str, OptionValue] = field(default_factory=dict)
    revision: int = 1
    implementation: Implementation | None = None
    failure: str = ""

    @classmethod
    def of(cls, entry: ImplementationEntry) -> Self:
        """The arm of an entry of the configuration. An option at its default is left out, since it changes nothing."""
        try:
            made = get(entry.name, entry.options)
        except (UnknownImplementationError, BrokenImplementationError) as error:
            return cls(entry.name, entry.options, failure=str(error))
        except Exception as error:  # noqa: BLE001 - a plugin may fail in any way, and must break only its own cells
            return cls(entry.name, entry.options, failure=f"{entry.name} cannot be made: {_described(error)}")
        options = {key: value for key, value in entry.options.items() if value != made.options[key].default}
        return cls(entry.name, options, made.revision, made)

    def cell(self, problem: AttentionProblem, passes: Pass, conditions: Conditions) -> Cell:
        """One cell of this arm."""
        return Cell(
            implementation=self.name,
            options=self.options,
            revision=self.revision,
            problem=problem,
            passes=passes,
            conditions=conditions,
        )

    def reasons(self, cell: Cell, device: Device) -> tuple[str, ...]:
        """Every reason why the cell cannot run on the device. Errors: `ArmError` where there is no telling."""
        if self.implementation is None:
            raise ArmError(self.failure)
        try:
            refusals = self.implementation.supports(cell.problem, cell.passes, device).reasons
            return (*map(str, refusals), *condition_refusals(cell, device))
        except Exception as error:
            raise ArmError(f"{self.name}: supports() failed: {_described(error)}") from error


class ArmError(Exception):
    """An implementation that is unknown, cannot be imported or fails to say what it supports."""


def condition_refusals(cell: Cell, device: Device) -> tuple[str, ...]:
    """Every reason why the conditions cannot be had on the device, whatever the implementation."""
    conditions, reasons = cell.conditions, []
    on_cuda = conditions.device == "cuda"
    if conditions.cache == "cold" and not on_cuda:
        reasons.append("cache cold: needs a CUDA device; on a CPU the suite measures warm caches alone")
    if conditions.cuda_graph and not on_cuda:
        reasons.append("cuda_graph true: needs a CUDA device")
    if conditions.cuda_graph and cell.passes == "backward":
        reasons.append(
            "cuda_graph true with pass backward: needs forward or forward_backward; a replay builds no new graph"
        )
    # A capability that could not be read refuses nothing.
    has_tf32 = on_cuda and (device.capability is None or device.capability >= (8, 0))
    if conditions.float32 == "tf32" and cell.problem.dtype == "float32" and not has_tf32:
        reasons.append("float32 tf32: needs a CUDA device of compute capability 8.0 or higher; ieee runs everywhere")
    return tuple(reasons)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
