"""What a run's launches so far mean for what is still to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..records import Launch, Outcome

#: A void launch is repeated this often.
MOST_REPEATS = 3
#: A cell that ended so is not measured again in later rounds.
FINAL = frozenset(Outcome) - {Outcome.OK, Outcome.OUT_OF_MEMORY}


class History:
    """Grows with each launch. With `retry_failed`, ends from before this session are forgotten and measured again."""

    def __init__(self, launches: Iterable[Launch], *, retry_failed: bool = False) -> None:
        self._attempts: dict[tuple[str, int], list[Launch]] = defaultdict(list)
        self._ends: dict[str, tuple[Outcome, int]] = {}
        self._retried: set[tuple[str, int]] = set()
        for launch in launches:
            self.add(launch)
        if retry_failed:
            self._forget_failures()

    def add(self, launch: Launch) -> None:
        """A launch ended."""
        key = (launch.cell, launch.round)
        self._attempts[key].append(launch)
        self._retried.discard(key)
        if launch.outcome in FINAL and not launch.skipped and not _is_to_be_repeated(launch):
            self._ends.setdefault(launch.cell, (launch.outcome, launch.round))

    def is_done(self, cell: str, round_: int) -> bool:
        """Whether a (cell, round) pair has a launch that counts."""
        attempts = self._attempts.get((cell, round_), [])
        if not attempts or (cell, round_) in self._retried:
            return False
        return not _is_to_be_repeated(attempts[-1])

    def next_attempt(self, cell: str, round_: int) -> int:
        """The number of the next attempt at a pair: each has a number of its own."""
        attempts = self._attempts.get((cell, round_), [])
        return attempts[-1].attempt + 1 if attempts else 0

    def ended(self, cell: str) -> tuple[Outcome, int] | None:
        """The outcome and round that keep a cell from being measured again."""
        return self._ends.get(cell)

    def _forget_failures(self) -> None:
        self._retried = {
            (launch.cell, launch.round)
            for attempts in self._attempts.values()
            for launch in attempts[-1:]
            if launch.outcome not in (Outcome.OK, Outcome.UNSUPPORTED)
        }
        self._ends = {cell: end for cell, end in self._ends.items() if end[0] is Outcome.UNSUPPORTED}


def _is_to_be_repeated(launch: Launch) -> bool:
    return bool(launch.void) and launch.attempt < MOST_REPEATS
