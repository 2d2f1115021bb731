"""The exact signed-rank test and the Hodges-Lehmann shift, for a few dozen paired differences.

Wilcoxon 1945; Hollander, Wolfe & Chicken, Nonparametric Statistical Methods, sections 3.1 to 3.3. Pure Python: under a
millisecond, where importing a library that has it takes most of a second.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement

#: Below this many differences no interval has 95 %: 2 * 2^-5 is more than 5 %.
FEWEST_FOR_INTERVAL = 6
_TAIL = 0.025


@dataclass(frozen=True)
class Shift:
    """The median of all pairwise means, and the interval of at least 95 % that belongs to it."""

    shift: float
    low: float
    high: float


def p_above(values: Sequence[float], floor: float) -> float:
    """The one-sided p-value that the values lie above the floor: P(T >= t) where every sign is a fair coin.

    Ties share their mean rank, and the distribution is that of the ranks as they are. A value on the floor keeps its rank
    and counts as below.
    """
    excess = [value - floor for value in values]
    ranks = _doubled_ranks([abs(each) for each in excess])
    statistic = sum(rank for rank, each in zip(ranks, excess, strict=True) if each > 0)
    return _tail(tuple(sorted(ranks)), statistic)


def shift_of(values: Sequence[float]) -> Shift:
    """The shift with its interval. Errors: `ValueError` below `FEWEST_FOR_INTERVAL` values."""
    if len(values) < FEWEST_FOR_INTERVAL:
        raise ValueError(f"{len(values)} values have no interval of 95 %; at least {FEWEST_FOR_INTERVAL} do")
    means = sorted((a + b) / 2 for a, b in combinations_with_replacement(values, 2))
    cut = _cut(len(values))
    return Shift(statistics.median(means), means[cut], means[-1 - cut])


def _doubled_ranks(sizes: Sequence[float]) -> list[int]:
    """Twice the rank of each size, so that the mean rank of ties is whole."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    ranks = [0] * len(sizes)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and sizes[order[end + 1]] == sizes[order[start]]:
            end += 1
        for at in order[start : end + 1]:
            ranks[at] = start + end + 2
        start = end + 1
    return ranks


@lru_cache(maxsize=4096)
def _tail(ranks: tuple[int, ...], statistic: int) -> float:
    """P(sum of the ranks with a positive sign >= statistic)."""
    return sum(_counts(ranks)[statistic:]) / float(2 ** len(ranks))


@lru_cache(maxsize=1024)
def _counts(ranks: tuple[int, ...]) -> tuple[int, ...]:
    """How many of all choices of signs give each sum."""
    counts = [1] + [0] * sum(ranks)
    for rank in ranks:
        for total in range(len(counts) - 1, rank - 1, -1):
            counts[total] += counts[total - rank]
    return tuple(counts)


@lru_cache
def _cut(count: int) -> int:
    """How many of the smallest means lie outside: the largest t with P(T <= t) <= 2.5 %."""
    below, cut = 0, -1
    for ways in _counts(tuple(range(1, count + 1))):
        below += ways
        if below > _TAIL * 2**count:
            break
        cut += 1
    return cut
