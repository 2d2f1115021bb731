"""`attnbench new-plugin`: what it writes is installed, is found, and passes the contract suite and its own test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_conforms_as_it_is(attnbench: Command, tmp_path: Path) -> None:
    """Installed with pip, it is listed; its own test, which runs `attnbench conformance`, passes."""
    done = attnbench("new-plugin", "my_kernel2", "--out", "mine")
    assert done.returncode == 0, done.stderr
    source, site = tmp_path / done.stdout.splitlines()[-1], tmp_path / "site"
    assert sorted(file.name for file in source.iterdir()) == [
        "README.md", "attnbench_my_kernel2.py", "pyproject.toml", "test_my_kernel2.py"
    ]  # fmt: skip
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, site, source], check=True, capture_output=True)
    assert "my_kernel2" in attnbench("list", "--names", PYTHONPATH=str(site)).stdout.splitlines()
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", source],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout


def test_templates_are_filled(attnbench: Command, tmp_path: Path) -> None:
    """No word of a template is left."""
    assert attnbench("new-plugin", "my_kernel").returncode == 0
    folder = tmp_path / "attnbench-my-kernel"
    for file in folder.iterdir():
        assert "$" not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Kernel", "'My-Kernel' cannot name an implementation; allowed: lower-case letters"),
        ("kernel_", "cannot name an implementation"),
        ("../up", "cannot name an implementation"),
        ("lambda", "is a word of Python's own"),
        ("chunked", "'chunked' is an implementation already"),
    ],
)
def test_refuses_names(attnbench: Command, tmp_path: Path, name: str, words: str) -> None:
    """What was given, what is allowed, what to do; and nothing is written."""
    done = attnbench("new-plugin", name)
    assert done.returncode == 2
    assert words in done.stderr
    assert "write such as my_" in done.stderr
    assert not list(tmp_path.iterdir())


def test_touches_nothing_that_is_there(attnbench: Command, tmp_path: Path) -> None:
    """A folder of that name is left as it is; a file in place of --out is an error of the disk."""
    (tmp_path / "attnbench-mine").mkdir()
    done = attnbench("new-plugin", "mine")
    assert done.returncode == 2
    assert "attnbench-mine is there already" in done.stderr
    assert not list((tmp_path / "attnbench-mine").iterdir())
    (tmp_path / "file").touch()
    done = attnbench("new-plugin", "mine", "--out", "file")
    assert done.returncode == 3
    assert "cannot write file/attnbench-mine" in done.stderr
