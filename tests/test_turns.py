"""Launches in turns: who works when, what each tells the other, and what is left where one fails. Real pipes and servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench.harness.cell import Cell
from attnbench.harness.gate.meeting import Answer, _Meeting, run_in_turns
from attnbench.harness.measure.baton import Baton
from attnbench.harness.measure.regions import Region
from attnbench.harness.measure.tasks import CellTask, Reply, TruthTask, Turns
from attnbench.harness.measure.timing import Budget, Span, Work
from attnbench.harness.measure.turns import TURN_S, sample_in_turns
from attnbench.harness.records import Measurement, Outcome, Samples
from attnbench.harness.run.executor import ServerError
from attnbench.harness.run.fork_server import ForkServer
from attnbench.harness.store import StoreError
from attnbench.impls import AttentionProblem

FAKES = Path(__file__).parent / "plugins" / "fakes.py"
SMALL = AttentionProblem(heads_q=1, heads_kv=1, seq_q=64, seq_kv=64, head_dim=16)
COMMON = {"device": "cpu", "threads": 1, "seed": 0}


class Told(Region):
    """Writes down who runs, and takes `call_s` by the clock that goes with it."""

    resolution_s, most_repeats = 1e-9, 1000

    def __init__(self, name: str, call_s: float, log: list[str]) -> None:
        self.name, self.call_s, self.log = name, call_s, log

    def run(self, repeats: int) -> None:
        """Written down."""
        self.log.append(self.name)

    def time(self, region: Region, repeats: int) -> Span:
        """So long, whatever the real time."""
        region.run(repeats)
        return Span(self.call_s * repeats, self.call_s * repeats)


@pytest.fixture
def batons(tmp_path: Path) -> tuple[Baton, Baton]:
    """Both ends of two pipes, opened while a gate holds them."""
    pipes = [str(tmp_path / name) for name in ("to-first", "to-second")]
    for pipe in pipes:
        os.mkfifo(pipe)
    held = [os.open(pipe, os.O_RDWR | os.O_NONBLOCK) for pipe in pipes]
    first = Baton(Turns(inbox=pipes[0], outbox=pipes[1], is_first=True))
    second = Baton(Turns(inbox=pipes[1], outbox=pipes[0], is_first=False))
    for each in held:
        os.close(each)
    return first, second


def in_turns(batons: tuple[Baton, Baton], budget: Budget, call_s: tuple[float, float]) -> tuple[list[Samples], str]:
    """Both workers as two threads; what they measured, and the order of their turns as letters."""
    log: list[str] = []
    found: dict[int, Samples] = {}

    def work(at: int) -> None:
        baton, region = batons[at], Told("ab"[at], call_s[at], log)
        if baton.is_first:
            baton.hand_over()
        baton.wait()
        found[at] = sample_in_turns(region, region, budget, Work(), baton)
        baton.close()

    threads = [threading.Thread(target=work, args=(at,), daemon=True) for at in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == len(batons)
    return [found[at] for at in sorted(found)], "".join(log)


def test_who_begins_changes_from_turn_to_turn(batons: tuple[Baton, Baton]) -> None:
    """Both have as many turns; after warming up a turn of the first, then two in a row, and nobody works while the other does."""
    one_call = 0.02  # a turn is one sample, and once that is known none comes before it that does not count
    found, order = in_turns(batons, Budget(0.0, 0.01, 1e-9), (one_call, one_call))
    first, second = found
    assert len(first.turns) == len(second.turns) >= 3
    assert set(first.turns) == {1}
    warm = order.index("a")
    turns = order[warm:].lstrip("a")
    assert set(order[:warm]) == {"b"}
    assert turns.startswith("bbbaabbaa")


def test_a_turn_is_long_enough(batons: tuple[Baton, Baton]) -> None:
    """Short samples fill a turn; its samples are told apart, and those that only warm the caches are not among them."""
    found, _ = in_turns(batons, Budget(0.0, 0.02, 0.5), (1e-3, 2e-3))
    for samples, call_s in zip(found, (1e-3, 2e-3), strict=True):
        assert sum(samples.turns) == len(samples.times_s)
        assert set(samples.turns) == {-(-TURN_S // call_s)}
        assert samples.times_s == pytest.approx([call_s] * len(samples.times_s))


def test_an_end_is_noticed(tmp_path: Path) -> None:
    """Whoever waits for a worker that is gone goes on alone, and what is told to one that is gone is lost in silence."""
    inbox, outbox = str(tmp_path / "inbox"), str(tmp_path / "outbox")
    for pipe in (inbox, outbox):
        os.mkfifo(pipe)
    held = os.open(inbox, os.O_RDWR)
    baton = Baton(Turns(inbox=inbox, outbox=outbox, is_first=False))
    os.write(held, b"[1.5, 2.5]\n")
    assert baton.wait() == (1.5, 2.5)
    assert not baton.is_alone
    os.close(held)
    assert baton.wait() == ()
    assert baton.is_alone
    baton.hand_over((1.0,))


KEPT = """
import os, threading
from attnbench.harness.measure.turns import keep_to
before, seen = os.sched_getaffinity(0), []
keep_to(())
assert os.sched_getaffinity(0) == before
wait = threading.Event()
thread = threading.Thread(target=lambda: (wait.wait(), seen.append(os.sched_getaffinity(0))))
thread.start()
keep_to((min(before),))
wait.set()
thread.join()
assert os.sched_getaffinity(0) == seen[0] == {min(before)}
assert os.sched_getscheduler(0) == os.SCHED_BATCH
"""


def test_one_processor_is_kept_to() -> None:
    """Every thread of a process runs there alone, as batch work; none asked for leaves all of them."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ForkServer, ForkServer]]:
    """One of each arm."""
    found = ForkServer(), ForkServer()
    yield found
    for each in found:
        each.close()


def pair(
    servers: tuple[ForkServer, ForkServer], folder: Path, names: tuple[str, str], deadline_s: float = 60
) -> tuple[Answer, Answer]:
    """Two implementations of one problem in turns."""
    path = folder / "truth.pt"
    assert servers[0].run(TruthTask(**COMMON, problem=SMALL, backward=False, truth_path=str(path)), 300).result
    tasks = [
        CellTask(
            **COMMON, cell=Cell(implementation=name, problem=SMALL, passes="forward"), plugins=(str(FAKES),),
            truth_path=str(path), min_time_s=0.02, max_time_s=0.05, precision=1e-9, measure_memory=False,
        )
        for name in names
    ]  # fmt: skip
    return run_in_turns(servers, (tasks[0], tasks[1]), (min(os.sched_getaffinity(0)),), deadline_s)


def measured(answer: Answer) -> Measurement:
    """What a worker reported."""
    assert isinstance(answer, Reply)
    assert answer.result, answer
    return Measurement.model_validate_json(answer.result)


def test_both_arms_have_as_many_turns(servers: tuple[ForkServer, ForkServer], tmp_path: Path) -> None:
    """Two workers that are well: both OK, in equally many turns, timed no longer than their own turns took."""
    first, second = map(measured, pair(servers, tmp_path, ("naive", "sdpa_math")))
    for each in (first, second):
        assert each.outcome is Outcome.OK, each.detail
        assert each.samples is not None
        assert each.counters is not None
        assert sum(each.samples.turns) == len(each.samples.times_s)
        assert each.counters.span_s < each.phases.timing_s
        assert each.processors == (min(os.sched_getaffinity(0)),)
    assert first.samples is not None
    assert second.samples is not None
    assert (first.samples.stop, second.samples.stop) == ("other arm", "budget")
    assert len(first.samples.turns) == len(second.samples.turns) > 3


@pytest.mark.parametrize("fake", ["fake_wrong", "fake_segfault", "fake_exits", "fake_hang"])
@pytest.mark.parametrize("place", [0, 1])
def test_one_that_fails_leaves_the_other_alone(
    servers: tuple[ForkServer, ForkServer], tmp_path: Path, fake: str, place: int
) -> None:
    """Whatever happens to one arm's worker, whoever is first: the other is measured, alone, and neither is waited for in vain."""
    names = ("naive", fake) if place else (fake, "naive")
    begin = time.monotonic()
    answers = pair(servers, tmp_path, names, deadline_s=4 if fake == "fake_hang" else 60)
    assert time.monotonic() - begin < 40
    failed, other = answers[place], answers[1 - place]
    assert isinstance(failed, Reply)
    assert failed.result is None or measured(failed).outcome is not Outcome.OK
    assert failed.timed_out == (fake == "fake_hang")
    found = measured(other)
    assert found.outcome is Outcome.OK
    assert found.samples is not None
    assert found.samples.turns == ()


def test_pipes_that_cannot_be_opened_are_told(tmp_path: Path) -> None:
    """A gate ends with the words of a file that cannot be used, not with a traceback; the pipe that was open is closed."""
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StoreError, match="cannot be given pipes to meet in"):
        _Meeting(str(tmp_path / "pipe"), str(tmp_path / "nowhere"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_server_that_is_gone_is_told(tmp_path: Path) -> None:
    """Where an arm's server ended, that is its answer, and the other arm's is what it measured alone."""
    servers = ForkServer(), ForkServer()
    try:
        servers[1].kill()
        answers = pair((servers[0], servers[1]), tmp_path, ("naive", "naive"))
        assert isinstance(answers[1], ServerError)
        assert measured(answers[0]).outcome is Outcome.OK
    finally:
        for each in servers:
            each.close()
