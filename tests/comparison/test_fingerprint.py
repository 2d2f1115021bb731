"""The fingerprint: each strict field alone makes a run not comparable with a baseline, and no soft one does."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from attnbench.harness import environment, fingerprint
from attnbench.harness.cell import Cell
from attnbench.harness.cli import app
from attnbench.harness.store import EVENT_FILE, RUN_FILE
from attnbench.impls import Device

Command = Callable[..., subprocess.CompletedProcess[str]]
MakeRun = Callable[..., Path]
MakeCell = Callable[..., Cell]
Path_ = tuple[str, ...]

#: Where run.json and the events keep each strict field.
STRICT: dict[str, Path_] = {
    **{key: ("environment", "strict", key) for key in environment.STRICT},
    **{f"gpu.{key}": ("environment", "strict", "gpu", key) for key in environment.STRICT_OF_GPU},
    **{f"versions.{key}": ("versions", key) for key in (*environment.VERSIONS, "jax")},
    "thread_settings.OMP_NUM_THREADS": ("environment", "strict", "thread_settings", "OMP_NUM_THREADS"),
    "torch_build.cuda": ("environment", "strict", "torch_build", "cuda"),
    "threads": ("environment", "threads"),
    "device_name": ("environment", "device_name"),
    **{f"torch_facts.{key}": ("torch_facts", key) for key in fingerprint.TORCH_FACTS},
}
SOFT = ("hostname", "load", "boot_time", "available_bytes", "mhz", "executable")


@pytest.fixture
def folder(make_run: MakeRun, cell: MakeCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run `candidate` beside a baseline `main` of its like, in the current folder; openvino's package is no field here."""
    monkeypatch.chdir(tmp_path)
    cells = [cell("openvino"), cell("openvino", 128)]
    done = CliRunner().invoke(app, ["baseline", "save", str(make_run("base", cells)), "main"])
    assert done.exit_code == 0, done.output
    make_run("candidate", cells)
    return tmp_path


def compare(*options: str) -> Result:
    """Judge the candidate against the baseline, in this process."""
    return CliRunner().invoke(app, ["compare", "candidate", "--baseline", "main", *options])


def edit(run: Path, path: Path_, change: Callable[[dict[str, Any], str], object]) -> None:
    """Change the table that holds a field, in the file where it is."""
    *tables, key = path
    file = run / (EVENT_FILE if tables[0] == "torch_facts" else RUN_FILE)
    lines = file.read_text().splitlines() if file.name == EVENT_FILE else [file.read_text()]
    written = []
    for line in lines:
        data = json.loads(line)
        table = data
        for name in tables:
            table = table.get(name, {})
        if key in table:
            change(table, key)
        written.append(json.dumps(data))
    file.write_text("".join(f"{line}\n" for line in written))


def remove(table: dict[str, Any], key: str) -> None:
    """Leave a field out."""
    del table[key]


def replace(table: dict[str, Any], key: str) -> None:
    """Another value of a field."""
    table[key] = "something else"


def refused(done: Result, field: str) -> bool:
    """Whether the comparison was refused for this field alone, or for what it holds."""
    named = re.search(r"these differ: (.*?); measure both sides here: attnbench gate", done.stderr)
    return (
        done.exit_code == 12
        and named is not None
        and all(each == field or each.startswith(f"{field}.") for each in named[1].split(", "))
        and "NOT_COMPARABLE" in done.stdout
    )


def test_the_same_environment_compares(folder: Path) -> None:
    """Equal fields, unreadable ones among them, compare."""
    assert compare("--require-conclusive").exit_code == 0


@pytest.mark.parametrize("field", STRICT)
def test_every_strict_field(folder: Path, field: str) -> None:
    """Changed in the run, left out of the run, of the baseline or of both: not comparable, exit 12, and the field is named."""
    candidate, baseline = folder / "candidate", folder / "results" / "baselines" / "main"
    original = {file: file.read_bytes() for file in candidate.iterdir()}
    edit(candidate, STRICT[field], replace)
    assert refused(compare(), field)
    for file, content in original.items():
        file.write_bytes(content)
    edit(candidate, STRICT[field], remove)
    assert refused(compare(), field)
    edit(baseline, STRICT[field], remove)
    is_optional = field in ("versions.jax", "thread_settings.OMP_NUM_THREADS", "torch_build.cuda")
    assert compare().exit_code == 0 if is_optional else refused(compare(), field)


@pytest.mark.parametrize("field", SOFT)
def test_every_soft_field(folder: Path, field: str) -> None:
    """Changed or left out, a soft field is never looked at."""
    for change in (replace, remove):
        edit(folder / "candidate", ("environment", "soft", field), change)
        done = compare("--require-conclusive")
        assert done.exit_code == 0, done.output
        assert "Environments" not in done.stdout


@pytest.mark.parametrize(
    ("stored", "present", "code"),
    [
        ({"unreadable": "not shown"}, {"unreadable": "not shown"}, 0),
        ({"unreadable": "not shown"}, {"unreadable": "refused"}, 12),
        ({"unreadable": "not shown"}, "performance", 12),
    ],
)
def test_unreadable_facts(
    attnbench: Command, make_run: MakeRun, cell: MakeCell, facts: dict[str, Any], stored: Any, present: Any, code: int
) -> None:
    """A fact that cannot be read equals itself, and neither another reason nor a value."""
    there = copy.deepcopy(facts)
    facts["strict"]["governor"], there["strict"]["governor"] = stored, present
    base = make_run("base", [cell()], environment=facts)
    candidate = make_run("candidate", [cell()], environment=there)
    assert attnbench("baseline", "save", base, "main").returncode == 0
    done = attnbench("compare", candidate, "--baseline", "main", "--format", "markdown")
    assert done.returncode == code, done.stderr
    if code:
        assert "| governor | unreadable (not shown) |" in done.stdout
        assert "measure both sides here: attnbench gate test.yaml --base REV --candidate REV" in done.stderr


def versions_of(facts: Mapping[str, Any], torch: str) -> dict[str, Any]:
    """What another version of torch changes in a record."""
    changed = copy.deepcopy(dict(facts))
    changed["strict"]["torch_build"]["version"] = torch
    return changed


def test_factor_under_test(attnbench: Command, make_run: MakeRun, cell: MakeCell, facts: dict[str, Any]) -> None:
    """Another torch is judged for torch's own implementations, and bars the others unless it is named as the factor."""
    cells = [cell("sdpa"), cell("chunked")]
    git = {"blas": "MKL", "cpu_capability": "AVX2", "mkldnn": "True", "cuda": "12.8", "cudnn": "91000", "hip": "None",
           "debug": "False", "git": "abcdef"}  # fmt: skip
    versions = {"python": "3.11.7", "attnbench": "0.1.0", "torch": "2.14.0", "numpy": "2.4.6", "jax": "0.10.2"}
    candidate = make_run(
        "candidate", cells, slower=0.8, environment=versions_of(facts, "2.14.0"), versions=versions, torch_facts=git
    )
    assert attnbench("baseline", "save", make_run("base", cells), "main").returncode == 0
    done = attnbench("compare", candidate, "--baseline", "main", "--format", "markdown")
    assert done.returncode == 12
    assert "1 IMPROVED, 1 NOT_COMPARABLE" in done.stdout
    assert "measured under another environment: torch_build.version, versions.torch, torch_facts.git" in done.stdout
    named = attnbench("compare", candidate, "--baseline", "main", "--factor", "torch", "--format", "markdown")
    assert named.returncode == 0, named.stderr
    assert "2 IMPROVED" in named.stdout
    assert attnbench("compare", candidate, "--baseline", "main", "--factor", "jax").returncode == 12
    misspelt = attnbench("compare", candidate, "--baseline", "main", "--factor", "troch")
    assert misspelt.returncode == 2
    assert "unknown factor 'troch'; did you mean 'torch'? recorded versions: attnbench, jax" in misspelt.stderr


def test_failures_weigh_more_than_the_environment(
    make_run: MakeRun, cell: MakeCell, facts: dict[str, Any], attnbench: Command
) -> None:
    """Of several codes 13 comes before 12: what no longer runs is a failure on any machine."""
    assert attnbench("baseline", "save", make_run("base", [cell(), cell("sdpa")]), "main").returncode == 0
    facts["strict"]["kernel"] = "Linux 9"
    candidate = make_run("candidate", [cell()], environment=facts)
    done = attnbench("compare", candidate, "--baseline", "main")
    assert done.returncode == 13
    assert "cannot be compared with baseline main: these differ: kernel" in done.stderr


def test_records_have_every_field() -> None:
    """What this machine's facts hold is what the fingerprint asks for, each a value or the reason why there is none."""
    strict = environment.describe(environment.find_device("cpu"))["strict"]
    assert tuple(strict) == environment.STRICT
    assert all(value not in (None, "") for value in strict.values())
    assert set(environment.VERSIONS) <= set(environment.versions())


def test_gpu_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver's library cannot be asked, each of its facts says so."""
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    monkeypatch.setattr(environment.gpus, "cuda", lambda: [environment.gpus.Gpu("GPU-1", "L4", None, None)])
    facts = environment.describe(Device("cuda", 0, "L4"))["strict"]["gpu"]
    assert tuple(facts) == environment.STRICT_OF_GPU
    assert facts["name"] == "L4"
    assert all("unreadable" in facts[key] for key in environment.STRICT_OF_GPU[1:])


def test_arm_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ARM CPU has no model name, and is told from another by its part."""
    monkeypatch.setattr(environment, "CPU_FILE", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n"
        "CPU part\t: 0xd40\nCPU revision\t: 1\n\nprocessor\t: 1\n"
    )
    strict = environment.describe(Device("cpu"))["strict"]
    assert strict["cpu_model"] == "ARM implementer 0x41, part 0xd40, variant 0x1"
    assert [strict[f"cpu_{key}"] for key in ("family", "number", "stepping", "flags")] == [
        "8",
        "0xd40",
        "1",
        "fp asimd bf16",
    ]
