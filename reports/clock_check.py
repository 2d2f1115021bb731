"""The event clock beside the kernels' own time, where a run asked a profiler for it: what agrees, and what disagrees why."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import pandas as pd

from ..harness.records import Launch
from ..harness.store import Run
from . import format as fmt
from . import frame
from .tidy import cells_by_id

COLUMNS = ("cell", "event clock", "kernels", "clock / kernels", "verdict")
AGREE = "agree"
#: What the two may differ by: events are recorded in the stream, so they also hold what passes between two kernels.
SLACK_SHARE, SLACK_S = 0.10, 5e-6


def table(run: Run) -> pd.DataFrame:
    """Every cell whose kernels were timed, those that disagree first."""
    launches = frame.by_cell(run)
    rows = [
        _row(cell.name, timed)
        for key, cell in cells_by_id(run).items()
        if (timed := [each for each in launches.get(key, []) if each.samples and each.kernel_time_s is not None])
    ]
    rows.sort(key=lambda row: row["verdict"] == AGREE)
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def summary(checked: pd.DataFrame) -> str:
    """How many cells agree, as the title of their table."""
    agree = int((checked["verdict"] == AGREE).sum())
    return f"The event clock beside a profiler: {agree} of {len(checked)} cells agree"


def verdict(event_s: float, kernels_s: float) -> str:
    """`agree`, or what disagrees and what that means."""
    difference = fmt.seconds(abs(event_s - kernels_s))
    if event_s > kernels_s * (1 + SLACK_SHARE) + SLACK_S:
        return f"the clock is longer by {difference}: gaps between launches, or work outside kernels"
    if kernels_s > event_s * (1 + SLACK_SHARE) + SLACK_S:
        return f"the clock is shorter by {difference}: work on another stream, or an error of the clock"
    return AGREE


def _row(name: str, timed: Sequence[Launch]) -> dict[str, str]:
    event_s = statistics.median(statistics.median(each.samples.times_s) for each in timed if each.samples)
    kernels_s = statistics.median(each.kernel_time_s for each in timed if each.kernel_time_s is not None)
    said = verdict(event_s, kernels_s)
    if said != AGREE and not all(each.samples.gap_hidden for each in timed if each.samples):
        said += "; the host could not queue the samples ahead of the device"
    return {
        "cell": name,
        "event clock": fmt.seconds(event_s),
        "kernels": fmt.seconds(kernels_s),
        "clock / kernels": fmt.ratio(event_s / kernels_s) if kernels_s else fmt.NOTHING,
        "verdict": said,
    }
