"""A plan: the cells of a configuration on a device, which cannot run there and why, and their order. No torch."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...impls import AttentionProblem, Device, Pass
from ..cell import Allocator, Cache, Cell, Conditions
from ..config import Exclude, Protocol, SweepConfig
from ..config.errors import ConfigError, config_error
from ..config.sweep import ImplementationEntry, Sweep
from .arm import Arm, ArmError
from .bounds import MOST_CELLS, refuse_kernels, refuse_remainders, refuse_too_many
from .cost import SERVER_S, Cost, cost_of
from .shape import Shape, shapes

__all__ = ["MOST_CELLS", "Cost", "Plan", "cost_of", "make_plan", "order"]

#: The problem that every run repeats each round, so that the machine's drift can be told from a cell's.
CONTROL = AttentionProblem(heads_q=4, heads_kv=4, seq_q=256, seq_kv=256, head_dim=64)


@dataclass(frozen=True)
class Plan:
    """The cells of a run in the configuration's order, each once, and what is known of them beforehand.

    `refused` and `broken` map a cell's id to its reasons; these cells are recorded without being measured.
    `excluded` pairs each cell left out with the entry that did it; a combination that has no meaning is no cell and not
    among them. `control` may hold cells that `cells` holds too.
    """

    device: Device
    protocol: Protocol
    cells: tuple[Cell, ...]
    control: tuple[Cell, ...] = ()
    refused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    excluded: tuple[tuple[Cell, Exclude], ...] = ()

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """Time and memory of one launch of each cell that is measured, by id."""
        every = {cell.id: cell for cell in (*self.cells, *self.control)}
        measured = (cell for key, cell in every.items() if key not in self.refused and key not in self.broken)
        return {cell.id: cost_of(cell, self.device, self.protocol) for cell in measured}

    @property
    def seconds(self) -> float:
        """The whole run, roughly: every launch, and a server for each round."""
        return self.protocol.rounds * (SERVER_S + sum(each.seconds_per_launch for each in self.costs.values()))

    @property
    def beyond_memory(self) -> tuple[Cell, ...]:
        """Cells that are estimated to need more memory than the device has; none where that is unknown."""
        most = math.inf if self.device.memory_bytes is None else self.device.memory_bytes
        costs = self.costs
        return tuple(cell for cell in self.cells if cell.id in costs and costs[cell.id].memory_bytes > most)

    def explained(self, failed_plugins: Mapping[str, str]) -> Plan:
        """A plan whose unknown implementations name the plugins that failed to import: there they may have been."""
        if not failed_plugins:
            return self
        words = "; ".join(f"plugin {plugin} failed to import: {reason}" for plugin, reason in failed_plugins.items())
        return replace(self, broken={cell: f"{reason}; {words}" for cell, reason in self.broken.items()})


def make_plan(config: SweepConfig, device: Device, *, control: bool = True) -> Plan:
    """The plan of a configuration on a device.

    Errors: `ConfigError` for too many cells, a total with a remainder, a combination that has no meaning, kernels off CUDA, and
    exclusions that leave nothing.
    """
    refuse_too_many(config)
    refuse_remainders(config)
    refuse_kernels(config, device)
    draft = _Draft(config, device)
    for index, sweep in enumerate(config.sweeps):
        draft.add(index, sweep)
    if draft.mistakes:
        raise config_error(draft.mistakes)
    if not draft.cells:
        raise ConfigError(config.mistake(("exclude",), f"all {len(draft.excluded)} cells are left out; exclude less"))
    if control and draft.measures_something():
        draft.add_control()
    return draft.plan()


def order(cells: Sequence[Cell], seed: int, round_: int) -> list[Cell]:
    """The cells of a round, shuffled; the same for the same cells, seed and round."""
    shuffled = list(cells)
    random.Random(f"{seed}:{round_}").shuffle(shuffled)
    return shuffled


@dataclass
class _Draft:
    """A plan while it is made. Cells are kept by id, so that equal cells of two sweeps are one."""

    config: SweepConfig
    device: Device
    cells: dict[str, Cell] = field(default_factory=dict)
    control: dict[str, Cell] = field(default_factory=dict)
    excluded: dict[str, tuple[Cell, Exclude]] = field(default_factory=dict)
    refused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    mistakes: dict[str, None] = field(default_factory=dict)

    def add(self, index: int, sweep: Sweep) -> None:
        """Every cell of a sweep: by problem, then pass and conditions, then implementation."""
        arms = [Arm.of(entry) for entry in sweep.implementations or self.config.implementations]
        settings = [
            (passes, self._conditions(cache, cuda_graph, allocator))
            for passes, cache, cuda_graph, allocator in itertools.product(
                sweep.passes, sweep.cache, sweep.cuda_graph, sweep.allocator or (self.config.protocol.allocator,)
            )
        ]
        for shape in shapes(sweep):
            refusal = shape.refusal()
            problem = None if refusal else shape.problem()
            for (passes, conditions), arm in itertools.product(settings, arms):
                rule = self._exclusion(arm, shape, passes, conditions.allocator)
                if problem is not None:
                    self._place(arm, arm.cell(problem, passes, conditions), rule)
                elif rule is None:
                    self.mistakes[self._meaningless(index, shape, str(refusal))] = None

    def measures_something(self) -> bool:
        """Whether any cell can run here at all."""
        return any(key not in self.refused and key not in self.broken for key in self.cells)

    def add_control(self) -> None:
        """The control cell: naive is always there, and small enough to cost nothing."""
        arm = Arm.of(ImplementationEntry(name="naive"))
        cell = arm.cell(
            CONTROL, "forward", self._conditions("warm", cuda_graph=False, allocator=self.config.protocol.allocator)
        )
        self.control[cell.id] = cell
        self._judge(arm, cell)

    def plan(self) -> Plan:
        """What was found."""
        return Plan(
            device=self.device,
            protocol=self.config.protocol,
            cells=tuple(self.cells.values()),
            control=tuple(self.control.values()),
            refused=self.refused,
            broken=self.broken,
            excluded=tuple(self.excluded.values()),
        )

    def _conditions(self, cache: Cache, cuda_graph: bool, allocator: Allocator) -> Conditions:
        protocol = self.config.protocol
        return Conditions(
            device="cuda" if self.device.kind == "cuda" else "cpu",
            cache=cache,
            cuda_graph=cuda_graph,
            threads=protocol.threads,
            allocator=allocator,
            float32=protocol.float32,
        )

    def _exclusion(self, arm: Arm, shape: Shape, passes: Pass, allocator: Allocator) -> Exclude | None:
        values = {"implementation": arm.name, "pass": passes, "allocator": allocator, **vars(shape)}
        return next((rule for rule in self.config.exclude if rule.matches(values)), None)

    def _place(self, arm: Arm, cell: Cell, rule: Exclude | None) -> None:
        if rule is not None:
            self.excluded.setdefault(cell.id, (cell, rule))
        elif cell.id not in self.cells:
            self.cells[cell.id] = cell
            self._judge(arm, cell)

    def _judge(self, arm: Arm, cell: Cell) -> None:
        try:
            reasons = arm.reasons(cell, self.device)
        except ArmError as error:
            self.broken[cell.id] = str(error)
            return
        if reasons:
            self.refused[cell.id] = reasons

    def _meaningless(self, index: int, shape: Shape, refusal: str) -> str:
        entry = f"{{seq_len: {shape.seq_len}, mask: {shape.mask}}}"
        words = f"seq_len {shape.seq_len}: {refusal}, or leave it out by an entry {entry} under exclude"
        return self.config.mistake(("sweeps", index), words)
