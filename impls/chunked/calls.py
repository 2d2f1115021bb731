"""Calls of torch that are laid out before they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: So many are laid out at most before they are made: their views of tensors take memory.
MOST_CALLS = 256


class Calls:
    """What is to be called, in order.

    A block's data push Python itself out of a core's caches, and what stands between two products then takes several times as
    long. So blocks are laid out first, buffers and views of all of them, and then only what computes is called.
    """

    def __init__(self, most: int = MOST_CALLS) -> None:
        self._most = most
        self._laid_out: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = []

    def add(self, function: Callable[..., object], *given: Any, **named: Any) -> None:
        """Lay out a call; what it returns is lost."""
        self._laid_out.append((function, given, named))

    def make_if_many(self) -> None:
        """Make them, if they are so many that they are best made now."""
        if len(self._laid_out) >= self._most:
            self.make()

    def make(self) -> None:
        """Make the calls that are laid out. Errors: what they raise; the rest are not made then."""
        laid_out, self._laid_out = self._laid_out, []
        for function, given, named in laid_out:
            function(*given, **named)
