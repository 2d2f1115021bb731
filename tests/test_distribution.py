"""An implementation from another distribution: installed, listed, swept, with no edit of this project."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.harness.records import Outcome
from attnbench.harness.store import Run

Command = Callable[..., subprocess.CompletedProcess[str]]
SOURCE = Path(__file__).parent / "distribution"

CONFIG = """
name: outside
implementations: [sdpa, halves]
sweeps:
  - {batch: 1, heads: 4/2, seq_len: 64, head_dim: 16, dtype: float32, mask: [full, causal], pass: [forward, forward_backward]}
protocol: {launches: 1, min_time_s: 0.005, max_time_s: 0.02}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, installed with pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "halves")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        folder,
        source,
    ]
    subprocess.run(list(map(str, pip)), check=True, capture_output=True)
    return folder


def test_is_listed_and_swept(attnbench: Command, tmp_path: Path, installed: Path) -> None:
    """`list` shows it, `run` measures what it supports, and what it does not is refused with its own reason."""
    listed = attnbench("list", PYTHONPATH=str(installed))
    assert "halves" in listed.stdout
    (tmp_path / "c.yaml").write_text(CONFIG)
    done = attnbench("run", "c.yaml", "--out", "runs", PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / done.stdout.splitlines()[-1])
    ended = {each.name.split("/", 1)[1]: each for each in run.launches() if each.implementation == "halves"}
    for name, launch in ended.items():
        assert launch.outcome is (Outcome.UNSUPPORTED if "causal" in name else Outcome.OK)
        assert launch.outcome is Outcome.OK or "attnbench-halves 0.1" in launch.detail


@pytest.mark.parametrize(
    ("line", "words"),
    [("import a_package_that_is_not_there", "a_package_that_is_not_there"), ("raise SystemExit(3)", "SystemExit: 3")],
)
def test_broken_distribution_breaks_itself_alone(
    attnbench: Command, tmp_path: Path, installed: Path, line: str, words: str
) -> None:
    """A distribution whose module does not import is listed as broken; everything else goes on."""
    broken = tmp_path / "broken"
    shutil.copytree(installed, broken)
    (broken / "attnbench_halves.py").write_text(line + "\n")
    listed = attnbench("list", PYTHONPATH=str(broken))
    assert listed.returncode == 0, listed.stderr
    assert words in listed.stdout
    assert "chunked" in listed.stdout
