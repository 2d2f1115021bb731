"""Parquet: the tidy frame with its types."""

from __future__ import annotations

import io

from ...harness.store import Run
from ..tidy import load


def write(run: Run) -> bytes:
    """One row for each launch that counts."""
    buffer = io.BytesIO()
    load(run).to_parquet(buffer, index=False)
    return buffer.getvalue()
