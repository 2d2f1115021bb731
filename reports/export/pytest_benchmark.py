"""pytest-benchmark's JSON, for `pytest-benchmark compare` and what else reads it: one round for each launch.

`data` are the launches' medians, `ops` is 1/mean; what the harness says of them (median, interval, throughput, memory) is in
`extra_info`. A cell that failed, was refused or ran out of time or memory is no benchmark: it stands, with its reason, under
`attnbench.without_a_time`, which other readers pass over.
"""

from __future__ import annotations

import json
from typing import Any

from ...harness.config import load_stored
from ...harness.digest import digest_of
from ...harness.fingerprint import fingerprint
from ...harness.store import Run
from .machine_info import machine_info
from .round_statistics import VERSION, round_statistics
from .timed import Timed, Untimed, timed_cells

#: What pytest-benchmark writes where there is no repository: a run does not record one.
_NO_COMMIT = {
    "id": "unversioned",
    "time": None,
    "author_time": None,
    "dirty": False,
    "project": "attnbench",
    "branch": "(unknown)",
}


def write(run: Run) -> str:
    """The document, indented as pytest-benchmark does. Errors: `StoreError`."""
    timed, untimed = timed_cells(run)
    digest = digest_of(fingerprint(run.info.environment, run.info.versions))
    document = {
        "machine_info": machine_info(run.info.environment, run.info.versions),
        "commit_info": _NO_COMMIT,
        "benchmarks": [_benchmark(each, run, digest) for each in timed],
        "datetime": run.info.created_at,
        "version": VERSION,
        "attnbench": {
            "version": run.info.attnbench_version,
            "run": run.info.id,
            "config": run.info.name,
            "without_a_time": [_untimed(each) for each in untimed],
        },
    }
    return json.dumps(document, indent=4, allow_nan=False) + "\n"


def _benchmark(timed: Timed, run: Run, digest: str) -> dict[str, Any]:
    cell, estimate = timed.cell, timed.estimate
    return {
        "group": cell.group,
        "name": cell.name,
        "fullname": cell.name,
        "params": {"implementation": cell.arm, **cell.axes},
        "param": cell.group,
        "extra_info": {
            "cell": cell.id,
            "revision": cell.revision,
            "run": run.info.id,
            "median_s": estimate.median,
            "low_s": estimate.low,
            "high_s": estimate.high,
            "interval": estimate.interval,
            "launches": estimate.launches,
            "servers": estimate.servers,
            "flops": cell.problem.flops(cell.passes),
            "flops_per_s": timed.flops_per_s,
            **timed.facts,
            "fingerprint": digest,
        },
        "options": _options(cell.conditions.device, run),
        "stats": {**round_statistics(timed.medians_s), "data": list(timed.medians_s), "iterations": 1},
    }


def _options(device: str, run: Run) -> dict[str, Any]:
    """How the harness timed, under the names that pytest-benchmark has for it."""
    protocol = load_stored(run.info.config, tolerate_unknown=True).protocol
    return {
        "disable_gc": True,
        "timer": "cuda events" if device == "cuda" else "perf_counter_ns",
        "min_rounds": protocol.launches,
        "max_time": protocol.max_time_s,
        "min_time": protocol.min_time_s,
        "precision": None,
        "confidence": None,
        "warmup": True,
    }


def _untimed(each: Untimed) -> dict[str, str]:
    return {"name": each.cell.name, "cell": each.cell.id, "outcome": each.outcome, "detail": each.detail}
