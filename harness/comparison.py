"""Two stored runs beside each other: how their environments differ, and what is said of each cell."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from ..impls import choices, get
from .config import ConfigError
from .fingerprint import Difference, differences, fingerprint, torch_facts
from .records import RunInfo
from .store import Run
from .verdicts.compare import Judged, judge
from .verdicts.standing import Side

_GATE = "attnbench gate {config} --base REV --candidate REV"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `is_refused` where no time of the run may be compared with the baseline's."""

    base: RunInfo
    candidate: RunInfo
    baseline: str
    differences: tuple[Difference, ...]
    judged: Judged
    is_refused: bool = False

    @property
    def instead(self) -> str:
        """The command that measures both sides on this machine."""
        return _GATE.format(config=self.candidate.config_source)


def compare_runs(base: Run, candidate: Run) -> Comparison:
    """Judge two runs whatever differs between their environments. Errors: `StoreError`."""
    differ = tuple(differences(_fingerprint(base), _fingerprint(candidate)))
    return Comparison(base.info, candidate.info, "", differ, judge(_side(base), _side(candidate), {}))


def compare_with_baseline(name: str, base: Run, candidate: Run, factors: Collection[str]) -> Comparison:
    """Judge a run against a baseline where the strict fingerprint is equal but for the factor under test.

    That is the distribution which provides a cell's implementation, or else `factors`.
    Errors: `StoreError`, `ConfigError` for a factor that neither run knows.
    """
    _refuse_unknown(factors, {*base.info.versions, *candidate.info.versions})
    find = partial(differences, _fingerprint(base), _fingerprint(candidate))
    shared = {cell.id for cell in base.info.cells}
    names = dict.fromkeys(cell.implementation for cell in candidate.info.cells if cell.id in shared)
    found = {each: find(factors or provider(each)) for each in names or ("",)}
    differ = tuple(dict.fromkeys(difference for each in found.values() for difference in each))
    barred = {each: _barred(different) for each, different in found.items() if different}
    judged = judge(_side(base), _side(candidate), barred)
    return Comparison(base.info, candidate.info, name, differ, judged, is_refused=len(barred) == len(found))


def provider(implementation: str) -> tuple[str, ...]:
    """The distribution that provides an implementation; none where it is not known here."""
    try:
        return (get(implementation).package,)
    except Exception:  # noqa: BLE001 - a plugin that is not imported, or fails in its own way, exempts nothing
        return ()


def _fingerprint(run: Run) -> dict[str, object]:
    return fingerprint(run.info.environment, run.info.versions, torch_facts(run.events()))


def _side(run: Run) -> Side:
    return Side.of(run.info.cells, run.info.control, run.launches())


def _barred(different: Collection[Difference]) -> str:
    return f"measured under another environment: {', '.join(each.field for each in different)}"


def _refuse_unknown(factors: Collection[str], known: Collection[str]) -> None:
    for factor in factors:
        if factor not in known:
            raise ConfigError(f"unknown factor {factor!r}{choices(factor, sorted(known), 'recorded versions')}")
