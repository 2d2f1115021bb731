"""The right to work, which two workers hand to each other: while one of them prepares, checks or measures, the other sleeps."""

from __future__ import annotations

import contextlib
import json
import os

from .tasks import Turns

_READ_BYTES = 65536


class Baton:
    """One worker's end of two named pipes. The one that is first has the baton to begin with.

    A worker that ends, however it ends, gives it up for good: the other goes on alone.
    """

    def __init__(self, turns: Turns) -> None:
        self.is_first = turns.is_first
        self.is_alone = False
        self._buffer = b""
        # Without waiting for the other: where it ended before this one began, there is nobody to wait for.
        self._inbox = os.open(turns.inbox, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self._inbox, True)
        self._outbox: int | None = None
        with contextlib.suppress(OSError):
            self._outbox = os.open(turns.outbox, os.O_WRONLY | os.O_NONBLOCK)

    def hand_over(self, times_s: tuple[float, ...] = ()) -> None:
        """Let the other work, and tell it what was measured meanwhile. Nothing where it is gone."""
        if self._outbox is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._outbox, json.dumps(times_s).encode() + b"\n")

    def wait(self) -> tuple[float, ...]:
        """Sleep until the other hands over; what it measured meanwhile. Where it ended instead, `is_alone` from now on."""
        while not self.is_alone and b"\n" not in self._buffer:
            chunk = os.read(self._inbox, _READ_BYTES)
            self._buffer += chunk
            self.is_alone = not chunk
        if self.is_alone:
            return ()
        line, self._buffer = self._buffer.split(b"\n", 1)
        return tuple(json.loads(line))

    def close(self) -> None:
        """Give it up for good."""
        for pipe in (self._inbox, self._outbox):
            if pipe is not None:
                os.close(pipe)
