"""What commands print on standard output: implementations, a plan, and the end of a run."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..impls import BrokenImplementationError, Device, get, names
from .config import SweepConfig
from .console import console as open_console
from .plan import Plan
from .records import SessionEnded
from .store import Run

if TYPE_CHECKING:
    from .conformance import Conformance
    from .doctor import Diagnosis

#: Cells that a plan names one by one; of more it gives the counts.
MOST_NAMED = 20


def print_implementations(device: Device) -> None:
    """Every implementation: available on this machine, or every reason why not."""
    table = Table("implementation", "what it is", f"on {device} ({device.name})", title_justify="left")
    for name in names():
        try:
            implementation = get(name)
            reasons = tuple(map(str, implementation.unavailable(device)))
        except BrokenImplementationError as error:
            table.add_row(escape(name), "", escape(f"no: {error}"))
            continue
        except Exception as error:  # noqa: BLE001 - a plugin may fail in any way, and must break only its own line
            table.add_row(escape(name), "", escape(f"no: it fails to say: {type(error).__name__}: {error}"))
            continue
        said = "no: " + "\n    ".join(reasons) if reasons else "available"
        options = "".join(f"\n  option {key}: {option.words}" for key, option in implementation.options.items())
        table.add_row(escape(name), escape(implementation.summary + options), escape(said))
    open_console().print(table)


def available_names(device: Device) -> list[str]:
    """The implementations that can run on this machine; one that fails to say cannot."""
    available = []
    for name in names():
        with contextlib.suppress(Exception):
            if not get(name).unavailable(device):
                available.append(name)
    return available


def print_conformance(found: Conformance) -> None:
    """How many cases were right, refused and failed, each with its reasons; then the smallest that fails."""
    console, device = open_console(), found.asked.device
    total = len(found.cases) + found.not_run
    title = f"{found.asked.arm} on {device} ({device.name}): {total} cases"
    table = Table("cases", "", "why", title=escape(title), title_justify="left")
    table.add_row(str(len(found.right)), "right, values and gradients", "")
    if found.right_values:
        table.add_row(str(len(found.right_values)), "right, values alone", "a pass with gradients is refused")
    reasons = [f"{count}: {reason}" for reason, count in found.reasons.items()]
    table.add_row(str(len(found.refused)), "refused", escape("\n".join(reasons)))
    outcomes = Counter(case.done.outcome for case in found.failed)
    table.add_row(str(len(found.failed)), "failed", "\n".join(f"{count}: {each}" for each, count in outcomes.items()))
    if found.not_run:
        table.add_row(str(found.not_run), "not run", "the suite stops where cases hang")
    console.print(table)
    _print_some(console, "failed", [str(case) for case in found.failed])
    if found.smallest is not None:
        console.print(f"smallest failing case: {found.smallest}", highlight=False, markup=False, soft_wrap=True)


def print_plan(plan: Plan, config: SweepConfig, device: Device) -> None:
    """What a run would do, and what it would not."""
    console = open_console()
    protocol = config.protocol
    unmeasured = {*plan.refused, *plan.broken}
    measured = [cell for cell in plan.cells if cell.id not in unmeasured]
    console.print(f"{config.name}: {len(plan.cells)} cells on {device} ({device.name}), {protocol.rounds} launches each",
                  style="bold", highlight=False, markup=False)  # fmt: skip
    table = Table("implementation", "cells", "measured")
    for arm, count in Counter(cell.arm for cell in plan.cells).items():
        table.add_row(escape(arm), str(count), str(sum(cell.arm == arm for cell in measured)))
    console.print(table)
    _print_some(console, "measured", [cell.name for cell in measured])
    refused = [f"{cell.arm}: {'; '.join(plan.refused[cell.id])}" for cell in plan.cells if cell.id in plan.refused]
    _print_counted(console, "refused", Counter(refused))
    _print_counted(console, "cannot run", Counter(plan.broken.values()))
    _print_counted(console, "excluded", Counter(f"by {rule}" for _, rule in plan.excluded))
    _print_some(
        console, "warning: estimated to need more memory than there is", [each.name for each in plan.beyond_memory]
    )
    most = max((each.memory_bytes for each in plan.costs.values()), default=0)
    console.print(f"estimated time {_minutes(plan.seconds)}, most memory {most / 1e6:.0f} MB", highlight=False)


def print_results(run: Run) -> None:
    """The winners, the goals where the configuration has some, and how much the control cell drifted."""
    from ..reports import clock_check, frame, goals, tables

    cells = frame.cells(run)
    open_console().print(tables.winners_table(cells))
    promised = goals.table(run)
    if len(promised):
        open_console().print(tables.for_terminal(promised, "Goals"))
    checked = clock_check.table(run)
    if len(checked):
        open_console().print(tables.for_terminal(checked, clock_check.summary(checked)))
    drift = frame.control_drift(run)
    if drift is not None:
        print(f"control cell: launches within {drift:.1%} of each other")


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """What makes the machine noisy; then how far apart launches lie, and what a gate could see."""
    from .doctor import table

    console = open_console()
    console.print(table.table_of(diagnosis))
    for line in table.lines_of(diagnosis):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_split(ended: SessionEnded) -> None:
    """Where the wall time went."""
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in ended.split_s.items())
    rest = ended.split_s["rest"] / ended.wall_s if ended.wall_s else 0.0
    print(f"wall time {ended.wall_s:.1f} s: {parts} ({rest:.0%})")


def _print_some(console: Console, title: str, lines: list[str]) -> None:
    if not lines:
        return
    console.print(f"{title}:", markup=False)
    for line in lines[:MOST_NAMED]:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if len(lines) > MOST_NAMED:
        console.print(f"  and {len(lines) - MOST_NAMED} more")


def _print_counted(console: Console, title: str, reasons: Counter[str]) -> None:
    _print_some(console, title, [f"{count} cells {reason}" for reason, count in reasons.items()])


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
