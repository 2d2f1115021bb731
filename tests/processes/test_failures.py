"""Failure is normal: fakes that lie, hang and crash each end as their outcome, in real processes, and touch no other cell."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from attnbench.harness.measure import process
from attnbench.harness.records import Launch, Notice, Outcome
from attnbench.harness.store import Run

Command = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """
name: fakes
implementations: [sdpa, {names}]
sweeps:
  - {{batch: 1, heads: 2, seq_len: 256, head_dim: 16, dtype: float32, mask: full, pass: [forward, forward_backward]}}
protocol: {{launches: 2, min_time_s: 0.005, max_time_s: 0.02, timeout_s: 3}}
"""

GIB = 2**30

#: An implementation with a child that escapes its group and prints until it is killed; each leaves its number.
FLOODING = """
import subprocess, sys
from pathlib import Path
from attnbench.impls import Implementation, register

@register
class Flooding(Implementation):
    name = "flooding"

    def prepare(self, problem, tensors):
        import torch
        script = "import os\\nwhile True: os.write(1, bytes(65536))"
        child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        Path(f"flood-{child.pid}").touch()
        return lambda: torch.nn.functional.scaled_dot_product_attention(*tensors)
"""

#: An implementation that kills its server, so many times.
KILLING = """
import os, signal
from pathlib import Path
from attnbench.impls import Implementation, register

@register
class Killing(Implementation):
    name = "killing"

    def prepare(self, problem, tensors):
        import torch
        done = Path("kills")
        count = len(done.read_text()) if done.exists() else 0
        if count < {times}:
            done.write_text("x" * (count + 1))
            os.kill(os.getppid(), signal.SIGKILL)
        return lambda: torch.nn.functional.scaled_dot_product_attention(*tensors)
"""

#: Each fake's outcome, and a pattern of words that its detail must hold.
ENDINGS = {
    "fake_wrong": (Outcome.INCORRECT, "out is off by"),
    "fake_nan": (Outcome.INCORRECT, "NaN"),
    "fake_cached": (Outcome.INCORRECT, "after its inputs were changed in place"),
    "fake_mutates": (Outcome.INCORRECT, "changed its input query"),
    "fake_aliases": (Outcome.INCORRECT, "shares memory with an input"),
    "fake_out_of_memory": (Outcome.OUT_OF_MEMORY, "allocate"),
    "fake_hang": (Outcome.TIMED_OUT, "deadline"),
    "fake_segfault": (Outcome.CRASHED, "SIGSEGV"),
    "fake_exits": (Outcome.CRASHED, "exited with code 0 before it reported"),
    "fake_missing_import": (Outcome.ERROR, "a_package_that_is_not_there"),
    "fake_instant": (Outcome.INCORRECT, "after the timing, after its inputs were changed in place"),
    "fake_memoised": (Outcome.IMPLAUSIBLE, "more than 4 times the best matrix product|answers are reused"),
    "fake_memoised_slowly": (Outcome.IMPLAUSIBLE, "answers are reused"),
    "fake_slows_down": (Outcome.OK, ""),
    "fake_flood": (Outcome.OK, ""),
    "sdpa": (Outcome.OK, ""),
}
#: Fakes that are right forwards, and words of their detail backwards.
BACKWARD_ENDINGS = {"fake_wrong_gradient": "dq", "fake_mutates_grad_out": "changed its input grad_out"}


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> list[Launch]:
    """One run of all fakes beside an honest implementation."""
    folder = tmp_path_factory.mktemp("fakes")
    names = [name for name in ENDINGS if name != "sdpa"] + [*BACKWARD_ENDINGS]
    (folder / "fakes.yaml").write_text(CONFIG.format(names=", ".join(names)))
    command = [
        "attnbench",
        "run",
        "fakes.yaml",
        "--out",
        "runs",
        "--plugin",
        str(Path(__file__).parents[1] / "plugins/fakes.py"),
    ]
    done = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 13, done.stderr
    run = Run.open(folder / done.stdout.splitlines()[-1])
    page = (run.path / "report.html").read_text()
    assert "fake_wrong" in page
    return run.launches()


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("name", ENDINGS)
def test_ends_as_its_outcome(name: str, launches: list[Launch]) -> None:
    """Each fake ends as what it is, with a detail that says so; a void launch says little, where another one counts."""
    outcome, words = ENDINGS[name]
    first = [
        each for each in launches if each.implementation == name and each.round == 0 and each.name.endswith("/forward")
    ]
    assert first
    first = [each for each in first if not each.void] or first
    assert all(each.outcome is outcome for each in first)
    assert all(re.search(words, each.detail) for each in first)


@pytest.mark.parametrize("name", BACKWARD_ENDINGS)
def test_is_found_backwards_only(name: str, launches: list[Launch]) -> None:
    """Right values pass forwards; what is wrong in the backward pass fails there."""
    ended = {each.name.split("/")[-1]: each for each in launches if each.implementation == name and each.round == 0}
    assert ended["forward"].outcome is Outcome.OK
    assert ended["forward_backward"].outcome is Outcome.INCORRECT
    assert BACKWARD_ENDINGS[name] in ended["forward_backward"].detail


def test_only_ok_is_timed_to_be_ranked(launches: list[Launch]) -> None:
    """What is wrong has no time at all: the check comes before the clock."""
    for each in launches:
        if each.outcome in (Outcome.INCORRECT, Outcome.CRASHED, Outcome.ERROR, Outcome.TIMED_OUT):
            assert each.samples is None


def test_failures_are_not_measured_twice(launches: list[Launch]) -> None:
    """In the second round a cell that failed is recorded as skipped."""
    second = [each for each in launches if each.implementation == "fake_segfault" and each.round == 1]
    assert len(second) == 2
    assert all(each.skipped and each.outcome is Outcome.CRASHED for each in second)


def test_every_pair_is_recorded_once(launches: list[Launch]) -> None:
    """Every (cell, round, attempt) has one line, whatever happened."""
    keys = [(each.cell, each.round, each.attempt) for each in launches]
    assert len(keys) == len(set(keys))
    assert {each.round for each in launches} == {0, 1}


def test_plugin_that_does_not_import(attnbench: Command, tmp_path: Path) -> None:
    """Its cells end as ERROR with the reason, other cells are measured, and the exit code says that cells failed."""
    (tmp_path / "c.yaml").write_text(
        CONFIG.format(names="from_the_broken_plugin").replace("launches: 2", "launches: 1")
    )
    broken = Path(__file__).parents[1] / "plugins" / "broken.py"
    done = attnbench("run", "c.yaml", "--out", "runs", "--plugin", broken)
    assert done.returncode == 13
    assert "Traceback" not in done.stderr
    run = Run.open(tmp_path / done.stdout.splitlines()[-1])
    ended = {(each.implementation, each.outcome) for each in run.launches()}
    assert ("from_the_broken_plugin", Outcome.ERROR) in ended
    assert ("sdpa", Outcome.OK) in ended
    assert any("needs a package that is not there" in each.text for each in run.events() if isinstance(each, Notice))


def test_killed_by_the_kernel_for_memory(attnbench: Command, tmp_path: Path, fakes: Path) -> None:
    """SIGKILL with a risen count of kills for memory is OUT_OF_MEMORY, not a crash."""
    group = _memory_group()
    if group is None:
        pytest.skip("no control group with a memory limit can be made here")
    try:
        (tmp_path / "c.yaml").write_text(
            CONFIG.format(names="fake_killed_for_memory").replace("launches: 2", "launches: 1")
        )
        done = attnbench("run", "c.yaml", "--out", "runs", "--plugin", fakes, ATTNBENCH_TEST_CGROUP=str(group))
        run = Run.open(tmp_path / done.stdout.splitlines()[-1])
        ended = [each for each in run.launches() if each.implementation == "fake_killed_for_memory"]
        assert all(each.outcome is Outcome.OUT_OF_MEMORY for each in ended)
        assert all("the kernel killed the worker for memory" in each.detail for each in ended)
    finally:
        group.rmdir()


@pytest.mark.parametrize("hard", [None, 3 * 2**30])
def test_memory_is_limited_below_a_hard_limit(hard: int | None) -> None:
    """A worker limits itself whatever its parent's hard limit is, keeps that, and works between operators on one thread."""
    program = """
import resource
import torch
from attnbench.harness.measure import process
process.protect_host(limit_memory=True)
process.fix_threads(2)
process.fix_threads(1)
print(*resource.getrlimit(resource.RLIMIT_DATA), torch.get_num_interop_threads())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: hard and resource.setrlimit(resource.RLIMIT_DATA, (hard, hard)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    soft, kept, threads = map(int, done.stdout.split())
    assert kept == (resource.RLIM_INFINITY if hard is None else hard)
    assert 0 < soft <= (psutil.virtual_memory().total if hard is None else hard)
    assert threads == 1


@pytest.mark.parametrize(
    ("available", "allowed"), [(8 * GIB, 7 * GIB), (1.5 * GIB, 0.75 * GIB), (0.5 * GIB, 0.25 * GIB)]
)
def test_memory_is_limited_however_little_there_is(
    monkeypatch: pytest.MonkeyPatch, available: float, allowed: float
) -> None:
    """A part is left to the machine, and where there is less than that part, half of what there is; a group's limit counts."""
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(process.control_groups, "memory_left_bytes", lambda: int(available))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GIB))
    monkeypatch.setattr(Path, "write_text", lambda *_: None)  # the killer's preference is for the process's whole life
    process.protect_host(limit_memory=True)
    assert limits[0][0] - psutil.Process().memory_info().data == pytest.approx(allowed, abs=64 * 2**20)


def test_escaped_descendant_that_writes_for_ever(attnbench: Command, tmp_path: Path) -> None:
    """What outlives its worker in a session of its own, and floods its output, does not hold the run up."""
    (tmp_path / "flooding.py").write_text(FLOODING)
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="flooding").replace("launches: 2", "launches: 1"))
    try:
        done = attnbench("run", "c.yaml", "--out", "runs", "--plugin", "flooding.py", timeout=60)
    finally:
        for file in tmp_path.glob("flood-*"):  # a closed pipe may have ended it
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.name.partition("-")[2]), signal.SIGKILL)
    assert list(tmp_path.glob("flood-*"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("times", "outcome", "words"), [(1, Outcome.OK, ""), (9, Outcome.CRASHED, "two servers in turn")]
)
def test_server_that_fails_is_replaced(
    attnbench: Command, tmp_path: Path, times: int, outcome: Outcome, words: str
) -> None:
    """A launch whose server ends is carried out by a new one; only where that ends too the cell is said to crash it."""
    (tmp_path / "killing.py").write_text(KILLING.format(times=times))
    (tmp_path / "c.yaml").write_text(CONFIG.format(names="killing").replace("launches: 2", "launches: 1"))
    only_forward = ["--set", "sweeps.0.pass=forward"]
    done = attnbench("run", "c.yaml", "--out", "runs", "--plugin", "killing.py", *only_forward)
    run = Run.open(tmp_path / done.stdout.splitlines()[-1])
    ended = {each.implementation: each for each in run.launches()}
    assert ended["killing"].outcome is outcome
    assert words in ended["killing"].detail
    assert ended["sdpa"].outcome is Outcome.OK
    assert any("ended with code -9" in each.text for each in run.events() if isinstance(each, Notice))


def _memory_group() -> Path | None:
    """A control group that allows 64 MiB, of version 1 or 2, where one can be made."""
    for base, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = base / f"attnbench-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(64 * 2**20))
        except OSError:
            group.rmdir()
            continue
        return group
    return None
