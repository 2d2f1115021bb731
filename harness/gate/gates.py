"""Beginning a gate and going on with one: from a configuration and two arms to a session that can be carried out."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...impls import choices, get
from .. import environment
from ..config import ConfigError, LoadedConfig, SweepConfig, load_stored
from ..plan import Plan, make_plan
from ..records import Event
from ..run.fork_server import ForkServer
from ..run.journal import Journal, now
from ..run.machine import Machine, ResumeError
from ..run.preparation import Preparation
from ..run.servers import Servers
from ..store import Run, StoreError, new_id
from .benches import Bench
from .environments import Arm, Shared, make_arm
from .judging import GateResult, judge
from .records import CONTROL, ArmInfo, ArmLabel, Comparison, Gate, GateInfo
from .session import Ending, GateSession, Watcher
from .sources import OWN, ArmError, Source, opened


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


@dataclass(frozen=True)
class Ready:
    """A gate on disk with the configuration and the machine that it is carried out with."""

    gate: Gate
    config: SweepConfig
    machine: Machine

    def carry_out(self, watcher: Watcher) -> Ending:
        """Make the arms, and measure what is still to do. Errors: `StoreError`, `ArmError`, `ResumeError`."""
        info, machine = self.gate.info, self.machine
        with self.gate.locked(), _benches(self.gate) as benches:
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
    missing = [plugin for plugin in gate.info.plugins if plugin not in plugins]
    if missing:
        again = " ".join(f"--plugin {plugin}" for plugin in gate.info.plugins)
        raise ResumeError(
            f"this gate used plugins, and none is imported because a file says so; name them again: {again}"
        )
    config = load_stored(gate.info.config, tolerate_unknown=True)
    machine = Machine.found(config, environment.find_device(gate.info.device))
    machine.refuse_another(gate.path, gate.info.environment, gate.info.versions)
    return Ready(gate, config, machine)


def is_gate(path: Path) -> bool:
    """Whether a folder holds a gate."""
    return (path / Gate.description_file).is_file()


def open_either(path: Path) -> Run | Gate:
    """The run or the gate that a folder holds. Errors: `StoreError`."""
    return Gate.open(path) if is_gate(path) else Run.open(path)


def create(
    loaded: LoadedConfig, root: Path, asked: Asked, machine: Machine, comparisons: tuple[Comparison, ...],
    refused: dict[str, tuple[str, ...]], plan: Plan, families: tuple[tuple[str, ...], ...] = (),
) -> Ready:  # fmt: skip
    """A gate's folder with what is compared in it. Errors: `StoreError`."""
    config, control = loaded.config, plan.control[0]
    info = GateInfo(
        id=new_id(root, f"gate-{config.name}"),
        name=config.name,
        created_at=now(),
        config_source=loaded.source,
        config_text=loaded.text,
        overrides=loaded.overrides,
        config=dict(loaded.data),
        device=str(machine.device),
        plugins=asked.plugins,
        versions=environment.versions(),
        environment=dict(machine.facts),
        comparisons=comparisons,
        control=Comparison(key=CONTROL, name=CONTROL, base=control, candidate=control),
        refused=refused,
        base=ArmInfo(given=asked.base, factor=asked.factor),
        candidate=ArmInfo(given=asked.candidate, factor=asked.factor),
        is_of_implementations=asked.is_of_implementations,
        families=families,
        seed=config.protocol.seed,
        max_minutes=asked.max_minutes,
        attnbench_version=importlib.metadata.version("attnbench"),
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


@contextmanager
def _benches(gate: Gate) -> Iterator[dict[ArmLabel, Bench]]:
    """The three servers of a pair; arms are made when a gate is carried out, and removed afterwards."""
    info = gate.info
    if info.is_of_implementations:
        here = Bench(ForkServer, plugins=info.plugins)
        yield {"base": here, "candidate": here, "control": here}
        return
    folder = gate.path / "arms"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            base, candidate = stack.enter_context(_arms(folder, info))
        except OSError as error:
            raise StoreError(f"the arms cannot be made under {folder}: {error}") from error
        _keep_digests(gate, base.info, candidate.info)
        yield {"base": _bench(base), "candidate": _bench(candidate), "control": _bench(base)}


@contextmanager
def _arms(folder: Path, info: GateInfo) -> Iterator[tuple[Arm, Arm]]:
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ExitStack() as stack:
        # A branch moves: what was measured is what is measured further.
        givens = [arm.revision if len(arm.revision) == 40 else arm.given for arm in (info.base, info.candidate)]
        sources = [
            stack.enter_context(opened(given, folder / f"{label}-source"))
            for label, given in zip(("base", "cand"), givens, strict=True)
        ]
        factor = info.base.factor or _factor(*sources, plugins=info.plugins)
        shared = Shared.made(folder, _other_packages(info, factor), with_impls=factor != OWN)
        arms = [
            make_arm(folder / label, source, factor, shared, info.plugins)
            for label, source in zip(("base", "cand"), sources, strict=True)
        ]
        yield arms[0], arms[1]


def _factor(base: Source, candidate: Source, *, plugins: Sequence[str]) -> str:
    """The distribution that differs between the arms; empty where only a plugin's file does. Errors: `ArmError`."""
    if base.name != candidate.name:
        raise ArmError(
            f"base is {base.name or 'no distribution'} and candidate {candidate.name or 'no distribution'}; "
            "both must be the same one, or name it with --factor"
        )
    if not base.name and not plugins:
        raise ArmError(f"{base.given} has no pyproject.toml with a project name; name the distribution with --factor")
    return base.name


def _other_packages(info: GateInfo, factor: str) -> list[str]:
    """What the implementations wrap, but for what is under test: compiled packages, the same ones in both arms."""
    names = {cell.implementation for each in info.comparisons for cell in (each.base, each.candidate)}
    packages = set()
    for name in names:
        try:
            packages.add(get(name).package)
        except Exception:  # noqa: BLE001, S112 - what the caller cannot make, the arms may; or they say why not
            continue
    return sorted(packages - {factor, OWN})


def _keep_digests(gate: Gate, base: ArmInfo, candidate: ArmInfo) -> None:
    """The first time, what the arms were made of is written down; later it must be the same. Errors: `ResumeError`."""
    for label, stored, made in (("base", gate.info.base, base), ("candidate", gate.info.candidate, candidate)):
        if stored.digest and stored.digest != made.digest:
            raise ResumeError(f"the {label} {stored.given} is not what this gate began with; begin a new gate")
    keep = {"base": _described(gate.info.base, base), "candidate": _described(gate.info.candidate, candidate)}
    gate.describe_anew(gate.info.model_copy(update=keep))


def _described(given: ArmInfo, made: ArmInfo) -> ArmInfo:
    return made.model_copy(update={"given": given.given, "revision": made.revision or given.revision})


def _bench(arm: Arm) -> Bench:
    return Bench(partial(ForkServer, arm.python, arm.environment), arm.bounds, arm.plugins)


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
