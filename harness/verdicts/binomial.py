"""Exact bounds of a rate from counts (Clopper & Pearson, Biometrika 26, 1934)."""

from __future__ import annotations

import math

_STEPS = 60  # halvings: far beyond what is printed


def upper_bound(found: int, of: int, level: float = 0.95) -> float:
    """The largest rate at which so few would still be found in 5 % of cases; 1 where nothing was tried."""
    if found >= of:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _at_most(found, of, middle) > 1 - level:
            low = middle
        else:
            high = middle
    return high


def lower_bound(found: int, of: int, level: float = 0.95) -> float:
    """The smallest rate at which so many would still be found in 5 % of cases; 0 where nothing was tried."""
    return 1 - upper_bound(of - found, of, level)


def _at_most(found: int, of: int, rate: float) -> float:
    """P(X <= found) for X binomial."""
    return sum(math.comb(of, k) * rate**k * (1 - rate) ** (of - k) for k in range(found + 1))
