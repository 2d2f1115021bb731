"""A run survives its parent: killed, interrupted, torn, without permission, on a full disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attnbench.harness.records import Notice, SessionEnded
from attnbench.harness.run.history import MOST_REPEATS
from attnbench.harness.store import LAUNCH_FILE, RUN_FILE, Run

Command = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """
name: naps
implementations: [fake_sleep, sdpa]
sweeps:
  - {batch: 1, heads: [1, 2], seq_len: [16, 32], head_dim: 8, dtype: float32, mask: full, pass: forward}
protocol: {launches: 2, min_time_s: 0.01, max_time_s: 0.05}
"""


def start(folder: Path, fakes: Path) -> subprocess.Popen[str]:
    """A run in the background, as a shell would start it."""
    (folder / "c.yaml").write_text(CONFIG)
    command = [Path(sys.executable).parent / "attnbench", "run", "c.yaml", "--out", "runs", "--plugin", fakes]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_launches(folder: Path, count: int) -> Path:
    """The run's folder, once it holds so many whole lines."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for run in (folder / "runs").glob("*"):
            file = run / LAUNCH_FILE
            if file.exists() and file.read_bytes().count(b"\n") >= count:
                return run
        time.sleep(0.01)
    raise AssertionError("the run did not get that far")


def assert_complete(path: Path) -> None:
    """Exactly the planned (cell, round) pairs; a second attempt only after a void one."""
    run = Run.open(path)
    launches = run.launches()
    planned = {(cell.id, round_) for cell in run.info.cells for round_ in range(2)}
    planned |= {(cell, round_) for cell in run.info.control for round_ in range(2)}
    assert {(each.cell, each.round) for each in launches} == planned
    keys = [(each.cell, each.round, each.attempt) for each in launches]
    assert len(keys) == len(set(keys))
    valid = [(each.cell, each.round) for each in launches if not each.void or each.attempt == MOST_REPEATS]
    assert sorted(valid) == sorted(planned)


def test_killed_parent_loses_nothing_and_resumes(attnbench: Command, tmp_path: Path, fakes: Path) -> None:
    """`kill -9` at random moments keeps every finished launch; resume adds the rest, none twice, and leaves no process."""
    moments = random.Random(7)
    process = start(tmp_path, fakes)
    path = wait_for_launches(tmp_path, 3)
    for _ in range(3):
        time.sleep(moments.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        before = Run.open(path).launches()
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "attnbench"), "resume", str(path), "--plugin", str(fakes)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(2.5)
        assert Run.open(path).launches()[: len(before)] == before
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(path)
    assert_complete(path)
    assert not _servers_of(path)


def _servers_of(path: Path) -> list[int]:
    """Fork servers of this run's events that still live."""
    servers = [event.pid for event in Run.open(path).events() if event.event == "server"]
    return [pid for pid in servers if Path(f"/proc/{pid}/cmdline").exists()
            and b"attnbench" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip


def test_interrupt_ends_cleanly(attnbench: Command, tmp_path: Path, fakes: Path) -> None:
    """Ctrl-C keeps what there is, writes the page, says how to go on, and exits 130."""
    process = start(tmp_path, fakes)
    path = wait_for_launches(tmp_path, 4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"attnbench resume {path.relative_to(tmp_path)}" in err
    assert out.splitlines()[-1] == str(path.relative_to(tmp_path))
    assert (path / "report.html").exists()
    ends = [event for event in Run.open(path).events() if isinstance(event, SessionEnded)]
    assert [end.status for end in ends] == ["interrupted"]
    done = attnbench("resume", path, "--plugin", fakes)
    assert done.returncode == 0, done.stderr
    assert_complete(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, copied by each test that damages it."""
    folder = tmp_path_factory.mktemp("finished")
    process = start(folder, Path(__file__).parents[1] / "plugins" / "fakes.py")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return next((folder / "runs").iterdir())


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A run that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def test_resume_without_its_plugin(attnbench: Command, run_copy: Path) -> None:
    """A plugin is never imported because a file says so: resume asks for it by name, exit 2."""
    done = attnbench("resume", run_copy)
    assert done.returncode == 2
    assert "--plugin" in done.stderr
    assert "Traceback" not in done.stderr


def test_resume_of_a_finished_run_measures_nothing(attnbench: Command, run_copy: Path, fakes: Path) -> None:
    """All pairs are there already: no launch is added and no server is started."""
    before = (run_copy / LAUNCH_FILE).read_bytes()
    servers = sum(event.event == "server" for event in Run.open(run_copy).events())
    done = attnbench("resume", run_copy, "--plugin", fakes)
    assert done.returncode == 0, done.stderr
    assert (run_copy / LAUNCH_FILE).read_bytes() == before
    assert sum(event.event == "server" for event in Run.open(run_copy).events()) == servers


def test_resume_on_another_machine_is_refused(attnbench: Command, run_copy: Path, fakes: Path) -> None:
    """Every strict fact, version and thread count that differs is named, old and new; nothing is measured, exit 2."""
    info = json.loads((run_copy / RUN_FILE).read_text())
    strict = info["environment"]["strict"]
    strict |= {"kernel": "Linux 2.4", "gone": "a fact of old"}
    libc = strict.pop("libc")
    info["versions"]["torch"] = "1.0"
    info["environment"]["threads"] = 999
    info["environment"]["soft"] = {"hostname": "elsewhere"}
    (run_copy / RUN_FILE).write_text(json.dumps(info))
    done = attnbench("resume", run_copy, "--plugin", fakes)
    assert done.returncode == 2
    for words in ("kernel: Linux 2.4 -> ", "gone: a fact of old -> not recorded", f"libc: not recorded -> {libc}",
                  "torch: 1.0 -> ", "threads: 999 -> ", "begin a new run"):  # fmt: skip
        assert words in done.stderr
    assert "elsewhere" not in done.stderr
    assert done.stderr.count(" -> ") == 5


def test_torn_last_line_is_dropped_and_said(attnbench: Command, run_copy: Path, fakes: Path) -> None:
    """Half a line at the end is dropped with a notice, and its launch is measured again on resume."""
    file = run_copy / LAUNCH_FILE
    content = file.read_bytes()
    file.write_bytes(content[: content.rstrip(b"\n").rfind(b"\n") + 40])
    run = Run.open(run_copy)
    assert len(run.launches()) == content.count(b"\n") - 1
    assert "torn" in run.notices[0]
    done = attnbench("report", run_copy)
    assert done.returncode == 0, done.stderr
    done = attnbench("resume", run_copy, "--plugin", fakes)
    assert done.returncode == 0, done.stderr
    assert_complete(run_copy)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / RUN_FILE).write_text('{"schema": 1, "id"'), "is damaged"),
        (lambda path: (path / RUN_FILE).unlink(), "holds no run"),
        (lambda path: (path / LAUNCH_FILE).write_text("not json\n"), f"{LAUNCH_FILE}:1 is damaged"),
        (lambda path: (path / LAUNCH_FILE).unlink(), "cannot read"),
    ],
    ids=["truncated run.json", "no run.json", "foreign line", "no launches"],
)
def test_damaged_files_are_named(
    attnbench: Command, run_copy: Path, damage: Callable[[Path], object], words: str
) -> None:
    """A file that cannot be read is named with the reason, exit 3, without a traceback."""
    damage(run_copy)
    for command in ("report", "export"):
        done = attnbench(command, run_copy)
        assert done.returncode == 3, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_truths_without_a_folder(attnbench: Command, run_copy: Path, fakes: Path) -> None:
    """Where the folder of truths cannot be made, the message says so, exit 3."""
    (run_copy / LAUNCH_FILE).write_bytes(b"")
    (run_copy / "truth").write_text("a file where the folder should be")
    done = attnbench("resume", run_copy, "--plugin", fakes)
    assert done.returncode == 3
    assert f"cannot write {run_copy / 'truth'}: File exists" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("measured", [0, 4])
def test_no_server_starts(attnbench: Command, tmp_path: Path, run_copy: Path, fakes: Path, measured: int) -> None:
    """The session ends with the reason and a code of its own, no cell is blamed, and the run goes on once servers start."""
    lines = (run_copy / LAUNCH_FILE).read_bytes().splitlines(keepends=True)[:measured]
    (run_copy / LAUNCH_FILE).write_bytes(b"".join(lines))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'attnbench.harness.measure.server' in sys.orig_argv: os._exit(7)\n"
    )
    done = attnbench("resume", run_copy, "--plugin", fakes, PYTHONPATH=str(tmp_path))
    assert done.returncode == 4, done.stderr
    assert f"no server starts: a fork server ended with code 7; go on with: attnbench resume {run_copy}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run_copy / LAUNCH_FILE).read_bytes() == b"".join(lines)
    notices = [event.text for event in Run.open(run_copy).events() if isinstance(event, Notice)]
    assert "the session ended early: a fork server ended with code 7" in notices
    done = attnbench("resume", run_copy, "--plugin", fakes)
    assert done.returncode == 0, done.stderr
    assert_complete(run_copy)


def test_folder_without_permission(attnbench: Command, tmp_path: Path) -> None:
    """Where the root cannot be written, the message says so, exit 3, and nothing was measured."""
    (tmp_path / "c.yaml").write_text(CONFIG.replace("fake_sleep, ", ""))
    (tmp_path / "taken").write_text("a file where the folder should be")
    done = attnbench("run", "c.yaml", "--out", "taken/runs")
    assert done.returncode == 3
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages, where one can be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user cannot mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_disk_that_is_full_of_truths(attnbench: Command, tmp_path: Path, small_disk: Path) -> None:
    """A truth that does not fit ends the run with the reason, exit 3, and is not a fault of its cells."""
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    (tmp_path / "c.yaml").write_text(CONFIG.replace("fake_sleep, ", "").replace("[16, 32]", "4096"))
    done = attnbench("run", "c.yaml", "--out", small_disk, "--set", "sweeps.0.head_dim=64")
    assert done.returncode == 3, done.stderr
    assert "cannot write the truths of problems" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not next(small_disk.iterdir()).joinpath(LAUNCH_FILE).read_bytes()


def test_full_disk(attnbench: Command, tmp_path: Path, small_disk: Path) -> None:
    """A full disk ends the run with the reason, exit 3; what was stored before stays readable."""
    (tmp_path / "c.yaml").write_text(CONFIG.replace("fake_sleep, ", ""))
    done = attnbench("run", "c.yaml", "--out", small_disk)
    assert done.returncode == 3, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
