"""Runs on disk: `<root>/<run id>/run.json`, `launches.jsonl` and `events.jsonl`. Lines are appended, flushed and fsynced."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Protocol, Self, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from .records import SCHEMA_VERSION, Event, Launch, Measurement, RunInfo

RUN_FILE, LAUNCH_FILE, EVENT_FILE, LOCK_FILE = "run.json", "launches.jsonl", "events.jsonl", "lock"

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class _Described(Protocol):
    @property
    def id(self) -> str: ...

    def model_dump_json(self, *, indent: int | None = None) -> str: ...


_Info = TypeVar("_Info", bound=_Described)
_Line = TypeVar("_Line", bound=Measurement)
_Any = TypeVar("_Any")


class StoreError(Exception):
    """A run that cannot be read or written; the message says which file, why, and what to do. Exit code 3."""


@dataclass
class Folder(Generic[_Info, _Line]):
    """A run or a gate on disk: its description, launches and events. `notices` says what was dropped on reading."""

    path: Path
    info: _Info
    notices: list[str] = field(default_factory=list)

    description_file: ClassVar[str]
    words: ClassVar[str]
    info_type: ClassVar[type[BaseModel]]
    launch_type: ClassVar[type[BaseModel]]

    @classmethod
    def create(cls, root: Path, info: _Info) -> Self:
        """Make the folder and write its description. Errors: `StoreError`."""
        path = root / info.id
        try:
            path.mkdir(parents=True)
            replace_text(path / cls.description_file, info.model_dump_json(indent=1) + "\n")
            (path / LAUNCH_FILE).touch()
            (path / EVENT_FILE).touch()
        except OSError as error:
            raise StoreError(cannot("write", path, error)) from error
        return cls(path, info)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a description. Errors: `StoreError` for a missing, truncated or foreign file."""
        file = path / cls.description_file
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise StoreError(f"{path} holds no {cls.words}: there is no {cls.description_file}; "
                             f"give the folder that `{cls.words}` printed") from error  # fmt: skip
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(cannot("read", file, error)) from error
        try:
            return cls(path, cast("_Info", cls.info_type.model_validate_json(text)))
        except ValidationError as error:
            raise StoreError(f"{file} is damaged or of another version (this one reads schema {SCHEMA_VERSION}): "
                             f"{_first(error)}") from error  # fmt: skip

    def describe_anew(self, info: _Info) -> None:
        """Replace the description. Errors: `StoreError`."""
        file = self.path / self.description_file
        try:
            replace_text(file, info.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise StoreError(cannot("write", file, error)) from error
        self.info = info

    def launches(self) -> list[_Line]:
        """All launches in the order they ended. A torn last line is dropped, and said so in `notices`."""
        return [cast("_Line", each) for each in self._lines(LAUNCH_FILE, TypeAdapter(self.launch_type))]

    def events(self) -> list[Event]:
        """All events in order."""
        return list(self._lines(EVENT_FILE, _EVENT))

    def append(self, record: _Line | Event) -> None:
        """Append one line and make it durable before returning. Errors: `StoreError`."""
        is_launch = isinstance(record, self.launch_type)
        file = self.path / (LAUNCH_FILE if is_launch else EVENT_FILE)
        line = (record.model_dump_json(exclude_defaults=True, exclude={"schema_version", "event"})[1:]).encode()
        tag = f'"schema":{SCHEMA_VERSION}' if is_launch else f'"event":"{getattr(record, "event", "")}"'
        try:
            append_line(file, b"{" + tag.encode() + (b"," if line != b"}" else b"") + line + b"\n")
        except OSError as error:
            raise StoreError(cannot("write", file, error)) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer of this folder while the block lasts. Errors: `StoreError` where another process is."""
        try:
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(cannot("write", self.path / LOCK_FILE, error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise StoreError(f"{self.path} is being written by another attnbench; wait for it or stop it") from error
        finally:
            os.close(descriptor)

    def _lines(self, name: str, adapter: TypeAdapter[_Any]) -> Iterator[_Any]:
        file = self.path / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise StoreError(cannot("read", file, error)) from error
        *lines, rest = content.split(b"\n")
        if rest:
            self._note(f"{file}: the last line is torn and was dropped ({len(rest)} bytes)")
        for number, line in enumerate(lines, start=1):
            try:
                yield adapter.validate_json(line)
            except ValidationError as error:
                raise StoreError(f"{file}:{number} is damaged: {_first(error)}; remove that line to go on") from error

    def _note(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)


class Run(Folder[RunInfo, Launch]):
    """One run's folder."""

    description_file = RUN_FILE
    words = "run"
    info_type = RunInfo
    launch_type = Launch


def append_line(file: Path, line: bytes) -> None:
    """Append a whole line; what a killed writer tore before is cut off first, and a line that does not fit leaves no trace."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = _end_of_whole_lines(descriptor)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _end_of_whole_lines(descriptor: int) -> int:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    position = size
    while position > 0:
        step = min(65536, position)
        block = os.pread(descriptor, step, position - step)
        newline = block.rfind(b"\n")
        if newline >= 0:
            return position - step + newline + 1
        position -= step
    return 0


def replace_text(file: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def new_id(root: Path, name: str) -> str:
    """A name for a new folder under a root: the time, and what is measured."""
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
    safe = "".join(char if char.isalnum() or char in "-_" else "-" for char in name)[:60]
    base = f"{stamp}-{safe}"
    number, candidate = 1, base
    while (root / candidate).exists():
        number += 1
        candidate = f"{base}-{number}"
    return candidate


def cannot(verb: str, path: Path, error: Exception) -> str:
    """What could not be done with which file, and why."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot {verb} {path}: {reason}"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
