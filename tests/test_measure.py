"""Measuring: servers agree, memory is what was allocated, sampling stops when it should, the oracle's parts."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attnbench.harness.cell import Cell
from attnbench.harness.measure import ceilings
from attnbench.harness.measure.check import check
from attnbench.harness.measure.inputs import draw, problem_seed, turned
from attnbench.harness.measure.oracle import Selection, Truth, find_truth
from attnbench.harness.measure.regions import Region
from attnbench.harness.measure.subject import Subject
from attnbench.harness.measure.tasks import CellTask, TruthTask
from attnbench.harness.measure.timing import Budget, Span, half_width, sample
from attnbench.harness.records import Measurement
from attnbench.harness.run.fork_server import ForkServer
from attnbench.impls import AttentionProblem, get

COMMON = {"device": "cpu", "threads": 2, "seed": 0}
SMALL = AttentionProblem(heads_q=4, heads_kv=4, seq_q=256, seq_kv=256, head_dim=64)
PAGES_OF_SCORES = SMALL.score_bytes() // 4096
#: What torch's threads and the first pass map anew, seen to be 250 to 1,030 pages.
FIRST_FAULTS = 1100


def measure(server: ForkServer, cell: Cell, folder: Path, **changes: object) -> Measurement:
    """One launch on a server, its truth computed first."""
    path = folder / "truth.pt"
    truth = TruthTask(**COMMON, problem=cell.problem, backward=cell.passes != "forward", truth_path=str(path))
    assert server.run(truth, 300).result
    task = {"min_time_s": 0.02, "max_time_s": 0.1, "precision": 0.01} | changes
    reply = server.run(CellTask(**COMMON, cell=cell, truth_path=str(path), **task), 300)
    assert reply.result, reply.output_tail
    return Measurement.model_validate_json(reply.result)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are told from glibc's thresholds")
def test_passes_use_mapped_memory_again(tmp_path: Path) -> None:
    """From six fresh servers, naive passes fault in few pages beyond the first ones; with glibc's own thresholds often all."""
    cell = Cell(implementation="naive", problem=SMALL, passes="forward")
    excess = []
    for _ in range(6):
        server = ForkServer()
        try:
            counted = measure(server, cell, tmp_path)
        finally:
            server.close()
        assert counted.samples is not None
        assert counted.counters is not None
        passes = counted.samples.repeats * len(counted.samples.times_s)
        excess.append((counted.counters.minor_faults - FIRST_FAULTS) / passes)
    print("page faults a pass beyond the first ones:", [round(each, 1) for each in excess])
    assert max(excess) < PAGES_OF_SCORES / 4


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One server for tests that need no fresh one."""
    server = ForkServer()
    yield server
    server.close()


def test_memory_of_chunked_is_linear(server: ForkServer, tmp_path: Path) -> None:
    """At 16,384 tokens, bfloat16, chunked takes at least 20 times less than one float32 score matrix."""
    problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=16384, seq_kv=16384, head_dim=64, dtype="bfloat16")
    cell = Cell(implementation="chunked", problem=problem, passes="forward")
    memory = measure(server, cell, tmp_path, measure_time=False).memory
    assert memory is not None
    print(
        f"chunked at 16,384 tokens: {memory.overhead_bytes} bytes, {16384**2 * 4 / memory.overhead_bytes:.0f} x below S^2 x 4"
    )
    assert memory.overhead_bytes * 20 <= 16384**2 * 4


def test_memory_of_naive_is_its_matrices(server: ForkServer, tmp_path: Path) -> None:
    """Naive attention's overhead is two to four score matrices, and more when saved for backward."""
    problem = AttentionProblem(heads_q=8, heads_kv=8, seq_q=512, seq_kv=512, head_dim=64)
    forward = measure(server, Cell(implementation="naive", problem=problem, passes="forward"), tmp_path).memory
    training = measure(
        server, Cell(implementation="naive", problem=problem, passes="forward_backward"), tmp_path
    ).memory
    assert forward is not None
    assert training is not None
    matrix = problem.score_bytes()
    assert 1.9 * matrix < forward.overhead_bytes < 4.2 * matrix
    assert training.saved_bytes is not None
    assert 0.9 * matrix < training.saved_bytes < 3.2 * matrix


class _Scripted:
    """A clock whose samples are given."""

    resolution_s = 1e-9
    most_repeats = 1_000_000

    def __init__(self, times: list[float]) -> None:
        self._times = times
        self._at = 0

    def time(self, region: Region, repeats: int) -> Span:
        self._at += 1
        return Span(self._times[min(self._at, len(self._times)) - 1] * repeats, 0.0)


class _Nothing(Region):
    def run(self, repeats: int) -> None:
        return None


def test_sampling_stops_when_precise() -> None:
    """Equal samples end it as soon as six are there and the least time has passed."""
    samples = sample(_Nothing(), _Scripted([0.002]), Budget(0.0, 10.0, 0.01))
    assert samples.stop == "precision"
    assert len(samples.times_s) == 6
    assert samples.repeats == 1


def test_sampling_ends_with_its_budget() -> None:
    """Samples that never agree end with the budget, and all are kept."""
    generator = random.Random(0)
    samples = sample(
        _Nothing(), _Scripted([generator.uniform(0.001, 1) for _ in range(100_000)]), Budget(0.0, 0.05, 0.01)
    )
    assert samples.stop == "budget"
    assert len(samples.times_s) > 6


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    """A call of a microsecond is repeated about a thousand times in a sample, and reported for one call."""
    samples = sample(_Nothing(), _Scripted([1e-6]), Budget(0.0, 1.0, 0.01))
    assert samples.repeats >= 1000
    assert statistics.median(samples.times_s) == pytest.approx(1e-6)


def test_repeats_grow_when_the_warm_region_is_faster() -> None:
    """Cold calls of 2 ms that become 0.1 ms are repeated until a sample is a millisecond again."""
    samples = sample(_Nothing(), _Scripted([2e-3, 2e-3, 1e-4]), Budget(0.0, 1.0, 0.01))
    assert samples.repeats >= 10


class _SlowFirstCalls:
    """A clock by which the first call of each region takes a third of a second, later ones a millisecond."""

    resolution_s, most_repeats = 1e-9, 1

    def __init__(self) -> None:
        self._last: Region | None = None

    def time(self, region: Region, repeats: int) -> Span:
        region.run(1)
        seconds = 1e-3 if region is self._last else 0.3
        self._last = region
        return Span(seconds * repeats, seconds * repeats)


def test_a_first_call_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype's first product makes its kernel, which may take hundreds of times as long as the product."""
    monkeypatch.setattr(ceilings, "CpuClock", _SlowFirstCalls)
    found = ceilings.measure("cpu", ["float32"], None)
    assert found.gemm_flops_per_s == {"float32": pytest.approx(2 * max(ceilings.CPU_GEMM_SIZES) ** 3 / 1e-3)}
    assert found.memory_bytes_per_s == pytest.approx(ceilings.CPU_BANDWIDTH_BYTES / 1e-3)


def test_half_width_needs_six() -> None:
    """Five samples have no 95 % interval of the median; equal ones have one of no width."""
    assert half_width([1.0] * 5) == float("inf")
    assert half_width([1.0] * 6) == 0.0


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_truth_agrees_with_autograd_in_float64(mask: str) -> None:
    """The closed form of the oracle equals torch's own differentiation of the definition."""
    problem = AttentionProblem(batch=2, heads_q=4, heads_kv=2, seq_q=5, seq_kv=9, head_dim=8, mask=mask)
    inputs = draw(problem, problem_seed(problem, 0))
    truth = find_truth(problem, inputs, Selection.within(problem, backward=True, seed=0), backward=True)
    query, key, value = (each.double().requires_grad_() for each in inputs[:3])
    scores = query @ key.repeat_interleave(2, 1).transpose(-2, -1) * problem.softmax_scale
    if mask == "causal":
        scores = scores.masked_fill(~torch.ones(5, 9, dtype=torch.bool).tril(4), float("-inf"))
    out = torch.softmax(scores, -1) @ value.repeat_interleave(2, 1)
    gradients = torch.autograd.grad(out, (query, key, value), inputs.grad_out.double())
    for name, tensor in zip(("out", "dq", "dk", "dv"), (out.detach(), *gradients), strict=True):
        torch.testing.assert_close(truth.references[name].value, truth.selection.of(name, tensor, problem))


def test_rows_of_a_large_problem() -> None:
    """Beyond the budget rows of one group are checked, first and last among them, and gradients are sums over these."""
    problem = AttentionProblem(batch=2, heads_q=4, heads_kv=2, seq_q=64, seq_kv=64, head_dim=8, mask="causal")
    selection = Selection.within(problem, backward=True, seed=3, flops=14 * 2 * 64 * 8 * 5)
    assert selection.rows is not None
    assert {0, 63} <= set(selection.rows)
    assert 0 < selection.share(problem) < 0.05
    inputs = draw(problem, 1)
    whole = inputs._replace(grad_out=selection.restrict_grad_out(inputs.grad_out, problem))
    full = find_truth(problem, whole, Selection.within(problem, backward=True, seed=0), backward=True)
    part = find_truth(problem, inputs, selection, backward=True)
    (batch, head), *_ = selection.groups
    index = full.selection.groups.index((batch, head))
    torch.testing.assert_close(part.references["dk"].value[0], full.references["dk"].value[index])
    torch.testing.assert_close(
        part.references["out"].value[0], full.references["out"].value[index][:, list(selection.rows)]
    )


def test_truth_survives_its_file(tmp_path: Path) -> None:
    """What a worker loads is what was saved."""
    inputs = draw(SMALL, 0)
    truth = find_truth(SMALL, inputs, Selection.within(SMALL, backward=False, seed=0), backward=False)
    truth.save(tmp_path / "t.pt")
    loaded = Truth.load(tmp_path / "t.pt")
    assert loaded.selection == truth.selection
    assert torch.equal(loaded.references["out"].value, truth.references["out"].value)
    assert loaded.references["out"].max_bound == truth.references["out"].max_bound


@pytest.mark.parametrize("seq", [1, 5])
def test_turned_inputs_are_other_inputs(seq: int) -> None:
    """Each tensor holds the same magnitudes in other places, once and twice turned; a query and a key alone are turned too."""
    drawn = draw(AttentionProblem(heads_q=2, heads_kv=2, seq_q=seq, seq_kv=seq, head_dim=8), 0)
    for one, two, three in zip(drawn, turned(drawn, 1), turned(drawn, 2), strict=True):
        assert not any(torch.equal(*pair) for pair in itertools.combinations((one, two, three), 2))
        magnitudes = [each.abs().flatten().sort().values for each in (one, two, three)]
        assert torch.equal(magnitudes[0], magnitudes[1])
        assert torch.equal(magnitudes[0], magnitudes[2])


def test_inputs_depend_on_the_problem_alone() -> None:
    """Equal problems and seeds draw equal tensors, other seeds others; never zeros."""
    first, again, other = (
        draw(SMALL, problem_seed(SMALL, 0)),
        draw(SMALL, problem_seed(SMALL, 0)),
        draw(SMALL, problem_seed(SMALL, 1)),
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.query, other.query)
    assert 0.9 < first.query.std() < 1.1


def test_wrong_tail_of_a_head_does_not_hide() -> None:
    """Errors in the last rows, below any bound on the maximum and lost in the mean of all, are found in their block."""
    problem = AttentionProblem(heads_q=8, heads_kv=8, seq_q=1000, seq_kv=1000, head_dim=64, dtype="bfloat16")
    inputs = draw(problem, 0)
    truth = find_truth(problem, inputs, Selection.within(problem, backward=False, seed=0), backward=False)
    subject = Subject(get("naive", {}), problem, "forward", "cpu")
    subject.place(inputs)
    subject.prepare()
    out = subject.outputs(inputs.grad_out)["out"]
    assert out is not None
    assert not check(subject, inputs, truth, {"out": out}).faults
    reference = truth.references["out"]
    out[0, 0, -40:] += 0.3 * reference.max_bound
    verdict = check(subject, inputs, truth, {"out": out})
    each = verdict.accuracy["out"]
    assert each.max_error <= each.max_bound
    assert each.rms_bound is not None
    assert each.rms_error <= each.rms_bound
    assert ["in one block of rows" in fault for fault in verdict.faults] == [True]


def test_tf32_products_are_judged_by_tf32() -> None:
    """An honest product of operands rounded to 10 bits fails the rule of IEEE float32, and passes its own."""
    inputs = draw(SMALL, 0)
    selection = Selection.within(SMALL, backward=False, seed=0)
    ieee, tf32 = (find_truth(SMALL, inputs, selection, backward=False, float32=kind) for kind in ("ieee", "tf32"))
    query, key, value = (_tf32(each) for each in inputs[:3])
    weights = torch.softmax(query @ key.transpose(-2, -1) * SMALL.softmax_scale, -1)
    out = _tf32(weights) @ value
    subject = Subject(get("naive", {}), SMALL, "forward", "cpu")
    subject.place(inputs)
    assert check(subject, inputs, ieee, {"out": out}).faults
    assert not check(subject, inputs, tf32, {"out": out}).faults
    assert check(subject, inputs, tf32, {"out": 1.01 * out}).faults


def _tf32(tensor: torch.Tensor) -> torch.Tensor:
    """10 bits of mantissa, by arithmetic: what is added cancels but for the rounding."""
    shift = tensor.double() * (2.0**42 + 1)
    return (shift - (shift - tensor.double())).float()
