"""What an implementation raised, as an outcome with its reason."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from ...impls import RefusedError, UnknownImplementationError
from ..records import Outcome

_MEMORY_WORDS = ("can't allocate memory", "out of memory", "not enough memory", "bad_alloc", "cannot allocate memory")
#: Characters of a message that are kept.
_MOST_SHOWN = 500


def outcome_of(error: Exception) -> tuple[Outcome, str]:
    """UNSUPPORTED or OUT_OF_MEMORY, which are results, or ERROR; and the reason in a line."""
    if isinstance(error, RefusedError):
        return Outcome.UNSUPPORTED, str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Outcome.OUT_OF_MEMORY, _first_line(error)
    exhausted = any(words in str(error).lower() for words in _MEMORY_WORDS)
    return (Outcome.OUT_OF_MEMORY if exhausted else Outcome.ERROR), _described(error)


def _described(error: Exception) -> str:
    """The error and where it was raised, for a reader who has no traceback."""
    if isinstance(error, UnknownImplementationError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_first_line(error)}{where}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_MOST_SHOWN]
