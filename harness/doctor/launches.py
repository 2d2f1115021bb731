"""How far apart launches of identical code lie, and the smallest slowdown that a gate could then see."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from random import Random

from ..verdicts import paired
from .finding import LaunchSpread, Missing

#: A gate's pairs, and the difference below which it reports nothing, as a share.
PAIRS, FLOOR = paired.CONFIRM_PAIRS, math.expm1(paired.FLOOR)
#: Half-width of a 95 % Hodges-Lehmann interval of n normal differences, in sd / sqrt(n): Student's t of 15 degrees, 2.13.
HALF_WIDTHS = 2.1
FORMULA = (
    f"smallest slowdown = {FLOOR:.0%} floor + {HALF_WIDTHS} x sd of a pair / sqrt({PAIRS}), found about every second time"
    "; sd of a pair: of log(next server / this server), no code changed"
)
FEWEST_SERVERS = 2
DEALS = 1000


def spread_of(servers: Sequence[Sequence[float]]) -> LaunchSpread | Missing:
    """Of seconds by server, in order, each server the same count of launches; `Missing` below two servers.

    Launches of a server are compared with those that came as early in the next one, as a gate's pairs are.
    """
    count = min(map(len, servers), default=0)
    if len(servers) < FEWEST_SERVERS or count == 0:
        return Missing(f"launches of {len(servers)} servers do not show how servers differ; at least 2 do")
    logs = [[math.log(each) for each in server[:count]] for server in servers]
    places = list(zip(*logs, strict=True))
    pair = _root_mean((after - before) ** 2 for place in places for before, after in itertools.pairwise(place))
    within = _root_mean(statistics.variance(server) for server in logs) if count > 1 else 0.0
    return LaunchSpread(
        servers=len(servers),
        launches_per_server=count,
        median_s=statistics.median(each for server in servers for each in server),
        within_server=within,
        between_servers=_root_mean(statistics.variance(place) for place in places),
        of_server=math.sqrt(max(0.0, _variance_of_means(logs) - within**2 / count)) if count > 1 else 0.0,
        chance=_chance(logs) if count > 1 else 1.0,
        pair=pair,
        smallest_slowdown=smallest_slowdown(pair),
    )


def smallest_slowdown(pair: float) -> float:
    """What `PAIRS` pairs of this standard deviation can tell from the floor, as a share."""
    return FLOOR + HALF_WIDTHS * pair / math.sqrt(PAIRS)


def summary_of(spreads: dict[str, LaunchSpread]) -> str:
    """One line: how far apart launches lie, and what a gate could see."""
    if not spreads:
        return "no launches were measured, so nothing is known of what a gate could see"
    apart = "; ".join(
        f"{work} {each.within_server:.1%} in one server, {each.between_servers:.1%} between {each.servers} servers"
        for work, each in spreads.items()
    )
    seen = " and ".join(f"{each.smallest_slowdown:.1%} ({work})" for work, each in spreads.items())
    return f"launches of identical code (sd): {apart}; a gate of {PAIRS} pairs sees a slowdown from {seen} on"


def _chance(servers: Sequence[Sequence[float]]) -> float:
    """How often servers differ as much where launches are dealt out to them anew: a permutation test, seeded."""
    seen, size = _variance_of_means(servers), len(servers[0])
    launches, dealer, as_far = [each for server in servers for each in server], Random(0), 0
    for _ in range(DEALS):
        dealer.shuffle(launches)
        dealt = [launches[at : at + size] for at in range(0, len(launches), size)]
        as_far += _variance_of_means(dealt) >= seen
    return (1 + as_far) / (1 + DEALS)


def _variance_of_means(servers: Sequence[Sequence[float]]) -> float:
    return statistics.variance(statistics.fmean(server) for server in servers)


def _root_mean(values: Iterable[float]) -> float:
    return math.sqrt(statistics.fmean(values))
