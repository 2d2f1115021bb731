"""Exports for other tools: read by the tools themselves where they can be had, else held to their own format's rules."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from attnbench.harness.cell import Cell
from attnbench.harness.records import Launch, Outcome, RunInfo, Samples
from attnbench.harness.store import Run
from attnbench.impls import AttentionProblem
from attnbench.reports.export import export
from attnbench.reports.export.round_statistics import round_statistics

Command = Callable[..., subprocess.CompletedProcess[str]]

QUICK = Path(__file__).parent.parent / "results" / "examples" / "quick-amd-zen5"
PROBLEM = AttentionProblem(heads_q=1, heads_kv=1, seq_q=8, seq_kv=8, head_dim=8)

#: benchmark-action/github-action-benchmark, src/extract.ts: what it takes of an entry; its alert reads `range` by a pattern.
ENTRIES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "unit", "value"],
        "properties": {
            "name": {"type": "string", "pattern": r"^[^|`\n]+$"},
            "unit": {"const": "ms"},
            "value": {"type": "number", "exclusiveMinimum": 0},
            "range": {"type": "string", "pattern": r"^± \d.+$"},
            "extra": {"type": "string"},
        },
        "additionalProperties": False,
    },
}


def stored(root: Path, cells: list[Cell], launches: list[tuple[Cell, Outcome, tuple[float, ...]]]) -> Run:
    """A run of these cells; each launch is a round, with an outcome and, where there are any, samples in seconds."""
    info = RunInfo(
        id="made", name="made", created_at="2026-01-01T00:00:00+00:00", config_source="made", config_text="",
        config={"name": "made", "implementations": ["naive"],
                "sweeps": [{"heads": 1, "seq_len": 8, "head_dim": 8, "dtype": "float32", "mask": "full", "pass": "forward"}]},
        device="cpu", versions={"python": "3.12.1"}, environment={"strict": {"cpu_model": {"unreadable": "no"}}, "soft": {}},
        cells=tuple(cells), control=(), seed=0, attnbench_version="0",
    )  # fmt: skip
    run = Run.create(root, info)
    rounds: dict[str, int] = {}
    for position, (cell, outcome, times_s) in enumerate(launches):
        samples = Samples(repeats=1, times_s=times_s, stop="budget", warmup_calls=0, warmup_s=0.0) if times_s else None
        rounds[cell.id] = rounds.get(cell.id, -1) + 1
        launch = Launch(
            cell=cell.id, round=rounds[cell.id], attempt=0, implementation=cell.implementation, name=cell.name, server="s",
            position=position, started_at="", outcome=outcome, detail="told", samples=samples,
        )  # fmt: skip
        run.append(launch)
    return run


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, attnbench_in: Callable[[Path], Command]) -> Path:
    """A storage of pytest-benchmark with the quick example in it, twice."""
    folder = tmp_path_factory.mktemp("storage")
    for name in ("0001_quick.json", "0002_again.json"):
        done = attnbench_in(folder)("export", QUICK, "--format", "pytest-benchmark", "--out", name)
        assert done.returncode == 0, done.stderr
    return folder


def pytest_benchmark(storage: Path, *args: str) -> str:
    """What the real command prints of a storage."""
    command = [Path(sys.executable).parent / "pytest-benchmark", "--storage", storage, *args]
    done = subprocess.run(command, cwd=storage, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Failed to load" not in done.stdout + done.stderr
    return done.stdout


def test_pytest_benchmark_lists_and_compares(storage: Path) -> None:
    """The real reader shows every ranked cell in the group of its problem, and pairs two runs by the cell's name."""
    assert [Path(line).name for line in pytest_benchmark(storage, "list").split()] == [
        "0001_quick.json",
        "0002_again.json",
    ]
    document = json.loads((storage / "0001_quick.json").read_text())
    shown = pytest_benchmark(storage, "compare", "0001", "--columns=min,median,ops,rounds,outliers")
    for each in document["benchmarks"]:
        assert each["name"] in shown
        assert f"benchmark {each['group']!r}" in shown
    between = pytest_benchmark(storage, "compare", "--between", "median")
    assert between.count("+0.0%") == len(document["benchmarks"])
    by = pytest_benchmark(storage, "compare", "0001", "--group-by=param:seq_q,param:pass", "--csv=out")
    assert "'seq_q=256 pass=forward'" in by
    assert "param:dtype" in (storage / "out.csv").read_text().splitlines()[0]


def test_pytest_benchmark_has_the_harness_s_facts(storage: Path) -> None:
    """Data are launch medians, and what the harness says of them stands beside them."""
    document = json.loads((storage / "0001_quick.json").read_text())
    run = Run.open(QUICK)
    assert len(document["benchmarks"]) == len(run.info.cells) - len(document["attnbench"]["without_a_time"])
    for each in document["benchmarks"]:
        extra, stats = each["extra_info"], each["stats"]
        assert stats["rounds"] == len(stats["data"]) == extra["launches"]
        assert stats["median"] == extra["median_s"]
        assert extra["low_s"] <= extra["median_s"] <= extra["high_s"]
        assert extra["flops_per_s"] == pytest.approx(extra["flops"] / extra["median_s"])
        assert extra["outcome"] == "OK"
        assert extra["overhead_bytes"] >= 0
    assert {each["extra_info"]["cell"] for each in document["benchmarks"]} <= {cell.id for cell in run.info.cells}
    assert document["machine_info"]["cpu"]["brand_raw"].startswith("AMD")
    assert document["datetime"] == run.info.created_at


@pytest.mark.parametrize("count", range(1, 24))
def test_statistics_are_pytest_benchmark_s(count: int) -> None:
    """Every field, to the last bit, as the package itself computes it; with outliers, ties and constant rounds among the data."""
    from pytest_benchmark.stats import Stats

    generator = random.Random(count)
    for spread in (0.0, 0.01, 3.0):
        data = [round(1e-3 * generator.lognormvariate(0, spread), 5) for _ in range(count)]
        stats = Stats()
        for each in data:
            stats.update(each)
        assert round_statistics(data) == stats.as_dict()


def test_what_failed_has_no_number(tmp_path: Path) -> None:
    """A cell that failed in one round of several, was refused, or has no launch is in neither format; the reasons are told."""
    cells = [
        Cell(implementation=name, problem=PROBLEM, passes="forward") for name in ("right", "wrong", "refused", "late")
    ]
    right, wrong, refused, _ = cells
    run = stored(tmp_path, cells, [
        (right, Outcome.OK, (1e-3, 3e-3, 2e-3)), (wrong, Outcome.OK, (1e-3,)), (refused, Outcome.UNSUPPORTED, ()),
        (right, Outcome.OK, (4e-3,)), (wrong, Outcome.INCORRECT, ()),
    ])  # fmt: skip
    document = json.loads(export(run, "pytest-benchmark"))
    assert [each["name"] for each in document["benchmarks"]] == [right.name]
    assert document["benchmarks"][0]["stats"]["data"] == [2e-3, 4e-3]
    assert [(each["name"].partition("/")[0], each["outcome"]) for each in document["attnbench"]["without_a_time"]] == [
        ("wrong", "INCORRECT"), ("refused", "UNSUPPORTED"), ("late", "not measured"),
    ]  # fmt: skip
    assert all(each["detail"] for each in document["attnbench"]["without_a_time"])
    assert document["machine_info"] == {"python_version": "3.12.1", "cpu": {}}
    (entry,) = json.loads(export(run, "github-action-benchmark"))
    assert (entry["name"], entry["value"], entry["range"]) == (right.name, pytest.approx(3.0), "± 1.000000")


def test_nothing_measured_is_an_empty_list(tmp_path: Path) -> None:
    """A run without a single time is still a file of its format."""
    run = stored(tmp_path, [Cell(implementation="naive", problem=PROBLEM, passes="forward")], [])
    assert json.loads(export(run, "pytest-benchmark"))["benchmarks"] == []
    assert json.loads(export(run, "github-action-benchmark")) == []


def test_github_action_benchmark(attnbench: Command) -> None:
    """Entries of the action's own shape, one for each timed cell, named once, all in one unit; no NaN."""
    done = attnbench("export", QUICK, "--format", "github-action-benchmark")
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    jsonschema.validate(entries, ENTRIES)
    names = [each["name"] for each in entries]
    assert len(set(names)) == len(names) == len(Run.open(QUICK).info.cells)
    assert all(float(each["range"].removeprefix("± ")) >= 0 for each in entries)
    assert all(re.search(r"^range of 3 launches: .* (us|ms)$", each["extra"], re.MULTILINE) for each in entries)


def test_names_cannot_break_a_comment(tmp_path: Path) -> None:
    """The action writes names between backticks into a Markdown table; one launch has no range."""
    cell = Cell(implementation="odd", options={"mode": "a|`b`\nc"}, problem=PROBLEM, passes="forward")
    run = stored(tmp_path, [cell], [(cell, Outcome.OK, (1e-6,))])
    entries: list[dict[str, Any]] = json.loads(export(run, "github-action-benchmark"))
    jsonschema.validate(entries, ENTRIES)
    assert entries[0]["name"].startswith("odd[mode=a/'b' c]/b1-h1-s8")
    assert "range" not in entries[0]
    assert json.loads(export(run, "pytest-benchmark"))["benchmarks"][0]["name"] == cell.name
