"""A gate as something read: verdicts as data, in short for a pull request, as annotations, and as a page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from ..harness.environment import machine_name
from ..harness.gate.gates import result_of
from ..harness.gate.judging import GateResult
from ..harness.gate.records import ArmInfo, Gate
from ..harness.records import Notice, SessionEnded
from ..harness.verdicts import paired
from ..harness.verdicts.judgement import Judgement, Verdict
from . import forest
from . import format as fmt
from .document import Document
from .page import full_protocol, rendered, words_of, write_text

_ORDER = (
    Verdict.REGRESSED, Verdict.FAILED, Verdict.MISSING, Verdict.NOT_COMPARABLE, Verdict.IMPROVED, Verdict.INCONCLUSIVE,
    Verdict.EQUIVALENT, Verdict.NEW,
)  # fmt: skip
#: What a workflow command of GitHub shows beside the code, by verdict.
_LEVELS = {
    Verdict.REGRESSED: "error", Verdict.FAILED: "error", Verdict.MISSING: "error", Verdict.NOT_COMPARABLE: "warning",
    Verdict.INCONCLUSIVE: "notice", Verdict.IMPROVED: "notice",
}  # fmt: skip
VERDICTS_FILE = "verdicts.json"
CONTAMINATED = (
    "CONTAMINATED: two servers of the base differ by more than 1 % here, or could not be held against each other: nothing may be "
    "called slower or faster"
)


def write_all(gate: Gate) -> Path:
    """Write what is read of a gate into its folder: verdicts.json, summary.md, annotations.txt, report.html; the last is given.

    Errors: `StoreError`.
    """
    result = result_of(gate)
    write_text(gate.path / VERDICTS_FILE, verdicts_json(result))
    write_text(gate.path / "summary.md", document(gate, result).markdown())
    write_text(gate.path / "annotations.txt", workflow_commands(result))
    page = gate.path / "report.html"
    write_text(page, _page(gate, result))
    return page


def verdicts_json(result: GateResult) -> str:
    """Every verdict with its effect (log of the ratio of times, and percent) as data, the same for the same launches."""
    data = {
        "judgements": [_as_data(each) for each in result.judgements],
        "refused": dict(result.refused),
        "control": asdict(result.control) if result.control else None,
        "contaminated": result.is_contaminated,
        "exit_code": int(result.exit_code()),
    }
    return json.dumps(data, indent=1) + "\n"


def document(gate: Gate, result: GateResult) -> Document:
    """In short: what was compared, how many of each verdict, and the tables."""
    return Document(
        _title(gate),
        tuple(_lines(gate, result)),
        {
            "Verdicts": verdicts(result),
            "Neither arm can run": pd.DataFrame(list(result.refused.items()), columns=["cell", "why"]),
        },
    )


def verdicts(result: GateResult) -> pd.DataFrame:
    """Every comparison: what matters most first, and the largest effect first among equals."""
    rows = []
    for each in sorted(result.judgements, key=_rank):
        times = result.times_s.get(each.cell, (None, None))
        rows.append((each.name, *map(fmt.seconds, times), str(each.verdict), each.reason))
    return pd.DataFrame(rows, columns=["cell", "base", "candidate", "verdict", "why"])


def workflow_commands(result: GateResult) -> str:
    """Workflow commands that GitHub shows on a pull request; empty where all is well."""
    lines = [f"::warning title=attnbench::{_command(CONTAMINATED)}"] if result.is_contaminated else []
    for each in sorted(result.judgements, key=_rank):
        if each.verdict in _LEVELS:
            title = _command(f"{each.verdict} {each.name}", is_property=True)
            lines.append(f"::{_LEVELS[each.verdict]} title={title}::{_command(each.reason)}")
    return "".join(f"{line}\n" for line in lines)


def _as_data(judgement: Judgement) -> dict[str, Any]:
    effect = judgement.effect
    percent = {key: round(100 * math.expm1(value), 3) for key, value in asdict(effect).items()} if effect else None
    return {
        "cell": judgement.cell, "name": judgement.name, "verdict": str(judgement.verdict), "reason": judgement.reason,
        "effect": asdict(effect) if effect else None, "percent": percent,
    }  # fmt: skip


def _lines(gate: Gate, result: GateResult) -> Iterator[str]:
    counts = Counter(each.verdict for each in result.judgements)
    yield ", ".join(f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict]) or "nothing was compared"
    if result.is_contaminated:
        yield CONTAMINATED
    yield from _notices(gate)
    if result.control_failure:
        yield f"the control ended: {result.control_failure}"
    control = f"the control, base against base: {result.control}" if result.control else "the control has too few pairs"
    yield f"{control}; on {machine_name(gate.info.environment)}"
    if gate.info.exit_first:
        yield "what looked slower was measured first, and nothing more once something was shown to be (--exit-first)"
    yield "of all sweeps of identical code at most 1 % may be called slower or faster; an effect below 1 % never is"


def _notices(gate: Gate) -> list[str]:
    """What was noted, and that a gate has not ended where it has not."""
    events = gate.events()
    notes = [event.text for event in events if isinstance(event, Notice)]
    ends = [event for event in events if isinstance(event, SessionEnded)]
    if not ends or ends[-1].status != "finished":
        notes.append("not all pairs were measured; what they would have decided is INCONCLUSIVE")
    return notes


def _title(gate: Gate) -> str:
    info = gate.info
    return f"{info.name}: {_arm(info.candidate)} against {_arm(info.base)}"


def _arm(arm: ArmInfo) -> str:
    """`main (1a2b3c4d5e)`."""
    revision = arm.revision[:10] if len(arm.revision) == 40 else arm.revision
    given = revision if arm.given == arm.revision else arm.given
    return f"{given} ({revision})" if revision and not given.startswith(revision) else given


def _made_of(arm: ArmInfo) -> str:
    parts = {"revision": arm.revision, "distribution": arm.factor, "files": arm.digest}
    return ", ".join([arm.given, *(f"{name} {value}" for name, value in parts.items() if value and value != arm.given)])


def _rank(judgement: Judgement) -> tuple[int, float, str]:
    return _ORDER.index(judgement.verdict), -abs(judgement.effect.shift if judgement.effect else 0.0), judgement.name


def _command(text: str, *, is_property: bool = False) -> str:
    """Escaped as GitHub's runner reads it (actions/toolkit, command.ts)."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if is_property else text


def _page(gate: Gate, result: GateResult) -> str:
    info = gate.info
    shown = document(gate, result)
    facts = {key: value for key, value in info.environment.get("strict", {}).items() if key != "cpu_flags"}
    versions = {f"version of {name}": version for name, version in info.versions.items()}
    figure = forest.draw(result.judgements)
    return rendered(
        "gate.html.jinja",
        {
            "title": shown.title,
            "info": info,
            "machine": machine_name(info.environment),
            "lines": shown.lines,
            "tables": {title: table for title, table in shown.tables.items() if len(table)},
            "figure": Markup(figure) if figure else "",  # noqa: S704 - matplotlib escaped it
            "protocol": {
                key: words_of(value) for key, value in full_protocol(info.config.get("protocol") or {}).items()
            },
            "environment": {key: words_of(value) for key, value in (facts | versions).items()},
            "arms": {"base": _made_of(info.base), "candidate": _made_of(info.candidate)},
            "rule": paired,
            "percent": lambda level: f"{100 * level:g} %",
            "comparisons": len(info.comparisons),
            "in_a_row": paired.SCREEN_PAIRS + paired.Looks(len(info.comparisons), 1).early,
        },
    )
