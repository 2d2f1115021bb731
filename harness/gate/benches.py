"""The servers of a pair: one of each arm and a second one of the base, started at once."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from ..measure.tasks import Bounds
from ..run.executor import Executor, NoServerError, ServerError
from .records import ArmLabel


class Start(Protocol):
    """Starts a server."""

    def __call__(self, *, forward_only: bool) -> Executor:
        """Sooner where no pass is backward. Errors: `ServerError`."""
        ...


@dataclass(frozen=True)
class Bench:
    """How an arm's servers are started, and what its launches are bound to."""

    start: Start
    bounds: Bounds | None = None
    plugins: tuple[str, ...] = ()


class BrokenCandidateError(Exception):
    """The candidate's server does not start, and the base's do: its code cannot be imported."""


def start_all(benches: Mapping[ArmLabel, Bench], stack: ExitStack, *, forward_only: bool) -> dict[ArmLabel, Executor]:
    """A server of each bench, closed with the stack. At once, since one that starts keeps a core busy and nothing is timed.

    Errors: `NoServerError`, or `BrokenCandidateError` where the base's servers start.
    """
    with ThreadPoolExecutor(len(benches)) as pool:
        futures = {label: pool.submit(_start, bench, forward_only) for label, bench in benches.items()}
    servers: dict[ArmLabel, Executor] = {}
    failures: dict[ArmLabel, ServerError] = {}
    for label, future in futures.items():
        try:
            servers[label] = future.result()
            stack.callback(servers[label].close)
        except ServerError as error:
            failures[label] = error
    if failures.keys() == {"candidate"}:
        raise BrokenCandidateError(f"its server does not start: {failures['candidate']}")
    if failures:
        raise NoServerError("; ".join(f"{label}: {error}" for label, error in failures.items()))
    return servers


def _start(bench: Bench, forward_only: bool) -> Executor:
    """On a second try where the first fails: one that is killed or late is no verdict on the code. Errors: `ServerError`."""
    try:
        return bench.start(forward_only=forward_only)
    except ServerError:
        return bench.start(forward_only=forward_only)
