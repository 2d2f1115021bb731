"""The proof of the gate on this machine: sweeps of identical code in which injected slowdowns by work ride along."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import environment
from ..cell import Cell
from ..config import ConfigError, load_config
from ..digest import digest_of
from ..fingerprint import fingerprint
from ..plan import Plan, make_plan
from ..records import SessionEnded
from ..run.journal import now
from ..run.machine import Machine
from ..verdicts.judgement import DIFFERENT, Verdict
from ..verdicts.pair import Pair, Series
from ..verdicts.paired import contamination, is_screened, rule, wanted_after
from .gates import Asked, Ready, create
from .pairs import Pairs
from .proof_records import INJECTED, INJECTED_KEY, FirstFound, Kept, Load, ProofSweep, keys_of_families
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


@dataclass(frozen=True)
class _Measured:
    """A sweep that was carried out in a folder that is still there; `injected` are the keys by percent."""

    ready: Ready
    ending: Ending
    twin: str
    injected: dict[int, str]


def sweep(config: str, settings: Sequence[str], load: Load, watcher: Watcher) -> tuple[ProofSweep | None, Ending]:
    """Measure one sweep; None where it did not come to its end. Errors: `ConfigError`, `DeviceError`, `StoreError`."""
    with _carried_out(config, settings, load, watcher) as measured:
        return (_kept(measured, load) if measured.ending.status == "finished" else None), measured.ending


def first_found(config: str, settings: Sequence[str], load: Load, watcher: Watcher) -> tuple[FirstFound | None, Ending]:
    """Measure one sweep with the largest slowdown in one cell until that is shown; None where it did not come to its end.

    Errors: `ConfigError`, `DeviceError`, `StoreError`.
    """
    begin, percent = time.perf_counter(), max(INJECTED)
    with _carried_out(config, settings, load, watcher, only=percent) as measured:
        if measured.ending.status != "finished":
            return None, measured.ending
        gate, key = measured.ready.gate, measured.injected[percent]
        pairs = Pairs.of(gate.launches())
        if pairs.ends:
            return None, measured.ending
        said = _said({each.key: pairs.of_comparison(each.key) for each in gate.info.comparisons}, pairs.control)
        servers = len({each.servers for each in gate.launches()})
        return FirstFound(
            schema=1, **_where(measured.ready, load), cells=len(said), percent=percent, verdict=said.pop(key),
            alarms=_different(said), seconds=round(time.perf_counter() - begin, 1), servers=servers,
        ), measured.ending  # fmt: skip


@contextmanager
def _carried_out(
    config: str, settings: Sequence[str], load: Load, watcher: Watcher, only: int | None = None
) -> Iterator[_Measured]:
    """A sweep of identical code with every slowdown beside it; or with one alone, in place of its twin, until that is shown."""
    seed = random.SystemRandom().randrange(2**32)
    loaded = load_config(config, overrides=(*settings, f"protocol.seed={seed}"))
    machine = Machine.found(loaded.config, environment.find_device(loaded.config.device))
    plan = make_plan(loaded.config, machine.device)
    same, twin, injected = _comparisons(plan)
    keys = {percent: each.key for percent, each in injected.items()}
    families = keys_of_families([each.key for each in same], twin, keys)
    comparisons = (*same, *injected.values())
    asked = Asked("this code", "this code", is_of_implementations=True, exit_first=only is not None)
    if only is not None:
        families, comparisons = (), (*(each for each in same if each.key != twin), injected[only])
    with tempfile.TemporaryDirectory(prefix="attnbench-proof-") as folder:
        ready = create(loaded, Path(folder), asked, machine, comparisons, {}, plan, families=families)
        with _toggling(seed) if load == "toggling" else nullcontext():
            ending = ready.carry_out(watcher)
        yield _Measured(ready, ending, twin, keys)


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


def _kept(measured: _Measured, load: Load) -> ProofSweep | None:
    ready, twin, injected = measured.ready, measured.twin, measured.injected
    gate = ready.gate
    launches = gate.launches()
    pairs = Pairs.of(launches)
    if pairs.ends:
        return None  # a cell failed: nothing is proved by it, and the watcher said so
    keys = [each.key for each in gate.info.comparisons if each.key not in injected.values()]
    return ProofSweep(
        schema=4, **_where(ready, load), seconds=round(_end(gate).wall_s, 1),
        seconds_by_percent={
            percent: round(_seconds(gate, pairs, family), 1)
            for percent, family in zip((0, *injected), keys_of_families(keys, twin, injected), strict=True)
        },
        launches=len(launches), void=sum(bool(each.void) for each in launches),
        same={key: Kept.of(pairs.of_comparison(key)) for key in keys}, twin=twin,
        injected={percent: Kept.of(pairs.of_comparison(key)) for percent, key in injected.items()},
        control=Kept.of(pairs.of_comparison(CONTROL)),
    )  # fmt: skip


def _where(ready: Ready, load: Load) -> dict[str, Any]:
    """When, where and of what a sweep was measured."""
    machine, info = ready.machine, ready.gate.info
    return {
        "at": now(), "machine": environment.machine_name(machine.facts), "attnbench": info.attnbench_version, "load": load,
        "fingerprint": digest_of(fingerprint(machine.facts, environment.versions())), "threads": machine.threads,
        "seed": info.seed,
    }  # fmt: skip


def _end(gate: Gate) -> SessionEnded:
    return next(each for each in reversed(gate.events()) if isinstance(each, SessionEnded))


def _seconds(gate: Gate, pairs: Pairs, family: Sequence[str]) -> float:
    """What one of the sweeps would have taken alone: its launches, the servers that they needed, and the rest."""
    launches, end = gate.launches(), _end(gate)
    wanted = wanted_after({key: pairs.of_comparison(key) for key in family})
    own = [
        each
        for each in launches
        if each.comparison in wanted and (each.stage == "screen" or each.pair < wanted[each.comparison])
    ]
    servers = {each.servers for each in own}
    own += [each for each in launches if each.comparison == CONTROL and each.servers in servers]
    started_s = end.split_s["servers"] / (1 + max(each.servers for each in launches))
    rest_s = end.wall_s - end.split_s["servers"] - sum(each.wall_s for each in launches)
    return len(servers) * started_s + sum(each.wall_s for each in own) + rest_s


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
    control = (*sweep.control.series.screen, *sweep.control.series.after)
    said = _said(sweep.family(percent), control)
    injected = said.pop(INJECTED_KEY, None)
    return Outcome(_different(said), contamination(control) is not None, injected)


def _said(family: Mapping[str, Series], control: Sequence[Pair]) -> dict[str, Verdict]:
    rulings = rule(family, is_contaminated=contamination(control) is not None)
    return {key: each.verdict for key, each in rulings.items()}


def _different(said: Mapping[str, Verdict]) -> int:
    """How many are called slower or faster."""
    return sum(verdict in DIFFERENT for verdict in said.values())
