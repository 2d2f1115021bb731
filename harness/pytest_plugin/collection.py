"""The tests of a sweep configuration: one for each cell, under the cell's own name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ..cell import Cell
from . import named
from .sweep import Sweep, SweepError, read_sweep
from .timing import Timing


class ConfigFile(pytest.Module):
    """A sweep configuration. A module to pytest, so that fixtures of every scope work, and an empty one."""

    def _getobj(self) -> ModuleType:
        return ModuleType(self.path.stem, f"The cells of {self.path.name}.")

    def collect(self) -> Iterator[CellItem]:
        """An item for each cell of the plan. Errors: `CollectError`."""
        if not self.config.pluginmanager.hasplugin("pytest-benchmark"):
            raise self.CollectError(
                f"{named.shown(self.path, self.config)} is timed by pytest-benchmark, which is not installed or is turned "
                "off; pip install 'attnbench[benchmark]', without -p no:benchmark"
            )
        try:
            sweep = read_sweep(named.shown(self.path, self.config), self.config.getoption("attnbench_plugin"))
        except SweepError as error:
            raise self.CollectError(str(error)) from error
        for cell in sweep.plan.cells:
            yield self._item(cell, sweep)

    def _item(self, cell: Cell, sweep: Sweep) -> CellItem:
        config = self.config

        def test(benchmark: Any) -> None:
            Timing(cell, sweep, benchmark, config).carry_out()

        item: CellItem = CellItem.from_parent(self, name=cell.name, callobj=test)
        item.add_marker("attnbench")
        # As the harness does: nothing is collected while the clock runs.
        item.add_marker(pytest.mark.benchmark(group=cell.group, disable_gc=True))
        skipped = sweep.skipped_because(cell)
        if skipped:
            item.add_marker(pytest.mark.skip(reason=skipped))
        return item


class CellItem(pytest.Function):
    """One cell: checked, then timed."""

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it is: the configuration, not the code that times it."""
        return self.path, 0, self.name
