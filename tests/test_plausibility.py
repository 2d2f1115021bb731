"""The guard against impossible numbers: ceilings that were measured on a busy machine blame no honest cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnbench.harness.cell import Cell, Conditions
from attnbench.harness.measure.tasks import Probe, Reply
from attnbench.harness.records import Ceilings, CeilingsMeasured, Measurement, Outcome, Samples
from attnbench.harness.run.journal import Journal
from attnbench.harness.run.preparation import MOST_LOOKS, Preparation
from attnbench.harness.run.servers import Servers
from attnbench.impls import AttentionProblem

PROBLEM = AttentionProblem(heads_q=4, heads_kv=4, seq_q=256, seq_kv=256, head_dim=64)
CELL = Cell(implementation="sdpa", problem=PROBLEM, passes="forward")


class _Machine:
    """An executor that measures the ceilings it is told, one after the other."""

    pid, start_s = 1, 0.0

    def __init__(self, gemm_flops_per_s: list[float]) -> None:
        self._rates = iter(gemm_flops_per_s)

    def run(self, task: Any, deadline_s: float) -> Reply:
        ceilings = Ceilings(gemm_flops_per_s={"float32": next(self._rates)}, memory_bytes_per_s=1e10, empty_call_s=1e-7)
        return Reply(result=Probe(ceilings=ceilings, torch_facts={}).model_dump_json())

    def close(self) -> None:
        """Nothing to close."""


class _Log:
    """Keeps what is appended; watches nothing."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def append(self, record: Any) -> None:
        self.events.append(record)

    def noted(self, event: Any) -> None:
        """Nothing."""


def _prepared(folder: Path, rates: list[float]) -> tuple[Preparation, _Log]:
    log = _Log()
    journal = Journal(log, log)  # type: ignore[arg-type]
    machine = _Machine(rates)
    servers = Servers(lambda: machine, journal, 0)
    preparation = Preparation(servers, journal, folder, "cpu", 1, 0, "ieee")
    preparation.find_ceilings(["float32"], Conditions(), {}, None)
    return preparation, log


def _measured(flops_per_s: float) -> Measurement:
    time_s = PROBLEM.flops("forward") / flops_per_s
    samples = Samples(repeats=1, times_s=(time_s,), stop="precision", warmup_calls=1, warmup_s=0.0)
    return Measurement(outcome=Outcome.OK, samples=samples)


def test_ceilings_of_a_busy_machine_blame_no_honest_cell(tmp_path: Path) -> None:
    """They are measured again before a cell is called IMPLAUSIBLE; the best of each rate is kept, and recorded."""
    preparation, log = _prepared(tmp_path, [1e9, 1e11])
    assert preparation.refuse_impossible(CELL, _measured(5e10)).outcome is Outcome.OK
    measured = [event for event in log.events if isinstance(event, CeilingsMeasured)]
    assert [each.ceilings.gemm_flops_per_s["float32"] for each in measured if each.ceilings] == [1e9, 1e11]


def test_an_impossible_cell_stays_impossible(tmp_path: Path) -> None:
    """However often the machine is looked at, which is not for ever."""
    preparation, log = _prepared(tmp_path, [1e11] * (1 + MOST_LOOKS))
    for _ in range(2):
        refused = preparation.refuse_impossible(CELL, _measured(5e13))
        assert refused.outcome is Outcome.IMPLAUSIBLE
        assert "matrix product" in refused.detail
    assert len([event for event in log.events if isinstance(event, CeilingsMeasured)]) == 1 + MOST_LOOKS


def test_the_best_of_two_ceilings() -> None:
    """Each rate at its highest, an empty call at its shortest; what only one of them has is kept."""
    one = Ceilings(gemm_flops_per_s={"float32": 2.0}, memory_bytes_per_s=3.0, exp_per_s=None, empty_call_s=4.0)
    other = Ceilings(gemm_flops_per_s={"float32": 1.0}, memory_bytes_per_s=5.0, exp_per_s=6.0, empty_call_s=1.0)
    best = one.best_with(other)
    assert (best.gemm_flops_per_s, best.memory_bytes_per_s) == ({"float32": 2.0}, 5.0)
    assert (best.exp_per_s, best.empty_call_s) == (6.0, 1.0)
