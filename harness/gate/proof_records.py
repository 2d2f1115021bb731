"""What is kept of a proof's sweeps: their launches in a compact form, one sweep a line, so that figures accumulate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..store import StoreError, append_line, cannot
from ..verdicts.judgement import Verdict
from ..verdicts.pair import Pair, Series

#: The injected slowdowns, in percent of work; 0 is the sweep of identical code.
INJECTED = (0, 3, 5, 10)
Load = Literal["quiet", "toggling"]
FIRST_FOUND = "first-found"
#: A pair as it is kept: its effect and its typical effect (logarithms), and the seconds of base and candidate.
_Numbers = tuple[float, float, float, float]
_Of = TypeVar("_Of", bound=BaseModel)


class Kept(BaseModel):
    """The pairs of one comparison: of the screen, and after it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    screen: tuple[_Numbers, ...]
    after: tuple[_Numbers, ...] = ()

    @classmethod
    def of(cls, series: Series) -> Kept:
        """Keep a series."""
        return cls(screen=tuple(map(_numbers, series.screen)), after=tuple(map(_numbers, series.after)))

    @property
    def series(self) -> Series:
        """The series again."""
        return Series(tuple(map(_pair, self.screen)), tuple(map(_pair, self.after)))


class _Sweep(BaseModel):
    """When, where and of what a sweep was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    at: str
    machine: str
    fingerprint: str
    attnbench: str
    load: Load
    threads: int
    seed: int


class ProofSweep(_Sweep):
    """One sweep of a proof: what was compared with itself, and the injected slowdowns that rode along, by percent.

    `twin` is the cell that the injected ones are a slower copy of: each of them takes its place in a sweep of as many cells.
    """

    # 1: pairs of whole launches; 2: by a rule that screened by 8 pairs alone; 3: fresh pairs by servers of their own.
    schema_version: Literal[3, 4] = Field(alias="schema")
    seconds: float
    seconds_by_percent: dict[int, float] = {}
    launches: int
    void: int
    same: dict[str, Kept]
    twin: str
    injected: dict[int, Kept]
    control: Kept

    def seconds_with(self, percent: int) -> float | None:
        """What the sweep with so many percent would have taken alone; None where servers were started as they are no more."""
        return self.seconds_by_percent.get(percent) if self.schema_version == 4 else None

    @property
    def date(self) -> str:
        """The day it was measured, in UTC."""
        return self.at[:10]

    def family(self, percent: int) -> dict[str, Series]:
        """The sweep of so many cells in which one is slower by so many percent of work; none is at 0."""
        found = {key: kept.series for key, kept in self.same.items() if not percent or key != self.twin}
        return found | ({INJECTED_KEY: self.injected[percent].series} if percent else {})


INJECTED_KEY = "injected"


class FirstFound(_Sweep):
    """A sweep in which one cell is slower by so many percent of work, and that ended once that was shown.

    `seconds` are those of the whole: from the configuration that is read to the verdict. `servers` counts pairs of servers.
    """

    schema_version: Literal[1] = Field(alias="schema")
    cells: int
    percent: int
    verdict: Verdict
    alarms: int
    seconds: float
    servers: int


def append_to(folder: Path, name: str, record: ProofSweep | FirstFound) -> Path:
    """Append to a machine's file; what was found first has a folder of its own. Errors: `StoreError`."""
    folder = folder / FIRST_FOUND if isinstance(record, FirstFound) else folder
    file = folder / f"{name}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        append_line(file, record.model_dump_json(exclude_defaults=True, by_alias=True).encode() + b"\n")
    except OSError as error:
        raise StoreError(cannot("write", file, error)) from error
    return file


def read_sweeps(folder: Path) -> list[ProofSweep]:
    """Every sweep of every machine. Errors: `StoreError`."""
    return _read(folder, ProofSweep)


def read_first_found(folder: Path) -> list[FirstFound]:
    """Every sweep of every machine that ended with what was found first. Errors: `StoreError`."""
    return _read(folder / FIRST_FOUND, FirstFound)


def _read(folder: Path, kind: type[_Of]) -> list[_Of]:
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(cannot("read", file, error)) from error
        for number, line in enumerate(lines, start=1):
            try:
                found.append(kind.model_validate(json.loads(line)))
            except (ValidationError, json.JSONDecodeError) as error:
                raise StoreError(f"{file}:{number} is no sweep of a proof: {str(error).splitlines()[0]}") from error
    return found


def keys_of_families(keys: Iterable[str], twin: str, injected: Mapping[int, str]) -> tuple[tuple[str, ...], ...]:
    """The keys of each sweep that a proof's launches are judged as: that of identical code first."""
    same = tuple(keys)
    return (same, *((*(key for key in same if key != twin), key_of) for key_of in injected.values()))


def _numbers(pair: Pair) -> _Numbers:
    """Logarithms to a millionth, times to six digits."""
    base_s, candidate_s = (float(f"{each:.6g}") for each in pair.medians_s)
    return round(pair.effect, 6), round(pair.typical, 6), base_s, candidate_s


def _pair(numbers: _Numbers) -> Pair:
    effect, typical, base_s, candidate_s = numbers
    return Pair(effect, typical, (base_s, candidate_s))
