"""The configurations that come with the package, and reading one by name or path."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from ...impls import near
from .document import MOST_BYTES
from .errors import ConfigError, ConfigFileError, shown

_PACKAGE = "attnbench.configs"
_SUFFIXES = (".yaml", ".yml")


def shipped_names() -> tuple[str, ...]:
    """The names of the shipped configurations: `quick`, or `papers/name` for one in a folder."""
    return tuple(sorted(_shipped()))


def read_source(source: str) -> tuple[bytes, str]:
    """The bytes of a configuration and the file name for messages.

    Errors: `ConfigFileError` for a file that cannot be read, `ConfigError` for a name that is none.
    """
    shipped = _shipped()
    file = source if source.isprintable() else shown(source)
    if source in shipped:
        return shipped[source].read_bytes(), f"{source}.yaml"
    if not source.endswith(_SUFFIXES) and not _exists(source):
        known = ", ".join(sorted(shipped))
        allowed = f"the path of a YAML file, or {known}"
        raise ConfigError(f"unknown configuration {shown(source)}; allowed: {allowed}{near(source, shipped)}")
    try:
        with Path(source).open("rb") as stream:
            return stream.read(MOST_BYTES + 1), file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        shipped_too = f"; shipped configurations: {', '.join(sorted(shipped))}"
        raise ConfigFileError(f"cannot read {file}: {reason}{shipped_too}") from error


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except (OSError, ValueError):  # a name too long for a file, or one with a null byte
        return False


def _shipped() -> dict[str, Traversable]:
    return dict(_walk(importlib.resources.files(_PACKAGE), ""))


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml"), entry
