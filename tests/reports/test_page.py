"""The page and the tables, from runs that tests compose record by record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness import listing
from attnbench.harness.cell import Cell
from attnbench.harness.records import (
    Accuracy,
    Ceilings,
    CeilingsMeasured,
    Launch,
    Memory,
    Notice,
    Outcome,
    RunInfo,
    Samples,
    SessionEnded,
    TruthComputed,
)
from attnbench.harness.store import Run
from attnbench.harness.verdicts.estimate import counted, estimate, unranked_because
from attnbench.impls import AttentionProblem
from attnbench.reports import clock_check, frame, load, page, tables
from attnbench.reports import format as fmt
from attnbench.reports.export import export

HOSTILE = "</script><img src=x onerror=alert(1)>$x_1$&|"


def cell(implementation: str = "naive", seq: int = 64, passes: str = "forward", **problem: Any) -> Cell:
    """A cell of a small problem."""
    given = {"heads_q": 2, "heads_kv": 2, "seq_q": seq, "seq_kv": seq, "head_dim": 16} | problem
    return Cell(implementation=implementation, problem=AttentionProblem(**given), passes=passes)


def launch(of: Cell, round_: int = 0, time_s: float | None = 1e-3, **changes: Any) -> Launch:
    """One launch of a cell, OK unless told otherwise."""
    given: dict[str, Any] = {
        "outcome": Outcome.OK, "cell": of.id, "name": of.name, "implementation": of.implementation, "round": round_,
        "attempt": 0, "position": 0, "server": f"s{round_}", "started_at": "2026-11-24T00:00:00",
        "accuracy": {"out": Accuracy(max_error=1e-7, max_bound=1e-6, rms_error=1e-8, rms_reference=1.0, elements=64)},
        "memory": Memory(source="test", overhead_bytes=12_000_000),
    }  # fmt: skip
    if time_s is not None:
        given["samples"] = Samples(repeats=1, times_s=(time_s,) * 6, stop="precision", warmup_calls=1, warmup_s=0.1)
    return Launch(**(given | changes))


def make_run(folder: Path, cells: Sequence[Cell], launches: Sequence[Launch], *, ended: bool = True) -> Run:
    """A run on disk."""
    info = RunInfo(
        id="20261124-000000-test", name="test", created_at="2026-11-24T00:00:00", config_source="test.yaml",
        config_text="name: test\n", config={"name": "test", "protocol": {"launches": 2}}, device="cpu",
        versions={"torch": "2.13.0"},
        environment={"strict": {"cpu_model": "Test CPU", "turbo": {"unreadable": "turbo is not shown"}}},
        cells=tuple(cells), control=(),
        seed=0, attnbench_version="0",
    )  # fmt: skip
    run = Run.create(folder, info)
    ceilings = Ceilings(gemm_flops_per_s={"float32": 1e11}, memory_bytes_per_s=1e10, empty_call_s=1e-8)
    run.append(CeilingsMeasured(at="", ceilings=ceilings, seconds=1))
    for each in launches:
        run.append(each)
    if ended:
        run.append(SessionEnded(at="", status="finished", wall_s=2, split_s={"timing": 1.5, "rest": 0.5}))
    return run


class Parser(HTMLParser):
    """Collects tags, attributes that load something, ids and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a browser would fetch."""
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and value and not value.startswith("#"):
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)
            assert not name.startswith("on"), f"an event handler: {name}"

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text.append(data)


def parse(run: Run) -> Parser:
    """The page of a run, parsed."""
    parser = Parser()
    parser.feed(page.write_page(run).read_text())
    return parser


@pytest.fixture
def rich_run(tmp_path: Path) -> Run:
    """Two arms over three lengths, one of them wrong once, one refused, one too large; an outcome each."""
    cells, launches = [], []
    for seq in (64, 128, 256):
        for name, factor in (("naive", 2.0), ("sdpa", 1.0)):
            cells.append(cell(name, seq))
            launches += [launch(cells[-1], round_, factor * seq * 1e-6) for round_ in range(3)]
    for name, outcome, detail in (
        ("sdpa_cudnn", Outcome.UNSUPPORTED, "device cpu: needs cuda"),
        ("chunked", Outcome.INCORRECT, "out is off by 3"),
        ("sdpa_math", Outcome.OUT_OF_MEMORY, "cannot allocate"),
        ("flex_attention", Outcome.TIMED_OUT, "killed after its deadline"),
        (HOSTILE, Outcome.CRASHED, HOSTILE),
    ):
        cells.append(cell(name, 64))
        launches.append(launch(cells[-1], time_s=None, outcome=outcome, detail=detail, accuracy={}))
    return make_run(tmp_path, cells, launches)


def test_page_makes_no_request(rich_run: Run) -> None:
    """Nothing on the page is loaded from anywhere, no script is on it, and its policy forbids both."""
    parser = parse(rich_run)
    assert parser.loads == []
    assert "script" not in parser.tags
    assert "iframe" not in parser.tags
    text = (rich_run.path / "report.html").read_text()
    assert "default-src 'none'" in text
    addresses = {
        each for each in re.findall(r"https?://[^\"'\s<)]+", text) if not each.startswith("http://www.w3.org/")
    }
    assert addresses == set()


def test_page_escapes_hostile_text(rich_run: Run) -> None:
    """A name or a detail with markup stays text, in tables and in figures."""
    parser = parse(rich_run)
    assert "img" not in parser.tags
    assert HOSTILE in "".join(parser.text)


def test_every_reason_is_on_the_page(rich_run: Run) -> None:
    """A cell that was not measured says why, in readable text."""
    text = "".join(parse(rich_run).text)
    for reason in ("device cpu: needs cuda", "out is off by 3", "cannot allocate", "killed after its deadline"):
        assert reason in text


def test_ids_are_unique(rich_run: Run) -> None:
    """Figures of one page share no ids, so that no clip path reaches into another figure."""
    ids = parse(rich_run).ids
    assert len(ids) == len(set(ids))
    assert parse(rich_run).tags.count("svg") >= 4


def test_no_panel_is_left_out(tmp_path: Path) -> None:
    """Six columns of dtype and mask are more than a figure holds: a second one shows the rest, under a name of its own."""
    cells = [
        cell(seq=seq, dtype=dtype, mask=mask)
        for dtype in ("float32", "bfloat16", "float16")
        for mask in ("full", "causal")
        for seq in (64, 128)
    ]
    parser = parse(make_run(tmp_path, cells, [launch(each) for each in cells]))
    for dtype in ("float32", "bfloat16", "float16"):
        for mask in ("full", "causal"):
            assert parser.text.count(f"{dtype}, {mask}") == 3  # time, throughput, memory
    assert sum("part 2 of 2" in words for words in parser.text) == 3
    assert len(parser.ids) == len(set(parser.ids))


def test_only_ok_is_ranked(rich_run: Run) -> None:
    """Wrong, crashed and refused cells win nothing."""
    cells = frame.cells(rich_run)
    assert set(cells[cells["ranked"]]["arm"]) == {"naive", "sdpa"}
    assert set(tables.winners(cells)["winner"]) == {"sdpa"}


def test_one_wrong_round_unranks_a_cell(tmp_path: Path) -> None:
    """A cell that was wrong in any round is not ranked, however fast it was in the others."""
    fast, slow = cell("chunked"), cell("naive")
    launches = [
        launch(fast, 0, 1e-6),
        launch(fast, 1, None, outcome=Outcome.INCORRECT, detail="dq is off"),
        launch(slow),
    ]
    cells = frame.cells(make_run(tmp_path, [fast, slow], launches))
    assert list(tables.winners(cells)["winner"]) == ["naive"]
    assert cells.set_index("arm").loc["chunked", "outcome"] == "INCORRECT"


def test_overlapping_intervals_are_a_tie(tmp_path: Path) -> None:
    """Where intervals share a point no one is called faster."""
    one, other = cell("naive"), cell("sdpa")
    times = {one.id: (1.0e-3, 1.1e-3, 1.3e-3), other.id: (1.1e-3, 1.2e-3, 1.4e-3)}
    launches = [launch(each, round_, times[each.id][round_]) for each in (one, other) for round_ in range(3)]
    winners = tables.winners(frame.cells(make_run(tmp_path, [one, other], launches)))
    assert list(winners["against the next"]) == ["a tie with sdpa"]


def test_few_launches_decide_nothing(tmp_path: Path) -> None:
    """One launch of each has no spread at all, which is no reason to call one faster."""
    one, other = cell("naive"), cell("sdpa")
    launches = [launch(one, 0, 1e-3), launch(other, 0, 2e-3)]
    winners = tables.winners(frame.cells(make_run(tmp_path, [one, other], launches)))
    assert list(winners["against the next"]) == ["too few launches to tell from sdpa"]
    assert "thin" in winners["interval"][0]


@pytest.mark.parametrize(("count", "kind"), [(3, "range"), (5, "range"), (6, "95 %"), (12, "95 %")])
def test_interval_is_named(count: int, kind: str) -> None:
    """Below six launches the interval is their range, from six on a 95 % interval within it."""
    one = cell()
    launches = [launch(one, round_, 1e-3 + round_ * 1e-5) for round_ in range(count)]
    guess = estimate(launches)
    assert guess is not None
    assert guess.interval == kind
    assert 1e-3 <= guess.low <= guess.median <= guess.high <= 1e-3 + count * 1e-5


def test_first_valid_attempt_counts() -> None:
    """Of a void launch and its repetition the repetition counts; where all are void, the last does."""
    one = cell()
    attempts = [
        launch(one, 0, 5e-3, void="throttled"),
        launch(one, 0, 1e-3, attempt=1),
        launch(one, 0, 9e-3, attempt=2),
    ]
    assert [each.attempt for each in counted(attempts)] == [1]
    voids = [launch(one, 0, void="throttled", attempt=attempt) for attempt in range(3)]
    assert [each.attempt for each in counted(voids)] == [2]
    assert unranked_because(voids) == ""


def test_frame_has_a_row_for_each_counted_launch(rich_run: Run) -> None:
    """The tidy frame holds raw numbers in SI units, one row a launch that counts; loading twice works."""
    rows = load(rich_run.path)
    assert len(rows) == len(load(rich_run)) == 3 * 6 + 5
    first = rows.iloc[0]
    assert first["time_s"] == pytest.approx(128e-6)
    assert first["flops_per_s"] == pytest.approx(first["flops"] / first["time_s"])


@pytest.mark.parametrize("ended", [True, False])
def test_run_without_launches_has_a_page(tmp_path: Path, ended: bool) -> None:
    """A run that was killed before its first launch still has a page, which says that nothing was measured."""
    text = "".join(parse(make_run(tmp_path, [cell()], [], ended=ended)).text)
    assert "not measured" in text
    assert "Nothing was ranked" in text


def test_notices_and_torn_lines_are_said(rich_run: Run) -> None:
    """What a reader should know is at the top."""
    rich_run.append(Notice(at="", text="plugin p failed to import: ImportError: no"))
    with (rich_run.path / "launches.jsonl").open("a") as stream:
        stream.write('{"torn')
    text = "".join(parse(Run.open(rich_run.path)).text)
    assert "plugin p failed to import" in text
    assert "torn" in text


def test_facts_are_words(rich_run: Run) -> None:
    """The environment and the protocol read as words, without the quotes and braces of what is stored."""
    text = parse(rich_run).text
    assert {"Test CPU", "turbo is not shown", "time, memory"} <= set(text)


def test_results_stand_by_problem(rich_run: Run) -> None:
    """A problem with its pass heads the rows of its implementations, and the legend names the codes that there are."""
    text = parse(rich_run).text
    assert text.count("b1-h2-s64-d16-float32-full, forward") == 1
    assert "mem" in text
    assert "impl" not in text


def test_shares_are_said_once(rich_run: Run) -> None:
    """What was checked in part is said with its share, once; a truth that failed has none, nor has what was checked whole."""
    for problem, share, failure in (("large", 0.125, ""), ("large", 0.125, ""), ("lost", None, "no"), ("small", 1, "")):
        rich_run.append(TruthComputed(at="", problem=problem, checked_share=share, seconds=1, failure=failure))
    text = "".join(parse(rich_run).text)
    assert "drawn by the problem's seed: large 12.5 %." in text


def test_kernels_and_backend_are_shown(tmp_path: Path) -> None:
    """The kernels that a device named are folded into the cell's row and are a column of exports, beside the backend."""
    one, other = cell("naive"), cell("sdpa")
    kernels = ("void gemm<float, 4>(int)", "softmax<&x>")
    run = make_run(
        tmp_path, [one, other], [launch(one, backend="math", kernels=kernels), launch(one, 1), launch(other)]
    )
    parser = parse(run)
    assert "math" in parser.text
    assert [each for each in parser.text if each in kernels] == list(kernels)
    assert list(load(run)["kernels"]) == ["void gemm<float, 4>(int); softmax<&x>", "", ""]
    assert "void gemm<float, 4>(int); softmax<&x>" in export(run, "csv")


def test_markdown_cannot_be_broken(rich_run: Run) -> None:
    """Pipes in names are escaped: every line of a table has as many cells as its head."""
    text = tables.markdown(tables.results(frame.cells(rich_run)))
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.strip().splitlines()}
    assert len(widths) == 1


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (fmt.seconds(1.234), "1.23 s"), (fmt.seconds(1.5e-3), "1.50 ms"), (fmt.seconds(9.99e-7), "999 ns"),
        (fmt.seconds(None), "–"), (fmt.flops_per_s(1.5e11), "150 GFLOP/s"), (fmt.size(12_345_678), "12.3 MB"),
        (fmt.size(0), "0 B"), (fmt.ratio(2.5), "2.50 x"), (fmt.share(0.125), "12 %"), (fmt.pair(8, 2), "8/2"),
        (fmt.interval(1.2e-3, 1.3e-3), "1.20 to 1.30 ms"),
    ],
)  # fmt: skip
def test_units(shown: str, words: str) -> None:
    """Numbers have three digits that count and the unit that fits."""
    assert shown == words


@pytest.mark.parametrize(
    ("event_s", "kernels_s", "words"),
    [
        (1.09e-3, 1e-3, "agree"),
        (1e-3, 1.09e-3, "agree"),
        (8e-6, 3e-6, "agree"),  # a few microseconds are what recording two events takes
        (1.2e-3, 1e-3, "the clock is longer by 200 us: gaps between launches, or work outside kernels"),
        (12e-6, 4e-6, "the clock is longer by 8.00 us"),
        (0.5e-3, 1e-3, "the clock is shorter by 500 us: work on another stream, or an error of the clock"),
    ],
)
def test_clock_is_held_against_kernels(event_s: float, kernels_s: float, words: str) -> None:
    """They agree within a tenth and 5 us; beyond that it is said which is longer, and what that means."""
    assert clock_check.verdict(event_s, kernels_s).startswith(words)


def test_clock_check_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells that disagree come first, in the terminal, on the page, in Markdown; those without a profile are not in it."""
    good, late, plain = cell("naive"), cell("sdpa"), cell("chunked")
    hidden = launch(late).samples
    assert hidden is not None
    shown = hidden.model_copy(update={"gap_hidden": False})
    run = make_run(
        tmp_path,
        [good, late, plain],
        [launch(good, kernel_time_s=0.99e-3), launch(late, kernel_time_s=0.2e-3, samples=shown), launch(plain)],
    )
    table = clock_check.table(run)
    assert list(table["cell"]) == [late.name, good.name]
    assert list(table["clock / kernels"]) == ["5.00 x", "1.01 x"]
    assert "the clock is longer by 800 us" in table["verdict"][0]
    assert table["verdict"][0].endswith("the host could not queue the samples ahead of the device")
    assert clock_check.summary(table) == "The event clock beside a profiler: 1 of 2 cells agree"
    listing.print_results(run)
    assert clock_check.summary(table) in capsys.readouterr().out
    assert "clock" in parse(run).ids
    assert "## The event clock beside a profiler" in export(run, "markdown")
    written = page.write_report([run], tmp_path / "report").parent / run.info.id / "clock_check.md"
    assert "gaps between launches" in written.read_text()


def test_without_profiles_there_is_no_clock_check(rich_run: Run) -> None:
    """A run that asked for no kernels says nothing of the clock."""
    assert clock_check.table(rich_run).empty
    assert "clock" not in parse(rich_run).ids
    assert "profiler" not in str(export(rich_run, "markdown"))
