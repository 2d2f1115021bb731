"""The gate through its command: real revisions, folders, wheels and plugins, measured in pairs on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness.gate.pairs import Pairs
from attnbench.harness.gate.proof_records import read_first_found
from attnbench.harness.gate.records import Gate, GateLaunch
from attnbench.harness.records import Outcome, SessionEnded
from attnbench.harness.store import LAUNCH_FILE
from attnbench.harness.verdicts.paired import pairs_of_screen

Command = Callable[..., subprocess.CompletedProcess[str]]
PROJECT = Path(__file__).parents[2]
DISTRIBUTION = PROJECT / "tests" / "distribution"
AUTHOR = ("-c", "user.name=Test", "-c", "user.email=test@example.org")

CONFIG = """
name: tiny
implementations: [{names}]
sweeps:
  - {{batch: 1, heads: 1, seq_len: 64, head_dim: 16, dtype: float32, mask: full, pass: forward}}
protocol: {{threads: 1, min_time_s: 0.01, max_time_s: 0.02, measure: time}}
"""
#: An implementation in a file of its own; `{times}` bends it.
KERNEL = """
from attnbench.impls import Implementation, register

@register
class Own(Implementation):
    name = "own"

    def prepare(self, problem, tensors):
        import torch
        return lambda: torch.nn.functional.scaled_dot_product_attention(*tensors){times}
"""


def git(folder: Path, *arguments: str) -> str:
    """What git prints there."""
    command = ["git", "-C", str(folder), *AUTHOR, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, message: str) -> str:
    """Commit everything in the folder; the new commit."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def change(file: Path, old: str, new: str) -> None:
    """Replace what is there exactly once or more; at least once."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone of this repository, with a configuration of three implementations beside it and one of `chunked`."""
    if not (PROJECT / ".git").exists():
        pytest.skip("a revision is checked out of this repository, and this folder is none")
    folder = tmp_path / "repository"
    subprocess.run(["git", "clone", "--quiet", PROJECT, folder], check=True, capture_output=True)
    git(folder, "checkout", "--quiet", "-b", "work")
    (tmp_path / "three.yaml").write_text(CONFIG.format(names="chunked, sdpa_flash, naive"))
    (tmp_path / "chunked.yaml").write_text(CONFIG.format(names="chunked"))
    return folder


TIMES = 8


def much_slower(repository: Path) -> None:
    """Chunked calls its kernel so often: the least that is seen on any machine, however busy it is."""
    call = "attend(query, key, value, scale, fast)"
    change(
        repository / "impls" / "chunked" / "__init__.py",
        f"return {call}",
        f"return [{call} for _ in range({TIMES})][0]",
    )


def gate_of(done: subprocess.CompletedProcess[str], folder: Path) -> Gate:
    """The gate whose folder is the last line that the command printed."""
    return Gate.open(folder / done.stdout.splitlines()[-1])


def verdicts_of(gate: Gate) -> dict[str, dict[str, Any]]:
    """What was written about each implementation's cell."""
    data = json.loads((gate.path / "verdicts.json").read_text())
    return {each["name"].split("/")[0]: each for each in data["judgements"]}


def launches_of(gate: Gate, name: str) -> list[GateLaunch]:
    """The launches of an implementation's cell, but for the control's."""
    return [each for each in gate.launches() if each.name.startswith(f"{name}/") and each.comparison != "control"]


def assert_apart(gate: Gate, repository: Path) -> None:
    """Each arm ran its own code from paths of equal length, and left neither a folder nor a worktree."""
    paths: dict[str, set[str]] = {"base": set(), "candidate": set()}
    for each in gate.launches():
        if each.arm != "control" and each.comparison != "control" and each.origin:
            label = {"base": "base", "candidate": "cand"}[each.arm]
            assert each.origin.startswith(f"{gate.path.resolve()}/arms/{label}")
            paths[each.arm].add(each.origin)
    assert paths["base"]
    assert {len(path) for path in paths["base"]} >= {len(path) for path in paths["candidate"]}
    assert not (gate.path / "arms").exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_pull_request_that_is_slower(
    repository: Path, tmp_path: Path, attnbench_in: Callable[[Path], Command]
) -> None:
    """Chunked at a fraction of its speed is REGRESSED and the gate exits 10; the other is not; the arms are apart.

    With `--exit-first` as well, which leaves the other where it was.
    """
    much_slower(repository)
    commit(repository, "Slower")
    asked = (
        "gate", tmp_path / "three.yaml", "--only", "chunked,sdpa_flash", "--base", "HEAD~1", "--candidate", "HEAD",
        "--out", tmp_path / "runs",
    )  # fmt: skip
    done = attnbench_in(repository)(*asked, timeout=1500)
    assert done.returncode == 10, done.stdout + done.stderr
    gate = gate_of(done, repository)
    said = verdicts_of(gate)
    assert said["chunked"]["verdict"] == "REGRESSED"
    assert said["chunked"]["percent"]["shift"] > 100
    assert said["sdpa_flash"]["verdict"] not in ("REGRESSED", "FAILED", "MISSING")
    assert "REGRESSED" in done.stdout
    assert "chunked/b1-h1-s64-d16-float32-full/forward" in done.stdout
    assert f"::error title=REGRESSED {said['chunked']['name']}" in (gate.path / "annotations.txt").read_text()
    assert gate.info.base.revision == git(repository, "rev-parse", "HEAD~1")
    assert gate.info.candidate.revision == git(repository, "rev-parse", "HEAD")
    assert gate.info.base.digest != gate.info.candidate.digest
    assert gate.info.base.factor == "attnbench"
    assert_apart(gate, repository)
    again = attnbench_in(repository)("compare", gate.path, "--replay")
    assert again.returncode == 10
    assert "the same, byte for byte" in again.stderr
    first = attnbench_in(repository)(*asked, "--exit-first", timeout=1500)
    assert first.returncode == 10, first.stdout + first.stderr
    said = verdicts_of(gate_of(first, repository))
    assert said["chunked"]["verdict"] == "REGRESSED"
    assert said["chunked"]["reason"].startswith("12 pairs: slower by ")
    assert said["sdpa_flash"]["reason"].endswith(" of 8 pairs of the screen were measured")


def test_a_comment_and_an_interrupt(repository: Path, tmp_path: Path, attnbench_in: Callable[[Path], Command]) -> None:
    """Ctrl-C exits 130; resume keeps the pairs and the commit, though the branch moved, survives `kill -9`, and exits 0."""
    with (repository / "impls" / "chunked" / "__init__.py").open("a") as stream:
        stream.write("# Nothing that changes anything.\n")
    meant = commit(repository, "Comment")
    process = start(
        repository,
        "gate",
        tmp_path / "chunked.yaml",
        "--base",
        "HEAD~1",
        "--candidate",
        "work",
        "--out",
        tmp_path / "runs",
    )
    path = wait_for_pairs(tmp_path / "runs", 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out.splitlines()[-1] == str(path)
    assert f"attnbench resume {path}" in err
    assert "not all pairs were measured" in (path / "summary.md").read_text()
    assert not (path / "arms").exists()
    before = Gate.open(path).launches()
    much_slower(repository)
    commit(repository, "Slower")
    process = start(repository, "resume", path)
    wait_for_pairs(tmp_path / "runs", 3)
    process.kill()
    process.communicate()
    done = attnbench_in(repository)("resume", path, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    gate = Gate.open(path)
    assert gate.launches()[: len(before)] == before
    assert gate.info.candidate.revision == meant
    assert verdicts_of(gate)["chunked"]["verdict"] in ("EQUIVALENT", "INCONCLUSIVE")
    series = Pairs.of(gate.launches()).of_comparison(gate.info.comparisons[0].key)
    assert len(series.screen) == pairs_of_screen(series)
    ends = [event.status for event in gate.events() if isinstance(event, SessionEnded)]
    assert ends == ["interrupted", "finished"]
    assert_apart(gate, repository)


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """The command in the background, in a group of its own."""
    return subprocess.Popen(
        [Path(sys.executable).parent / "attnbench", *map(str, arguments)], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def wait_for_pairs(root: Path, count: int) -> Path:
    """The only gate's folder, once it holds so many pairs of its first comparison."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for path in root.glob("*"):
            file = path / LAUNCH_FILE
            if file.exists() and file.read_bytes().endswith(b"\n"):
                gate = Gate.open(path)
                if len(Pairs.of(gate.launches()).of_comparison(gate.info.comparisons[0].key).screen) >= count:
                    return path
        time.sleep(0.2)
    raise AssertionError("the gate did not get that far")


def test_a_pull_request_that_is_wrong(
    repository: Path, tmp_path: Path, attnbench_in: Callable[[Path], Command]
) -> None:
    """A scale 1 % off fails the candidate's check: FAILED and 13, at the first pair; what neither arm can run is no verdict."""
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="chunked, sdpa_cudnn"))
    change(repository / "impls" / "chunked" / "__init__.py", "problem.softmax_scale", "1.01 * problem.softmax_scale")
    commit(repository, "Wrong")
    done = attnbench_in(repository)(
        "gate", tmp_path / "c.yaml", "--base", "HEAD~1", "--candidate", "HEAD", "--out", tmp_path / "runs"
    )
    assert done.returncode == 13, done.stdout + done.stderr
    gate = gate_of(done, repository)
    said = verdicts_of(gate)["chunked"]
    refused = json.loads((gate.path / "verdicts.json").read_text())["refused"]
    assert verdicts_of(gate).keys() == {"chunked"}
    assert [name.split("/")[0] for name in refused] == ["sdpa_cudnn"]
    assert all("neither arm can run it" in reason and "cuda" in reason.lower() for reason in refused.values())
    assert "Neither arm can run" in done.stdout
    assert said["verdict"] == "FAILED"
    assert "INCORRECT" in said["reason"]
    assert {each.outcome for each in launches_of(gate, "chunked") if each.arm == "base"} <= {Outcome.OK}
    assert {each.pair for each in gate.launches()} == {0}


def test_a_pull_request_that_does_not_import(
    repository: Path, tmp_path: Path, attnbench_in: Callable[[Path], Command]
) -> None:
    """Where the candidate's code cannot be imported every cell is FAILED with the reason, and the gate exits 13 at once."""
    (repository / "impls" / "api.py").write_text("def broken(:\n")
    commit(repository, "Broken")
    done = attnbench_in(repository)(
        "gate", tmp_path / "three.yaml", "--base", "HEAD~1", "--candidate", "HEAD", "--out", tmp_path / "runs"
    )
    assert done.returncode == 13, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    said = verdicts_of(gate_of(done, repository))
    assert {each["verdict"] for each in said.values()} == {"FAILED"}
    assert all("SyntaxError" in each["reason"] for each in said.values())
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_two_implementations(attnbench: Command, tmp_path: Path) -> None:
    """Torch's fused attention against a materialised one: IMPROVED and exit 0, and each name stands for its own arm."""
    config = (
        CONFIG.format(names="naive, sdpa_flash, chunked")
        .replace("seq_len: 64", "seq_len: 512")
        .replace("heads: 1", "heads: 4")
    )
    (tmp_path / "c.yaml").write_text(config)
    done = attnbench(
        "gate", "c.yaml", "--base-impl", "naive", "--candidate-impl", "sdpa_flash", "--out", "runs", timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    gate = gate_of(done, tmp_path)
    said = verdicts_of(gate)
    assert {name: each["verdict"] for name, each in said.items()} == {"sdpa_flash": "IMPROVED"}
    assert said["sdpa_flash"]["effect"]["shift"] < -0.1
    arms = {each.arm: each.name.split("/")[0] for each in gate.launches() if each.comparison != "control"}
    assert arms == {"base": "naive", "candidate": "sdpa_flash"}
    assert "sdpa_flash against naive" in done.stdout


def test_a_proof_of_what_is_found_first(attnbench: Command, tmp_path: Path) -> None:
    """One sweep with an injected slowdown that ends once it is shown: kept with its seconds, and in the table."""
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="sdpa_flash, naive"))
    done = attnbench("gate", "c.yaml", "--prove", "--exit-first", "--out", "proof", timeout=1500)
    assert done.returncode == 0, done.stderr
    assert "Slowdowns that end a sweep" in done.stdout
    (one,) = read_first_found(tmp_path / "proof")
    assert (one.cells, one.percent) == (2, 10)
    assert one.verdict in ("REGRESSED", "INCONCLUSIVE")
    assert one.seconds > 0
    assert one.servers >= 12


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, built here without a network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_a_wheel_and_a_folder(repository: Path, tmp_path: Path, attnbench_in: Callable[[Path], Command]) -> None:
    """A wheel of attnbench as base and its folder with what is uncommitted as candidate; stopped by time it exits 0."""
    wheel = wheel_of(Path(shutil.copytree(repository, tmp_path / "source")), tmp_path / "wheels")
    much_slower(repository)
    done = attnbench_in(tmp_path)(
        "gate", "chunked.yaml", "--base", wheel, "--candidate", "./repository", "--out", "runs", "--max-minutes", "0.2",
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    gate = gate_of(done, tmp_path)
    assert verdicts_of(gate)["chunked"]["verdict"] == "INCONCLUSIVE"
    pairs = Pairs.of(gate.launches()).of_comparison(gate.info.comparisons[0].key).screen
    assert pairs
    assert pairs[0].effect > 0.3
    assert gate.info.base.revision == "version 0.1.0"
    assert "warning: not everything could be told here" in done.stderr
    assert_apart(gate, repository)


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Wheels of another distribution, right and wrong, and a folder in which the right one is installed for the caller."""
    wheels = []
    for version, bend in (("0.1.0", ""), ("0.2.0", " * 1.02")):
        source = Path(shutil.copytree(DISTRIBUTION, tmp_path / f"source-{version}"))
        change(source / "pyproject.toml", 'version = "0.1.0"', f'version = "{version}"')
        change(source / "attnbench_halves.py", "return torch.cat(outs, dim=1)", f"return torch.cat(outs, dim=1){bend}")
        wheels.append(wheel_of(source, tmp_path / f"wheel-{version}"))
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheels[0]]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return wheels[0], wheels[1], site


def test_another_distribution_is_the_factor(
    halves: tuple[Path, Path, Path], attnbench: Command, tmp_path: Path
) -> None:
    """Its two versions are installed in the arms, found wrong or right there; what it does not provide is refused by origin."""
    right, wrong, site = halves
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="halves, sdpa_flash"))
    done = attnbench("gate", "c.yaml", "--base", right, "--candidate", wrong, "--out", "runs", PYTHONPATH=str(site))
    assert done.returncode == 13, done.stdout + done.stderr
    gate = gate_of(done, tmp_path)
    assert gate.info.base.factor == gate.info.candidate.factor == "attnbench-halves"
    assert (gate.info.base.revision, gate.info.candidate.revision) == ("version 0.1.0", "version 0.2.0")
    said = verdicts_of(gate)
    assert "the candidate ended INCORRECT" in said["halves"]["reason"]
    origins = {each.arm: each.origin for each in launches_of(gate, "halves") if each.origin}
    assert "/arms/base/" in origins["base"]
    strays = launches_of(gate, "sdpa_flash")
    assert {each.outcome for each in strays} == {Outcome.ERROR}
    assert all("attnbench-halves does not provide it" in each.detail for each in strays)
    assert said["sdpa_flash"]["verdict"] == "FAILED"


def test_a_plugin_is_each_arms_own_file(attnbench_in: Callable[[Path], Command], tmp_path: Path) -> None:
    """A kernel's repository without a distribution: `--plugin kernel.py` is measured as each revision has it."""
    repository = tmp_path / "kernels"
    repository.mkdir()
    git(repository, "init", "--quiet")
    (repository / "kernel.py").write_text(KERNEL.format(times=""))
    (repository / "c.yaml").write_text(CONFIG.format(names="own"))
    commit(repository, "Right")
    (repository / "kernel.py").write_text(KERNEL.format(times=" * 1.02"))
    commit(repository, "Wrong")
    (repository / "kernel.py").write_text(KERNEL.format(times=" + 7"))  # uncommitted: in neither arm
    gating = (
        "gate",
        "c.yaml",
        "--base",
        "HEAD~1",
        "--candidate",
        "HEAD",
        "--plugin",
        "kernel.py",
        "--out",
        tmp_path / "runs",
    )
    done = attnbench_in(repository)(*gating)
    assert done.returncode == 13, done.stdout + done.stderr
    gate = gate_of(done, repository)
    ends = {each.arm: each for each in launches_of(gate, "own")}
    assert ends["base"].outcome is Outcome.OK
    assert ends["base"].origin.endswith("/arms/base/plugins/0/kernel.py")
    assert ends["candidate"].outcome is Outcome.INCORRECT
    assert_apart(gate, repository)
    refused = attnbench_in(repository)("resume", gate.path)
    assert refused.returncode == 2
    assert "--plugin kernel.py" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "two arms are needed"),
        (("--base", "."), 2, "two arms are needed"),
        (("--base", ".", "--candidate-impl", "naive"), 2, "two arms are needed"),
        (("--base-impl", "naive", "--candidate-impl", "nave"), 2, "'nave'"),
        (("--base-impl", "naive", "--candidate-impl", "naive"), 2, "both base and candidate"),
        (("--base-impl", "naive", "--candidate-impl", "sdpa", "--only", "naive"), 2, "leave out --factor and --only"),
        (("--base", "no-such-revision", "--candidate", "."), 2, "'no-such-revision' is no folder, no wheel file"),
        (("--base", "--help", "--candidate", "."), 2, "is no folder"),
        (("--base", ".", "--candidate", "."), 2, "has no pyproject.toml with a project name"),
        (("--base", "./no.whl", "--candidate", "./no.whl"), 2, "./no.whl is no wheel that can be read"),
        (("--base", "./away.whl", "--candidate", "."), 2, "'./away.whl' is no folder, no wheel file"),
        (("--base", "./damaged", "--candidate", "."), 2, "its pyproject.toml cannot be read"),
        (("--base", "./empty", "--candidate", "./empty"), 2, "has no attnbench.impls"),
        (("--base", ".", "--candidate", ".", "--plugin", "away.py"), 2, "away.py"),
        (("--base", ".", "--candidate", ".", "--only", "nave"), 2, "'nave'"),
        (("--prove", "--base", "."), 2, "leave out the arms"),
        (("--base-impl", "naive", "--candidate-impl", "sdpa", "--out", "c.yaml/runs"), 3, "c.yaml/runs"),
    ],
)  # fmt: skip
def test_usage_is_refused_in_a_line(
    attnbench: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """Arms that are none, names that nothing has, and places that cannot be written: one line, its code, no traceback."""
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="naive, sdpa"))
    (tmp_path / "no.whl").write_text("no zip")
    for name, text in (("damaged", "[project\n"), ("empty", '[project]\nname = "attnbench"\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(text)
    done = attnbench("gate", "c.yaml", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert said[-1].startswith("attnbench: ")
    assert len(said) == 1 + done.stderr.count("failed to import")


@pytest.mark.parametrize(
    ("config", "code", "words"),
    [("no-such", 2, "no-such"), ("./away.yaml", 3, "away.yaml"), ("", 2, "a CONFIG is needed")],
)
def test_a_configuration_that_is_not_there(attnbench: Command, config: str, code: int, words: str) -> None:
    """An unknown name is a usage error, a missing file one of files, and none at all says what to give."""
    done = attnbench("gate", *([config] if config else []), "--base", ".", "--candidate", ".")
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_that_can_run_here(attnbench: Command, tmp_path: Path) -> None:
    """Where no cell can run here there is no control either: refused in a line, before a folder is made."""
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="sdpa_cudnn"))
    done = attnbench("gate", "c.yaml", "--base", ".", "--candidate", ".", "--out", "runs")
    assert done.returncode == 14
    assert "no cell of this configuration can run here" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_nothing_to_measure(attnbench: Command, tmp_path: Path) -> None:
    """Two implementations of which one cannot run here: nothing is measured, the reasons are shown, and the gate exits 14."""
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="naive, sdpa_cudnn"))
    done = attnbench("gate", "c.yaml", "--base-impl", "naive", "--candidate-impl", "sdpa_cudnn", "--out", "runs")
    assert done.returncode == 14, done.stdout + done.stderr
    gate = gate_of(done, tmp_path)
    assert gate.launches() == []
    assert "Neither arm can run" in done.stdout
    assert "nothing was compared" in (gate.path / "summary.md").read_text()
