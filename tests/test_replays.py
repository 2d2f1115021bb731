"""Launches that were measured once are judged again: the same verdicts, byte for byte, by the rule of today.

Each file is one sweep of `attnbench gate --prove` as it was kept. Where the rule changes on purpose, look at what it now says of
them, and write that down with `python tests/test_replays.py`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from attnbench.harness.gate.proof import judge_sweep
from attnbench.harness.gate.proof_records import INJECTED, ProofSweep
from attnbench.harness.verdicts.judgement import Verdict
from attnbench.harness.verdicts.paired import Pair, rule

REPLAYS = Path(__file__).parent / "replays"
NAMES = ("quiet", "speed_change", "toggling_load", "slower")
_MIRRORED = {Verdict.REGRESSED: Verdict.IMPROVED, Verdict.IMPROVED: Verdict.REGRESSED}


def sweep_of(name: str) -> ProofSweep:
    """A stored sweep."""
    return ProofSweep.model_validate_json((REPLAYS / f"{name}.jsonl").read_text())


def verdicts_of(sweep: ProofSweep) -> str:
    """What the rule says of a sweep of identical code, and of the same with one slower cell, as it is written down."""
    said = {
        f"+{percent} %": {key: f"{each.verdict}: {each.reason}" for key, each in rule(sweep.family(percent)).items()}
        for percent in INJECTED
    }
    return json.dumps(said, indent=1) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_stored_launches_are_judged_the_same(name: str) -> None:
    """Twice in a row, and as it was written down."""
    sweep = sweep_of(name)
    assert verdicts_of(sweep) == verdicts_of(sweep) == (REPLAYS / f"{name}.verdicts.json").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_identical_code_raises_no_alarm(name: str) -> None:
    """Whatever the machine did meanwhile; and no slowdown that was injected is called equal or faster."""
    sweep = sweep_of(name)
    assert not any(judge_sweep(sweep, percent).alarms for percent in INJECTED)
    said = {judge_sweep(sweep, percent).injected for percent in INJECTED if percent}
    assert said <= {Verdict.REGRESSED, Verdict.INCONCLUSIVE}


@pytest.mark.parametrize("name", NAMES)
def test_swapped_arms_mirror(name: str) -> None:
    """Every effect is negated and every verdict mirrored."""
    family = sweep_of(name).family(10)
    one, other = rule(family), rule({key: each.mirrored() for key, each in family.items()})
    for key, ruling in one.items():
        assert other[key].verdict is _MIRRORED.get(ruling.verdict, ruling.verdict)
        assert ruling.effect is not None
        assert other[key].effect is not None
        assert other[key].effect.shift == pytest.approx(-ruling.effect.shift)


def test_the_machine_changed_its_speed() -> None:
    """In the sweep that stands for it, launches of one cell are over 10 % apart from its first half to its second."""
    series = [kept.series for kept in sweep_of("speed_change").same.values()]
    changes = [_change((*each.screen, *each.after)) for each in series]
    assert max(max(change, 1 / change) for change in changes) > 1.1


def test_another_process_toggled() -> None:
    """The sweep that stands for it says so."""
    assert sweep_of("toggling_load").load == "toggling"
    assert sweep_of("quiet").load == "quiet"


def test_an_injected_slowdown_is_found() -> None:
    """At 5 % and at 10 % in the sweep that stands for it, and at 10 % across a change of speed."""
    assert judge_sweep(sweep_of("slower"), 5).injected is Verdict.REGRESSED
    assert judge_sweep(sweep_of("slower"), 10).injected is Verdict.REGRESSED
    assert judge_sweep(sweep_of("speed_change"), 10).injected is Verdict.REGRESSED


def _change(pairs: tuple[Pair, ...]) -> float:
    """The median time of the first half over that of the second."""
    half = len(pairs) // 2
    first, second = (
        statistics.median(time for pair in part for time in pair.medians_s) for part in (pairs[:half], pairs[half:])
    )
    return first / second


if __name__ == "__main__":
    for each in NAMES:
        (REPLAYS / f"{each}.verdicts.json").write_text(verdicts_of(sweep_of(each)))
