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
Command = Callable[..., subprocess.CompletedProcess[str]]


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
