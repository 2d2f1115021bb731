"""Beginning a run and going on with one: from a configuration to a session that can be carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import environment
from ..config import LoadedConfig, SweepConfig, load_stored
from ..plan import Plan, make_plan
from ..records import Notice, RunInfo
from ..store import Run, new_id
from .description import facts_of, refuse_missing_plugins
from .fork_server import ForkServer
from .journal import Observer, now
from .machine import Machine, ResumeError
from .session import Ending, Session


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
    machine = Machine.found(config, device)
    info = RunInfo(
        id=new_id(root, config.name),
        cells=plan.cells,
        control=tuple(cell.id for cell in plan.control),
        **facts_of(loaded, machine, plugins),
    )
    run = Run.create(root, info)
    for plugin, reason in failed_plugins.items():
        run.append(Notice(at=now(), text=f"plugin {plugin} failed to import: {reason}"))
    return Ready(run, plan, config, machine)


def reopen(run: Run, plugins: Sequence[str], failed_plugins: Mapping[str, str]) -> Ready:
    """Go on with a run from its stored configuration. Errors: `ResumeError`, `DeviceError`, `ConfigError`."""
    refuse_missing_plugins(run.info, plugins)
    config = load_stored(run.info.config, tolerate_unknown=bool(failed_plugins))
    device = environment.find_device(run.info.device)
    machine = Machine.found(config, device)
    machine.refuse_another(run.path, run.info.environment, run.info.versions)
    plan = make_plan(config, device).explained(failed_plugins)
    planned, stored = {cell.id for cell in plan.cells}, {cell.id for cell in run.info.cells}
    if planned != stored:
        raise ResumeError(
            f"the run has {len(stored)} cells, and its configuration now means {len(planned)} "
            f"({len(planned ^ stored)} differ): an implementation's revision or this version of attnbench changed; "
            "begin a new run"
        )
    return Ready(run, plan, config, machine)
