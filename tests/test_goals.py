"""Goals, composite limits and published figures: from a configuration, through a real run, to tables and the page."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnbench.harness.config import ConfigError, load_config
from attnbench.harness.measure import chain, composite
from attnbench.harness.records import LimitsMeasured
from attnbench.harness.store import Run
from attnbench.impls import AttentionProblem
from attnbench.reports import frame, goals, published, tables

Command = Callable[..., subprocess.CompletedProcess[str]]

SWEEP = """
name: goals
device: cpu
implementations: [naive, chunked]
sweeps:
  - {heads: 4, seq_len: [64, 128], head_dim: 32, dtype: float32, mask: [full, causal], allocator: [steady, resident]}
protocol: {launches: 2, min_time_s: 0.005, max_time_s: 0.02, measure: [time, memory, limit]}
"""
GOALS = """
goals:
  - {name: easy, implementation: chunked, against: naive, speedup: {no_such_flag: 1.0e9, other: 1.0e-9}}
  - {name: hard, implementation: chunked, against: naive, where: {mask: causal}, speedup: 1.0e9}
  - {name: worst, implementation: chunked, against: naive, where: {allocator: resident}, worst_speedup: 1.0e9}
  - {name: share, implementation: chunked, where: {seq_len: ">100"}, limit_share: 1.0e-9}
  - {name: bytes, implementation: chunked, where: {seq_len: 64}, memory_bytes: 1.0e12}
  - {name: rate, implementation: chunked, gb_per_s: 1.0e-9}
  - {name: elsewhere, implementation: chunked, where: {dtype: float16}, limit_share: 0.5}
published:
  source: A paper <with a name>
  figures:
    - {implementation: chunked, where: {seq_len: 64, mask: full}, memory_bytes: 2.0e6, time_s: 0.5}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, attnbench_in: Callable[[Path], Command]) -> tuple[Run, str]:
    """One run with goals, and what it printed."""
    folder = tmp_path_factory.mktemp("goals")
    (folder / "goals.yaml").write_text(SWEEP + GOALS)
    ended = attnbench_in(folder)("run", "goals.yaml", "--out", "runs")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("composite limits: ") == 2
    return Run.open(folder / ended.stdout.splitlines()[-1]), ended.stdout


def test_each_kind_is_judged(done: tuple[Run, str]) -> None:
    """A goal is met or not by what was measured in its cells, and by nothing where there are none."""
    table = goals.table(done[0]).set_index("goal")
    assert dict(table["met"]) == {
        "easy": "yes", "hard": "no", "worst": "no", "share": "yes", "bytes": "yes", "rate": "yes",
        "elsewhere": "not measured",
    }  # fmt: skip
    # Cells under another allocator than the protocol's count only where they are asked for.
    assert dict(table["cells"]) == {
        "easy": "4", "hard": "2", "worst": "4", "share": "2", "bytes": "2", "rate": "4", "elsewhere": "0",
    }  # fmt: skip
    assert table.loc["easy", "machine"] == "other"
    assert table.loc["hard", "machine"] == "any"
    assert "theirs" in str(table.loc["easy", "error"])


def test_speedup_is_the_geometric_mean_of_ratios_of_medians(done: tuple[Run, str]) -> None:
    """The figure of a goal follows from the cells' table."""
    cells = frame.cells(done[0])
    steady = cells[cells["conditions"] == ""]
    times = steady.pivot_table(index="problem", columns="implementation", values="time_s")
    ratio = (times["naive"] / times["chunked"]).prod() ** (1 / len(times))
    shown = str(goals.table(done[0]).set_index("goal").loc["easy", "measured"])
    assert float(shown.split(maxsplit=1)[0]) == pytest.approx(ratio, rel=0.01)


def test_limits_are_measured_each_round(done: tuple[Run, str]) -> None:
    """Each round has its own limits, each the sum of its parts; every timed cell has its share."""
    events = [event for event in done[0].events() if isinstance(event, LimitsMeasured)]
    assert [event.round for event in events] == [0, 1]
    for limit in (limit for event in events for limit in event.limits):
        assert limit.seconds == pytest.approx(limit.products_s + limit.softmax_s + limit.traffic_s)
        assert min(limit.products_s, limit.softmax_s, limit.traffic_s) > 0
        assert limit.chain_s is not None
        assert limit.chain_s > 0
    cells = frame.cells(done[0])
    assert (cells["limit_share"] > 0).all()
    assert (cells["chain_share"] > 0).all()
    assert tables.results(cells)["of the chain"].str.endswith("%").all()
    assert (goals.table(done[0])["share of chain"].str.len() > 0).sum() == 6


def test_runs_without_chains_have_no_such_column(done: tuple[Run, str], tmp_path: Path) -> None:
    """A run of before there were chains is read as it was."""
    older = tmp_path / done[0].path.name
    shutil.copytree(done[0].path, older)
    events = [json.loads(line) for line in (older / "events.jsonl").read_text().splitlines()]
    for limit in (limit for event in events for limit in event.get("limits", ())):
        del limit["chain_s"]
    (older / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    table = goals.table(Run.open(older))
    assert "share of chain" not in table.columns
    results = tables.results(frame.cells(Run.open(older)))
    assert "of the composite limit" in results.columns
    assert "of the chain" not in results.columns
    assert (table["share of limit"].str.len() > 0).sum() == 6


def test_goals_and_figures_are_shown(done: tuple[Run, str], attnbench: Command) -> None:
    """The terminal, the page and Markdown have them, escaped."""
    run, printed = done
    assert "Goals" in printed
    page = (run.path / "report.html").read_text()
    assert 'id="goals"' in page
    assert "A paper &lt;with a name&gt;" in page
    markdown = attnbench("export", run.path, "--format", "markdown").stdout
    assert "## Goals" in markdown
    assert "## Beside what is published" in markdown
    table = published.table(run)
    assert list(table["overhead, published"]) == ["2.00 MB"] * 2
    assert list(table["time, published"]) == ["500 ms"] * 2
    assert isinstance(table, pd.DataFrame)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (
            "{name: g, implementation: chunked}",
            "none is given; allowed: exactly one of speedup, worst_speedup, limit_share",
        ),
        ("{name: g, implementation: chunked, limit_share: 1, gb_per_s: 1}", "limit_share, gb_per_s is given"),
        ("{name: g, implementation: chunked, speedup: 2}", "against must be given for a speed-up"),
        ("{name: g, implementation: chunked, limit_share: {avx2: 1}}", "numbers by CPU flag with other as the last"),
        ("{name: g, implementation: chunked, limit_share: 0}", "a number above 0"),
        ("{name: g, implementation: chunked, limit_share: 1, where: {dtyp: float32}}", "did you mean 'dtype'?"),
    ],
)
def test_mistakes_are_told(goal: str, message: str, tmp_path: Path) -> None:
    """A goal that says nothing, two things or too little is refused with what is allowed."""
    (tmp_path / "c.yaml").write_text(SWEEP + f"goals: {goal}\n")
    with pytest.raises(ConfigError, match="goals") as caught:
        load_config(str(tmp_path / "c.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(("part", "products"), [("forward", 2), ("backward", 5)])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_a_chain_has_the_products_of_its_share(part: chain.Part, products: int, mask: str) -> None:
    """What it multiplies is its share of all, and what a causal mask hides at most where a block meets the diagonal."""
    problem = AttentionProblem(heads_q=8, heads_kv=4, seq_q=700, seq_kv=900, head_dim=32, mask=mask)
    for each in chain.chains(problem, part, torch.float32):
        with FlopCounterMode(display=False) as counter:
            each()
        wanted = products * 2 * problem.heads_q * problem.pairs * problem.head_dim * each.share
        assert 1.0 - 1e-9 <= counter.get_total_flops() / wanted < (1.0 + 1e-9 if mask == "full" else 1.7)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_chain_converts_what_the_problem_has_in_another_dtype(part: chain.Part) -> None:
    """In float32 products of bfloat16 inputs each chain has copies, and only there."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=100, seq_kv=100, head_dim=32, dtype="bfloat16")
    wide = problem.model_copy(update={"dtype": "float32"})
    pairs = zip(chain.chains(problem, part, torch.float32), chain.chains(wide, part, torch.float32), strict=True)
    for converting, plain in pairs:
        assert converting.share == plain.share
        assert len(converting.calls) == len(plain.calls) + 1


def test_a_limit_is_the_best_of_its_blocks() -> None:
    """Training has seven products for two; blocks have as many rows as were tried, or as there are."""
    problem = AttentionProblem(heads_q=4, heads_kv=2, seq_q=100, seq_kv=300, head_dim=32, dtype="bfloat16")
    forward, training = composite.measure([(problem, "forward"), (problem, "forward_backward")])
    assert training.products_s > forward.products_s
    for limit in (forward, training):
        assert limit.rows in {*composite.ROWS, 200}
        assert limit.products in {"bfloat16", "float32"}
