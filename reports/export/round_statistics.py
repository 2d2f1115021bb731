"""What pytest-benchmark says of a benchmark's rounds, by its own definitions (pytest_benchmark/stats.py, 5.3.1)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

#: The version whose definitions these are: before 5.3, `hd15iqr` was the datum above the fence.
VERSION = "5.3.1"
#: Tukey's fences lie this many interquartile ranges beyond the quartiles.
_FENCE = 1.5


def round_statistics(data: Sequence[float]) -> dict[str, float | int | str]:
    """The fields of `stats` for at least one round, in seconds.

    `stddev` is that of a sample, 0 for one round; `ops` is 1/mean; `outliers` counts those beyond one standard deviation of
    the mean, and those beyond Tukey's fences; `ld15iqr` and `hd15iqr` are the lowest and highest round within the fences.
    """
    ordered = sorted(data)
    mean, total = statistics.mean(data), sum(data)
    stddev = statistics.stdev(data) if len(data) > 1 else 0.0
    q1, q3 = _first_quartile(ordered), -_first_quartile([-each for each in reversed(ordered)])
    low, high = q1 - _FENCE * (q3 - q1), q3 + _FENCE * (q3 - q1)
    beyond_stddev = sum(not mean - stddev <= each <= mean + stddev for each in data)
    beyond_fences = sum(not low <= each <= high for each in data)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": stddev,
        "rounds": len(data),
        "median": statistics.median(data),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": beyond_fences,
        "stddev_outliers": beyond_stddev,
        "outliers": f"{beyond_stddev};{beyond_fences}",
        "ld15iqr": next(each for each in ordered if each >= low),
        "hd15iqr": next(each for each in reversed(ordered) if each <= high),
        "ops": len(data) / total if total else 0.0,
        "total": total,
    }


def _first_quartile(ordered: Sequence[float]) -> float:
    """Method 3 of an odd count, method 2 of an even one (Wikipedia, Quartile, Computing methods)."""
    count = len(ordered)
    if count == 1:
        return ordered[0]
    if count % 2 == 0:
        return statistics.median(ordered[: count // 2])
    whole = count // 4
    if count % 4 == 1:
        return 0.25 * ordered[whole - 1] + 0.75 * ordered[whole]
    return 0.75 * ordered[whole] + 0.25 * ordered[whole + 1]
