"""The Hodges-Lehmann shift between two unpaired samples, with the exact interval of the rank-sum test.

Mann & Whitney 1947; Hodges & Lehmann 1963; Hollander, Wolfe & Chicken, Nonparametric Statistical Methods, sections 4.1 to 4.3.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import lru_cache

from .judgement import Effect

_TAIL = 0.025


def shift_between(base: Sequence[float], candidate: Sequence[float]) -> tuple[Effect, bool]:
    """The median of all differences candidate - base, and whether its interval is one of at least 95 %.

    Where the values are too few for one (3 and 3 are), low and high are the range of the differences.
    """
    apart = sorted(after - before for before in base for after in candidate)
    outside = _outside(len(base), len(candidate))
    cut = max(outside, 0)
    return Effect(statistics.median(apart), apart[cut], apart[-1 - cut]), outside >= 0


@lru_cache
def _outside(base: int, candidate: int) -> int:
    """How many of the smallest differences lie outside: the largest u with P(U <= u) <= 2.5 %; -1 where there is none."""
    counts = _counts(base, candidate)
    most, below, outside = _TAIL * sum(counts), 0, -1
    for ways in counts:
        below += ways
        if below > most:
            break
        outside += 1
    return outside


def _counts(base: int, candidate: int) -> list[int]:
    """How many orders of the two samples give each value of U: the coefficients of a Gaussian binomial."""
    size = base * candidate + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, base + 1):
        for u in range(size - 1, candidate + i - 1, -1):  # times 1 - q^(candidate + i)
            counts[u] -= counts[u - candidate - i]
        for u in range(i, size):  # over 1 - q^i
            counts[u] += counts[u - i]
    return counts
