"""One row for each cell of a run: outcome, estimate, throughput, memory, accuracy, and whether it is ranked."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ..harness.records import Ceilings, CeilingsMeasured, CompositeLimit, Launch, LimitsMeasured, Outcome
from ..harness.store import Run
from ..harness.verdicts.estimate import counted, estimate, unranked_because
from .tidy import cell_facts, cells_by_id

#: Outcomes from worst to best: a cell is shown by its worst.
_WORST_FIRST = (
    Outcome.INCORRECT, Outcome.IMPLAUSIBLE, Outcome.CRASHED, Outcome.ERROR, Outcome.TIMED_OUT,
    Outcome.OUT_OF_MEMORY, Outcome.UNSUPPORTED, Outcome.OK,
)  # fmt: skip
_TENSORS = ("out", "dq", "dk", "dv")


def cells(run: Run) -> pd.DataFrame:
    """All planned cells of a run, in the configuration's order. Times in seconds, sizes in bytes."""
    launches = by_cell(run)
    rows = [cell_facts(cell) | _summary(launches.get(key, [])) for key, cell in cells_by_id(run).items()]
    frame = pd.DataFrame(rows)
    frame["flops_per_s"] = frame["flops"] / frame["time_s"]
    limits = [limit for event in run.events() if isinstance(event, LimitsMeasured) for limit in event.limits]
    for name, field in (("limit", "seconds"), ("chain", "chain_s")):
        known = _median_by_pass(limits, field)
        frame[f"{name}_s"] = [known.get(key, math.nan) for key in zip(frame["problem"], frame["pass"], strict=True)]
        frame[f"{name}_share"] = frame[f"{name}_s"] / frame["time_s"]
    return frame


def _median_by_pass(limits: Iterable[CompositeLimit], field: str) -> dict[tuple[str, str], float]:
    """A time of the limits by problem and pass, in seconds: the median over the rounds that have it."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for limit in limits:
        if (found := getattr(limit, field)) is not None:
            seconds[limit.problem, limit.passes].append(found)
    return {key: statistics.median(values) for key, values in seconds.items()}


def rows_by_id(run: Run) -> dict[str, dict[str, Any]]:
    """The rows of `cells`, by the cell's id."""
    named = [{str(key): value for key, value in row.items()} for row in cells(run).to_dict("records")]
    return {row["cell"]: row for row in named}


def by_cell(run: Run) -> dict[str, list[Launch]]:
    """The counted launches of each cell, control cells included."""
    grouped: dict[str, list[Launch]] = defaultdict(list)
    for launch in counted(run.launches()):
        grouped[launch.cell].append(launch)
    return grouped


def control_drift(run: Run) -> float | None:
    """How far apart the control cells' launches are, slowest over fastest less one; None below two launches."""
    drifts = []
    launches = by_cell(run)
    for key in run.info.control:
        timed = [each for each in (estimate([launch]) for launch in launches.get(key, [])) if each]
        if len(timed) > 1:
            drifts.append(max(each.median for each in timed) / min(each.median for each in timed) - 1)
    return max(drifts, default=None)


def ceilings(run: Run) -> Ceilings | None:
    """The ceilings of the run's last session that measured them."""
    found = [event.ceilings for event in run.events() if isinstance(event, CeilingsMeasured) and event.ceilings]
    return found[-1] if found else None


def _summary(launches: list[Launch]) -> dict[str, Any]:
    outcome = min((each.outcome for each in launches), key=_WORST_FIRST.index, default=None)
    guess = estimate(launches)
    first = next(
        (each for each in launches if each.outcome is outcome and not each.skipped), launches[0] if launches else None
    )
    memories = [each.memory for each in launches if each.memory]
    reason = unranked_because(launches)
    return {
        "outcome": str(outcome) if outcome else "not measured",
        "detail": first.detail if first else "the run ended before",
        "time_s": guess.median if guess else None,
        "low_s": guess.low if guess else None,
        "high_s": guess.high if guess else None,
        "interval": guess.interval if guess else "",
        "launches": guess.launches if guess else 0,
        "estimate": guess,
        "ranked": not reason,
        "unranked_because": reason,
        "void": sum(bool(each.void) for each in launches),
        "overhead_bytes": max((each.overhead_bytes for each in memories), default=None),
        "saved_bytes": max((each.saved_bytes for each in memories if each.saved_bytes is not None), default=None),
        "checked_share": first.checked_share if first else None,
        "backend": " / ".join(dict.fromkeys(each.backend for each in launches if each.backend)),
        "kernels": "; ".join(dict.fromkeys(kernel for each in launches for kernel in each.kernels)),
        "relative_error": _relative_error(launches),
        **{f"error_{name}": _share(launches, name) for name in _TENSORS},
    }


def _relative_error(launches: list[Launch]) -> float | None:
    """The largest RMS error of out, relative to the RMS of the truth."""
    accuracies = [each.accuracy["out"] for each in launches if "out" in each.accuracy]
    return max((each.rms_error / each.rms_reference for each in accuracies if each.rms_reference), default=None)


def _share(launches: list[Launch], name: str) -> float | None:
    """The largest share of its bound, by maximum or root mean square, that a tensor's error took."""
    shares = []
    for accuracy in (each.accuracy[name] for each in launches if name in each.accuracy):
        shares.append(accuracy.max_error / accuracy.max_bound if accuracy.max_bound else float(accuracy.max_error > 0))
        if accuracy.rms_bound:
            shares.append(accuracy.rms_error / accuracy.rms_bound)
    return max(shares, default=None)
