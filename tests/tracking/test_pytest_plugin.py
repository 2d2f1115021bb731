"""The pytest plugin in real pytest runs, each a process of its own in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Pytest = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """
name: small
implementations: [naive, sdpa_flash, sdpa_cudnn]
sweeps:
  - {batch: 1, heads: 4/2, seq_len: 32, head_dim: 16, dtype: float32, mask: causal, pass: [forward, forward_backward, backward]}
protocol: {threads: 1}
"""
#: Short, so that what is tested is what happens, not how fast it is.
SHORT = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=3")
GROUP = "b1-h4/2-s32-d16-float32-causal/forward/threads=1"


def run_pytest(folder: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """pytest in a folder, as a user with warnings as errors and strict markers runs it."""
    (folder / "pytest.ini").touch()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--strict-markers",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        *map(str, args),
    ]
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def pytest_in(tmp_path: Path) -> Pytest:
    """Runs pytest in an empty folder but for `c.yaml`; returns the finished process."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    return lambda *args: run_pytest(tmp_path, *args)


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]]:
    """A folder in which a sweep was timed and saved, what pytest printed, and its JSON."""
    folder = tmp_path_factory.mktemp("timed")
    (folder / "c.yaml").write_text(CONFIG)
    done = run_pytest(
        folder, "c.yaml", "--benchmark-only", "--benchmark-json=o.json", "--benchmark-save=base", "-rs", *SHORT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done, json.loads((folder / "o.json").read_text())


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The counts of pytest's last line: passed, failed, skipped, deselected, errors."""
    last = done.stdout.strip().splitlines()[-1]
    return {
        word.rstrip("s"): int(count)
        for count, word in re.findall(r"(\d+) (passed|failed|skipped|deselected|errors?)", last)
    }


def test_every_cell_is_timed(timed: tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]]) -> None:
    """Each cell is a test under its own name; those of a problem, a pass and conditions are one group; refused ones say why."""
    _, done, document = timed
    assert outcomes(done) == {"passed": 6, "skipped": 3}
    assert "SKIPPED [3] c.yaml: device cpu: needs cuda" in done.stdout
    assert "attnbench: c.yaml: all is timed in one process, so that no verdict rests on it" in done.stdout
    names = {each["fullname"] for each in document["benchmarks"]}
    assert f"c.yaml::naive/{GROUP}" in names
    by_group = {each["group"]: set() for each in document["benchmarks"]}
    for each in document["benchmarks"]:
        by_group[each["group"]].add(each["params"]["implementation"])
    assert by_group == {
        GROUP.replace("/forward/", f"/{passes}/"): {"naive", "sdpa_flash"}
        for passes in ("forward", "forward_backward", "backward")
    }


def test_what_stands_beside_the_times(timed: tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]]) -> None:
    """Parameters, throughput of the median, the cell's id, the machine's digest; no memory, and no verdict, with the reasons."""
    _, _, document = timed
    (naive,) = (each for each in document["benchmarks"] if each["name"] == f"naive/{GROUP}")
    assert naive["params"] == {
        "implementation": "naive", "batch": 1, "heads_q": 4, "heads_kv": 2, "seq_q": 32, "seq_kv": 32, "head_dim": 16,
        "dtype": "float32", "mask": "causal", "pass": "forward", "conditions": "threads=1",
    }  # fmt: skip
    extra = naive["extra_info"]
    assert extra["flops_per_s"] == pytest.approx(extra["flops"] / naive["stats"]["median"])
    assert re.fullmatch("[0-9a-f]{12}", extra["cell"])
    assert len({each["extra_info"]["fingerprint"] for each in document["benchmarks"]}) == 1
    assert extra["checked_share"] == 1.0
    assert "no verdict rests on it" in extra["statement"]
    assert "overhead_bytes" not in extra
    assert "attnbench run weighs" in extra["overhead_not_measured_because"]
    assert naive["options"]["disable_gc"] is True
    backends = {each["extra_info"]["backend"] for each in document["benchmarks"] if "sdpa_flash" in each["name"]}
    assert backends == {"flash"}


def test_the_cell_is_that_of_a_run(
    timed: tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]], attnbench_in: Callable[[Path], Pytest]
) -> None:
    """A cell has the id that `attnbench run` gives it, and the machine the digest that an export of a run gives it."""
    folder, _, document = timed
    ran = attnbench_in(folder)("run", "c.yaml", "--set", "protocol.launches=1", "--only", "naive")
    exported = attnbench_in(folder)("export", ran.stdout.splitlines()[-1], "--format", "pytest-benchmark")
    stored = {each["name"]: each["extra_info"] for each in json.loads(exported.stdout)["benchmarks"]}
    assert len(stored) == 3
    for each in document["benchmarks"]:
        for key in ("cell", "fingerprint") if each["name"] in stored else ():
            assert each["extra_info"][key] == stored[each["name"]][key]


def test_compares_with_what_was_saved(timed: tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]]) -> None:
    """A cell that is named as pytest prints it is compared with its saved time, and fails where that was a thousandth."""
    folder, _, _ = timed
    cell = f"c.yaml::naive/{GROUP}"
    again = run_pytest(folder, cell, "--benchmark-only", "--benchmark-compare=0001", *SHORT)
    assert again.returncode == 0, again.stdout
    assert outcomes(again) == {"passed": 1}
    assert f"naive/{GROUP} (0001_base)" in again.stdout
    (saved,) = folder.glob(".benchmarks/*/0001_base.json")
    base = json.loads(saved.read_text())
    for each in base["benchmarks"]:
        each["stats"]["median"] /= 1000
    saved.with_name("0002_fast.json").write_text(json.dumps(base))
    failed = run_pytest(folder, cell, "--benchmark-compare=0002", "--benchmark-compare-fail=median:50%", *SHORT)
    assert failed.returncode != 0
    assert "Performance has regressed" in failed.stdout + failed.stderr


@pytest.mark.parametrize(
    ("args", "counts"),
    [
        (["-m", "not attnbench"], {"deselected": 9}),
        (["-m", "benchmark", "-k", "sdpa_cudnn"], {"skipped": 3, "deselected": 6}),
        (["--benchmark-skip"], {"skipped": 9}),
        (["--benchmark-disable", "-k", "naive and backward"], {"passed": 2, "deselected": 7}),
        (["-n", "2", "-W", "default", "-k", "not backward"], {"passed": 2, "skipped": 1}),
    ],
    ids=" ".join,
)
def test_options_of_pytest(pytest_in: Pytest, args: list[str], counts: dict[str, int]) -> None:
    """Selection, markers, and pytest-benchmark turned off by option or by xdist: then each cell is checked and called once."""
    done = pytest_in("c.yaml", *args, *SHORT)
    assert outcomes(done) == counts, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_collecting_needs_no_torch(pytest_in: Pytest, tmp_path: Path) -> None:
    """`--collect-only` lists the cells, as a dry run, and imports neither torch nor pandas."""
    (tmp_path / "conftest.py").write_text(
        "import sys\ndef pytest_unconfigure():\n    print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])\n"
    )
    done = pytest_in("c.yaml", "--collect-only", "-q")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"c.yaml::naive/{GROUP}"
    assert done.stdout.splitlines()[-1] == "[]"


FAKES_CONFIG = """
name: fakes
implementations: [fake_wrong, fake_cached, fake_instant, fake_missing_import, fake_out_of_memory, naive]
sweeps:
  - {heads: 2, seq_len: 32, head_dim: 16, dtype: float32, mask: full, pass: forward}
  - {heads: 2, seq_len: 32, head_dim: 16, dtype: float32, mask: full, pass: forward_backward,
     implementations: [fake_wrong_gradient, naive]}
protocol: {threads: 1}
"""


def test_what_is_wrong_has_no_time(pytest_in: Pytest, tmp_path: Path, fakes: Path) -> None:
    """A wrong cell fails with the check's fault, one that cannot run is skipped; neither is in the file or in a table."""
    (tmp_path / "f.yaml").write_text(FAKES_CONFIG)
    done = pytest_in("f.yaml", "--attnbench-plugin", fakes, "--benchmark-json=o.json", "-rs", *SHORT)
    assert outcomes(done) == {"failed": 5, "skipped": 1, "passed": 2}, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    faults = dict(re.findall(r"^_+ (fake_\w+)/\S+ _+\n(.*)$", done.stdout, flags=re.MULTILINE))
    assert set(faults) == {"fake_wrong", "fake_cached", "fake_instant", "fake_missing_import", "fake_wrong_gradient"}
    assert faults["fake_wrong"].startswith("out is off by")
    assert faults["fake_wrong_gradient"].startswith("dq is off by")
    assert faults["fake_cached"].startswith("after its inputs were changed in place: out is off by")
    assert faults["fake_instant"].startswith("after the timing, after its inputs were changed in place: out is off by")
    assert faults["fake_missing_import"].startswith(
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    )
    assert "OUT_OF_MEMORY" in done.stdout.partition("short test summary info")[2]
    document = json.loads((tmp_path / "o.json").read_text())
    assert [each["params"]["implementation"] for each in document["benchmarks"]] == ["naive", "naive"]
    assert "\nfake_" not in done.stdout.partition("Name (time in")[2].partition("short test summary info")[0]


def test_stops_at_the_first(pytest_in: Pytest, tmp_path: Path, fakes: Path) -> None:
    """`-x` ends with the first wrong cell; with nothing timed, nothing is saved and nothing breaks."""
    (tmp_path / "f.yaml").write_text(
        FAKES_CONFIG.replace("IMPLEMENTATIONS", "fake_wrong, naive").replace("PASS", "forward")
    )
    done = pytest_in("f.yaml", "--attnbench-plugin", fakes, "-x", *SHORT)
    assert outcomes(done) == {"failed": 1}, done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("naive", "niave"), "c.yaml:3: implementations.0: unknown implementation 'niave'; did you mean 'naive'?"),
        (("head_dim: 16", "head_dims: 16"), "did you mean 'head_dim'?"),
        (("{threads: 1}", "{threads: 1"), "not valid YAML"),
        (("name: small", "name: small\ndevice: cuda:9"), "cuda:9"),
        (("seq_len: 32", "seq_len: 64/32"), "causal with more queries (64) than keys (32)"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    pytest_in: Pytest, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    """A configuration that cannot be used is a collection error in its own words, and pytest ends with 2."""
    (tmp_path / "c.yaml").write_text(CONFIG.replace(*change))
    done = pytest_in("c.yaml", "--benchmark-only")
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_plugin_that_fails_is_told(pytest_in: Pytest) -> None:
    """`--attnbench-plugin` with a module that is not there is a collection error that names it."""
    done = pytest_in("c.yaml", "--attnbench-plugin", "nowhere_at_all")
    assert done.returncode == 2
    assert "--attnbench-plugin nowhere_at_all failed to import: ModuleNotFoundError" in done.stdout


def test_folders_are_left_alone(pytest_in: Pytest, tmp_path: Path) -> None:
    """No YAML of a folder is collected, not even beside one that is named."""
    for name in ("other.yaml", "deep/more.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(CONFIG)
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
    assert outcomes(pytest_in()) == {"passed": 1}
    assert outcomes(pytest_in(".", "deep")) == {"passed": 1}
    both = pytest_in(".", "c.yaml", "--collect-only", "-q").stdout.splitlines()
    assert {line.partition("::")[0] for line in both if "::" in line} == {"c.yaml", "test_own.py"}


FOREIGN = """
import pytest
class File(pytest.File):
    def collect(self):
        yield Item.from_parent(self, name="foreign")
class Item(pytest.Item):
    def runtest(self):
        pass
def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".yaml":
        return File.from_parent(parent, path=file_path)
"""


def test_yaml_of_others(pytest_in: Pytest, tmp_path: Path) -> None:
    """A YAML file without sweeps is another plugin's; where there is none, pytest's refusal is explained."""
    for name, content in {
        "list.yaml": "[sweeps: 1]",
        "deep.yaml": "a: {sweeps: [1]}\nb: [sweeps, {sweeps: 2}]",
    }.items():
        (tmp_path / name).write_text(content)
        done = pytest_in(name)
        assert done.returncode == 4
        assert f"attnbench: {name} has no key 'sweeps' at its top" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
    (tmp_path / "conftest.py").write_text(FOREIGN)
    assert outcomes(pytest_in("list.yaml", "deep.yaml")) == {"passed": 2}


def test_without_pytest_benchmark(pytest_in: Pytest, tmp_path: Path) -> None:
    """Other tests run as ever; a configuration that is named says what it needs."""
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
    assert outcomes(pytest_in("-p", "no:benchmark")) == {"passed": 1}
    done = pytest_in("-p", "no:benchmark", "c.yaml")
    assert done.returncode == 2
    assert "c.yaml is timed by pytest-benchmark" in done.stdout
    assert "pip install 'attnbench[benchmark]'" in done.stdout


def test_what_one_process_cannot_do(pytest_in: Pytest, tmp_path: Path) -> None:
    """A second allocator, a cold cache and memory alone are skipped, each with its reason and where it can be had."""
    (tmp_path / "c.yaml").write_text(
        CONFIG.replace(
            "pass: [forward, forward_backward, backward]", "allocator: [resident, steady], cache: [warm, cold]"
        )
        .replace("head_dim: 16", "head_dim: 16, pass: forward")
        .replace(", sdpa_flash, sdpa_cudnn", "")
    )
    done = pytest_in("c.yaml", "-rs", *SHORT)
    assert outcomes(done) == {"passed": 1, "skipped": 3}, done.stdout
    assert (
        "allocator steady: this process began with resident, which cannot be undone; run this cell alone" in done.stdout
    )
    assert "cache cold: pytest-benchmark's clock clears no cache; attnbench run measures it" in done.stdout
    (tmp_path / "c.yaml").write_text(CONFIG.replace("{threads: 1}", "{threads: 1, measure: [memory]}"))
    done = pytest_in("c.yaml", "-rs", "-k", "naive")
    assert outcomes(done) == {"skipped": 3, "deselected": 6}
    assert "protocol.measure asks for no time; attnbench run measures it" in done.stdout


def test_leaves_the_process_as_it_was(pytest_in: Pytest, tmp_path: Path) -> None:
    """Tests that come after a cell find torch's threads and precision as they were."""
    (tmp_path / "test_state.py").write_text(
        "import os, torch\nBEFORE = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()\n"
        "def test_state():\n"
        "    assert (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()) == BEFORE\n"
        "    assert 'TORCHINDUCTOR_COMPILE_THREADS' not in os.environ\n"
    )
    (tmp_path / "c.yaml").write_text(CONFIG.replace("threads: 1", "threads: 3"))
    done = pytest_in("c.yaml", "test_state.py", "-k", "(naive and not backward) or state", *SHORT)
    assert outcomes(done) == {"passed": 2, "deselected": 8}, done.stdout


def test_importing_the_plugin_is_cheap(tmp_path: Path) -> None:
    """In a run that names no configuration, attnbench imports nothing but the plugin's own module, YAML files or not."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "test_own.py").write_text(
        "import sys\ndef test_own():\n    assert sorted(name for name in sys.modules if name.startswith('attnbench')) == "
        "['attnbench', 'attnbench.harness', 'attnbench.harness.pytest_plugin']\n"
        "    assert not {'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path, ".", "-p", "no:hypothesispytest")
    assert outcomes(done) == {"passed": 1}, done.stdout


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_cuda(pytest_in: Pytest, tmp_path: Path) -> None:
    """The clock waits for the device, memory is weighed, and what the clock cannot do is skipped with its reason."""
    axes = "cache: [warm, cold], pass: [forward, forward_backward, backward]"
    (tmp_path / "c.yaml").write_text(
        CONFIG.replace("name: small", "name: small\ndevice: cuda")
        .replace("pass: [forward, forward_backward, backward]", axes)
        .replace(", sdpa_flash, sdpa_cudnn", ", sdpa")
    )
    done = pytest_in("c.yaml", "--benchmark-json=o.json", "-rs", *SHORT)
    assert outcomes(done) == {"passed": 6, "skipped": 6}, done.stdout
    assert "cache cold: pytest-benchmark's clock clears no cache" in done.stdout
    document = json.loads((tmp_path / "o.json").read_text())
    assert all(each["extra_info"]["overhead_bytes"] >= 0 for each in document["benchmarks"])
