"""What a run's launches mean for what is still to do."""

from __future__ import annotations

from typing import Any

from attnbench.harness.records import Launch, Outcome
from attnbench.harness.run.history import MOST_REPEATS, History


def launch(round_: int = 0, attempt: int = 0, **changes: Any) -> Launch:
    """One launch of the only cell."""
    given: dict[str, Any] = {
        "outcome": Outcome.OK, "cell": "c", "round": round_, "attempt": attempt, "implementation": "naive", "name": "n",
        "position": 0, "started_at": "",
    }  # fmt: skip
    return Launch(**(given | changes))


def test_a_void_launch_is_not_done_until_its_last_attempt() -> None:
    """A void attempt leaves its pair open, with the next number, up to the last repetition."""
    history = History([launch(void="throttled")])
    assert not history.is_done("c", 0)
    assert history.next_attempt("c", 0) == 1
    history.add(launch(attempt=MOST_REPEATS, void="throttled"))
    assert history.is_done("c", 0)


def test_a_failure_ends_its_cell_and_out_of_memory_does_not() -> None:
    """Failures are not measured again in later rounds; memory that ran out may be there in the next."""
    assert History([launch(outcome=Outcome.CRASHED)]).ended("c") == (Outcome.CRASHED, 0)
    assert History([launch(outcome=Outcome.OUT_OF_MEMORY)]).ended("c") is None


def test_a_void_failure_ends_its_cell_only_when_its_attempts_are_used_up() -> None:
    """What a disturbed launch says of its cell does not count while it is to be repeated."""
    void = launch(outcome=Outcome.IMPLAUSIBLE, void="throttled")
    assert History([void]).ended("c") is None
    assert History([void, launch(attempt=1)]).ended("c") is None
    assert History([launch(attempt=MOST_REPEATS, outcome=Outcome.IMPLAUSIBLE, void="throttled")]).ended("c") is not None


def test_retry_forgets_failures_alone() -> None:
    """`resume --retry-failed` opens failed pairs again, skipped ones too, and leaves what is done or refused."""
    failed = [launch(outcome=Outcome.CRASHED), launch(1, outcome=Outcome.CRASHED, skipped=True)]
    history = History(failed, retry_failed=True)
    assert history.ended("c") is None
    assert not history.is_done("c", 0)
    assert not history.is_done("c", 1)
    assert history.next_attempt("c", 0) == 1
    assert History([launch()], retry_failed=True).is_done("c", 0)
    assert History([launch(outcome=Outcome.UNSUPPORTED)], retry_failed=True).is_done("c", 0)
