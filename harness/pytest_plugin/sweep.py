"""A sweep configuration as pytest runs it: its plan, and why some cells are not run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import environment
from ..cell import Cell
from ..config import ConfigError, Protocol, load_config
from ..digest import digest_of
from ..environment import DeviceError
from ..fingerprint import fingerprint
from ..plan import Plan, make_plan
from ..plugins import load_plugins
from ..run.machine import Machine


class SweepError(Exception):
    """A configuration that cannot be used here; the message says what is wrong, what is allowed, what to do."""


@dataclass(frozen=True)
class Sweep:
    """What the tests of one configuration share. `digest` is that of the fingerprint."""

    plan: Plan
    protocol: Protocol
    threads: int
    digest: str
    beyond_memory: frozenset[str]

    @property
    def device(self) -> str:
        """torch's word for the device."""
        return str(self.plan.device)

    def skipped_because(self, cell: Cell) -> str:
        """Why a cell is not run: refused here, or out of reach of a clock in a process that is shared; empty where it is."""
        reasons = [*self.plan.refused.get(cell.id, ()), *self._out_of_reach(cell)]
        return "; ".join(reasons)

    def broken_because(self, cell: Cell) -> str:
        """Why a cell cannot even be asked, such as an implementation that is not there; empty where it can."""
        return self.plan.broken.get(cell.id, "")

    def _out_of_reach(self, cell: Cell) -> list[str]:
        reasons, conditions = [], cell.conditions
        if "time" not in self.protocol.measure:
            reasons.append("protocol.measure asks for no time")
        if conditions.cache == "cold":
            reasons.append("cache cold: pytest-benchmark's clock clears no cache")
        if conditions.cuda_graph:
            reasons.append("cuda_graph true: pytest-benchmark's clock replays no graph")
        if cell.id in self.beyond_memory:
            reasons.append("needs more memory than the device has, by its estimate, and pytest would be killed with it")
        return [f"{reason}; attnbench run measures it" for reason in reasons]


def read_sweep(source: str, plugins: Sequence[str]) -> Sweep:
    """The sweep of a file. Errors: `SweepError`."""
    failed = load_plugins(plugins)
    if failed:
        words = "; ".join(f"{plugin} failed to import: {reason}" for plugin, reason in failed.items())
        raise SweepError(f"--attnbench-plugin {words}")
    try:
        config = load_config(source).config
        device = environment.find_device(config.device)
        plan = make_plan(config, device, control=False)
    except (ConfigError, DeviceError) as error:
        raise SweepError(str(error)) from error
    machine = Machine.found(config, device)
    digest = digest_of(fingerprint(machine.facts, environment.versions()))
    beyond_memory = frozenset(cell.id for cell in plan.beyond_memory)
    return Sweep(plan, config.protocol, machine.threads, digest, beyond_memory)
