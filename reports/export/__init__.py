"""Exports, one small module a format: each turns a run into text or bytes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ...harness.store import Run
from ...impls import choices

FORMATS = ("csv", "github-action-benchmark", "markdown", "parquet", "pytest-benchmark")


class FormatError(ValueError):
    """A format that there is not; the message names those that there are."""


def export(run: Run, format_: str) -> str | bytes:
    """A run in a format. Errors: `FormatError`, `StoreError`."""
    if format_ not in FORMATS:
        raise FormatError(f"unknown format {format_!r}{choices(format_, FORMATS, 'formats')}")
    write: Callable[[Run], str | bytes] = import_module(f".{format_.replace('-', '_')}", __package__).write
    return write(run)
