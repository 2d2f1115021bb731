"""From a gate's stored launches to pairs, what is measured next, verdicts and what is read: real folders of the store."""

from __future__ import annotations

import json
import math
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness.cell import Cell
from attnbench.harness.exit_codes import Exit
from attnbench.harness.gate.gates import result_of
from attnbench.harness.gate.pairs import Pairs
from attnbench.harness.gate.proof import judge_sweep
from attnbench.harness.gate.proof_records import (
    INJECTED,
    FirstFound,
    Kept,
    ProofSweep,
    append_to,
    keys_of_families,
    read_first_found,
    read_sweeps,
)
from attnbench.harness.gate.records import CONTROL, ArmInfo, ArmLabel, Comparison, Gate, GateInfo, GateLaunch, Stage
from attnbench.harness.gate.schedule import Scheduled, arms_in_order, next_pair
from attnbench.harness.records import Outcome, Samples, SessionEnded
from attnbench.harness.store import StoreError
from attnbench.harness.verdicts.judgement import Verdict
from attnbench.harness.verdicts.pair import Pair, Series
from attnbench.impls import AttentionProblem
from attnbench.reports import gate as report
from attnbench.reports import proof as proof_report

Command = Callable[..., subprocess.CompletedProcess[str]]

HOSTILE = "</script><img src=x onerror=alert(1)>|$x$\r\n::error title=a,b:c::100% forged"
HOSTILE_NAME = HOSTILE.replace("\r", "")


def comparison(seq: int = 64, implementation: str = "naive") -> Comparison:
    """A cell against itself."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=seq, seq_kv=seq, head_dim=16)
    cell = Cell(implementation=implementation, problem=problem, passes="forward")
    return Comparison(key=cell.id, name=cell.name, base=cell, candidate=cell)


YARDSTICK = comparison(256).model_copy(update={"key": CONTROL, "name": CONTROL})


def launch(
    of: Comparison, arm: ArmLabel, pair: int = 0, time_s: float = 1e-3, *, stage: Stage = "screen", servers: int | None = None,
    outcome: Outcome = Outcome.OK, **changes: Any,
) -> GateLaunch:  # fmt: skip
    """A launch of one arm, OK unless told otherwise; each pair from servers of its own."""
    samples = Samples(
        repeats=1, times_s=(time_s, 0.9 * time_s, 1.1 * time_s), stop="precision", warmup_calls=1, warmup_s=0
    )
    given = {"attempt": 0, "name": of.name, "ended_at": "2026-11-24T00:00:00"} | changes
    return GateLaunch(
        outcome=outcome, samples=samples if outcome is Outcome.OK else None, comparison=of.key, arm=arm, stage=stage, pair=pair,
        servers=(pair if stage == "screen" else 100 + pair) if servers is None else servers, **given,
    )  # fmt: skip


def ending(of: Comparison, arm: ArmLabel, outcome: Outcome, pair: int = 0, **changes: Any) -> list[GateLaunch]:
    """A pair in which one arm ends so, and the other is OK."""
    other: ArmLabel = "base" if arm != "base" else "control" if of.key == CONTROL else "candidate"
    return [launch(of, other, pair), launch(of, arm, pair, outcome=outcome, **changes)]


def pairs_of(
    of: Comparison, slower: float = 1.0, *, screen: int = 8, after: int = 0, other: ArmLabel = "candidate"
) -> list[GateLaunch]:
    """Whole pairs with a little noise."""
    generator, found = random.Random(of.key), []
    for stage, count in (("screen", screen), ("after", after)):
        for pair in range(count):
            for arm, factor in (("base", 1.0), (other, slower)):
                time_s = 1e-3 * factor * (1 + 0.001 * generator.gauss(0, 1))
                found.append(launch(of, arm, pair, time_s, stage=stage))
    return found


def control(slower: float = 1.0) -> list[GateLaunch]:
    """Base against base."""
    return pairs_of(YARDSTICK, slower, other="control")


def info(comparisons: Iterable[Comparison], **changes: Any) -> GateInfo:
    """A gate's description."""
    given: dict[str, Any] = {
        "id": "gate", "name": "test", "created_at": "2026-11-24T00:00:00", "config_source": "c.yaml",
        "config_text": "name: test\n", "config": {"name": "test", "protocol": {}}, "device": "cpu", "versions": {"torch": "2"},
        "environment": {"strict": {"cpu_model": "Test CPU"}, "device_name": "Test CPU"}, "comparisons": tuple(comparisons),
        "control": YARDSTICK, "base": ArmInfo(given="main", revision="a" * 40, factor="attnbench"),
        "candidate": ArmInfo(given="HEAD", revision="b" * 40, factor="attnbench"), "seed": 7, "attnbench_version": "0.1.0",
    }  # fmt: skip
    return GateInfo(**(given | changes))


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Gate]:
    """Makes a gate's folder with launches."""

    def make(comparisons: Iterable[Comparison], launches: Iterable[GateLaunch], **changes: Any) -> Gate:
        gate = Gate.create(tmp_path, info(comparisons, **changes))
        for each in launches:
            gate.append(each)
        gate.append(SessionEnded(at="", status="finished", wall_s=1, split_s={"rest": 1.0}))
        return Gate.open(gate.path)

    return make


# Pairs


def effect(of: Comparison, launches: Iterable[GateLaunch]) -> list[float]:
    """Ratios of the screen's pairs."""
    return [round(math.exp(each.effect), 6) for each in Pairs.of(launches).of_comparison(of.key).screen]


def attempt(of: Comparison, number: int, ratio: float, void: str = "") -> list[GateLaunch]:
    """Both launches of an attempt; `void` is the candidate's."""
    return [
        launch(of, "base", 0, 1e-3, attempt=number),
        launch(of, "candidate", 0, ratio * 1e-3, attempt=number, void=void),
    ]


def test_first_attempt_that_is_not_void_counts() -> None:
    """Of several attempts the first is the pair's in which neither launch is void; where all are, the last that has both arms."""
    of, void = comparison(), "its threads waited"
    attempts = [*attempt(of, 0, 2.0, void), *attempt(of, 1, 3.0, void)]
    valid = [*attempt(of, 2, 5.0), *attempt(of, 3, 9.0)]
    assert effect(of, [*attempts, *valid]) == [5.0]
    assert effect(of, attempts) == [3.0]
    assert effect(of, [*attempts, *attempt(of, 2, 7.0)[:1]]) == [3.0]
    assert effect(of, [*attempt(of, 0, 2.0)[:1], *attempt(of, 1, 3.0)[1:]]) == []


def test_half_a_pair_does_not_count() -> None:
    """One arm alone is no pair, and launches of two pairs or of two stages are never paired with each other."""
    of = comparison()
    assert effect(of, [launch(of, "base", 0), launch(of, "candidate", 1)]) == []
    assert effect(of, [launch(of, "base", 0), launch(of, "candidate", 0, stage="after", servers=0)]) == []
    assert effect(of, [launch(of, "base", 0), launch(of, "control", 0)]) == []


def test_launches_in_turns_are_held_against_each_other_turn_by_turn() -> None:
    """A pair's effect is the median over turns of the ratio of their fastest samples; unequally many turns are no pair."""
    of = comparison()

    def turned(arm: ArmLabel, times_s: tuple[float, ...], turns: tuple[int, ...]) -> GateLaunch:
        samples = Samples(repeats=1, times_s=times_s, turns=turns, stop="budget", warmup_calls=1, warmup_s=0)
        return launch(of, arm).model_copy(update={"samples": samples})

    base = turned("base", (1.0, 9.0, 2.0, 4.0), (2, 1, 1))
    candidate = turned("candidate", (2.0, 6.0, 9.0, 4.0), (1, 2, 1))
    assert effect(of, [base, candidate]) == [2.0]
    assert effect(of, [base, turned("candidate", (2.0, 6.0), (1, 1))]) == []


def test_pairs_measured_anew_come_from_one_pair_of_servers() -> None:
    """Where a pair is begun again by other servers, what the first ones measured of it counts no more."""
    of = comparison()
    first, second = launch(of, "base", 0, 7e-3, servers=0), launch(of, "base", 0, 1e-3, servers=1)
    assert effect(of, [first, launch(of, "candidate", 0, 1e-3, servers=1)]) == []
    assert effect(of, [first, second, launch(of, "candidate", 0, 2e-3, servers=1)]) == [2.0]


def test_pairs_are_in_the_order_of_their_numbers() -> None:
    """Stages are apart, and a pair that was stored late stands at its place; the control has its own pairs."""
    of = comparison()
    launches = [
        launch(of, arm, pair, (1e-3, (2 + pair) * 1e-3)[arm == "candidate"], stage=stage)
        for pair in (2, 0, 1)
        for stage in ("after", "screen")
        for arm in ("base", "candidate")
    ]  # fmt: skip
    pairs = Pairs.of([*launches, *control()])
    series = pairs.of_comparison(of.key)
    for stage in (series.screen, series.after):
        assert [math.exp(each.effect) for each in stage] == pytest.approx([2, 3, 4])
    assert len(pairs.control) == 8
    assert Pairs.of([]).of_comparison("unknown") == Series()


def test_an_end_without_a_time_ends_the_comparison() -> None:
    """A launch that is not OK is kept as its arm's end, the first one of each arm."""
    of = comparison()
    first = launch(of, "candidate", 0, outcome=Outcome.INCORRECT, detail="off")
    pairs = Pairs.of([launch(of, "base"), first, launch(of, "candidate", 1, outcome=Outcome.CRASHED)])
    assert pairs.ends == {of.key: {"candidate": first}}


# What is measured next


def test_order_is_balanced_and_recorded_by_the_seed() -> None:
    """Of two pairs in turn each arm is first once; the order differs between comparisons and seeds, and is told by the seed."""
    comparisons = [comparison(seq) for seq in range(16, 64)]
    orders = []
    for of in comparisons:
        order = [arms_in_order(Scheduled(of, "screen", pair), 7) for pair in range(8)]
        assert order == [arms_in_order(Scheduled(of, "screen", pair), 7) for pair in range(8)]
        for at in range(0, 8, 2):
            assert {order[at][0], order[at + 1][0]} == {"base", "candidate"}
        orders.append([arms[0] for arms in order])
    firsts = [order[0] for order in orders]
    assert 8 <= firsts.count("base") <= 40
    assert orders != [[arms_in_order(Scheduled(of, "screen", pair), 8)[0] for pair in range(8)] for of in comparisons]
    assert set(arms_in_order(Scheduled(YARDSTICK, "screen", 0), 7)) == {"base", "control"}


def schedule(described: GateInfo, times_s: Callable[[str, int], float]) -> list[dict[str, tuple[Stage, int]]]:
    """What each pair of servers measures until nothing is wanted; `times_s` is told a candidate's key and pair."""
    launches: list[GateLaunch] = []
    steps = []
    counts: Counter[str] = Counter()
    while (step := next_pair(described, Pairs.of(launches))) is not None:
        assert step == next_pair(described, Pairs.of(launches))
        steps.append({each.comparison.key: (each.stage, each.pair) for each in step.scheduled})
        for each in step.scheduled:
            of = each.comparison
            for arm in arms_in_order(each, described.seed):
                time_s = times_s(of.key, counts[of.key]) if arm == "candidate" else 1e-3
                launches.append(launch(of, arm, each.pair, time_s, stage=each.stage, servers=len(steps)))
            counts[of.key] += 1
    assert [step[CONTROL] for step in steps] == [("screen", at) for at in range(len(steps))]
    return [{key: at for key, at in step.items() if key != CONTROL} for step in steps]


def screen(*keys: str, begin: int = 0, end: int = 8) -> list[dict[str, tuple[Stage, int]]]:
    """Pairs of a screen that these ride in together."""
    return [dict.fromkeys(keys, ("screen", at)) for at in range(begin, end)]


def test_the_screen_comes_first_and_then_what_the_rule_wants() -> None:
    """Every comparison rides in each pair of the screen, and after it what is flagged alone; the control is in all."""
    same, slower = comparison(32).key, comparison(64).key
    steps = schedule(info([comparison(32), comparison(64)]), lambda key, _: 1.1e-3 if key == slower else 1e-3)
    assert steps == screen(same, slower) + [{slower: ("after", at)} for at in range(4)]


def test_servers_serve_both_stages() -> None:
    """Where one screen goes on, what another has flagged is confirmed by the same servers."""
    wide, slower = comparison(32).key, comparison(64).key
    steps = schedule(
        info([comparison(32), comparison(64)]), lambda key, at: 1.1e-3 if key == slower else (0.95e-3, 1.05e-3)[at % 2]
    )
    both = [{wide: ("screen", 8 + at), slower: ("after", at)} for at in range(4)]
    assert steps == screen(wide, slower) + both + screen(wide, begin=12, end=16)


def test_what_looks_slower_is_measured_first() -> None:
    """With `exit_first` it goes on alone after three pairs, to where it is settled, or to where it looks slower no more."""
    same, slower, once = (comparison(seq).key for seq in (32, 64, 128))
    described = info([comparison(32), comparison(64), comparison(128)], exit_first=True)
    steps = schedule(described, lambda key, at: 1.1e-3 if key == slower or (key == once and at < 4) else 1e-3)
    alone = [{slower: ("screen", at)} for at in (5, 6, 7)] + [{slower: ("after", at)} for at in range(4)]
    assert steps[:12] == screen(same, slower, once, end=3) + screen(slower, once, begin=3, end=5) + alone
    assert steps[12:14] == screen(same, begin=3, end=5)
    assert steps[14] == {same: ("screen", 5), once: ("screen", 5)}


def test_a_pair_that_was_cut_off_is_measured_again() -> None:
    """Where a comparison lacks a pair that others have, it alone is measured, under that pair's number."""
    whole, torn = comparison(32), comparison(64)
    launches = [*pairs_of(whole, screen=3), *pairs_of(torn, screen=3)[:-1]]
    step = next_pair(info([whole, torn]), Pairs.of(launches))
    assert step is not None
    assert {each.comparison.key: (each.stage, each.pair) for each in step.scheduled} == {
        torn.key: ("screen", 2),
        CONTROL: ("screen", 0),
    }


def test_what_ended_is_not_measured_further() -> None:
    """A comparison that failed is left out, and where all failed nothing is left to do; a control that failed is left out too."""
    fine, failed = comparison(32), comparison(64)
    end = ending(failed, "candidate", Outcome.CRASHED)
    step = next_pair(info([fine, failed]), Pairs.of(end))
    assert step is not None
    assert {each.comparison.key for each in step.scheduled} == {fine.key, CONTROL}
    assert next_pair(info([failed]), Pairs.of(end)) is None
    step = next_pair(info([fine]), Pairs.of(ending(YARDSTICK, "base", Outcome.ERROR)))
    assert step is not None
    assert [each.comparison.key for each in step.scheduled] == [fine.key]


@pytest.mark.parametrize("arm", ["base", "candidate"])
def test_half_a_pair_ends_nothing(arm: ArmLabel) -> None:
    """Where one arm failed and the other was not asked, the pair is measured anew; unless no further launch can be made."""
    one = comparison(32)
    alone = launch(one, arm, outcome=Outcome.TIMED_OUT)
    step = next_pair(info([one]), Pairs.of([alone]))
    assert step is not None
    assert one.key in {each.comparison.key for each in step.scheduled}
    assert next_pair(info([one]), Pairs.of([alone.model_copy(update={"ends": True})])) is None


# Verdicts


def test_one_slower_comparison_is_regressed(stored: Callable[..., Gate]) -> None:
    """The slower one is named, its neighbour EQUIVALENT, the gate exits 10; and judging again gives the same bytes."""
    same, slower = comparison(32), comparison(64)
    gate = stored([same, slower], [*pairs_of(same), *pairs_of(slower, 1.05, after=8), *control()])
    result = result_of(gate)
    assert [each.verdict for each in result.judgements] == [Verdict.EQUIVALENT, Verdict.REGRESSED]
    assert result.exit_code() is Exit.REGRESSION
    report.write_all(gate)
    data = json.loads((gate.path / "verdicts.json").read_text())
    assert data["exit_code"] == 10
    assert data["judgements"][1]["percent"]["shift"] == pytest.approx(5, abs=0.2)
    assert report.verdicts_json(result_of(Gate.open(gate.path))) == (gate.path / "verdicts.json").read_text()


def test_contamination_takes_back_what_was_told(stored: Callable[..., Gate]) -> None:
    """Where base differs from base nothing is REGRESSED or IMPROVED; what else was said stays, and failures stay failures."""
    slower, faster, same, broken = (comparison(seq) for seq in (16, 32, 48, 64))
    gate = stored(
        [slower, faster, same, broken],
        [
            *pairs_of(slower, 1.2, after=16), *pairs_of(faster, 0.8, after=16), *pairs_of(same), *control(1.03),
            *ending(broken, "candidate", Outcome.INCORRECT),
        ],
    )  # fmt: skip
    result = result_of(gate)
    verdicts = [each.verdict for each in result.judgements]
    assert verdicts == [Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, Verdict.EQUIVALENT, Verdict.FAILED]
    assert "identical code differs here" in result.judgements[0].reason
    assert result.is_contaminated
    assert report.workflow_commands(result).startswith("::warning title=attnbench::CONTAMINATED: ")
    assert result.exit_code() is Exit.CELLS_FAILED
    clean = result_of(stored([slower], [*pairs_of(slower), *control(1.03)], id="other"))
    assert clean.exit_code() is Exit.PASS
    assert clean.exit_code(require_conclusive=True) is Exit.INCONCLUSIVE


@pytest.mark.parametrize(
    ("base", "candidate", "verdict", "code"),
    [
        (None, Outcome.INCORRECT, Verdict.FAILED, Exit.CELLS_FAILED),
        (None, Outcome.CRASHED, Verdict.FAILED, Exit.CELLS_FAILED),
        (None, Outcome.TIMED_OUT, Verdict.FAILED, Exit.CELLS_FAILED),
        (None, Outcome.OUT_OF_MEMORY, Verdict.FAILED, Exit.CELLS_FAILED),
        (None, Outcome.UNSUPPORTED, Verdict.MISSING, Exit.CELLS_FAILED),
        (Outcome.UNSUPPORTED, None, Verdict.NEW, Exit.NOTHING_MEASURED),
        (Outcome.CRASHED, None, Verdict.NEW, Exit.NOTHING_MEASURED),
        (Outcome.CRASHED, Outcome.CRASHED, Verdict.FAILED, Exit.CELLS_FAILED),
        (Outcome.UNSUPPORTED, Outcome.ERROR, Verdict.FAILED, Exit.CELLS_FAILED),
        (Outcome.UNSUPPORTED, Outcome.UNSUPPORTED, None, Exit.NOTHING_MEASURED),
        (Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT, None, Exit.NOTHING_MEASURED),
    ],
)
def test_ends_without_a_time(
    stored: Callable[..., Gate], base: Outcome | None, candidate: Outcome | None, verdict: Verdict | None, code: Exit
) -> None:
    """What the candidate lost is FAILED or MISSING, what it gained NEW, and what neither can run is no verdict but a reason."""
    of = comparison()
    launches = [
        launch(of, "base", outcome=base or Outcome.OK, detail="why the base"),
        launch(of, "candidate", outcome=candidate or Outcome.OK, detail="why the candidate"),
    ]
    result = result_of(stored([of], [*launches, *control()]))
    assert [each.verdict for each in result.judgements] == ([verdict] if verdict else [])
    words = result.judgements[0].reason if verdict else result.refused[of.name]
    assert ("why the candidate" if candidate else "why the base") in words
    assert result.exit_code() is code


def test_the_gravest_decides_the_code(stored: Callable[..., Gate]) -> None:
    """Slower before failed before inconclusive; a gate in which nothing was measured exits 14."""
    slower, broken, none = (comparison(seq) for seq in (16, 32, 48))
    failed = ending(broken, "candidate", Outcome.ERROR)
    everything = result_of(stored([slower, broken, none], [*pairs_of(slower, 1.2, after=16), *failed], id="a"))
    assert everything.exit_code(require_conclusive=True) is Exit.REGRESSION
    without = result_of(stored([broken, none], failed, id="b"))
    assert without.exit_code(require_conclusive=True) is Exit.CELLS_FAILED
    open_ = result_of(stored([none], pairs_of(none, screen=3), id="c"))
    assert open_.exit_code() is Exit.PASS
    assert open_.exit_code(require_conclusive=True) is Exit.INCONCLUSIVE
    assert result_of(stored([], [], id="d", refused={"x": ("needs CUDA",)})).exit_code() is Exit.NOTHING_MEASURED
    assert result_of(stored([none], [], id="e")).exit_code() is Exit.NOTHING_MEASURED


def test_a_base_that_ends_late_hides_no_regression(stored: Callable[..., Gate]) -> None:
    """After pairs that were measured, a base that once runs out of memory leaves the comparison open; NEW is what never ran."""
    slower = comparison(32)
    late = result_of(
        stored([slower], [*pairs_of(slower, 2.0), *ending(slower, "base", Outcome.OUT_OF_MEMORY, 8)], id="late")
    )
    assert [each.verdict for each in late.judgements] == [Verdict.INCONCLUSIVE]
    assert late.exit_code(require_conclusive=True) is Exit.INCONCLUSIVE
    never = result_of(stored([slower], ending(slower, "base", Outcome.OUT_OF_MEMORY), id="never"))
    assert [each.verdict for each in never.judgements] == [Verdict.NEW]


def test_without_a_control_nothing_is_told(stored: Callable[..., Gate]) -> None:
    """A control that ended cannot vouch for the others: the gate is contaminated, and says why."""
    slower = comparison(32)
    gate = stored([slower], [*pairs_of(slower, 1.2, after=16), *ending(YARDSTICK, "control", Outcome.TIMED_OUT)])
    result = result_of(gate)
    assert result.is_contaminated
    assert [each.verdict for each in result.judgements] == [Verdict.INCONCLUSIVE]
    assert "the control ended: control: TIMED_OUT" in report.document(gate, result).markdown()


# What is read


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_stay_words(stored: Callable[..., Gate]) -> None:
    """Names and reasons of an arm's code appear in the page, the summary and the annotations as words, never as commands."""
    slower, broken = comparison(32), comparison(64)
    hostile = [each.model_copy(update={"name": HOSTILE_NAME}) for each in (slower, broken)]
    end = ending(broken, "candidate", Outcome.ERROR, detail=HOSTILE)
    gate = stored(
        hostile, [*pairs_of(slower, 1.2, after=16), *end, *control()], name=HOSTILE, refused={HOSTILE: (HOSTILE,)},
        base=ArmInfo(given=HOSTILE), candidate=ArmInfo(given=HOSTILE, revision="version 1"),
    )  # fmt: skip
    report.write_all(gate)
    page = Tags()
    page.feed((gate.path / "report.html").read_text())
    assert page.tags.isdisjoint({"img", "script"})
    assert "onerror=alert(1)" in page.text
    summary = (gate.path / "summary.md").read_text()
    assert "<img" not in summary
    assert "</script" not in summary
    assert not any(line.startswith("::") for line in summary.splitlines())
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {6, 3}
    lines = (gate.path / "annotations.txt").read_text().split("\n")
    assert [line[:30] for line in lines] == ["::error title=REGRESSED </scri", "::error title=FAILED </script>", ""]
    for line in lines[:-1]:
        _, of_title, words = line.split("::", 2)
        assert of_title.count(",") == 0
        assert of_title.count(":") == 0
        assert "%0A%3A%3Aerror title=a%2Cb%3Ac%3A%3A100%25 forged" in of_title
        assert "\r" not in words
    assert "%0D%0A::error title=a,b:c::100%25 forged" in lines[1]
    assert json.loads((gate.path / "verdicts.json").read_text())["judgements"][0]["name"] == HOSTILE_NAME


def test_annotations_are_empty_where_all_is_well(stored: Callable[..., Gate]) -> None:
    """No workflow command for what is EQUIVALENT; the page and the summary still say what was compared on which machine."""
    of = comparison()
    gate = stored([of], [*pairs_of(of), *control()])
    report.write_all(gate)
    assert (gate.path / "annotations.txt").read_text() == ""
    summary = (gate.path / "summary.md").read_text()
    assert summary.startswith("## test: HEAD (bbbbbbbbbb) against main (aaaaaaaaaa)\n")
    assert "- 1 EQUIVALENT\n" in summary
    assert of.name in summary
    assert "<svg" in (gate.path / "report.html").read_text()


def test_the_page_says_the_rule_of_its_size(stored: Callable[..., Gate]) -> None:
    """Levels and pairs are those of the rule, for so many comparisons; that it stops at the first is said."""
    many = [comparison(seq) for seq in range(16, 76)]
    gate = stored(many, [*pairs_of(many[0]), *control()], exit_first=True)
    report.write_all(gate)
    page = " ".join((gate.path / "report.html").read_text().split())
    assert "at 0.2 %, where every pair" in page
    assert "(16 pairs for 60 comparisons)" in page
    assert "at 0.4 % after 16, or 24 where" in page
    assert "--exit-first" in (gate.path / "summary.md").read_text()


# The proof


def kept(*effects: float) -> Kept:
    """Eight or more pairs with these effects in turn."""
    pairs = tuple(Pair(each, each, (1.2345678e-3, 1.2345678e-3 * math.exp(each))) for each in effects)
    return Kept.of(Series(pairs[:8], pairs[8:]))


@pytest.fixture
def sweep() -> ProofSweep:
    """A sweep of two cells, in which the injected slowdowns were found."""
    none = (0.001, -0.001) * 4
    return ProofSweep(
        schema=4, at="2026-11-24T00:00:00", machine="Test CPU", fingerprint="f", attnbench="0.1.0", load="quiet", threads=2,
        seed=1, seconds=60.0, seconds_by_percent={0: 40.0, 3: 50.0}, launches=100, void=2,
        same={"a": kept(*none), "b": kept(*none)}, twin="a",
        injected={percent: kept(*[math.log1p(percent / 100)] * 24) for percent in INJECTED if percent}, control=kept(*none),
    )  # fmt: skip


def test_a_sweep_comes_back_as_it_was_kept(tmp_path: Path, sweep: ProofSweep) -> None:
    """A sweep appended to a machine's file is read again as it was; times have six digits; the folder need not exist."""
    folder = tmp_path / "new" / "proof"
    assert read_sweeps(folder) == []
    for _ in range(2):
        file = append_to(folder, "machine", sweep)
    assert file == folder / "machine.jsonl"
    assert read_sweeps(folder) == [sweep, sweep]
    assert sweep.same["a"].series.screen[0].medians_s == (1.23457e-3, 1.2358e-3)
    for each in (sweep.same["a"], sweep.injected[5]):
        assert Kept.of(each.series) == each


def test_a_sweep_is_judged_as_several(sweep: ProofSweep) -> None:
    """Identical code gives no alarm; each injected slowdown takes the twin's place in a sweep of as many cells, and is found."""
    assert judge_sweep(sweep, 0).alarms == 0
    assert judge_sweep(sweep, 0).injected is None
    for percent in (3, 5, 10):
        assert sweep.family(percent).keys() == {"b", "injected"}
        assert judge_sweep(sweep, percent).injected is Verdict.REGRESSED
    assert keys_of_families(["a", "b"], "a", {3: "x", 5: "y"}) == (("a", "b"), ("b", "x"), ("b", "y"))
    dirty = sweep.model_copy(update={"control": kept(*[0.03] * 8)})
    assert judge_sweep(dirty, 5).injected is Verdict.INCONCLUSIVE
    loud = sweep.model_copy(update={"same": {**sweep.same, "b": kept(*[0.05] * 24)}})
    assert judge_sweep(loud, 0).alarms == 1


def test_the_proof_counts_with_exact_bounds(sweep: ProofSweep) -> None:
    """Alarms and power by machine, load and threads, with the bounds of so many sweeps; each is kept apart."""
    others = [sweep.model_copy(update=change) for change in ({"load": "toggling"}, {"threads": 1})]
    alarms = proof_report.alarms([sweep] * 59 + others)
    assert list(alarms["sweeps with an alarm"]) == ["0 of 59", "0 of 1", "0 of 1"]
    assert list(alarms["rate"]) == ["< 5.0%", "< 95.0%", "< 95.0%"]
    power = proof_report.power([sweep] * 59)
    assert list(power["a sweep alone takes"]) == ["50 s", "", ""]
    before = sweep.model_copy(update={"schema_version": 3})
    assert set(proof_report.power([before])["a sweep alone takes"]) == {""}
    assert list(power["found"]) == ["59 of 59"] * 3
    assert set(power["rate"]) == {"> 95%"}


def test_sweeps_of_another_rule_are_not_counted(sweep: ProofSweep) -> None:
    """A sweep that lacks pairs which the rule of today asks for shows nothing of it, and that it is there is said."""
    noisy = kept(*(0.05, -0.05) * 4)
    cut = sweep.model_copy(update={"same": {**sweep.same, "b": noisy}})
    document = proof_report.document([sweep, cut, cut])
    assert document.lines[0].startswith("1 sweep, 2026-11-24; 2 more lack pairs")
    assert [list(table["rate"]) for table in document.tables.values()] == [["< 95.0%"], ["> 5%"] * 3]


def test_what_was_found_first_is_counted(tmp_path: Path) -> None:
    """Sweeps that end with what is found are kept apart from the others, and shown with how soon that was."""
    one = FirstFound(
        schema=1, at="2026-11-24T00:00:00", machine="Test CPU", fingerprint="f", attnbench="0.1.0", load="quiet", threads=1,
        seed=1, cells=8, percent=10, verdict=Verdict.REGRESSED, alarms=0, seconds=50.0, servers=13,
    )  # fmt: skip
    missed = one.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "seconds": 90.0, "alarms": 1})
    for each in (one, one, missed):
        file = append_to(tmp_path, "machine", each)
    assert file == tmp_path / "first-found" / "machine.jsonl"
    assert read_first_found(tmp_path) == [one, one, missed]
    assert read_sweeps(tmp_path) == []
    table = proof_report.document([], read_first_found(tmp_path)).tables["Slowdowns that end a sweep, by --exit-first"]
    row = dict(zip(table.columns, table.iloc[0], strict=True))
    assert (row["found"], row["sweeps with an alarm"]) == ("2 of 3", "1 of 3")
    assert (row["median"], row["slowest"], row["pairs of servers"]) == ("50 s", "90 s", 13)


def test_an_empty_proof_says_so(attnbench: Command, tmp_path: Path) -> None:
    """Without a sweep there is nothing to show, which is said, with what to do; nothing is written."""
    done = attnbench("gate", "--prove", "--sweeps", "0", "--out", "proof")
    assert done.returncode == 0, done.stderr
    assert "0 sweeps, none yet; measure some with --sweeps" in done.stdout
    assert not (tmp_path / "proof").exists()


@pytest.fixture
def damaged(tmp_path: Path, sweep: ProofSweep) -> str:
    """A proof whose second line is cut short."""
    file = append_to(tmp_path / "proof", "machine", sweep)
    with file.open("a") as stream:
        stream.write(sweep.model_dump_json(by_alias=True)[:100] + "\n")
    return f"{Path('proof') / file.name}:2"


def test_a_damaged_line_is_named(attnbench: Command, damaged: str, tmp_path: Path) -> None:
    """A line that is no sweep ends the command with code 3 and its place, in one line."""
    done = attnbench("gate", "--prove", "--sweeps", "0", "--out", "proof")
    assert done.returncode == 3
    assert done.stderr.startswith(f"attnbench: {damaged} is no sweep of a proof")
    assert done.stderr.count("\n") == 1
    with pytest.raises(StoreError, match=r"machine.jsonl:2"):
        read_sweeps(tmp_path / "proof")
