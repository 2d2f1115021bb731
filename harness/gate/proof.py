"""The proof of the gate on this machine: sweeps of identical code in which injected slowdowns by work ride along."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from .. import environment
from ..cell import Cell
from ..config import ConfigError, load_config
from ..digest import digest_of
from ..fingerprint import fingerprint
from ..plan import Plan, make_plan
from ..run.journal import now
from ..run.machine import Machine
from ..verdicts.judgement import DIFFERENT, Verdict
from ..verdicts.paired import contamination, is_screened, rule, wanted_after
from .gates import Asked, Ready, create
from .pairs import Pairs
from .proof_records import INJECTED, INJECTED_KEY, Kept, Load, ProofSweep, keys_of_families
from .records import CONTROL, Comparison, Gate
from .session import Ending, Watcher

#: A process that keeps one core busy and idle in turn, for seconds each.
_TOGGLE = """
import random, sys, time
generator = random.Random(int(sys.argv[1]))
while True:
    until = time.monotonic() + generator.uniform(0.5, 5.0)
    while time.monotonic() < until:
        pass
    time.sleep(generator.uniform(0.5, 5.0))
"""


def sweep(config: str, settings: Sequence[str], load: Load, watcher: Watcher) -> tuple[ProofSweep | None, Ending]:
    """Measure one sweep; None where it did not come to its end. Errors: `ConfigError`, `DeviceError`, `StoreError`."""
    seed = random.SystemRandom().randrange(2**32)
    loaded = load_config(config, overrides=(*settings, f"protocol.seed={seed}"))
    machine = Machine.found(loaded.config, environment.find_device(loaded.config.device))
    plan = make_plan(loaded.config, machine.device)
    same, twin, injected = _comparisons(plan)
    keys = {percent: each.key for percent, each in injected.items()}
    families = keys_of_families([each.key for each in same], twin, keys)
    with tempfile.TemporaryDirectory(prefix="attnbench-proof-") as folder:
        asked = Asked("this code", "this code", is_of_implementations=True)
        ready = create(loaded, Path(folder), asked, machine, (*same, *injected.values()), {}, plan, families=families)
        with _toggling(seed) if load == "toggling" else nullcontext():
            ending = ready.carry_out(watcher)
        if ending.status != "finished":
            return None, ending
        return _kept(ready, twin, keys, load), ending


def _comparisons(plan: Plan) -> tuple[list[Comparison], str, dict[int, Comparison]]:
    """Every cell against itself; and the cheapest one with each injected slowdown. Errors: `ConfigError`."""
    measured = [cell for cell in plan.cells if cell.id not in plan.refused and cell.id not in plan.broken]
    forward = [cell for cell in measured if cell.passes == "forward"]
    if not forward:
        raise ConfigError("a proof needs a cell with pass: forward that can run here; see `attnbench plan`")
    cheapest = min(forward, key=lambda cell: plan.costs[cell.id].seconds_per_launch)
    same = [Comparison(key=cell.id, name=cell.name, base=cell, candidate=cell) for cell in measured]
    return same, cheapest.id, {percent: _injected(cheapest, percent) for percent in INJECTED if percent}


def _injected(cell: Cell, percent: int) -> Comparison:
    return Comparison(
        key=f"{cell.id}+{percent}%", name=f"{cell.name} +{percent} %", base=cell, candidate=cell, extra_percent=percent
    )


def _kept(ready: Ready, twin: str, injected: dict[int, str], load: Load) -> ProofSweep | None:
    gate, machine = ready.gate, ready.machine
    launches, events = gate.launches(), gate.events()
    pairs = Pairs.of(launches)
    if pairs.ends:
        return None  # a cell failed: nothing is proved by it, and the watcher said so
    keys = [each.key for each in gate.info.comparisons if each.key not in injected.values()]
    end = events[-1]
    return ProofSweep(
        schema=3, at=now(), machine=environment.machine_name(machine.facts),
        fingerprint=digest_of(fingerprint(machine.facts, environment.versions())), attnbench=gate.info.attnbench_version,
        load=load, threads=machine.threads, seed=gate.info.seed, seconds=round(getattr(end, "wall_s", 0.0), 1),
        seconds_by_percent={percent: round(each, 1) for percent, each in _seconds(gate, pairs, keys, twin, injected).items()},
        launches=len(launches), void=sum(bool(each.void) for each in launches),
        same={key: Kept.of(pairs.of_comparison(key)) for key in keys}, twin=twin,
        injected={percent: Kept.of(pairs.of_comparison(key)) for percent, key in injected.items()},
        control=Kept.of(pairs.of_comparison(CONTROL)),
    )  # fmt: skip


def _seconds(gate: Gate, pairs: Pairs, keys: Sequence[str], twin: str, injected: dict[int, str]) -> dict[int, float]:
    """What each of the sweeps would have taken alone: the launches of its cells, and the servers that these needed."""
    launches = gate.launches()
    started = getattr(gate.events()[-1], "split_s", {}).get("servers", 0.0) / (
        1 + max(each.servers for each in launches)
    )
    found = {}
    for percent, family in zip((0, *injected), keys_of_families(keys, twin, injected), strict=True):
        members = {*family, CONTROL}
        after = max(len(pairs.of_comparison(key).after) for key in family)
        own = [
            each for each in launches if each.comparison in members and (each.stage == "screen" or each.pair < after)
        ]
        servers = len({each.servers for each in own})
        found[percent] = servers * started + sum(each.wall_s for each in own)
    return found


@contextmanager
def _toggling(seed: int) -> Iterator[None]:
    """Another process on one core, now busy, now idle."""
    process = subprocess.Popen([sys.executable, "-c", _TOGGLE, str(seed)], env=dict(os.environ))  # noqa: S603
    try:
        yield
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Outcome:
    """What the rule says of one sweep: whether it alarms without a cause, and of the injected cell where there is one."""

    alarms: int
    is_contaminated: bool
    injected: Verdict | None


def is_whole(sweep: ProofSweep) -> bool:
    """Whether it has every pair that the rule of today asks for; one that was measured by another rule may lack some."""
    families = [sweep.family(percent) for percent in INJECTED]
    return all(
        is_screened(each) and len(each.after) >= wanted[key]
        for family in families
        for wanted in (wanted_after(family),)
        for key, each in family.items()
    )


def judge_sweep(sweep: ProofSweep, percent: int) -> Outcome:
    """Judge one sweep by the rule of today; pure, so that stored sweeps can be judged again."""
    family = sweep.family(percent)
    is_contaminated = contamination((*sweep.control.series.screen, *sweep.control.series.after)) is not None
    said = {key: each.verdict for key, each in rule(family, is_contaminated=is_contaminated).items()}
    alarms = sum(verdict in DIFFERENT for key, verdict in said.items() if key != INJECTED_KEY)
    return Outcome(alarms, is_contaminated, said.get(INJECTED_KEY))
