"""The servers of a pair: one of each arm, started at once, and the base's of the pair before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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


class Benches:
    """Keeps the base's server for the next pair, in which it is the control: one server less to start."""

    def __init__(self, benches: Mapping[ArmLabel, Bench]) -> None:
        self._benches = benches
        self._older: Executor | None = None

    def __getitem__(self, label: ArmLabel) -> Bench:
        return self._benches[label]

    @contextmanager
    def servers(self, *, forward_only: bool) -> Iterator[dict[ArmLabel, Executor]]:
        """A server of each arm, new but for the control's, which is the base's of the pair before where there is one.

        Errors: `NoServerError`, or `BrokenCandidateError` where the base's servers start.
        """
        older, self._older = self._older, None
        with ExitStack() as closing:
            if older is not None:
                closing.callback(older.close)
            needed = {label: bench for label, bench in self._benches.items() if older is None or label != "control"}
            servers = _start_all(needed, forward_only=forward_only)
            for label, server in servers.items():
                if label != "base":
                    closing.callback(server.close)
            try:
                yield servers if older is None else {**servers, "control": older}
            except BaseException:
                servers["base"].close()
                raise
            self._older = servers["base"]

    def close(self) -> None:
        """Close what was kept."""
        if self._older is not None:
            self._older.close()
            self._older = None


def _start_all(benches: Mapping[ArmLabel, Bench], *, forward_only: bool) -> dict[ArmLabel, Executor]:
    """At once, since one that starts keeps a core busy and nothing is timed. All or none."""
    with ThreadPoolExecutor(len(benches)) as pool:
        futures = {label: pool.submit(_start, bench, forward_only) for label, bench in benches.items()}
    servers: dict[ArmLabel, Executor] = {}
    failures: dict[ArmLabel, ServerError] = {}
    for label, future in futures.items():
        try:
            servers[label] = future.result()
        except ServerError as error:
            failures[label] = error
    if not failures:
        return servers
    for server in servers.values():
        server.close()
    if failures.keys() == {"candidate"}:
        raise BrokenCandidateError(f"its server does not start: {failures['candidate']}")
    raise NoServerError("; ".join(f"{label}: {error}" for label, error in failures.items()))


def _start(bench: Bench, forward_only: bool) -> Executor:
    """On a second try where the first fails: one that is killed or late is no verdict on the code. Errors: `ServerError`."""
    try:
        return bench.start(forward_only=forward_only)
    except ServerError:
        return bench.start(forward_only=forward_only)
