"""Figures of a run as SVG text: time, throughput and memory against sequence length, and speed-ups as a heat map."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, NullFormatter

from ..harness.records import Ceilings
from ..impls import names
from . import format as fmt

#: Columns of one figure; a family with more is shown in several.
MOST_COLUMNS = 4
#: Problems of one heat map.
MOST_PROBLEMS = 40
#: Wong 2011, "Points of view: Color blindness", Nature Methods 8, and three more that stay apart from it in grey.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F3C8D",
    "#8C564B",
    "#7A7A7A",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Plot:
    """A figure: its title, what it shows in a sentence, and its SVG."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class _Quantity:
    """What a line figure shows against sequence length."""

    column: str
    title: str
    caption: str
    words: Callable[[float | None], str]


_TIME = _Quantity(
    "time_s", "Time", "Median of launch medians for one call; bars are the intervals. Lower is better.", fmt.seconds
)
_RATE = _Quantity("flops_per_s", "Throughput", "Exact floating-point operations over time; the dashed line is the best "
                  "matrix product of torch in that dtype, which a kernel may beat by computing in another. "
                  "Higher is better.", fmt.flops_per_s)  # fmt: skip
_MEMORY = _Quantity(
    "overhead_bytes", "Memory overhead", "Peak bytes beyond inputs and outputs. Lower is better.", fmt.size
)


def all_plots(cells: pd.DataFrame, ceilings: Ceilings | None, baseline: str | None = None) -> list[Plot]:
    """Every figure that the run's ranked cells allow."""
    ranked, weighed = cells[cells["ranked"]], cells[cells["outcome"] == "OK"]
    plots = [
        line_plot(part, quantity, ceilings, words)
        for quantity, shown in ((_TIME, ranked), (_RATE, ranked), (_MEMORY, weighed))  # memory alone is not ranked
        for words, part in _parts(_families(shown[shown[quantity.column].notna()]))
    ]
    return [*plots, *speedup_plots(ranked, baseline)]


def line_plot(family: pd.DataFrame, quantity: _Quantity, ceilings: Ceilings | None, words: str) -> Plot:
    """One quantity against sequence length for a family of problems: columns dtype and mask, rows passes."""
    columns = _columns(family)
    rows, arms = _ordered(family["pass"]), _ordered(family["arm"])
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows), len(columns), squeeze=False, sharex=True, sharey="row",
            figsize=(2.4 + 2.3 * len(columns), 0.9 + 2.2 * len(rows)), layout="constrained",
        )  # fmt: skip
        for row, passes in enumerate(rows):
            for column, (dtype, mask) in enumerate(columns):
                part = family[(family["pass"] == passes) & (family["dtype"] == dtype) & (family["mask"] == mask)]
                axis = axes[row][column]
                _lines(axis, part, quantity, arms)
                if quantity is _RATE and ceilings and dtype in ceilings.gemm_flops_per_s and not part.empty:
                    axis.axhline(ceilings.gemm_flops_per_s[dtype], color="#555555", linestyle="--", linewidth=1)
                if row == 0:
                    axis.set_title(f"{dtype}, {mask}", fontsize=10)
                if column == 0:
                    axis.set_ylabel(passes.replace("_", " + "))
                if part.empty:
                    axis.text(
                        0.5,
                        0.5,
                        "nothing to draw",
                        transform=axis.transAxes,
                        ha="center",
                        color="#777777",
                        fontsize=8,
                    )
                if row == len(rows) - 1:
                    axis.set_xlabel("sequence length" if _is_square(family) else "keys")
        _format_axes(axes, family, quantity)
        _legend(figure, family)
        name = _slug(f"{quantity.column}-{words}")
        return Plot(name, f"{quantity.title}: {words}", quantity.caption, svg_of(figure, name))


def speedup_plots(ranked: pd.DataFrame, baseline: str | None) -> list[Plot]:
    """Speed-up over a baseline arm, a heat map a pass: rows problems, columns arms."""
    arms = _ordered(ranked["arm"])
    if not arms:
        return []
    chosen = baseline if baseline in arms else next((each for each in ("sdpa", "naive") if each in arms), arms[0])
    plots = []
    for (passes, conditions), group in ranked.groupby(["pass", "conditions"], sort=False):
        times = group.pivot_table(index="problem", columns="arm", values="time_s", sort=False, observed=True)
        if chosen not in times or times.shape[1] < 2:
            continue
        speedups = times.rdiv(times[chosen], axis=0).dropna(axis=0, how="all")
        columns = [arm for arm in arms if arm in speedups and speedups[arm].notna().any()]
        left_out = max(0, len(speedups) - MOST_PROBLEMS)
        plots.append(
            _heat_map(speedups[columns].head(MOST_PROBLEMS), f"{passes} {conditions}".strip(), chosen, left_out)
        )
    return plots


def _heat_map(speedups: pd.DataFrame, passes: str, baseline: str, left_out: int) -> Plot:
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        height = 1.3 + 0.3 * len(speedups)
        figure, axis = plt.subplots(figsize=(4.6 + 0.95 * speedups.shape[1], height))
        logs = np.log2(speedups.astype(float))
        reach = max(1.0, float(np.nanmax(np.abs(np.asarray(logs)))))
        text = speedups.map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
        sns.heatmap(
            logs, ax=axis, annot=text, fmt="", cmap="PuOr", center=0, vmin=-reach, vmax=reach, linewidths=1,
            annot_kws={"fontsize": 8}, cbar=False,
        )  # fmt: skip
        # Only now: seaborn draws while the long labels of the rows are not there yet, which the layout cannot fit.
        figure.set_layout_engine("constrained")
        axis.set(xlabel="", ylabel="")
        axis.tick_params(axis="x", rotation=30, length=0)
        axis.tick_params(axis="y", rotation=0, length=0, labelsize=8)
        plt.setp(axis.get_xticklabels(), ha="right")
        more = f" {left_out} more problems are in the table of results." if left_out else ""
        caption = f"How many times as fast as {baseline}; above 1 is faster. An empty field has no ranked time.{more}"
        name = _slug(f"speedup-{passes}")
        return Plot(name, f"Speed-up over {baseline}: {passes.replace('_', ' + ')}", caption, svg_of(figure, name))


def _families(ranked: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Problems that differ in sequence length, dtype, mask and pass alone, with at least two lengths."""
    keyed = ranked.assign(length=_length(ranked), decode=ranked["seq_q"] != ranked["seq_kv"])
    families = []
    for key, family in keyed.groupby(["batch", "heads_q", "heads_kv", "head_dim", "conditions", "decode"], sort=False):
        if family["length"].nunique() < 2:
            continue
        batch, heads_q, heads_kv, head_dim, conditions, decode = cast("tuple[int, int, int, int, str, bool]", key)
        words = f"batch {batch}, heads {fmt.pair(heads_q, heads_kv)}, head dim {head_dim}"
        queries = sorted(family["seq_q"].unique())
        words += f", {fmt.pair(queries[0], queries[-1])} queries" if decode else ""
        families.append((words + (f", {conditions}" if conditions else ""), family))
    return families


def _parts(families: Iterable[tuple[str, pd.DataFrame]]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each family, or what a figure of it can show; the words of a part say which."""
    for words, family in families:
        columns = _columns(family)
        parts = [columns[first : first + MOST_COLUMNS] for first in range(0, len(columns), MOST_COLUMNS)]
        pairs = pd.MultiIndex.from_frame(family[["dtype", "mask"]])
        for number, part in enumerate(parts, start=1):
            which = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
            yield words + which, family[pairs.isin(part)]


def _columns(family: pd.DataFrame) -> list[tuple[str, str]]:
    """The (dtype, mask) pairs of a family, the masks of a dtype side by side."""
    dtypes = _ordered(family["dtype"])
    pairs = dict.fromkeys(zip(family["dtype"], family["mask"], strict=True))
    return sorted(pairs, key=lambda pair: dtypes.index(pair[0]))


def _length(cells: pd.DataFrame) -> pd.Series:
    return cells["seq_kv"]


def _is_square(family: pd.DataFrame) -> bool:
    return bool((family["seq_q"] == family["seq_kv"]).all())


def _lines(axis: Any, part: pd.DataFrame, quantity: _Quantity, arms: Sequence[str]) -> None:
    for place, arm in enumerate(arms):
        line = part[part["arm"] == arm].sort_values("length")
        colour, marker = _look(arm)
        axis.plot(
            line["length"], line[quantity.column], color=colour, marker=marker, linewidth=1.5, alpha=0.9,
            markersize=max(4.0, 7.0 - 0.7 * place),  # so that of arms that tie the lower one still shows
        )  # fmt: skip
        if quantity is _TIME:
            spread = np.vstack([line["time_s"] - line["low_s"], line["high_s"] - line["time_s"]]).astype(float)
            axis.errorbar(
                line["length"],
                line["time_s"],
                yerr=spread.clip(min=0),
                color=colour,
                fmt="none",
                capsize=2,
                linewidth=1,
            )


def _format_axes(axes: Any, family: pd.DataFrame, quantity: _Quantity) -> None:
    lengths = sorted(family["length"].unique())
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths, [f"{each:,}" for each in lengths], rotation=0 if len(lengths) < 5 else 40, fontsize=8)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity.words(value)))
        axis.yaxis.set_minor_formatter(_minor_labels(axis, quantity))
        axis.tick_params(axis="y", which="both", labelsize=8)


def _minor_labels(axis: Any, quantity: _Quantity) -> Formatter:
    """2 and 5 of each decade are labelled where a decade alone would say too little, and all where these would."""
    low, high = axis.get_ylim()
    reach = high / max(low, 1e-300)
    if reach >= 20:
        return NullFormatter()
    labelled = (2, 5) if reach >= 4 else range(2, 10)
    return FuncFormatter(lambda value, _: quantity.words(value) if _leading_digit(value) in labelled else "")


def _leading_digit(value: float) -> float:
    return float(round(value / 10 ** np.floor(np.log10(value)), 6)) if value > 0 else 0.0


def _legend(figure: Figure, family: pd.DataFrame) -> None:
    handles = []
    for arm in _ordered(family["arm"]):
        colour, marker = _look(arm)
        handles.append(mpl.lines.Line2D([], [], color=colour, marker=marker, markersize=5, label=arm))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)


def _ordered(arms: Sequence[str] | pd.Series) -> list[str]:
    return list(dict.fromkeys(arms))


def _look(arm: str) -> tuple[str, str]:
    """One colour and marker an arm, the same in all figures: by its place among all names, a plugin's by its own letters."""
    known = [name for name in names() if not name.startswith("fake_")]
    name = arm.split("[", maxsplit=1)[0]
    place = known.index(name) if name in known else sum(name.encode())
    place += 3 if "[" in arm else 0
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]


def svg_of(figure: Figure, name: str) -> str:
    """The figure as an `svg` element whose ids are its own on a page of many."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return re.sub(r"url\(#", f"url(#{name}-", text)


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
