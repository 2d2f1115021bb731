"""How a cell stands in one of two runs that are compared: timed, failed, or why there is no time."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..cell import Cell
from ..records import FAILURES, Launch, Outcome
from .estimate import counted, unranked_because


@dataclass(frozen=True)
class Standing:
    """A cell and its launches that count. A run that has no such cell has none, and keeps of a control cell the id alone."""

    cell: Cell | None = None
    launches: tuple[Launch, ...] = ()

    @cached_property
    def server_medians_s(self) -> tuple[float, ...]:
        """One time a server, the median of its launches': only across servers are launches independent."""
        times: dict[str, list[float]] = defaultdict(list)
        for launch in self.launches:
            if launch.samples is not None and launch.outcome is Outcome.OK:
                times[launch.server].append(statistics.median(launch.samples.times_s))
        return tuple(statistics.median(each) for each in times.values())

    @cached_property
    def why_untimed(self) -> str:
        """Why there is no time to compare; empty where there is."""
        if not self.launches:
            return "not measured" if self.cell else "not in the sweep"
        reason = unranked_because(self.launches)
        if not reason and min(self.server_medians_s) <= 0:
            return "not timed: a launch took no time at all"
        return reason

    @property
    def is_timed(self) -> bool:
        """Whether every launch was OK and there is a time."""
        return not self.why_untimed

    @property
    def ended(self) -> Launch | None:
        """The launch that kept the cell from being ranked: one that failed if any did, else one that was not OK."""
        ends = [each for each in self.launches if each.outcome is not Outcome.OK]
        return next((each for each in ends if each.outcome in FAILURES), ends[0] if ends else None)

    @property
    def backend(self) -> str:
        """What ran, where implementations say."""
        return " / ".join(dict.fromkeys(each.backend for each in self.launches if each.backend))


@dataclass(frozen=True)
class Side:
    """One of the two runs: where each of its cells stands, and its control cells; both by id."""

    cells: dict[str, Standing]
    control: dict[str, Standing]

    @classmethod
    def of(cls, cells: Iterable[Cell], control: Iterable[str], launches: Iterable[Launch]) -> Side:
        """From the plan and all launches of a run."""
        by_cell: dict[str, list[Launch]] = defaultdict(list)
        for launch in counted(launches):
            by_cell[launch.cell].append(launch)
        planned = {cell.id: Standing(cell, tuple(by_cell[cell.id])) for cell in cells}
        return cls(planned, {key: Standing(None, tuple(by_cell[key])) for key in control})


def pairs(base: Side, candidate: Side) -> Iterator[tuple[Standing, Standing]]:
    """Every cell of either side with its counterpart: of the same id, else the only other one of the same name."""
    moved = _moved(base.cells, candidate.cells)
    for key, standing in base.cells.items():
        yield standing, candidate.cells.get(moved.get(key, key), Standing())
    known = {*base.cells, *moved.values()}
    yield from ((Standing(), standing) for key, standing in candidate.cells.items() if key not in known)


def what_moved(base: Cell, candidate: Cell) -> str:
    """What differs between two cells of one name: `revision: 1 -> 2`."""
    before, after = dict(_flat("", base.model_dump(mode="json"))), dict(_flat("", candidate.model_dump(mode="json")))
    changes = [
        f"{key}: {before.get(key, 'not there')} -> {after.get(key, 'not there')}"
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]
    return ", ".join(changes)


def _moved(base: Mapping[str, Standing], candidate: Mapping[str, Standing]) -> dict[str, str]:
    """From ids of the base alone to ids of the candidate alone, where exactly one cell of each has that name."""
    here, there = _alone(base, candidate), _alone(candidate, base)
    return {key: there[name] for name, key in here.items() if name in there}


def _alone(one: Mapping[str, Standing], other: Mapping[str, Standing]) -> dict[str, str]:
    """The ids that the other side lacks, by names that only one of them has."""
    names = {key: standing.cell.name for key, standing in one.items() if key not in other and standing.cell}
    counts = Counter(names.values())
    return {name: key for key, name in names.items() if counts[name] == 1}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value
