"""Findings about memory: where a process lies, and how its allocator gives memory back."""

from __future__ import annotations

import statistics

from ..measure.tasks import NoiseDone
from .costs import Costs
from .facts import Facts
from .finding import NOTHING, QUIET_FIRST, Cost, Finding, Missing

#: Servers are said to differ where chance alone would make them differ as much less often than this.
_LEVEL = 0.05
_RANDOMISATION = {"0": "off", "1": "on, heap excepted", "2": "on"}
#: What `protocol.allocator: steady` sets, for a program that does not.
STEADY = "export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=67108864"


def findings(facts: Facts, costs: Costs, *, has_glibc: bool) -> list[Finding]:
    """In no order; `has_glibc` says whether the allocator is one whose thresholds can be set."""
    return [_layout(facts, costs), _allocator(facts, costs, has_glibc=has_glibc)]


def _layout(facts: Facts, costs: Costs) -> Finding:
    """Servers have a layout each; launches of a server share one."""
    what, word = "layout (ASLR)", facts.randomisation
    found = str(word) if isinstance(word, Missing) else f"randomisation {_RANDOMISATION.get(word, word)}"
    spread = costs.launches["naive S=256"]
    if isinstance(spread, Missing):
        return Finding(what=what, found=found, cost=Cost.unmeasured(spread), advice=NOTHING)
    if costs.load_on_launches:
        return Finding(what=what, found=found, cost=Cost.unmeasured(costs.load_on_launches), advice=QUIET_FIRST)
    words = (
        f"naive S=256: launches differ by {spread.between_servers:.1%} between {spread.servers} servers,"
        f" {spread.within_server:.1%} in one"
    )
    share = spread.of_server
    if spread.chance > _LEVEL:
        share, words = 0.0, f"{words}; servers do not differ beyond chance"
    cost = Cost.measured(share, words)
    seen = "to see whether it is the layout: setarch -R attnbench run CONFIG (one layout for all, lucky or not)"
    return Finding(what=what, found=found, cost=cost, advice=seen if cost.matters and word != "0" else NOTHING)


def _allocator(facts: Facts, costs: Costs, *, has_glibc: bool) -> Finding:
    """What glibc's own thresholds cost beyond those that attnbench sets, and what page faults cost under each."""
    settings = [f"{key}={value}" for key, value in facts.allocator_settings.items()]
    handled = has_glibc and "LD_PRELOAD" not in facts.allocator_settings
    pages = facts.huge_pages
    found = "; ".join([
        "glibc" if has_glibc else "not glibc: its thresholds are not set",
        *settings,
        f"transparent huge pages: {pages}",
        *(["attnbench sets its thresholds (protocol.allocator: steady)"] if handled else []),
    ])  # fmt: skip
    speeds = "; ".join(f"{name} {_speed(done)}" for name, done in costs.allocators.items())
    cost, advice = _beyond_steady(costs, f"naive S=1024: {speeds}"), NOTHING
    if handled and (cost.matters or cost.share is None):
        advice = f"in other programs: {STEADY}"
    elif not handled and cost.matters:
        advice = "env -u LD_PRELOAD attnbench run CONFIG"
    return Finding(what="allocator", found=found, cost=cost, advice=advice, handled=handled)


def _beyond_steady(costs: Costs, speeds: str) -> Cost:
    """The spread between servers under `system` thresholds, less that under `steady` ones."""
    system, steady = costs.layouts, costs.launches["naive S=256"]
    missing = next((each.reason for each in (system, steady) if isinstance(each, Missing)), costs.load_on_launches)
    if missing or isinstance(system, Missing) or isinstance(steady, Missing):
        return Cost.unmeasured(f"{missing}; {speeds}")
    words = f"servers differ by {system.between_servers:.1%} under system, {steady.between_servers:.1%} under steady; {speeds}"
    return Cost.measured(system.between_servers - steady.between_servers, words)


def _speed(done: NoiseDone | Missing) -> str:
    """Milliseconds and page faults of one call."""
    if isinstance(done, Missing) or done.counters is None or not done.calls:
        return f"({done.reason if isinstance(done, Missing) else 'no counters'})"
    faults = done.counters.minor_faults / done.calls
    return f"{statistics.median(done.times_s) * 1e3:.3g} ms, {faults:,.0f} page faults"
