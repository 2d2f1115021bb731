"""CSV: one line for each launch that counts."""

from __future__ import annotations

from ...harness.store import Run
from ..tidy import load


def write(run: Run) -> str:
    """The tidy frame; times in seconds, sizes in bytes, an empty field where there is no value."""
    return load(run).to_csv(index=False)
