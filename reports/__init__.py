"""From stored runs to something read: frames, tables, figures, a page, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from ..harness.store import Run

__all__ = ["load"]


def load(run: Path | str | Run) -> pd.DataFrame:
    """A run as a tidy frame, one row for each launch that counts; times in seconds, sizes in bytes."""
    from .tidy import load as load_run  # pandas takes half a second, and only readers need it

    return load_run(run)
