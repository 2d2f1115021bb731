"""`attnbench compare` of two runs: verdicts with their reasons, exit codes, and a document that names cannot break."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import mannwhitneyu

from attnbench.harness.cell import Cell
from attnbench.harness.records import Outcome
from attnbench.harness.store import LAUNCH_FILE, RUN_FILE
from attnbench.harness.verdicts.rank_sum import shift_between

Command = Callable[..., subprocess.CompletedProcess[str]]
MakeRun = Callable[..., Path]
MakeCell = Callable[..., Cell]


@pytest.fixture
def few(cell: MakeCell) -> list[Cell]:
    """Two arms over two lengths."""
    return [cell(name, seq) for seq in (64, 128) for name in ("chunked", "sdpa")]


def verdict_of(done: subprocess.CompletedProcess[str], name: str) -> str:
    """The verdict in a cell's row of the Markdown."""
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(f"| {name} |")]
    assert len(rows) == 1, done.stdout + done.stderr
    return rows[0][3]


def test_one_regressed_cell_of_sixty(attnbench: Command, make_run: MakeRun, cell: MakeCell) -> None:
    """A single cell that is 10 % slower is found among 60, named first, and earns exit code 10; the others are EQUIVALENT."""
    cells = [cell(name, seq) for name in ("chunked", "sdpa", "naive") for seq in range(16, 336, 16)]
    slow = cells[17].name
    base = make_run("base", cells)
    candidate = make_run("candidate", cells, times_s={slow: 1.1e-3})
    done = attnbench("compare", base, candidate, "--format", "markdown")
    assert done.returncode == 10, done.stdout + done.stderr
    assert "60 cells: 1 REGRESSED, 59 EQUIVALENT" in done.stdout
    assert verdict_of(done, slow) == "REGRESSED"
    assert re.search(r"8 and 8 launches: slower by (9\.9|10\.\d) % \[\d+\.\d, 10\.\d\]; beyond 5 %", done.stdout)
    effects = done.stdout.split("### Effects")[1].splitlines()
    assert effects[4].startswith(f"| {slow} | 1.00 ms | 1.10 ms |")
    assert f"worst: {slow}, slower by" in done.stdout
    assert "| chunked | 20 | +0.5 % | +10" in done.stdout
    assert "no rate of false alarms is claimed" in done.stdout


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        ({"slower": 1.2, "controls_slower": 1.2}, "the 20.", 11),
        ({"slower": 0.8}, "4 IMPROVED", 0),
        ({"slower": 1.03}, "neither beyond 5 % nor within 1 %", 11),
        ({"slower": 1.2, "noise": 0.3}, "4 INCONCLUSIVE", 11),
        ({"slower": 1.2, "launches": 7}, "a verdict needs 8 launches from 8 servers", 11),
        ({"slower": 1.2, "servers": 4}, "a verdict needs 8 launches from 8 servers", 11),
        ({"slower": 1.2, "launches": 1}, ", the range; a verdict needs", 11),
        ({"slower": 1.2, "control": None}, "no control cell was timed in both runs", 11),
        ({"controls_slower": 1.08}, "within 1 %, but the 8.", 11),
        ({}, "4 EQUIVALENT", 0),
    ],
    ids=[
        "drift alone",
        "faster",
        "3 %",
        "noisy",
        "7 launches",
        "4 servers",
        "1 launch",
        "no control",
        "drift",
        "same",
    ],
)
def test_what_is_conclusive(
    attnbench: Command, make_run: MakeRun, few: list[Cell], options: dict[str, Any], words: str, code: int
) -> None:
    """Too few launches, drift and noise say less, never more; that earns 11 where conclusions are required, else 0."""
    base, candidate = make_run("base", few), make_run("candidate", few, **options)
    done = attnbench("compare", base, candidate, "--format", "markdown")
    assert done.returncode == 0, done.stdout + done.stderr
    assert words in done.stdout
    assert "REGRESSED" not in done.stdout
    assert ("warning: 4 of 4 cells are inconclusive" in done.stderr) == (code == 11)
    required = attnbench("compare", base, candidate, "--require-conclusive")
    assert required.returncode == code


def test_failed_against_a_base_that_was_right(attnbench: Command, make_run: MakeRun, cell: MakeCell) -> None:
    """However a cell ends that had a time in the base, it is FAILED with the detail, exit 13."""
    cells = [cell(seq=16 * (1 + at)) for at in range(len(Outcome))]
    ends = {of.name: end for of, end in zip(cells, Outcome, strict=True) if end is not Outcome.OK}
    base = make_run("base", cells)
    done = attnbench("compare", base, make_run("candidate", cells, ends=ends), "--format", "markdown")
    assert done.returncode == 13, done.stdout
    for name, outcome in ends.items():
        assert verdict_of(done, name) == "FAILED"
        assert f"{outcome}, it ended as {outcome}; the base had a time" in done.stdout
    alone = make_run("alone", cells, ends=dict.fromkeys(list(ends)[:1], Outcome.TIMED_OUT))
    assert attnbench("compare", base, alone).returncode == 13


def test_failed_on_both_sides(attnbench: Command, make_run: MakeRun, few: list[Cell]) -> None:
    """What fails is a failure even if it always was; what a machine cannot run is none, and is listed."""
    ends = {few[0].name: Outcome.INCORRECT, few[1].name: Outcome.UNSUPPORTED}
    done = attnbench(
        "compare", make_run("base", few, ends=ends), make_run("candidate", few, ends=ends), "--format", "markdown"
    )
    assert done.returncode == 13
    assert verdict_of(done, few[0].name) == "FAILED"
    assert "in the base: INCORRECT in round 0" in done.stdout
    assert "| sdpa | UNSUPPORTED in round 0 | 1 |" in done.stdout
    assert "3 cells: 2 EQUIVALENT, 1 FAILED" in done.stdout


def test_missing_and_new(attnbench: Command, make_run: MakeRun, few: list[Cell]) -> None:
    """A cell that the candidate does not plan or did not measure is MISSING, exit 13; one that the base lacks is NEW."""
    base = make_run("base", few[:3], ends={few[2].name: Outcome.OUT_OF_MEMORY})
    candidate = make_run("candidate", few[1:], ends={few[1].name: None})
    done = attnbench("compare", base, candidate, "--format", "markdown")
    assert done.returncode == 13
    assert [verdict_of(done, each.name) for each in few] == ["MISSING", "MISSING", "NEW", "NEW"]
    for words in ("not in the sweep; the base had a time", "not measured; the base had a time",
                  "in the base: OUT_OF_MEMORY in round 0", "in the base: not in the sweep"):  # fmt: skip
        assert words in done.stdout


def test_new_revision_is_not_comparable(attnbench: Command, make_run: MakeRun, cell: MakeCell) -> None:
    """A cell of the same name under another revision, or of another scale, is named with what changed, exit 12."""
    done = attnbench(
        "compare", make_run("base", [cell(), cell("sdpa")]), make_run("candidate", [cell(revision=2), cell("sdpa")]),
        "--format", "markdown",
    )  # fmt: skip
    assert done.returncode == 12
    assert verdict_of(done, cell().name) == "NOT_COMPARABLE"
    assert "not the cell it was: revision: 1 -> 2" in done.stdout
    assert "2 cells: 1 EQUIVALENT, 1 NOT_COMPARABLE" in done.stdout


def test_nothing_measured(attnbench: Command, make_run: MakeRun, few: list[Cell]) -> None:
    """Where neither side has a time of any cell, exit 14."""
    ends = dict.fromkeys((each.name for each in few), Outcome.UNSUPPORTED)
    done = attnbench("compare", make_run("base", few, ends=ends), make_run("candidate", few, ends=ends))
    assert done.returncode == 14, done.stdout
    assert "0 cells: none judged" in done.stdout


def test_slower_weighs_more_than_failed(attnbench: Command, make_run: MakeRun, cell: MakeCell) -> None:
    """Of several codes 10 is first, then 13, then 12."""
    base = make_run("base", [cell(), cell(seq=128), cell(seq=256)])
    worse = [cell(), cell(seq=128), cell(seq=256, revision=2)]
    ends = {cell().name: Outcome.CRASHED}
    slow = {cell(seq=128).name: 2e-3}
    assert attnbench("compare", base, make_run("all", worse, ends=ends, times_s=slow)).returncode == 10
    assert attnbench("compare", base, make_run("two", worse, ends=ends)).returncode == 13


def test_environments_are_listed(attnbench: Command, make_run: MakeRun, few: list[Cell], facts: dict[str, Any]) -> None:
    """Two runs are judged whatever differs, with a warning, each strict field that differs, and what to do; soft ones are not."""
    facts["strict"]["kernel"] = "Linux 9"
    del facts["strict"]["libc"]
    facts["soft"]["hostname"] = "elsewhere"
    candidate = make_run("candidate", few, slower=1.5, environment=facts, versions={"torch": "3.0"})
    done = attnbench("compare", make_run("base", few), candidate, "--format", "markdown")
    assert done.returncode == 10
    for row in ("| kernel | Linux 6.1 | Linux 9 |", "| libc | glibc 2.36 | not recorded |",
                "| versions.torch | 2.13.0 | 3.0 |", "| versions.python | 3.11.7 | not recorded |"):  # fmt: skip
        assert row in done.stdout
    assert "elsewhere" not in done.stdout
    assert "attnbench gate test.yaml --base REV --candidate REV" in done.stdout
    assert "warning: the environments differ: kernel, libc, versions.python" in done.stderr
    assert "strict fields of the environments differ (7)" in done.stdout


def test_what_may_explain_it_is_said(attnbench: Command, make_run: MakeRun, few: list[Cell]) -> None:
    """A slowdown whose backend is another one, or whose launches were disturbed, says so."""
    base = make_run("base", few, backend="flash")
    candidate = make_run("candidate", few, backend="math", slower=2, void="a thread waited")
    done = attnbench("compare", base, candidate, "--format", "markdown")
    assert "beyond 5 %; ran flash, now math" in done.stdout
    assert "8 and 8 launches (8 void): slower by" in done.stdout


def test_hostile_names(attnbench: Command, make_run: MakeRun, cell: MakeCell) -> None:
    """Pipes, tags, markup and line ends in names and details break no table and lose nothing."""
    name = "a|b[bold]c[/bold]<img src=x>\nd\\"
    cells = [cell(name), cell("sdpa")]
    base, candidate = make_run("base", cells), make_run("candidate", cells, ends={cells[0].name: Outcome.ERROR})
    done = attnbench("compare", base, candidate, "--format", "markdown")
    assert done.returncode == 13
    assert r"a\|b[bold]c[/bold]&lt;img src=x> d\\" in done.stdout
    for table in re.findall(r"(?:^\|.*\n)+", done.stdout, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    shown = attnbench("compare", base, candidate)
    assert shown.returncode == 13
    assert "a|b[bold]c[/bold]<img src=x>" in shown.stdout


@pytest.mark.parametrize("format_", ["terminal", "markdown"])
def test_output_repeats_itself(attnbench: Command, make_run: MakeRun, few: list[Cell], format_: str) -> None:
    """The same files give the same bytes."""
    base, candidate = make_run("base", few), make_run("candidate", few, slower=1.07, noise=0.02)
    first, second = (attnbench("compare", base, candidate, "--format", format_) for _ in range(2))
    assert first.stdout == second.stdout
    assert first.stdout


def test_torn_last_line(attnbench: Command, make_run: MakeRun, few: list[Cell]) -> None:
    """Half a line at the end is dropped and said; the cell then has a launch less."""
    base, candidate = make_run("base", few, control=None), make_run("candidate", few, control=None)
    file = candidate / LAUNCH_FILE
    file.write_bytes(file.read_bytes()[:-40])
    done = attnbench("compare", base, candidate)
    assert done.returncode == 0, done.stderr
    assert "the last line is torn and was dropped" in done.stderr
    assert "8 and 7 launches" in done.stdout


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / RUN_FILE).unlink(), "holds no run"),
        (lambda path: (path / RUN_FILE).write_text("{"), "is damaged"),
        (lambda path: (path / LAUNCH_FILE).write_text("{}\n"), f"{LAUNCH_FILE}:1 is damaged"),
        (lambda path: (path / LAUNCH_FILE).unlink(), "cannot read"),
    ],
    ids=["no run", "torn description", "foreign line", "no launches"],
)
def test_unreadable_folders(
    attnbench: Command, make_run: MakeRun, few: list[Cell], damage: Callable[[Path], object], words: str
) -> None:
    """A folder that cannot be read is named with the reason on either side, exit 3, without a traceback."""
    good, bad = make_run("good", few), make_run("bad", few)
    damage(bad)
    for pair in ((good, bad), (bad, good)):
        done = attnbench("compare", *pair)
        assert done.returncode == 3
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_times_of_nothing(attnbench: Command, make_run: MakeRun, few: list[Cell]) -> None:
    """A stored time of zero has no ratio to anything: the cell is MISSING with the reason, and nothing is divided by it."""
    done = attnbench("compare", make_run("base", few), make_run("candidate", few, times_s={few[0].name: 0.0}))
    assert done.returncode == 13, done.stderr
    assert "a launch took no time at all" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["one"], "1 runs were given (one); write attnbench compare BASE CANDIDATE"),
        (["one", "two", "three"], "3 runs were given"),
        (["one", "two", "--baseline", "x"], "2 runs were given (one two) with --baseline"),
        (["one", "two", "--format", "markdwn"], "unknown format 'markdwn'; did you mean 'markdown'?"),
        (["one", "two", "--factor", "torch"], "--factor says what may differ from a baseline"),
    ],
)
def test_usage(attnbench: Command, arguments: list[str], words: str) -> None:
    """What was asked, what is allowed, exit 2."""
    done = attnbench("compare", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_needs_no_torch_and_no_scipy(make_run: MakeRun, few: list[Cell]) -> None:
    """Comparing imports neither."""
    code = (
        "import sys\nfrom attnbench.harness.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'scipy'} & set(sys.modules)"
    )
    runs = [str(make_run(name, few)) for name in ("base", "candidate")]
    done = subprocess.run([sys.executable, "-c", code, "compare", *runs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("base", "candidate"), [(3, 3), (3, 5), (4, 4), (8, 8), (8, 12), (16, 9)])
def test_interval_is_the_exact_tests(base: int, candidate: int) -> None:
    """Shifts inside of the interval are those which the exact rank-sum test does not reject at 5 %."""
    before = [value * 1.0 for value in range(base)]
    after = [value * 1.01 + 0.003 * value**2 for value in range(candidate)]
    effect, is_interval = shift_between(before, after)
    edges = sorted(y - x for x in before for y in after)
    shifts = [edges[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(edges) if a != b), edges[-1] + 1]
    rejected = [mannwhitneyu([y - s for y in after], before, method="exact").pvalue <= 0.05 for s in shifts]
    inside = [effect.low < shift < effect.high for shift in shifts]
    assert is_interval == any(rejected)
    assert inside == [not each for each in rejected] if is_interval else all(inside[1:-1])
