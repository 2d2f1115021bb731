"""pytest's side of a sweep: `pytest configs/ci.yaml` runs each cell as a test that pytest-benchmark times.

PYTEST_DONT_REWRITE: this module is imported in every pytest run on a machine where attnbench is installed. It stays cheap, and
does nothing unless a sweep configuration is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from .collection import ConfigFile

_SUFFIXES = (".yaml", ".yml")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option; how a cell is timed is pytest-benchmark's to say."""
    group = parser.getgroup("attnbench")
    group.addoption(
        "--attnbench-plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="Import implementations for the sweep configurations that are named: a module or a .py file.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "attnbench: a cell of a sweep configuration that the command line names.")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ConfigFile | None:
    """A sweep configuration that is an argument itself; nothing else, whatever a folder holds."""
    if file_path.suffix not in _SUFFIXES or not _may_name_yaml(parent.config):
        return None
    from . import named

    if file_path not in named.files(parent.config) or not named.is_sweep(file_path):
        return None
    from .collection import ConfigFile

    collected: ConfigFile = ConfigFile.from_parent(parent, path=file_path)
    return collected


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What a reader of the times must know, where a sweep configuration is named."""
    if not _may_name_yaml(config):
        return []
    from . import named

    names = [named.shown(file, config) for file in named.files(config) if named.is_sweep(file)]
    return (
        [f"attnbench: {', '.join(names)}: all is timed in one process, so that no verdict rests on it"] if names else []
    )


def pytest_terminal_summary(terminalreporter: TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Where nobody collects a named YAML file, why it is not taken for a sweep configuration."""
    if exitstatus != pytest.ExitCode.USAGE_ERROR or not _may_name_yaml(config):
        return
    from . import named

    for file in named.files(config):
        if file.is_file() and not named.is_sweep(file):
            words = "has no key 'sweeps' at its top, so that it is not taken for a sweep configuration"
            terminalreporter.write_line(f"attnbench: {named.shown(file, config)} {words}")


def _may_name_yaml(config: pytest.Config) -> bool:
    return any(suffix in argument for argument in config.args for suffix in _SUFFIXES)
