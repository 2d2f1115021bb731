"""The command line as people use it: listing, planning, exporting, errors and exit codes."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from attnbench import reports
from attnbench.harness.cell import Cell, Conditions
from attnbench.harness.plan import CONTROL
from attnbench.harness.progress import Standing
from attnbench.harness.records import Launch, Outcome, Samples, SessionEnded
from attnbench.harness.store import Run

Command = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """
name: small
implementations: [naive, sdpa_flash, chunked, sdpa_cudnn]
sweeps:
  - {batch: 1, heads: 2, seq_len: [32, 64], head_dim: 16, dtype: [float32, bfloat16], mask: causal,
     pass: [forward, forward_backward]}
protocol: {launches: 2, min_time_s: 0.005, max_time_s: 0.02}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, subprocess.CompletedProcess[str]]:
    """A small run and what its command printed."""
    import sys

    folder = tmp_path_factory.mktemp("cli")
    (folder / "c.yaml").write_text(CONFIG)
    command = [str(Path(sys.executable).parent / "attnbench"), "run", "c.yaml", "--set", "protocol.seed=3"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Run.open(folder / done.stdout.splitlines()[-1]), done


def test_run_prints_its_folder_last(finished: tuple[Run, subprocess.CompletedProcess[str]]) -> None:
    """The last line of stdout is the run's folder under the default root; the winners come before it."""
    run, done = finished
    assert done.stdout.splitlines()[-1] == f"results/runs/{run.info.id}"
    assert "Fastest, of those that passed the check" in done.stdout
    assert "control cell" in done.stdout
    assert (run.path / "report.html").exists()


def test_run_stores_what_shaped_it(finished: tuple[Run, subprocess.CompletedProcess[str]]) -> None:
    """The config's own text, the changes from the command line, and the result of both are in run.json."""
    run, _ = finished
    assert run.info.config_text == CONFIG
    assert any("protocol.seed=3" in each for each in run.info.overrides)
    assert run.info.seed == 3
    assert run.info.versions["torch"]
    assert "cpu_model" in run.info.environment["strict"]


def test_wall_time_is_split(finished: tuple[Run, subprocess.CompletedProcess[str]]) -> None:
    """Servers, truth, ceilings, prepare, check, timing, memory and the rest add up to the wall time."""
    run, _ = finished
    (ended,) = [event for event in run.events() if isinstance(event, SessionEnded)]
    assert set(ended.split_s) == {
        "servers",
        "truth",
        "ceilings",
        "limits",
        "prepare",
        "check",
        "timing",
        "memory",
        "rest",
    }
    assert sum(ended.split_s.values()) == pytest.approx(ended.wall_s)
    assert all(seconds >= 0 for seconds in ended.split_s.values())


def test_each_round_has_a_server_of_its_own(finished: tuple[Run, subprocess.CompletedProcess[str]]) -> None:
    """Launches of a round share a server, and no two rounds do; cells are shuffled anew in each."""
    run, _ = finished
    measured = [each for each in run.launches() if each.server]
    servers = {round_: {each.server for each in measured if each.round == round_} for round_ in (0, 1)}
    assert servers[0].isdisjoint(servers[1])
    assert all(len(each) == 1 for each in servers.values())
    orders = [[each.cell for each in measured if each.round == round_ and each.attempt == 0] for round_ in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_backend_that_ran_is_recorded(finished: tuple[Run, subprocess.CompletedProcess[str]]) -> None:
    """A pinned SDPA backend is proved by the operators that were dispatched."""
    run, _ = finished
    assert {each.backend for each in run.launches() if each.implementation == "sdpa_flash"} == {"flash"}


def test_exports_agree(
    attnbench: Command, finished: tuple[Run, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """CSV, Parquet and the frame hold the same launches; Markdown names every arm."""
    run, _ = finished
    frame = reports.load(run.path)
    assert frame is not None
    csv = pd.read_csv(io.StringIO(attnbench("export", run.path).stdout))
    attnbench("export", run.path, "--format", "parquet", "--out", tmp_path / "run.parquet")
    parquet = pd.read_parquet(tmp_path / "run.parquet")
    assert len(frame) == len(csv) == len(parquet) == 64
    assert list(csv["time_s"].dropna()) == pytest.approx(list(frame["time_s"].dropna()))
    assert list(parquet["time_s"].dropna()) == list(frame["time_s"].dropna())
    markdown = attnbench("export", run.path, "--format", "markdown").stdout
    assert all(name in markdown for name in ("naive", "sdpa_flash", "chunked", "sdpa_cudnn"))


def test_report_of_runs_into_a_folder(
    attnbench: Command, finished: tuple[Run, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Page, tables and figures lie in the folder that was named."""
    run, _ = finished
    done = attnbench("report", run.path, "--out", "made")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "made" / run.info.id
    assert {"report.html", "winners.md", "results.csv", "launches.csv", "figures"} <= {
        each.name for each in folder.iterdir()
    }
    assert (tmp_path / done.stdout.strip()).exists()
    assert list((folder / "figures").glob("*.svg"))


def test_plan_measures_nothing(attnbench: Command, tmp_path: Path) -> None:
    """`plan` names cells, refusals and estimates, and leaves no folder."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    done = attnbench("plan", "c.yaml")
    assert done.returncode == 0, done.stderr
    assert "naive/b1-h2-s32-d16-float32-causal/forward" in done.stdout
    assert "sdpa_cudnn: device cpu: needs cuda" in done.stdout
    assert "estimated time" in done.stdout
    assert not (tmp_path / "results").exists()


def test_list_gives_every_reason(attnbench: Command) -> None:
    """Each implementation is available here, or says why not."""
    done = attnbench("list")
    assert done.returncode == 0
    for name in ("naive", "sdpa", "sdpa_math", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn", "flex_attention",
                 "xformers", "flash_attn2", "chunked"):  # fmt: skip
        assert name in done.stdout
    assert "flash-attn is not installed" in done.stdout


def test_list_survives_plugins(attnbench: Command, tmp_path: Path) -> None:
    """A plugin that fails when it is made or asked is a line with its reason; two files of one name are two plugins."""
    broken = {
        "one": ("def __init__(self, **given)", "the licence ran out"),
        "two": ("def unavailable(self, device)", "no idea"),
    }
    for name, (method, words) in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.py").write_text(
            "from attnbench.impls import Implementation, register\n"
            f"@register\nclass Broken(Implementation):\n    name = 'kernel_{name}'\n"
            f"    {method}:\n        raise RuntimeError('{words}')\n"
            "    def prepare(self, problem, tensors):\n        pass\n"
        )
    done = attnbench("list", "--plugin", "one/kernel.py", "--plugin", "two/kernel.py")
    assert done.returncode == 0, done.stderr
    for name, (_, words) in broken.items():
        assert f"kernel_{name}" in done.stdout
        assert f"RuntimeError: {words}" in done.stdout
    assert "available" in done.stdout


def test_schema_is_json(attnbench: Command) -> None:
    """`schema` prints the JSON Schema that the shipped configs name."""
    assert json.loads(attnbench("schema").stdout)["title"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "qick"], 2, "did you mean 'quick'"),
        (["run", "quick", "--set", "protocol.lunches=5"], 2, "did you mean 'launches'"),
        (["run", "quick", "--only", "chunkd"], 2, "did you mean 'chunked'"),
        (["run", "quick", "--set", "device=cuda:9"], 2, "cuda:9"),
        (["plan", "missing.yaml"], 3, "missing.yaml"),
        (["export", "."], 3, "holds no run"),
        (["resume", "nowhere"], 3, "holds no run"),
        (["run"], 2, "CONFIG"),
        (["measure"], 2, "No such command"),
    ],
)
def test_errors_say_what_to_do(attnbench: Command, arguments: list[str], code: int, words: str) -> None:
    """A mistake ends with its documented code and a message that helps, never a traceback."""
    done = attnbench(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_export_format(attnbench: Command, finished: tuple[Run, subprocess.CompletedProcess[str]]) -> None:
    """A format that there is not is a usage error that names those that there are."""
    run, _ = finished
    done = attnbench("export", run.path, "--format", "cvs")
    assert done.returncode == 2
    assert "did you mean 'csv'" in done.stderr


def test_unknown_baseline(attnbench: Command, finished: tuple[Run, subprocess.CompletedProcess[str]]) -> None:
    """A baseline that the runs did not measure is a usage error that names those that they did."""
    run, _ = finished
    done = attnbench("report", run.path, "--baseline", "chunkd")
    assert done.returncode == 2
    assert "'chunkd'; did you mean 'chunked'? measured: chunked, naive, sdpa_cudnn, sdpa_flash" in done.stderr
    assert attnbench("report", run.path, "--baseline", "chunked").returncode == 0


def test_rivals_have_the_same_conditions() -> None:
    """The fastest so far is that of the same problem, pass and conditions: warm caches do not beat cold ones."""
    standing = Standing()
    cells = [
        Cell(implementation=name, problem=CONTROL, passes="forward", conditions=Conditions(device="cuda", cache=cache))
        for name, cache in (("naive", "warm"), ("sdpa", "cold"), ("chunked", "cold"))
    ]
    for each, time_s in zip(cells, (0.001, 0.003, 0.002), strict=True):
        samples = Samples(repeats=1, times_s=(time_s,), stop="budget", warmup_calls=1, warmup_s=0.0)
        standing.add(each, Launch(cell=each.id, round=0, attempt=0, implementation=each.implementation, name=each.name,
                                  position=0, started_at="", outcome=Outcome.OK, samples=samples))  # fmt: skip
    assert standing.fastest(cells[0]) == "fastest naive 1 ms"
    assert standing.fastest(cells[1]) == "fastest chunked 2 ms"


def test_nothing_measured(attnbench: Command, tmp_path: Path) -> None:
    """A sweep of which nothing can run here ends with 14, and its page says why."""
    (tmp_path / "c.yaml").write_text(CONFIG.replace("naive, sdpa_flash, chunked, ", ""))
    done = attnbench("run", "c.yaml")
    assert done.returncode == 14, done.stderr
    page = tmp_path / done.stdout.splitlines()[-1] / "report.html"
    assert "device cpu: needs cuda" in page.read_text()


def test_not_even_the_control_cell_hides_an_empty_sweep(attnbench: Command, tmp_path: Path) -> None:
    """`--only` with an implementation that cannot run here measures nothing."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert attnbench("run", "c.yaml", "--only", "sdpa_cudnn").returncode == 14


def test_memory_alone_takes_one_launch(attnbench: Command, tmp_path: Path) -> None:
    """A memory-only sweep has one round and no time; nothing is ranked, and memory is there."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    done = attnbench("run", "c.yaml", "--set", "protocol.measure=[memory]", "--only", "naive,chunked")
    assert done.returncode == 0, done.stderr
    frame = reports.load(tmp_path / done.stdout.splitlines()[-1])
    assert set(frame["round"]) == {0}
    assert frame["time_s"].isna().all()
    assert frame["overhead_bytes"].notna().all()
