"""Beginning a gate and going on with one: from a configuration and two arms to a session that can be carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...impls import choices
from .. import environment
from ..config import ConfigError, LoadedConfig, SweepConfig, load_stored
from ..plan import Plan, make_plan
from ..records import Event
from ..run.description import facts_of, refuse_missing_plugins
from ..run.fork_server import ForkServer
from ..run.journal import Journal
from ..run.machine import Machine
from ..run.preparation import Preparation
from ..run.servers import Servers
from ..store import new_id
from .arms import benches_of
from .judging import GateResult, judge
from .records import CONTROL, ArmInfo, Comparison, Gate, GateInfo
from .session import Ending, GateSession, Watcher


class NothingToGateError(Exception):
    """A configuration of which nothing can be measured here. Exit code 14."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks of a gate: two arms by revision, path or wheel, or two implementations of one environment."""

    base: str
    candidate: str
    is_of_implementations: bool = False
    factor: str = ""
    plugins: tuple[str, ...] = ()
    max_minutes: float | None = None
    exit_first: bool = False


@dataclass(frozen=True)
class Ready:
    """A gate on disk with the configuration and the machine that it is carried out with."""

    gate: Gate
    config: SweepConfig
    machine: Machine

    def carry_out(self, watcher: Watcher) -> Ending:
        """Make the arms, and measure what is still to do. Errors: `StoreError`, `ArmError`, `ResumeError`."""
        info, machine = self.gate.info, self.machine
        with self.gate.locked(), benches_of(self.gate) as benches:
            journal = Journal(self.gate, _Quiet(watcher))
            servers = Servers(ForkServer, journal, 0)
            preparation = Preparation(
                servers, journal, self.gate.path / "truth", str(machine.device), machine.threads, info.seed,
                self.config.protocol.float32,
            )  # fmt: skip
            session = GateSession(
                self.gate, benches, self.config.protocol, machine.device, machine.threads, preparation, watcher
            )
            return session.carry_out()

    def result(self) -> GateResult:
        """What is said of everything that was measured so far."""
        return result_of(self.gate)


def result_of(gate: Gate) -> GateResult:
    """Judge a stored gate; the same launches give the same result. Errors: `StoreError`."""
    return judge(gate.info.comparisons, gate.info.refused, gate.launches())


def begin(loaded: LoadedConfig, root: Path, asked: Asked, failed_plugins: Mapping[str, str]) -> Ready:
    """A new gate's folder under `root`. Errors: `DeviceError`, `ConfigError`, `NothingToGateError`, `StoreError`."""
    config = loaded.config
    device = environment.find_device(config.device)
    plan = make_plan(config, device).explained(failed_plugins)
    comparisons, refused = _of_implementations(plan, asked) if asked.is_of_implementations else _of_arms(plan)
    if not plan.control:
        raise NothingToGateError(
            "no cell of this configuration can run here, so there is nothing to gate; see `attnbench plan`"
        )
    return create(loaded, root, asked, Machine.found(config, device), comparisons, refused, plan)


def reopen(gate: Gate, plugins: Sequence[str]) -> Ready:
    """Go on with a gate from its stored configuration. Errors: `ResumeError`, `DeviceError`, `ConfigError`."""
    refuse_missing_plugins(gate.info, plugins)
    config = load_stored(gate.info.config, tolerate_unknown=True)
    machine = Machine.found(config, environment.find_device(gate.info.device))
    machine.refuse_another(gate.path, gate.info.environment, gate.info.versions)
    return Ready(gate, config, machine)


def is_gate(path: Path) -> bool:
    """Whether a folder holds a gate."""
    return (path / Gate.description_file).is_file()


def create(
    loaded: LoadedConfig, root: Path, asked: Asked, machine: Machine, comparisons: tuple[Comparison, ...],
    refused: dict[str, tuple[str, ...]], plan: Plan, families: tuple[tuple[str, ...], ...] = (),
) -> Ready:  # fmt: skip
    """A gate's folder with what is compared in it. Errors: `StoreError`."""
    config, control = loaded.config, plan.control[0]
    info = GateInfo(
        id=new_id(root, f"gate-{config.name}"),
        comparisons=comparisons,
        control=Comparison(key=CONTROL, name=CONTROL, base=control, candidate=control),
        refused=refused,
        base=ArmInfo(given=asked.base, factor=asked.factor),
        candidate=ArmInfo(given=asked.candidate, factor=asked.factor),
        is_of_implementations=asked.is_of_implementations,
        families=families,
        max_minutes=asked.max_minutes,
        exit_first=asked.exit_first,
        **facts_of(loaded, machine, asked.plugins),
    )
    return Ready(Gate.create(root, info), config, machine)


def _of_arms(plan: Plan) -> tuple[tuple[Comparison, ...], dict[str, tuple[str, ...]]]:
    """Each cell against itself. What the caller's limits refuse is asked of the arms: theirs may differ."""
    return tuple(Comparison(key=cell.id, name=cell.name, base=cell, candidate=cell) for cell in plan.cells), {}


def _of_implementations(plan: Plan, asked: Asked) -> tuple[tuple[Comparison, ...], dict[str, tuple[str, ...]]]:
    """The cells of one implementation against those of the other on the same problem. Errors: `ConfigError`."""
    arms = sorted({cell.arm for cell in plan.cells})
    for name in (asked.base, asked.candidate):
        if name not in arms:
            raise ConfigError(f"no cell of {name!r} is in this configuration{choices(name, arms, 'it has')}")
    if asked.base == asked.candidate:
        raise ConfigError(f"{asked.base!r} is both base and candidate; give two implementations")
    bases = {(c.problem, c.passes, c.conditions): c for c in plan.cells if c.arm == asked.base}
    comparisons, refused = [], {}
    for cell in plan.cells:
        base = bases.get((cell.problem, cell.passes, cell.conditions))
        if cell.arm != asked.candidate or base is None:
            continue
        reasons = (*plan.refused.get(base.id, ()), *plan.refused.get(cell.id, ()))
        if reasons:
            refused[cell.name] = reasons
        else:
            comparisons.append(Comparison(key=cell.id, name=cell.name, base=base, candidate=cell))
    return tuple(comparisons), refused


class _Quiet:
    """Tells a gate's watcher of events alone: a journal's other news are a run's."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def began(self, pending: int, total: int, estimated_s: float) -> None:
        """Nothing."""

    def launching(self, cell: object, round_: int) -> None:
        """Nothing."""

    def launched(self, cell: object, launch: object) -> None:
        """Nothing."""

    def noted(self, event: Event) -> None:
        """Pass it on."""
        self._watcher.noted(event)
