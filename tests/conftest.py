"""Fixtures of all tests: the command as a real subprocess."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# A shell that runs the tests in the background has its children ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
FAKES = Path(__file__).parent / "plugins" / "fakes.py"
#: Tests of minutes, each folder with a target that names it: it is collected only then.
LONG = [Path(__file__).parent / name for name in ("processes", "tracking")]
Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a folder of long tests where no argument lies in it."""
    folder = next((each for each in LONG if collection_path.is_relative_to(each)), None)
    if folder is None:
        return None
    named = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
    return None if any(path.is_relative_to(folder) for path in named) else True


@pytest.fixture(scope="session")
def attnbench_in() -> Callable[[Path], Command]:
    """For a folder, what runs `attnbench ARGS...` there and returns the finished process."""

    def command_in(folder: Path) -> Command:
        def run(*args: str | Path, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [Path(sys.executable).parent / "attnbench", *map(str, args)],
                cwd=folder,
                env={**os.environ, "NO_COLOR": "1", **environment},
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )

        return run

    return command_in


@pytest.fixture
def attnbench(tmp_path: Path, attnbench_in: Callable[[Path], Command]) -> Command:
    """Runs `attnbench ARGS...` in an empty folder; returns the finished process."""
    return attnbench_in(tmp_path)


@pytest.fixture
def fakes() -> Path:
    """The plugin that lies, hangs and crashes."""
    return FAKES
