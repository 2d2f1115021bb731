"""Findings about the processor: its speed states, what sets its clock, cores that are shared, and threads."""

from __future__ import annotations

from ..measure.tasks import NoiseDone
from .costs import Costs, Traced
from .facts import Facts
from .finding import NOTHING, QUIET_FIRST, Cost, Finding, Missing
from .series import Trace, trace_of

_APART = "not apart from the speed states, which say what it costs"
_HOST = "nothing from inside: a machine of its own (bare metal, dedicated host), or more launches: --set protocol.launches=8"


def findings(facts: Facts, costs: Costs, threads: int) -> list[Finding]:
    """In no order."""
    return [
        _states(facts, costs),
        _governor(facts),
        _turbo(facts),
        _siblings(facts, costs),
        _threads(facts, costs, threads),
    ]


def read_trace(done: NoiseDone | Missing | None) -> Trace | Missing:
    """The statistics of a trace, or why there are none."""
    if done is None:
        return Missing("it was not asked for")
    if isinstance(done, Missing):
        return done
    return trace_of(done.times_s, done.sample_s) or Missing(f"{len(done.times_s)} samples are too few")


def _states(facts: Facts, costs: Costs) -> Finding:
    """The worse of the traces on one thread and on all."""
    asked: tuple[Traced, ...] = ("one thread", "all threads")
    traces = {name: read_trace(costs.traces.get(name)) for name in asked}
    known = {name: trace for name, trace in traces.items() if isinstance(trace, Trace)}
    calm = {name: trace for name, trace in known.items() if not costs.disturbed(name)}
    if known and not calm:
        apart = max(trace.halves for trace in known.values())
        why = f"not apart from the load; with it, the slow half of a trace takes {apart:.1%} longer than the fast half"
        return Finding(what="speed states", found="unknown", cost=Cost.unmeasured(why), advice=QUIET_FIRST)
    if not calm:
        why = str(next(each.reason for each in traces.values() if isinstance(each, Missing)))
        return Finding(what="speed states", found="unknown", cost=Cost.unmeasured(why), advice=NOTHING)
    worst = max(calm, key=lambda name: calm[name].halves)
    trace = calm[worst]
    cost = Cost.measured(
        trace.halves, f"the slow half of a trace takes {trace.halves:.1%} longer than the fast half ({worst})"
    )
    found = f"{trace.count} samples of {trace.sample_s * 1e3:.1f} ms: {trace.duration_words}"
    return Finding(
        what="speed states", found=found, cost=cost, advice=_steady_clock(facts) if cost.matters else NOTHING
    )


def _steady_clock(facts: Facts) -> str:
    """What would make the clock steady here."""
    commands = [each for each in (_governor(facts).advice, _turbo(facts).advice) if each.startswith(("sudo", "echo"))]
    if commands:
        return "; ".join(commands)
    return _HOST if facts.is_virtual else "more launches: --set protocol.launches=8"


def _governor(facts: Facts) -> Finding:
    governor = facts.governor
    if isinstance(governor, Missing):
        return Finding(what="frequency governor", found=str(governor), cost=Cost.unmeasured(_APART), advice=NOTHING)
    advice = NOTHING if governor == "performance" else "sudo cpupower frequency-set -g performance"
    return Finding(what="frequency governor", found=governor, cost=Cost.unmeasured(_APART), advice=advice)


def _turbo(facts: Facts) -> Finding:
    turbo = facts.turbo
    if isinstance(turbo, Missing):
        return Finding(what="turbo", found=str(turbo), cost=Cost.unmeasured(_APART), advice=NOTHING)
    advice = f"echo {turbo.off} | sudo tee {turbo.file}" if turbo.on else NOTHING
    return Finding(what="turbo", found="on" if turbo.on else "off", cost=Cost.unmeasured(_APART), advice=advice)


def _siblings(facts: Facts, costs: Costs) -> Finding:
    """Threads that are kept to cores of their own, against threads that the kernel places."""
    what = "SMT"
    hidden = "; a virtual machine may hide that its processors share cores of the host" if facts.is_virtual else ""
    if isinstance(facts.cores, Missing):
        return Finding(what=what, found=str(facts.cores), cost=Cost.unmeasured(facts.cores), advice=NOTHING)
    if not facts.sharing:
        found = f"{len(facts.cores)} cores, each with one processor (control: {_word(facts.smt)}){hidden}"
        return Finding(what=what, found=found, cost=Cost.unmeasured("no core is shared"), advice=NOTHING)
    found = (
        f"{len(facts.sharing)} of {len(facts.cores)} cores have several processors, such as {_listed(facts.sharing[0])}"
    )
    command = f"taskset -c {_listed(first_of_each(facts))} attnbench run CONFIG"
    free, kept = read_trace(costs.traces.get("all threads")), read_trace(costs.traces.get("pinned"))
    if isinstance(free, Missing) or isinstance(kept, Missing):
        why = free if isinstance(free, Missing) else kept
        assert isinstance(why, Missing)
        return Finding(what=what, found=found, cost=Cost.unmeasured(why), advice=command)
    words = f"samples spread {free.spread:.1%} where the kernel places threads, {kept.spread:.1%} with a core for each"
    cost = Cost.measured(free.spread - kept.spread, words)
    return Finding(what=what, found=found, cost=cost, advice=command if cost.matters else NOTHING)


def first_of_each(facts: Facts) -> tuple[int, ...]:
    """One logical processor of each core; none where no core has several."""
    return tuple(core[0] for core in facts.cores) if facts.sharing and not isinstance(facts.cores, Missing) else ()


def _threads(facts: Facts, costs: Costs, threads: int) -> Finding:
    """All threads against one: whatever disturbs any of them holds up all."""
    settings = ", ".join(f"{key}={value}" for key, value in facts.thread_settings.items()) or "no variable sets them"
    found = f"attnbench takes {threads}; {settings}"
    elsewhere = f"in other programs: export OMP_NUM_THREADS={threads}"
    one, every = read_trace(costs.traces.get("one thread")), read_trace(costs.traces.get("all threads"))
    if threads == 1 or isinstance(one, Missing) or isinstance(every, Missing):
        why = next((each for each in (one, every) if isinstance(each, Missing)), "there is one thread alone")
        return Finding(what="threads", found=found, cost=Cost.unmeasured(why), advice=NOTHING)
    words = f"samples spread {every.spread:.1%} on all {threads} threads, {one.spread:.1%} on one"
    cost = Cost.measured(every.spread - one.spread, words)
    if not cost.matters:
        advice = NOTHING if facts.thread_settings.get("OMP_NUM_THREADS") == str(threads) else elsewhere
    elif isinstance(facts.cores, Missing) or len(facts.cores) < 2:
        advice = f"--set protocol.threads={threads - 1}"
    else:
        left = tuple(core[0] for core in facts.cores[:-1])
        advice = f"leave a core to the rest: taskset -c {_listed(left)} attnbench run CONFIG"
    return Finding(what="threads", found=found, cost=cost, advice=advice)


def _listed(processors: tuple[int, ...]) -> str:
    return ",".join(map(str, processors))


def _word(fact: object) -> str:
    return "not shown" if isinstance(fact, Missing) else str(fact)
