"""`attnbench conformance` and what is recorded of it: honest and faulty implementations in real subprocesses."""

from __future__ import annotations

import datetime as dt
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness import contract, verification
from attnbench.harness.verification import Verification
from attnbench.impls import AttentionProblem

Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
FAULTY = ROOT / "tests" / "plugins" / "faulty.py"
BROKEN = ROOT / "tests" / "plugins" / "broken.py"


def record(**changed: Any) -> Verification:
    """A record of `naive`, and what is changed of it."""
    fields: dict[str, Any] = {
        "implementation": "naive", "revision": 1, "package": "torch", "package_version": "2.13.0",
        "torch_version": "2.13.0", "python_version": "3.11.9", "attnbench_version": "0.1.0",
        "date": dt.date(2026, 11, 24), "place": "cpu", "device": "A CPU", "right_with_gradients": 280,
        "right_in_values": 0, "refused": 0, "failed": 0,
    }  # fmt: skip
    return Verification.model_validate(fields | changed)


def smallest(done: subprocess.CompletedProcess[str]) -> str:
    """The smallest failing case that was printed, with its fault."""
    return done.stdout.split("smallest failing case: ")[1].strip()


def test_honest_conforms_and_is_recorded(attnbench: Command, tmp_path: Path) -> None:
    """Every case is right, gradients too; the record says so, and `verified` makes a table of it."""
    done = attnbench("conformance", "naive", "--record", "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smallest failing case" not in done.stdout
    kept = Verification.model_validate_json((tmp_path / done.stdout.splitlines()[-1]).read_bytes())
    assert kept.file_name == "naive-cpu.json"
    assert kept.right_with_gradients >= 150
    assert (kept.right_in_values, kept.refused, kept.failed, kept.not_run, kept.reasons) == (0, 0, 0, 0, {})
    assert kept.device
    assert kept.torch_version == kept.package_version
    table = attnbench("verified", "kept")
    assert table.returncode == 0, table.stderr
    assert f"| `naive` | {kept.right_with_gradients} right with gradients: {kept.device}, {kept.date}" in table.stdout
    assert "| `chunked` | not verified | not verified | not verified |" in table.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fake_coarse_softmax", r"b1-h1-s\d(/\d)?-d8-float16-\w+  forward_backward  INCORRECT: \w+ is off by"),
        ("fake_short_window", r"b1-h1-s1/2-d8-float32-full  forward_backward  INCORRECT: out is off by"),
    ],
)
def test_subtle_fault_is_shown_small(attnbench: Command, name: str, words: str) -> None:
    """A softmax in bfloat16 and a window that is off by one fail, and the smallest case says how."""
    done = attnbench("conformance", name, "--plugin", FAULTY)
    assert done.returncode == 13, done.stdout + done.stderr
    assert re.match(words, smallest(done)), smallest(done)
    assert re.search(r"│ +\d+: dtype \w+: needs float\d\d \(a fake\)", done.stdout), done.stdout


def test_crash_fails_its_case_alone(attnbench: Command) -> None:
    """A segmentation fault and an exit are told in words; cases after them are right."""
    done = attnbench("conformance", "fake_crashes", "--plugin", FAULTY)
    assert done.returncode == 13, done.stdout + done.stderr
    assert smallest(done).startswith("b1-h1-s1/64-d256-float32-full  forward_backward  CRASHED: killed by SIGSEGV")
    assert "exited with code 1 before it reported; it last said: SystemExit: 3" in done.stderr
    assert re.search(r"│ [1-9]\d+ +│ right, values and gradients", done.stdout), done.stdout


def test_hang_ends_at_its_deadline(attnbench: Command, tmp_path: Path) -> None:
    """The suite stops after some cases that hang, says so, and finds a small one; the record says what was not run."""
    done = attnbench("conformance", "fake_hangs", "--plugin", FAULTY, "--timeout", "2", "--record", tmp_path)
    assert done.returncode == 13, done.stdout + done.stderr
    assert re.match(r"b1-h2/1-\S+  forward_backward  TIMED_OUT: had not ended after 2 s", smallest(done)), smallest(
        done
    )
    kept = json.loads((tmp_path / "fake_hangs-cpu.json").read_bytes())
    assert kept["failed"] == 3
    assert kept["not_run"] > 0


def test_nothing_is_right_where_all_is_refused(attnbench: Command, tmp_path: Path) -> None:
    """An implementation that refuses every case has shown nothing: a code of its own, the reason, no record."""
    done = attnbench("conformance", "fake_refuses_all", "--plugin", FAULTY, "--record", tmp_path / "kept")
    assert done.returncode == 14, done.stdout + done.stderr
    assert "dtype float32: needs float8 (a fake)" in done.stdout
    assert "nothing is recorded: every case was refused" in done.stderr
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["conformance", "chunkd"], 2, "unknown implementation 'chunkd'; did you mean 'chunked'?"),
        (["conformance", "broken", "--plugin", str(BROKEN)], 2, "failed to import: ImportError: this plugin needs"),
        (["conformance", "naive", "--device", "tpu"], 2, "device 'tpu' was asked for; allowed: auto, cpu"),
        (["conformance", "naive", "--set", "blocks"], 2, "not of the form OPTION=VALUE"),
        (["conformance", "naive", "--set", "blocks=2"], 2, "naive has no option 'blocks'"),
        (["verified", "nowhere"], 3, "nowhere holds no records"),
    ],
)
def test_errors_say_what_to_do(attnbench: Command, arguments: list[str], code: int, words: str) -> None:
    """What was asked, what is allowed, what to do, and no traceback."""
    done = attnbench(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_is_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the suite, and its worker, with the code of an interruption."""
    command = [Path(sys.executable).parent / "attnbench", "conformance", "fake_hangs", "--plugin", FAULTY]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        assert "cases, small ones first" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said


def test_list_names_what_can_run_here(attnbench: Command) -> None:
    """`list --names` gives the names alone, for loops of a shell."""
    names = attnbench("list", "--names").stdout.splitlines()
    assert {"chunked", "naive", "sdpa"} <= set(names)


@pytest.mark.parametrize("part", contract.PARTS)
def test_simpler_problems_are_smaller(part: str) -> None:
    """Less of one part is never more work, and is another problem; what has no meaning is left out."""
    for problem in contract.cases(fast_float16=True)[::7]:
        for simpler in contract.simpler(problem, part):
            assert simpler != problem
            assert contract.work(simpler) <= contract.work(problem)


def test_the_smallest_problem_is_at_its_end() -> None:
    """Nothing is simpler than one query and one key of one head."""
    problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=1, seq_kv=1, head_dim=8)
    assert not [simpler for part in contract.PARTS for simpler in contract.simpler(problem, part)]


def test_matrix_tells_place_versions_and_counts() -> None:
    """A row an implementation, a column a kind of place; several GPUs share a cell; the order of records is no matter."""
    records = [
        record(),
        record(implementation="flash", package="flash-attn", package_version="2.8.3", place="gpu", device="NVIDIA Z"),
        record(implementation="flash", place="gpu", device="NVIDIA A", failed=2, right_in_values=3, not_run=4),
        record(implementation="flash", place="emulated", options={"operator": "one"}, refused=5),
    ]
    table = verification.matrix(records, ["naive", "unseen"])
    assert table == verification.matrix(reversed(records), ["unseen", "naive"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["implementation", "on the CPU", "emulated on the CPU", "on a GPU"]
    assert [row[0] for row in rows[2:]] == ["`flash`", "`flash[operator=one]`", "`naive`", "`unseen`"]
    assert rows[2][3].split("<br>") == [
        "280 right with gradients, 3 right in values, 2 **failed**, 4 not run: NVIDIA A, 2026-11-24, torch 2.13.0",
        "280 right with gradients: NVIDIA Z, 2026-11-24, flash-attn 2.8.3, torch 2.13.0",
    ]
    assert rows[2][1:3] == ["–", "–"]
    assert rows[3][2].startswith("280 right with gradients, 5 refused: A CPU")
    assert rows[5][1:] == ["not verified"] * 3


def test_records_have_files_of_their_own(tmp_path: Path) -> None:
    """One file for each implementation and place, replaced by a newer record; each GPU has its own."""
    for each in (
        record(),
        record(failed=1),
        record(place="emulated", options={"operator": "one"}),
        record(place="gpu", device="NVIDIA A"),
        record(place="gpu", device="NVIDIA B/C"),
    ):
        verification.write(each, tmp_path / "kept")
    files = sorted(file.name for file in (tmp_path / "kept").iterdir())
    assert files == [
        "naive-cpu.json", "naive-gpu-NVIDIA-A.json", "naive-gpu-NVIDIA-B-C.json", "naive-operator-one-emulated.json"
    ]  # fmt: skip
    assert verification.read(tmp_path / "kept")[0] == record(failed=1)


def test_damaged_record_is_named(attnbench: Command, tmp_path: Path) -> None:
    """A record that cannot be read ends the command, with its file and what to do."""
    (tmp_path / "naive-cpu.json").write_text('{"schema": 1, "implementation": "naive"')
    done = attnbench("verified", tmp_path)
    assert done.returncode == 3
    assert "naive-cpu.json is damaged" in done.stderr
    assert "make it again with --record" in done.stderr


def test_readme_shows_the_matrix(attnbench_in: Callable[[Path], Command]) -> None:
    """The README's table is what `attnbench verified` prints of the records in the repository."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, begin, rest = readme.partition("<!-- verified: begin -->")
    shown, end, _ = rest.partition("<!-- verified: end -->")
    assert begin
    assert end
    printed = attnbench_in(ROOT)("verified")
    assert printed.returncode == 0, printed.stderr
    assert shown.strip() == printed.stdout.strip()
