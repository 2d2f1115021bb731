"""What a person sees while a gate is measured: one line a pair of servers on standard error, and what went wrong."""

from __future__ import annotations

import sys
import time
from collections import Counter

from ..records import Event, Notice, Outcome
from ..verdicts.paired import SCREEN_PAIRS
from .records import CONTROL, GateLaunch
from .schedule import Next


class GateProgress:
    """Plain lines, in a log as on a terminal: a pair takes seconds."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._pairs = self._void = 0

    def began(self, cells: int, screen_s: float) -> None:
        """How much there is to do; what the screen flags takes up to three times its pairs more."""
        minutes = f"{screen_s / 60:.0f} min" if screen_s >= 90 else f"{screen_s:.0f} s"
        self._say(
            f"{_cells(cells)}; {SCREEN_PAIRS} pairs take about {minutes}, what they leave open up to three times that"
        )

    def pairing(self, step: Next) -> None:
        """A pair of servers is about to start."""
        self._pairs += 1
        stages = Counter(each.stage for each in step.scheduled if each.comparison.key != CONTROL)
        parts = [
            _cells(stages["screen"]) if stages["screen"] else "",
            f"{stages['after']} to confirm" if stages["after"] else "",
        ]
        void = f", {self._void} void launches repeated" if self._void else ""
        what = ", ".join(filter(None, parts))
        self._say(f"pair {self._pairs}: {what}; {time.monotonic() - self._begin:.0f} s{void}")

    def launched(self, launch: GateLaunch) -> None:
        """Only what went wrong is worth a line."""
        self._void += bool(launch.void)
        if launch.outcome is not Outcome.OK:
            self._say(f"{launch.arm} {launch.name}: {launch.outcome}{': ' if launch.detail else ''}{launch.detail}")

    def noted(self, event: Event) -> None:
        """Notices, and what could not be prepared."""
        text = event.text if isinstance(event, Notice) else getattr(event, "failure", "")
        if text:
            self._say(text)

    @staticmethod
    def _say(line: str) -> None:
        # On one line: what begins one may be a command to a build service that reads this.
        print(" ".join(line.split()), file=sys.stderr, flush=True)  # noqa: T201 - this is the output


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"
