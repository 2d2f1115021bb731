"""Findings about the rest of the system: the clock that is read, interruptions, others at work, the host, and quotas."""

from __future__ import annotations

from ..measure.tasks import NoiseDone
from ..records import Counters
from .costs import Costs
from .facts import Facts
from .finding import NOTHING, QUIET_FIRST, Cost, Finding, Missing
from .processes import MOST_NAMED, Competition

#: The shortest sample of a run on a CPU.
SHORTEST_SAMPLE_S = 1e-3
#: Processors that nobody in sight explains are told from here on.
SEEN_ENOUGH = 0.1
#: Clock sources that are read without the kernel.
FAST_SOURCES = ("tsc", "arch_sys_counter")


def findings(facts: Facts, costs: Costs, competition: Competition, quota: float | None, threads: int) -> list[Finding]:
    """In no order; `quota` is what the control group allows in processors, None for no limit."""
    return [
        _timer(facts, costs),
        _interruptions(facts, costs),
        _competition(facts, costs, competition),
        _steal(facts, costs, threads),
        _throttling(costs, quota),
    ]


def _timer(facts: Facts, costs: Costs) -> Finding:
    source = facts.clock_source
    found = f"clock source: {source}"
    advice = NOTHING
    if not isinstance(source, Missing):
        found += f" of {', '.join(facts.clock_sources)}"
        better = next((each for each in FAST_SOURCES if each in facts.clock_sources), None)
        if source not in FAST_SOURCES and better:
            file = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
            advice = f"echo {better} | sudo tee {file}"
    clock = _clock(costs)
    if isinstance(clock, Missing):
        return Finding(what="timer", found=found, cost=Cost.unmeasured(clock), advice=advice)
    reading = clock.clock
    assert reading is not None
    share = reading.call_s / SHORTEST_SAMPLE_S
    words = (
        f"a reading takes {reading.call_s * 1e9:.0f} ns, {share:.3%} of the shortest sample (1 ms);"
        f" smallest step seen {reading.resolution_s * 1e9:.0f} ns"
    )
    return Finding(what="timer", found=found, cost=Cost.measured(share, words), advice=advice)


def _interruptions(facts: Facts, costs: Costs) -> Finding:
    """Gaps in the readings of a clock by one busy thread."""
    clock = _clock(costs)
    if isinstance(clock, Missing):
        return Finding(what="interruptions", found="unknown", cost=Cost.unmeasured(clock), advice=NOTHING)
    reading = clock.clock
    assert reading is not None
    share = reading.lost_s / reading.span_s
    found = (
        f"{reading.gaps / reading.span_s:.0f} gaps a second of more than 10 us,"
        f" the longest {reading.longest_gap_s * 1e3:.2g} ms"
    )
    cost = Cost.measured(share, f"one busy thread lost {share:.2%} of {reading.span_s:.1f} s")
    advice = QUIET_FIRST if costs.disturbed() else _isolate(facts)
    return Finding(what="interruptions", found=found, cost=cost, advice=advice if cost.matters else NOTHING)


def _isolate(facts: Facts) -> str:
    """Every processor but those of the first core, which is left to the system."""
    cores = () if isinstance(facts.cores, Missing) else facts.cores[1:]
    processors = ",".join(str(each) for core in cores for each in core)
    if not processors:
        return NOTHING
    return f"boot with isolcpus={processors} nohz_full={processors}, then: taskset -c {processors} attnbench run CONFIG"


def _competition(facts: Facts, costs: Costs, competition: Competition) -> Finding:
    """What the busiest others use now, and how long a thread of ours waited for a processor."""
    named = competition.processes[:MOST_NAMED]
    names = ", ".join(f"{each.name} {each.share:.0%} (pid {each.pid})" for each in named) or "no process stands out"
    if competition.unseen > SEEN_ENOUGH:
        names += f", {competition.unseen:.2f} by the kernel, or by processes that have ended or cannot be seen"
    found = (
        f"others use {competition.busy:.2f} of {competition.processors} processors: {names}; load average {facts.load}"
    )
    advice = f"wait for their end, or: sudo renice -n 19 -p {' '.join(str(each.pid) for each in named)}"
    if not named:
        advice = "look for others, outside of a container: top"
    counters = _counters(costs)
    if isinstance(counters, Missing):
        cost = Cost.unmeasured(counters)
        return Finding(what="competing load", found=found, cost=cost, advice=advice if named else NOTHING)
    if counters.run_queue_wait_s is None:
        cost = Cost.unmeasured("this kernel shows no schedstat")
        return Finding(what="competing load", found=found, cost=cost, advice=advice if named else NOTHING)
    share = counters.run_queue_wait_s / counters.span_s
    cost = Cost.measured(share, f"a thread waited for a processor during {share:.2%} of {counters.span_s:.1f} s")
    return Finding(what="competing load", found=found, cost=cost, advice=advice if cost.matters else NOTHING)


def _steal(facts: Facts, costs: Costs, threads: int) -> Finding:
    """Of the time of all threads; the kernel counts it in ticks, of 10 ms mostly."""
    found = "virtual machine" if facts.is_virtual else "no hypervisor seen"
    counters = _counters(costs)
    if isinstance(counters, Missing):
        return Finding(what="steal", found=found, cost=Cost.unmeasured(counters), advice=NOTHING)
    if counters.steal_s is None:
        why = "this platform does not show what a host takes"
        return Finding(what="steal", found=found, cost=Cost.unmeasured(why), advice=NOTHING)
    share = counters.steal_s / (counters.span_s * threads)
    words = f"the host took {counters.steal_s:.2f} s of {threads} x {counters.span_s:.1f} s, as far as it tells"
    cost = Cost.measured(share, words)
    advice = "nothing from inside: a host that is not shared" if cost.matters else NOTHING
    return Finding(what="steal", found=found, cost=cost, advice=advice)


def _throttling(costs: Costs, quota: float | None) -> Finding:
    found = "no quota" if quota is None else f"the control group allows {quota:g} processors"
    counters = _counters(costs)
    if isinstance(counters, Missing):
        return Finding(what="throttling", found=found, cost=Cost.unmeasured(counters), advice=NOTHING)
    if counters.throttled_s is None:
        why = "no control group tells of it"
        return Finding(what="throttling", found=found, cost=Cost.unmeasured(why), advice=NOTHING)
    share = counters.throttled_s / counters.span_s
    cost = Cost.measured(share, f"held back for {counters.throttled_s:.2f} of {counters.span_s:.1f} s on all threads")
    advice = (
        "docker update --cpus=N CONTAINER, or: --set protocol.threads=N, below the quota" if cost.matters else NOTHING
    )
    return Finding(what="throttling", found=found, cost=cost, advice=advice)


def _clock(costs: Costs) -> NoiseDone | Missing:
    if isinstance(costs.clock, Missing):
        return costs.clock
    return costs.clock if costs.clock.clock else Missing("the worker reported no clock")


def _counters(costs: Costs) -> Counters | Missing:
    """Of the trace on all threads."""
    done = costs.traces["all threads"]
    if isinstance(done, Missing):
        return done
    return done.counters or Missing("the worker reported no counters")
