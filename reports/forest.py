"""The forest plot of a gate: each effect with its interval, and the floor within which nothing is called a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ..harness.verdicts.judgement import Judgement, Verdict
from ..harness.verdicts.paired import FLOOR
from .plots import STYLE, svg_of

_COLOURS = {
    Verdict.REGRESSED: "#b3261e",
    Verdict.IMPROVED: "#1b6e3c",
    Verdict.EQUIVALENT: "#4a5568",
    Verdict.INCONCLUSIVE: "#b58900",
}
#: More rows than this make a figure that nobody reads; the table has them all.
MOST_ROWS = 60


def draw(judgements: Sequence[Judgement]) -> str:
    """The figure as SVG, the slowest candidate on top; empty where nothing has an effect."""
    shown = [each for each in judgements if each.effect is not None and each.verdict in _COLOURS]
    shown.sort(key=lambda each: abs(each.effect.shift) if each.effect else 0.0)
    shown = shown[-MOST_ROWS:]
    shown.sort(key=lambda each: each.effect.shift if each.effect else 0.0)
    if not shown:
        return ""
    with mpl.rc_context(STYLE):
        return svg_of(_figure(shown), "forest")


def _figure(shown: Sequence[Judgement]) -> Figure:
    figure = plt.figure(figsize=(9, 1.3 + 0.28 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(*(_percent(bound) for bound in (-FLOOR, FLOOR)), color="#4a5568", alpha=0.12, linewidth=0)
    axes.axvline(0, color="#4a5568", linewidth=0.8)
    for row, each in enumerate(shown):
        assert each.effect is not None
        middle, low, high = (_percent(value) for value in (each.effect.shift, each.effect.low, each.effect.high))
        error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar(middle, row, xerr=error, fmt="o", color=_COLOURS[each.verdict], markersize=4, capsize=2)
    for verdict, colour in _COLOURS.items():
        if any(each.verdict is verdict for each in shown):
            axes.plot([], [], "o", color=colour, markersize=4, label=str(verdict))
    axes.set_yticks(range(len(shown)), [each.name for each in shown], fontsize=7)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("candidate's time against base, percent (positive is slower)")
    axes.grid(axis="x", linewidth=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def _percent(log_ratio: float) -> float:
    return 100 * math.expm1(log_ratio)
