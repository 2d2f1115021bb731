"""`attnbench baseline`: saved whole or not at all, small, found by name, and judged against."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness.cell import Cell
from attnbench.harness.records import CeilingsMeasured, Outcome
from attnbench.harness.store import LAUNCH_FILE, RUN_FILE, Run
from attnbench.harness.verdicts.estimate import counted, estimate

Command = Callable[..., subprocess.CompletedProcess[str]]
MakeRun = Callable[..., Path]
MakeCell = Callable[..., Cell]

TINY = """
name: tiny
device: cpu
implementations: [sdpa, naive]
sweeps: [{heads: 1, seq_len: 16, head_dim: 8, dtype: float32, mask: full, pass: forward}]
protocol: {launches: 1, min_time_s: 0.001, max_time_s: 0.01, measure: time}
"""


@pytest.fixture
def cells(cell: MakeCell) -> list[Cell]:
    """An arm over two lengths, and another."""
    return [cell(), cell(seq=128), cell("sdpa")]


def save(attnbench: Command, run: Path, name: str = "main", *options: str) -> subprocess.CompletedProcess[str]:
    """Save a baseline, which succeeds."""
    done = attnbench("baseline", "save", run, name, *options)
    assert done.returncode == 0, done.stderr
    return done


def test_saved_listed_shown_removed(attnbench: Command, make_run: MakeRun, cells: list[Cell], tmp_path: Path) -> None:
    """A baseline is a readable run of its name, is listed and shown, and can be removed."""
    done = save(attnbench, make_run("run", cells))
    assert done.stdout.splitlines()[-1] == "results/baselines/main"
    assert done.stderr == ""
    listed = attnbench("baseline", "list")
    assert "main" in listed.stdout
    assert "Test CPU, 2 cores" in listed.stdout
    shown = attnbench("baseline", "show", "main")
    assert shown.returncode == 0, shown.stderr
    for words in ("torch_facts.cudnn", "gpu.power_limit_w", cells[0].name, "unreadable (this platform"):
        assert words in shown.stdout
    assert "a baseline of run run" in shown.stderr
    assert attnbench("report", "results/baselines/main").returncode == 0
    assert attnbench("baseline", "remove", "main").stdout == "removed results/baselines/main\n"
    assert "no baselines in" in attnbench("baseline", "list").stdout
    assert list((tmp_path / "results" / "baselines").iterdir()) == []


def test_what_is_kept(attnbench: Command, make_run: MakeRun, cells: list[Cell], tmp_path: Path) -> None:
    """Estimates, torch's facts and the strict environment stay as they were; samples and what is soft go."""
    source = Run.open(make_run("run", cells))
    save(attnbench, source.path)
    kept = Run.open(tmp_path / "results" / "baselines" / "main")
    for key in (cells[0].id, source.info.control[0]):
        before, after = (
            estimate([each for each in counted(run.launches()) if each.cell == key]) for run in (source, kept)
        )
        assert before == after
    assert all(len(each.samples.times_s) == 1 for each in kept.launches() if each.samples)
    assert kept.info.environment["strict"] == source.info.environment["strict"]
    assert "soft" not in kept.info.environment
    assert [each.torch_facts for each in kept.events() if isinstance(each, CeilingsMeasured)] == [
        each.torch_facts for each in source.events() if isinstance(each, CeilingsMeasured)
    ]
    example = Path(__file__).parents[2] / "results" / "examples" / "quick-amd-zen5"
    save(attnbench, example, "example")
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*.json*"))
        for folder in (tmp_path / "results" / "baselines" / "example", example)
    ]
    assert sizes[0] < sizes[1] / 3


def test_judged_against_a_baseline(attnbench: Command, make_run: MakeRun, cells: list[Cell]) -> None:
    """The same times are EQUIVALENT, slower ones earn 10; a baseline's folder can be given like a run's too."""
    save(attnbench, make_run("run", cells))
    same, slower = make_run("same", cells), make_run("slower", cells, slower=1.1)
    done = attnbench("compare", same, "--baseline", "main", "--require-conclusive")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 EQUIVALENT" in done.stdout
    assert attnbench("compare", slower, "--baseline", "main").returncode == 10
    assert attnbench("compare", "results/baselines/main", slower).returncode == 10
    assert attnbench("compare", slower, "--baseline", "main", "--root", "elsewhere").returncode == 12


def test_missing_baseline(attnbench: Command, make_run: MakeRun, cells: list[Cell]) -> None:
    """A baseline that is not there is not comparable, exit 12, with near matches and how to make one."""
    run = make_run("run", cells)
    none = attnbench("compare", run, "--baseline", "main")
    assert none.returncode == 12
    assert "there is no baseline 'main' in results/baselines; baselines: none" in none.stderr
    assert "attnbench baseline save RUN main" in none.stderr
    save(attnbench, run)
    for command in (("compare", run, "--baseline"), ("baseline", "show"), ("baseline", "remove")):
        done = attnbench(*command, "mian")
        assert done.returncode == 12
        assert "did you mean 'main'?" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "", "a b", "x" * 65, "-x", "ü"])
def test_names(attnbench: Command, make_run: MakeRun, cells: list[Cell], name: str) -> None:
    """A name that could lead elsewhere is refused with what is allowed, exit 2."""
    done = attnbench("baseline", "save", make_run("run", cells), "--", name)
    assert done.returncode == 2
    assert "allowed: letters, digits" in done.stderr


def test_saving_over(attnbench: Command, make_run: MakeRun, cells: list[Cell], tmp_path: Path) -> None:
    """An existing baseline is kept unless told otherwise, and replaced whole."""
    save(attnbench, make_run("first", cells))
    second = make_run("second", cells[:1])
    refused = attnbench("baseline", "save", second, "main")
    assert refused.returncode == 2
    assert "--replace" in refused.stderr
    root = tmp_path / "results" / "baselines"
    assert len(Run.open(root / "main").info.cells) == 3
    save(attnbench, second, "main", "--replace")
    assert len(Run.open(root / "main").info.cells) == 1
    assert [each.name for each in root.iterdir()] == ["main"]


def test_what_says_little_is_said(attnbench: Command, make_run: MakeRun, cells: list[Cell]) -> None:
    """Too few launches, cells without a time and missing facts are warned of when there is still time to measure again."""
    ends = {cells[2].name: Outcome.CRASHED}
    done = save(attnbench, make_run("run", cells, launches=3, ends=ends, torch_facts={}))
    assert "warning: no verdict rests on 2 of 3 cells, which have fewer than 8 launches" in done.stderr
    assert "warning: 1 of 3 cells have no time" in done.stderr
    assert "torch's facts were not recorded" in done.stderr
    nothing = make_run("nothing", cells, ends=dict.fromkeys((each.name for each in cells), Outcome.ERROR), control=None)
    refused = attnbench("baseline", "save", nothing, "empty")
    assert refused.returncode == 2
    assert "holds no time of any cell" in refused.stderr


def test_damaged(attnbench: Command, make_run: MakeRun, cells: list[Cell], tmp_path: Path) -> None:
    """What cannot be read or written is named, exit 3, without a traceback; the other baselines are still listed."""
    run = make_run("run", cells)
    save(attnbench, run)
    save(attnbench, run, "other")
    root = tmp_path / "results" / "baselines"
    (root / "main" / RUN_FILE).unlink()
    (root / "other" / LAUNCH_FILE).write_bytes((root / "other" / LAUNCH_FILE).read_bytes()[:-9])
    (tmp_path / "taken").write_text("a file where the folder should be")
    for command, words in (
        (("baseline", "list"), "holds no run"),
        (("baseline", "show", "main"), "holds no run"),
        (("baseline", "remove", "main"), "holds no baseline"),
        (("compare", run, "--baseline", "main"), "holds no run"),
        (("baseline", "save", "nowhere", "x"), "holds no run"),
        (("baseline", "save", run, "x", "--root", "taken"), "cannot write"),
        (("baseline", "list", "--root", "taken"), "cannot read"),
    ):
        done = attnbench(*command)
        assert done.returncode == 3, command
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert "other" in attnbench("baseline", "list").stdout
    assert "torn" in attnbench("baseline", "show", "other").stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_root_without_permission(attnbench: Command, make_run: MakeRun, cells: list[Cell], tmp_path: Path) -> None:
    """Where baselines cannot be written the message says so, exit 3, and nothing is left."""
    root = tmp_path / "results" / "baselines"
    root.mkdir(parents=True)
    root.chmod(0o500)
    done = attnbench("baseline", "save", make_run("run", cells), "main")
    assert done.returncode == 3
    assert "Permission denied" in done.stderr
    assert list(root.iterdir()) == []


def test_measured_here(attnbench: Command, tmp_path: Path) -> None:
    """A run measured here has every strict field, so that its environment equals its own, until one changes."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = attnbench("run", "tiny.yaml", "--out", "runs").stdout.splitlines()[-1]
    assert "Environments" not in attnbench("compare", run, run).stdout
    other = Path(shutil.copytree(tmp_path / run, tmp_path / "other"))
    description: dict[str, Any] = json.loads((other / RUN_FILE).read_text())
    description["environment"]["strict"]["kernel"] = "Linux 2.4"
    (other / RUN_FILE).write_text(json.dumps(description))
    assert "warning: the environments differ: kernel\n" in attnbench("compare", run, other).stderr
