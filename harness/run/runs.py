"""Beginning a run and going on with one: from a configuration to a session that can be carried out."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...impls import Device
from .. import environment
from ..config import ConfigError, LoadedConfig, SweepConfig, load_stored
from ..fingerprint import differences, fingerprint
from ..peaks import peak_flops_per_s
from ..plan import Plan, make_plan
from ..records import Notice, RunInfo
from ..store import Run
from .fork_server import ForkServer
from .journal import Observer, now
from .session import Ending, Machine, Session


@dataclass(frozen=True)
class Ready:
    """A run on disk with the plan, the configuration and the machine that it is carried out with."""

    run: Run
    plan: Plan
    config: SweepConfig
    machine: Machine

    def carry_out(self, observer: Observer, *, retry_failed: bool = False) -> Ending:
        """Measure what is still to do. Errors: `StoreError`, also where another process writes to the run."""
        with self.run.locked():
            session = Session(
                self.run, self.plan, self.config.protocol, self.machine, ForkServer, observer, retry_failed=retry_failed
            )
            return session.carry_out()


def begin(loaded: LoadedConfig, root: Path, plugins: Sequence[str], failed_plugins: Mapping[str, str]) -> Ready:
    """A new run's folder under `root`. Errors: `DeviceError`, `ConfigError`, `StoreError`."""
    config = loaded.config
    device = environment.find_device(config.device)
    plan = make_plan(config, device).explained(failed_plugins)
    facts = environment.describe(device)
    machine = _machine(config, facts, device)
    info = RunInfo(
        id=_new_id(root, config.name),
        name=config.name,
        created_at=now(),
        config_source=loaded.source,
        config_text=loaded.text,
        overrides=loaded.overrides,
        config=dict(loaded.data),
        device=str(device),
        plugins=tuple(plugins),
        versions=environment.versions(),
        environment=_with_device(facts, machine),
        cells=plan.cells,
        control=tuple(cell.id for cell in plan.control),
        seed=config.protocol.seed,
        attnbench_version=importlib.metadata.version("attnbench"),
    )
    run = Run.create(root, info)
    for plugin, reason in failed_plugins.items():
        run.append(Notice(at=now(), text=f"plugin {plugin} failed to import: {reason}"))
    return Ready(run, plan, config, machine)


class ResumeError(ConfigError):
    """A run that cannot go on here as it began; the message says what differs and what to do."""


def reopen(run: Run, plugins: Sequence[str], failed_plugins: Mapping[str, str]) -> Ready:
    """Go on with a run from its stored configuration. Errors: `ResumeError`, `DeviceError`, `ConfigError`."""
    missing = [plugin for plugin in run.info.plugins if plugin not in plugins]
    if missing:
        again = " ".join(f"--plugin {plugin}" for plugin in run.info.plugins)
        raise ResumeError(
            f"this run used plugins, and none is imported because a file says so; name them again: {again}"
        )
    config = load_stored(run.info.config, tolerate_unknown=bool(failed_plugins))
    device = environment.find_device(run.info.device)
    facts = environment.describe(device)
    machine = _machine(config, facts, device)
    _refuse_another_machine(run, _with_device(facts, machine))
    plan = make_plan(config, device).explained(failed_plugins)
    planned, stored = {cell.id for cell in plan.cells}, {cell.id for cell in run.info.cells}
    if planned != stored:
        raise ResumeError(
            f"the run has {len(stored)} cells, and its configuration now means {len(planned)} "
            f"({len(planned ^ stored)} differ): an implementation's revision or this version of attnbench changed; "
            "begin a new run"
        )
    return Ready(run, plan, config, machine)


def _refuse_another_machine(run: Run, facts: Mapping[str, object]) -> None:
    """Launches of one run are compared with each other: what the fingerprint calls strict must not have changed."""
    stored = fingerprint(run.info.environment, run.info.versions)
    changes = differences(stored, fingerprint(facts, environment.versions()))
    if changes:
        raise ResumeError(
            f"{run.path} was measured under other conditions than there are now: {'; '.join(map(str, changes))}; "
            "begin a new run, or resume where these are as they were"
        )


def _with_device(facts: Mapping[str, object], machine: Machine) -> dict[str, object]:
    return {**facts, "device_name": machine.device.name, "threads": machine.threads}


def _machine(config: SweepConfig, facts: Mapping[str, object], device: Device) -> Machine:
    protocol = config.protocol
    threads = environment.usable_threads() if protocol.threads == "all" else protocol.threads
    strict = facts["strict"]
    flags = str(strict.get("cpu_flags", "")) if isinstance(strict, Mapping) else ""
    peaks = peak_flops_per_s(device, threads, protocol.float32, flags)
    return Machine(device, threads, environment.last_level_cache_bytes(), peaks)


def _new_id(root: Path, name: str) -> str:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    safe = "".join(char if char.isalnum() or char in "-_" else "-" for char in name)[:60]
    base = f"{stamp}-{safe}"
    number, candidate = 1, base
    while (root / candidate).exists():
        number += 1
        candidate = f"{base}-{number}"
    return candidate
