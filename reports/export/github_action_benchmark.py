"""github-action-benchmark's `customSmallerIsBetter`: the time of each cell, for charts and alerts of a repository's workflow.

A cell that failed, was refused or ran out of time or memory is left out: a chart has a gap there, never a number.
"""

from __future__ import annotations

import json
from typing import Any

from ...harness.store import Run
from .. import format as fmt
from .timed import Timed, timed_cells

#: One unit for all cells and all times, so that a chart never changes its scale from one run to the next.
_UNIT, _PER_SECOND = "ms", 1e3
#: The action puts a name between backticks into a cell of a Markdown table.
_UNSAFE = str.maketrans({"|": "/", "`": "'", "\n": " ", "\r": " "})


def write(run: Run) -> str:
    """A list of `name, unit, value, range, extra`. Errors: `StoreError`."""
    timed, _ = timed_cells(run)
    return json.dumps([_entry(each, run) for each in timed], indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _entry(timed: Timed, run: Run) -> dict[str, Any]:
    estimate = timed.estimate
    entry = {
        "name": timed.cell.name.translate(_UNSAFE),
        "unit": _UNIT,
        "value": estimate.median * _PER_SECOND,
        "extra": "\n".join(_extra(timed, run)),
    }
    if estimate.launches > 1:
        # The action reads a number after the sign, alike on both sides; the interval itself is in `extra`.
        reach = max(estimate.high - estimate.median, estimate.median - estimate.low)
        entry["range"] = f"± {reach * _PER_SECOND:.6f}"
    return entry


def _extra(timed: Timed, run: Run) -> list[str]:
    estimate, facts = timed.estimate, timed.facts
    lines = [
        f"{estimate.interval} of {estimate.launches} launches: {fmt.interval(estimate.low, estimate.high)}",
        f"throughput: {fmt.flops_per_s(timed.flops_per_s)}",
    ]
    if "overhead_bytes" in facts:
        lines.append(f"memory overhead: {fmt.size(facts['overhead_bytes'])}")
    if facts["void_launches"]:
        lines.append(f"void launches: {facts['void_launches']}")
    return [*lines, f"cell: {timed.cell.id}", f"run: {run.info.id}"]
