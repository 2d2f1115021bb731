"""A proof as something read: false alarms and power with exact bounds, by machine and load, and what simulation adds."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from ..harness.gate.proof import is_whole, judge_sweep
from ..harness.gate.proof_records import INJECTED, FirstFound, ProofSweep
from ..harness.gate.simulation import Noise, Simulated, measured_noise, modelled_noise, simulate
from ..harness.verdicts.binomial import lower_bound, upper_bound
from ..harness.verdicts.judgement import Verdict
from ..harness.verdicts.pair import spread
from .document import Document

_TOLD = (Verdict.REGRESSED, Verdict.INCONCLUSIVE, Verdict.EQUIVALENT, Verdict.IMPROVED)


def document(sweeps: Sequence[ProofSweep], first: Sequence[FirstFound] = (), simulated: int = 0) -> Document:
    """Everything that the stored sweeps prove, those that ended with what was `first` found, and simulated ones."""
    whole = [each for each in sweeps if is_whole(each)]
    tables = {"Sweeps of identical code": alarms(whole), "Injected slowdowns, one cell of the sweep": power(whole)}
    if first:
        tables["Slowdowns that end a sweep, by --exit-first"] = ends(first)
    if simulated:
        tables["Simulated sweeps of 8 cells"] = simulation(sweeps, simulated)
    return Document("Proof of the gate", (_words(sweeps, whole), "bounds are exact, one-sided, at 95 %"), tables)


def _words(sweeps: Sequence[ProofSweep], whole: Sequence[ProofSweep]) -> str:
    dates = sorted({each.date for each in whole})
    span = " to ".join({dates[0]: 0, dates[-1]: 0}) if dates else "none yet; measure some with --sweeps"
    other = len(sweeps) - len(whole)
    words = f"; {other} more lack pairs that the rule of today asks for, and are not counted" if other else ""
    return f"{len(whole)} sweep{'' if len(whole) == 1 else 's'}, {span}{words}"


def alarms(sweeps: Iterable[ProofSweep]) -> pd.DataFrame:
    """By machine, load and threads: sweeps with a false alarm, and the rate that is excluded."""
    rows = []
    for (machine, load, threads), group in _grouped(sweeps).items():
        judged = [judge_sweep(each, 0) for each in group]
        found = sum(bool(each.alarms) for each in judged)
        cells = len(group[0].same)
        void = sum(each.void for each in group) / sum(each.launches for each in group)
        rows.append(
            (machine, load, threads, f"{found} of {len(group)}", f"< {upper_bound(found, len(group)):.1%}",
             sum(each.is_contaminated for each in judged), cells, f"{_deviation(group):.2%}", f"{void:.0%}",
             _seconds(group, 0))
        )  # fmt: skip
    columns = ["machine", "load", "threads", "sweeps with an alarm", "rate", "contaminated", "cells", "a pair's deviation",
               "void launches", "a sweep alone takes"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def power(sweeps: Iterable[ProofSweep]) -> pd.DataFrame:
    """By machine, load, threads and slowdown: what was said of the injected cell."""
    rows = []
    for (machine, load, threads), group in _grouped(sweeps).items():
        for percent in (each for each in INJECTED if each):
            said = Counter(judge_sweep(each, percent).injected for each in group)
            found = said[Verdict.REGRESSED]
            rows.append(
                (machine, load, threads, f"+{percent} %", f"{found} of {len(group)}", f"> {lower_bound(found, len(group)):.0%}",
                 *(said[verdict] for verdict in _TOLD[1:]), _seconds(group, percent))
            )  # fmt: skip
    columns = [
        "machine",
        "load",
        "threads",
        "slower by",
        "found",
        "rate",
        *(str(verdict) for verdict in _TOLD[1:]),
        "a sweep alone takes",
    ]
    return pd.DataFrame(rows, columns=columns)


def ends(sweeps: Iterable[FirstFound]) -> pd.DataFrame:
    """By machine, load, threads and slowdown: how often the slower cell was found, how soon, and false alarms."""
    groups: dict[tuple[str, str, int, int, int], list[FirstFound]] = {}
    for each in sweeps:
        groups.setdefault((each.machine, each.load, each.threads, each.cells, each.percent), []).append(each)
    rows = []
    for (machine, load, threads, cells, percent), group in groups.items():
        found = sum(each.verdict is Verdict.REGRESSED for each in group)
        seconds, alarms = [each.seconds for each in group], sum(bool(each.alarms) for each in group)
        rows.append(
            (machine, load, threads, cells, f"+{percent} %", f"{found} of {len(group)}",
             f"> {lower_bound(found, len(group)):.0%}", f"{alarms} of {len(group)}", f"{statistics.median(seconds):.0f} s",
             f"{max(seconds):.0f} s", statistics.median(each.servers for each in group))
        )  # fmt: skip
    columns = ["machine", "load", "threads", "cells", "slower by", "found", "rate", "sweeps with an alarm", "median", "slowest",
               "pairs of servers"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def simulation(sweeps: Sequence[ProofSweep], count: int) -> pd.DataFrame:
    """The rule on drawn noise: alarms, coverage and symmetry; and how often one slower cell is found."""
    noises: dict[str, Noise] = {"two speed states, straddling pairs, heavy tails": modelled_noise}
    for (machine, load, threads), group in _grouped(sweeps).items():
        noise = measured_noise(group)
        if noise is not None:
            noises[f"as measured: {machine}, {load}, threads={threads}"] = noise
    rows = []
    for name, noise in noises.items():
        rows.append(_simulated(name, simulate(noise, count)))
        rows += [
            _simulated(name, simulate(noise, max(1, count // 10), math.log1p(percent / 100))) for percent in (3, 5, 10)
        ]
    columns = [
        "noise",
        "slower by",
        "sweeps with an alarm",
        "rate",
        "intervals that cover",
        "not mirrored",
        "found",
        "pairs after the screen",
    ]
    return pd.DataFrame(rows, columns=columns)


def _simulated(name: str, found: Simulated) -> tuple[object, ...]:
    percent = round(100 * math.expm1(found.slower))
    power = f"{found.verdicts.get(Verdict.REGRESSED, 0) / found.sweeps:.1%}" if percent else ""
    return (name, f"+{percent} %" if percent else "nothing", f"{found.alarms} of {found.sweeps}",
            f"< {upper_bound(found.alarms, found.sweeps):.2%}", f"{found.covering / max(1, found.intervals):.1%}",
            found.unmirrored, power, f"{found.fresh_pairs / found.sweeps:.1f}")  # fmt: skip


def _seconds(sweeps: Iterable[ProofSweep], percent: int) -> str:
    """The median of what a sweep takes alone; empty where none of them tells."""
    seconds = [each for each in (sweep.seconds_with(percent) for sweep in sweeps) if each is not None]
    return f"{statistics.median(seconds):.0f} s" if seconds else ""


def _grouped(sweeps: Iterable[ProofSweep]) -> dict[tuple[str, str, int], list[ProofSweep]]:
    groups: dict[tuple[str, str, int], list[ProofSweep]] = {}
    for each in sweeps:
        groups.setdefault((each.machine, each.load, each.threads), []).append(each)
    return groups


def _deviation(sweeps: Iterable[ProofSweep]) -> float:
    """The usual standard deviation of a pair's effect, told from the median absolute deviation, over cells and sweeps."""
    screens = [kept.series.screen for sweep in sweeps for kept in sweep.same.values()]
    return statistics.median(map(spread, screens))
