"""From how a worker ended to the outcome of its launch."""

from __future__ import annotations

import signal

from pydantic import ValidationError

from ..measure.tasks import Reply
from ..records import Measurement, Outcome


def measurement_of(reply: Reply, deadline_s: float) -> Measurement:
    """What the worker reported, or why it did not report."""
    if reply.result is not None:
        try:
            return Measurement.model_validate_json(reply.result)
        except ValidationError as error:
            return Measurement(
                outcome=Outcome.ERROR, detail=f"the worker's report cannot be read: {error.errors()[0]['msg']}"
            )
    outcome, detail = _end(reply, deadline_s)
    return Measurement(outcome=outcome, detail=detail + last_words(reply))


def failure_of(reply: Reply, deadline_s: float) -> str:
    """Why a worker that prepares something did not report."""
    return _end(reply, deadline_s)[1] + last_words(reply)


def last_words(reply: Reply) -> str:
    """The last line that a worker printed."""
    lines = reply.output_tail.splitlines()
    return f"; it last said: {lines[-1][:300]}" if lines else ""


def _end(reply: Reply, deadline_s: float) -> tuple[Outcome, str]:
    if reply.timed_out:
        return (
            Outcome.TIMED_OUT,
            f"killed after its deadline of {deadline_s:.0f} s (protocol.timeout_s and the cell's own estimate)",
        )
    if reply.killed_for_memory:
        return Outcome.OUT_OF_MEMORY, "the kernel killed the worker for memory"
    if reply.signal is not None:
        return Outcome.CRASHED, f"killed by {_signal_name(reply.signal)}"
    return Outcome.CRASHED, f"exited with code {reply.exit_code} before it reported"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
