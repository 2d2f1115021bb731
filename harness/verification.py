"""Records of what the contract suite showed where, one file each, and the matrix that is made of them.

Schema history: 1, the first.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..impls import Implementation, OptionValue, get, names
from . import environment
from .conformance import Conformance, arm_of
from .store import StoreError

SCHEMA_VERSION: Literal[1] = 1
Place = Literal["cpu", "emulated", "gpu"]
_COLUMNS: dict[Place, str] = {"cpu": "on the CPU", "emulated": "emulated on the CPU", "gpu": "on a GPU"}
_ABSENT = "–"


class Verification(BaseModel):
    """What the contract suite showed of one implementation in one place. Counts are of cases.

    `implementation` of an emulated one is the wrapper whose `prepare` ran; a case may count for several `reasons`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    implementation: str
    options: dict[str, OptionValue] = {}
    revision: int
    package: str
    package_version: str = ""  # empty where the package has none
    torch_version: str
    python_version: str
    attnbench_version: str
    date: dt.date  # UTC
    place: Place
    device: str
    right_with_gradients: int = Field(ge=0)
    right_in_values: int = Field(ge=0)
    refused: int = Field(ge=0)
    failed: int = Field(ge=0)
    not_run: int = Field(default=0, ge=0)
    reasons: dict[str, int] = {}

    @property
    def arm(self) -> str:
        """The implementation with its options."""
        return arm_of(self.implementation, self.options)

    @property
    def file_name(self) -> str:
        """`chunked-cpu.json`; a GPU's record has its name too, since there are several."""
        return f"{_slug(self.arm)}-{self.place}{f'-{_slug(self.device)}' if self.place == 'gpu' else ''}.json"


def record_of(result: Conformance) -> Verification:
    """What a finished suite showed, with the versions that are installed."""
    implementation, versions = result.asked.implementation, environment.versions()
    place: Place = "gpu" if result.asked.device.kind == "cuda" else "cpu"
    return Verification(
        implementation=implementation.emulates or implementation.name,
        options=_given(implementation),
        revision=implementation.revision,
        package=implementation.package,
        package_version=_version(implementation.package),
        torch_version=versions.get("torch", ""),
        python_version=versions["python"],
        attnbench_version=versions.get("attnbench", ""),
        date=dt.datetime.now(dt.UTC).date(),
        place="emulated" if implementation.emulates else place,
        device=result.asked.device.name,
        right_with_gradients=len(result.right),
        right_in_values=len(result.right_values),
        refused=len(result.refused),
        failed=len(result.failed),
        not_run=result.not_run,
        reasons=result.reasons,
    )


def write(record: Verification, folder: Path) -> Path:
    """Put a record in place of the one before it, whole or not at all. Errors: `StoreError`."""
    file = folder / record.file_name
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {file}: {error.strerror}") from error
    return file


def read(folder: Path) -> tuple[Verification, ...]:
    """Every record of a folder. Errors: `StoreError`."""
    if not folder.is_dir():
        raise StoreError(
            f"{folder} holds no records: there is no such folder; "
            f"make some with: attnbench conformance NAME --record {folder}"
        )
    return tuple(map(_read, sorted(folder.glob("*.json"))))


def own_names() -> tuple[str, ...]:
    """The implementations of this distribution: others have no place in its matrix until they are recorded."""
    own, package = [], Implementation.__module__.rpartition(".")[0]
    for name in names():
        with suppress(Exception):
            if type(get(name)).__module__.startswith(f"{package}."):
                own.append(name)
    return tuple(own)


def matrix(records: Iterable[Verification], names: Iterable[str]) -> str:
    """A Markdown table, an implementation a row, a kind of place a column; the same for the same records."""
    by_arm: dict[str, list[Verification]] = {name: [] for name in names}
    for record in records:
        by_arm.setdefault(record.arm, []).append(record)
    lines = [
        f"| implementation | {' | '.join(_COLUMNS.values())} |",
        f"| --- | {' | '.join('---' for _ in _COLUMNS)} |",
    ]
    for arm, own in sorted(by_arm.items()):
        without = "" if own else "not verified"
        cells = [without or _cell([record for record in own if record.place == place]) for place in _COLUMNS]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(records: list[Verification]) -> str:
    ordered = sorted(records, key=lambda record: (record.device, record.date))
    return "<br>".join(map(_words, ordered)) or _ABSENT


def _words(record: Verification) -> str:
    """`278 right with gradients, 12 refused: AMD EPYC, 2026-11-24, torch 2.13.0`."""
    counts = {
        "right with gradients": record.right_with_gradients,
        "right in values": record.right_in_values,
        "refused": record.refused,
        "**failed**": record.failed,
        "not run": record.not_run,
    }
    counted = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
    packages = dict.fromkeys([(record.package, record.package_version), ("torch", record.torch_version)])
    versions = ", ".join(f"{name} {version}".strip() for name, version in packages)
    return f"{counted}: {record.device}, {record.date}, {versions}".replace("|", "/")


def _read(file: Path) -> Verification:
    try:
        return Verification.model_validate_json(file.read_bytes())
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{file} is damaged or of another version (this one reads schema {SCHEMA_VERSION}): "
            f"{where}{': ' if where else ''}{first['msg']}; remove it and make it again with --record"
        ) from error


def _given(implementation: Implementation) -> dict[str, OptionValue]:
    """The options that are not at their default, those that an adapter sets included."""
    values = {name: implementation.option(name) for name in implementation.options}
    return {name: value for name, value in values.items() if value != implementation.options[name].default}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _slug(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("-.")
