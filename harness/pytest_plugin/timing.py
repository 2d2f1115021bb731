"""A cell under pytest-benchmark's clock: checked first, and checked again after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ..cell import Allocator, Cell
from ..records import Outcome
from .sweep import Sweep

if TYPE_CHECKING:
    from ..measure.checked import CheckedCell

#: Times of one process share its memory layout and the machine's state meanwhile, so that they are one observation.
STATEMENT = "all was timed in one process: no verdict rests on it; attnbench gate gives verdicts"
_NO_OVERHEAD = (
    "on a CPU its meter changes the allocator of the whole process; attnbench run weighs each cell in its own"
)
#: Passes ahead of those whose set-up is not timed; the others are warmed up by the calibration.
_WARMUP = 3

_ALLOCATOR = pytest.StashKey[Allocator]()


@dataclass
class Timing:
    """One test; `benchmark` is pytest-benchmark's fixture, which is used once."""

    cell: Cell
    sweep: Sweep
    benchmark: Any
    config: pytest.Config
    _is_used: bool = False

    def carry_out(self) -> None:
        """Check, time, check again. A fault fails the test; a refusal and too little memory skip it, both without a time."""
        from ..measure.checked import WrongError
        from ..measure.failure import outcome_of

        self._describe()
        broken = self.sweep.broken_because(self.cell)
        if broken:
            self._fail(broken)
        self._fix_allocator()
        try:
            faults = self._measure()
        except WrongError as error:
            faults = [str(error)]
        except Exception as error:  # noqa: BLE001 - an implementation may raise anything; its outcome is the test's
            outcome, detail = outcome_of(error)
            if outcome is not Outcome.ERROR:
                self._forget()
                pytest.skip(f"{outcome}: {detail}")
            faults = [detail]
        if faults:
            self._fail("; ".join(faults))

    def _describe(self) -> None:
        cell, sweep = self.cell, self.sweep
        self.benchmark.param, self.benchmark.params = cell.group, {"implementation": cell.arm, **cell.axes}
        self.benchmark.extra_info |= {
            "cell": cell.id,
            "revision": cell.revision,
            "flops": cell.problem.flops(cell.passes),
            "device": sweep.device,
            "threads": sweep.threads,
            "allocator": cell.conditions.allocator,
            "fingerprint": sweep.digest,
            "statement": STATEMENT,
        }

    def _measure(self) -> list[str]:
        """The faults that show once it was timed. Errors: those of `checked`."""
        from ..measure.checked import checked

        with checked(self.cell, self.sweep.device, threads=self.sweep.threads, seed=self.sweep.protocol.seed) as ready:
            self.benchmark.extra_info |= {"checked_share": ready.checked_share, "backend": ready.backend}
            if ready.is_emulated:
                pytest.skip("emulated: checked, and right, but not timed")
            self._time(ready)
            return self._judge(ready)

    def _time(self, ready: CheckedCell) -> None:
        self._is_used = True
        if ready.set_up is None:
            self.benchmark(ready.run)
            return
        set_up = ready.set_up
        self.benchmark.pedantic(
            ready.run, setup=lambda: ((set_up(),), {}), rounds=self._rounds(ready.run, set_up), warmup_rounds=_WARMUP
        )

    def _rounds(self, run: Callable[..., Any], set_up: Callable[[], Any]) -> int:
        """How many rounds pytest-benchmark's own limits mean; its pedantic mode asks to be told."""
        made = set_up()
        begin = time.perf_counter()
        run(made)
        seconds = max(time.perf_counter() - begin, 1e-9)
        fewest: int = self.config.getoption("benchmark_min_rounds")
        return max(fewest, math.ceil(self._budget_s / seconds))

    @property
    def _budget_s(self) -> float:
        return float(self.config.getoption("benchmark_max_time"))

    def _judge(self, ready: CheckedCell) -> list[str]:
        """Add what the times mean, and find what they cannot mean."""
        median_s = self.benchmark.stats["median"] if self.benchmark.stats else None
        void = ready.void_reason() if median_s else ""
        if void:
            self.benchmark.extra_info["void"] = void
        faults = ready.faults_after(median_s, self._budget_s)
        if not faults and median_s:
            self.benchmark.extra_info["flops_per_s"] = self.cell.problem.flops(self.cell.passes) / median_s
            overhead_bytes = ready.overhead_bytes()
            if overhead_bytes is None:
                self.benchmark.extra_info["overhead_not_measured_because"] = _NO_OVERHEAD
            else:
                self.benchmark.extra_info["overhead_bytes"] = overhead_bytes
        return faults

    def _fix_allocator(self) -> None:
        """The first cell's allocator is the process's: thresholds cannot be undone, so that another cell's needs another run."""
        from ..measure.checked import fix_allocator

        wanted = self.cell.conditions.allocator
        fixed = self.config.stash.setdefault(_ALLOCATOR, wanted)
        if fixed != wanted:
            pytest.skip(
                f"allocator {wanted}: this process began with {fixed}, which cannot be undone; run this cell alone"
            )
        fix_allocator(self.cell.conditions)

    def _fail(self, words: str) -> NoReturn:
        """Fail without a time, and without a traceback: the words say all."""
        if not self._is_used:
            self._is_used = True
            # Through the fixture, which otherwise warns that it was not used.
            self.benchmark(pytest.fail, words, pytrace=False)
        self._forget()
        pytest.fail(words, pytrace=False)

    def _forget(self) -> None:
        """Take back what was timed: it is in no table and in no file."""
        self.benchmark.has_error = True
        if self.benchmark.stats is not None:
            self.benchmark.stats.stats.data.clear()
