"""What is wrong with a configuration, said in one line a mistake: where, what was given, what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import ErrorDetails

from ...impls import near

KeyPath = tuple[str | int, ...]

#: Mistakes that one message lists; the rest are counted.
MOST_MISTAKES = 20
#: Characters of a given value that a message shows.
MOST_SHOWN = 60
#: Sections that a misplaced key is looked for in.
_COMMON = ("sweeps", "exclude", "protocol")


class ConfigError(Exception):
    """A configuration that cannot be used: lines of `file:line: key.path: given; allowed`. Exit code 2.

    ConfigError
    └── ConfigFileError    a file that cannot be read; exit code 3
    """


class ConfigFileError(ConfigError):
    """A configuration file that cannot be read; the message says which, why, and what to do. Exit code 3."""


@dataclass(frozen=True)
class Places:
    """Where each key of a configuration was written: a line of a file, or an argument of the command line."""

    source: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    arguments: Mapping[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """`file:line` or `--set KEY=VALUE` of a key, or of the nearest key above it that was written."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.arguments:
                return self.arguments[path[:end]]
            if path[:end] in self.lines:
                return f"{self.source}:{self.lines[path[:end]]}"
        return f"{self.source}:{self.lines[()]}" if () in self.lines else self.source

    def replaced(self, path: KeyPath, argument: str) -> Places:
        """The places after an argument has replaced a key and all below it."""
        lines = {key: line for key, line in self.lines.items() if key[: len(path)] != path}
        arguments = {key: text for key, text in self.arguments.items() if key[: len(path)] != path}
        return Places(self.source, lines, arguments | {path: argument})

    def mistake(self, path: KeyPath, words: str) -> str:
        """One line: the place, the key path, what is wrong."""
        return ": ".join(part for part in (self.of(path), dotted(path), words) if part)


def dotted(path: KeyPath) -> str:
    """`sweeps.0.seq_len`: a key path as messages and `--set` write it."""
    return ".".join(text if text.isprintable() else shown(text) for text in map(str, path))


def shown(value: object) -> str:
    """A value as YAML would have it, shortened to one line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    printable = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    return printable if len(printable) <= MOST_SHOWN else f"{printable[:MOST_SHOWN]}..."


def config_error(mistakes: Iterable[str]) -> ConfigError:
    """All mistakes in one error, each once; beyond `MOST_MISTAKES` they are counted."""
    lines = list(dict.fromkeys(mistakes))
    more = len(lines) - MOST_MISTAKES
    return ConfigError("\n".join(lines[:MOST_MISTAKES] + ([f"... and {more} more"] if more > 0 else [])))


def mistakes_of(
    errors: Sequence[ErrorDetails], data: Mapping[str, Any], places: Places, keys: Mapping[str, Sequence[str]]
) -> list[str]:
    """Pydantic's findings in plain words. `keys` maps each section (`""` is the top level) to its keys."""
    # Pydantic also calls a list too short whose entries are all wrong.
    real = [error for error in errors if not (error["type"] == "too_short" and error["input"])]
    found = [_mistake(error, data, places, keys) for error in real]
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def _mistake(
    error: ErrorDetails, data: Mapping[str, Any], places: Places, keys: Mapping[str, Sequence[str]]
) -> tuple[int, str]:
    """A finding's line number, to sort by, and its words."""
    path = _written(error["loc"], data)
    words = _words(error, keys)
    line = next((places.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in places.lines), 0)
    return line, places.mistake((*path, *_absent(error)), words)


def _words(error: ErrorDetails, keys: Mapping[str, Sequence[str]]) -> str:
    kind, location, given = error["type"], error["loc"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "missing":
        return "this key must be given"
    if kind == "too_short":
        return "an empty list; allowed: at least one entry"
    if kind == "extra_forbidden":
        return _unknown_key(str(location[-1]), _section(location[:-1], keys), keys)
    # What remains is a section that is no mapping.
    section = _section(location, keys)
    allowed = f"a mapping with the keys {', '.join(keys[section])}" if section in keys else "a mapping"
    return f"{shown(given)} is no mapping; allowed: {allowed}"


def _section(location: KeyPath, keys: Mapping[str, Sequence[str]]) -> str:
    """The innermost section that a location lies in."""
    return next((str(part) for part in reversed(location) if part in keys), str(location[0]) if location else "")


def _unknown_key(key: str, section: str, keys: Mapping[str, Sequence[str]]) -> str:
    elsewhere = [name for name in _COMMON if key in keys.get(name, ()) and name != section]
    hint = f"; it belongs under {' or '.join(elsewhere)}" if elsewhere else near(key, keys[section])
    return f"unknown key {shown(key)}; allowed: {', '.join(keys[section])}{hint}"


def _absent(error: ErrorDetails) -> KeyPath:
    return error["loc"][-1:] if error["type"] == "missing" else ()


def _written(location: KeyPath, data: Any) -> KeyPath:
    """The parts of pydantic's location that the author wrote: a scalar that stands for a list has no index."""
    path: list[str | int] = []
    for part in location:
        known = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if part in known:
            data = data[part]
            path.append(part)
    return tuple(path)
