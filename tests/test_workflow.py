"""The workflow for pull requests, and its script with a gate that ends in each way."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from attnbench.harness.exit_codes import Exit

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".github" / "perf.sh"
WORKFLOW = ROOT / ".github" / "workflows" / "perf.yml"
#: What becomes of the job: the code that the script ends with, and with --require-conclusive.
JOB = {code: (int(code), int(code)) for code in Exit} | {Exit.NOT_COMPARABLE: (0, 12), Exit.NOTHING_MEASURED: (0, 14)}
ANNOTATION = "::error title=REGRESSED naive::16 pairs: slower by 4.9 %25"
#: What a gate leaves and prints, as the real one does; without GATE_FOLDER it ends before it has a folder.
GATE = f"""#!/usr/bin/env bash
printf '%s\\n' "$@" > asked
if [[ -n ${{GATE_FOLDER:-}} ]]; then
  mkdir -p "$GATE_FOLDER"
  echo '{{}}' | tee "$GATE_FOLDER/gate.json" "$GATE_FOLDER/verdicts.json" > "$GATE_FOLDER/launches.jsonl"
  echo '<html></html>' > "$GATE_FOLDER/report.html"
  printf '## ci: HEAD against main\\n\\n- 1 REGRESSED\\n' > "$GATE_FOLDER/summary.md"
  echo '{ANNOTATION}' > "$GATE_FOLDER/annotations.txt"
fi
if [[ -n ${{GATE_WAITS:-}} ]]; then
  trap 'echo "$GATE_FOLDER"; exit 130' INT
  touch waiting
  for _ in {{1..600}}; do sleep 0.05; done
fi
echo "page: somewhere"
if [[ -n ${{GATE_FOLDER:-}} ]]; then echo "$GATE_FOLDER"; fi
exit "${{GATE_CODE:-0}}"
"""
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    """The workflow as data; YAML 1.1 reads its `on` as true."""
    data: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return {"on" if key is True else key: value for key, value in data.items()}


@pytest.fixture(scope="module")
def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Its only job's steps."""
    (job,) = workflow["jobs"].values()
    return list(job["steps"])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A folder's gate first on PATH, and nothing of a job that this test may run in."""
    gate = tmp_path / "bin" / "attnbench"
    gate.parent.mkdir()
    gate.write_text(GATE)
    gate.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "PERF_", "GIT_"))}
    return {**kept, "PATH": f"{gate.parent}:{os.environ['PATH']}", "GATE_FOLDER": "results/runs/gate-ci-1"}


@pytest.fixture
def script(tmp_path: Path, environment: dict[str, str]) -> Script:
    """Runs the script in an empty folder with a gate that ends as asked."""

    def run(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *arguments], cwd=tmp_path, env=environment | changed, capture_output=True, text=True, check=False
        )

    return run


def test_reads_only(workflow: dict[str, Any]) -> None:
    """Pull requests from forks run with a token that reads, and no secret; an older push's gate ends."""
    text = WORKFLOW.read_text()
    assert set(workflow["on"]) == {"pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert not re.search(r"secrets\.|github\.token|GITHUB_TOKEN", text)
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60


def test_steps(steps: list[dict[str, Any]]) -> None:
    """History, an install, the script, and what is left whatever the gate says; nothing else runs, so that all runs locally."""
    uses = [step["uses"] for step in steps if "uses" in step]
    assert [each.partition("@")[0] for each in uses] == [
        "actions/checkout", "actions/setup-python", "actions/upload-artifact",
    ]  # fmt: skip
    assert steps[0]["with"] == {"fetch-depth": 0, "persist-credentials": False}
    runs = [step["run"] for step in steps if "run" in step]
    assert [re.match(r"pip install |\.github/perf\.sh ", run) is not None for run in runs] == [True, True]
    assert not any(re.search(r"[\n;&|`$]", run) for run in runs), "one plain command a step"
    assert steps[-1]["if"] == "always()"
    assert steps[-1]["with"]["path"] == "build/perf", "where the script puts it"


def test_no_event_text_in_a_command(workflow: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """What a contributor may name reaches the shell by its environment alone."""
    assert not any("${{" in step["run"] for step in steps if "run" in step)
    assert "github.event" not in WORKFLOW.read_text()
    assert set(re.findall(r"\$\{\{(.*?)\}\}", WORKFLOW.read_text())) == {" github.ref ", " github.base_ref "}


def test_the_gate_ends_before_the_job(workflow: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """So that a slow runner ends with verdicts and not with a job that was killed."""
    (job,) = workflow["jobs"].values()
    (minutes,) = [
        re.findall(r"--max-minutes (\d+)$", step["run"]) for step in steps if "perf.sh" in step.get("run", "")
    ]
    assert int(minutes[0]) <= job["timeout-minutes"] - 10


def test_a_person_can_run_it() -> None:
    """It is executable, strict, and a job's every code is told in its head."""
    text = SCRIPT.read_text()
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
    assert "\nset -euo pipefail\n" in text
    told = re.findall(r"^#   (\d+) ", text, re.MULTILINE)
    assert sorted(map(int, told)) == sorted(Exit)


@pytest.mark.parametrize("code", list(Exit), ids=lambda code: code.name)
def test_codes(script: Script, tmp_path: Path, code: Exit) -> None:
    """The job's end, in words too; everything is left in every case."""
    for option, ends in zip(([], ["--require-conclusive"]), JOB[code], strict=True):
        summary = tmp_path / "step-summary"
        summary.write_text("an earlier step\n")
        done = script(
            "ci", "main", "HEAD", "", "--", *option, GATE_CODE=str(int(code)), GITHUB_STEP_SUMMARY=str(summary)
        )  # fmt: skip
        assert done.returncode == ends, done.stderr
        lines = done.stdout.splitlines()
        assert ANNOTATION in lines, "an annotation must begin its line"
        level = "::error" if ends else "::warning" if code else "Nothing is slower"
        assert lines[-1].startswith(level)
        comment = (tmp_path / "build/perf/comment.md").read_text()
        assert comment.splitlines()[:2] == ["<!-- attnbench gate: ci -->", "## ci: HEAD against main"]
        assert f"(code {int(code)})" in comment
        told = summary.read_text()
        assert told.startswith("an earlier step\n## ci: HEAD against main\n")
        assert f"(code {int(code)})" in told
        for name in ("verdicts.json", "summary.md", "annotations.txt", "report.html", "gate.json", "launches.jsonl"):
            kept = tmp_path / "build/perf/gate" / name
            assert kept.read_bytes() == (tmp_path / "results/runs/gate-ci-1" / name).read_bytes()


@pytest.mark.parametrize("code", [Exit.INTERNAL, Exit.USAGE, Exit.FILES])
def test_no_folder(script: Script, tmp_path: Path, code: Exit) -> None:
    """A gate that ends before it has a folder leaves a comment that says so, and nothing of an earlier gate."""
    script("ci", "main")
    done = script("ci", "main", GATE_FOLDER="", GATE_CODE=str(int(code)), GITHUB_STEP_SUMMARY=str(tmp_path / "told"))
    assert done.returncode == code
    assert ANNOTATION not in done.stdout
    assert "no verdict" in (tmp_path / "build/perf/comment.md").read_text()
    assert f"(code {int(code)})" in (tmp_path / "told").read_text()
    assert not (tmp_path / "build/perf/gate").exists()


def test_what_is_asked(script: Script, tmp_path: Path) -> None:
    """Arguments before variables before defaults; options reach the gate as they are; OUT may have a space."""
    script("", "v1", "", "what is left", "--", "--factor", "my attention", PERF_CONFIG="mine.yaml", PERF_BASE="v0")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["gate", "mine.yaml", "--base", "v1", "--candidate", "HEAD", "--factor", "my attention"]
    assert (tmp_path / "what is left/gate/report.html").is_file()
    assert (tmp_path / "what is left/comment.md").read_text().startswith("<!-- attnbench gate: mine.yaml -->\n")
    for arguments in (["a", "b", "c", "d", "e"], ["--help"]):
        done = script(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: ")


def test_the_base_is_the_merge_base(script: Script, tmp_path: Path) -> None:
    """Of the candidate and the branch; where there is none, what to do is said, and nothing is measured."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("commit", "--quiet", "--allow-empty", "--message=one")
    fork = git("rev-parse", "HEAD")
    git("switch", "--quiet", "--create", "topic")
    git("commit", "--quiet", "--allow-empty", "--message=two")
    git("switch", "--quiet", "main")
    git("commit", "--quiet", "--allow-empty", "--message=three")
    git("switch", "--quiet", "topic")
    for candidate in ("", "topic", "."):
        assert script("ci", "", candidate, PERF_BRANCH="main").returncode == 0
        assert (tmp_path / "asked").read_text().splitlines()[3] == fork
    (tmp_path / "asked").unlink()
    done = script()
    assert done.returncode == 2
    assert "no merge base with origin/main" in done.stderr
    assert "fetch-depth: 0" in done.stderr
    assert not (tmp_path / "asked").exists()


def test_a_long_summary(script: Script, tmp_path: Path) -> None:
    """A comment may have 65,536 characters; the end and the link stay, and the artefact has all of it."""
    gate = tmp_path / "bin/attnbench"
    gate.write_text(GATE.replace("- 1 REGRESSED\\n' >", "%s\\n' $(seq 20000) >"))
    run = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "me/mine", "GITHUB_RUN_ID": "7"}
    done = script("ci", "main", GATE_CODE="10", **run)
    assert done.returncode == 10
    comment = (tmp_path / "build/perf/comment.md").read_text()
    assert len(comment) < 65_536
    assert "cut here" in comment
    assert comment.rstrip().endswith("(https://example.org/me/mine/actions/runs/7)")
    assert "(code 10)" in comment
    assert len((tmp_path / "build/perf/gate/summary.md").read_text()) > 65_536


def test_interrupted(tmp_path: Path, environment: dict[str, str]) -> None:
    """Ctrl-C is the gate's, which ends cleanly; what it has is kept, and the code is its own."""
    with subprocess.Popen(
        [SCRIPT, "ci", "main"], cwd=tmp_path, env=environment | {"GATE_WAITS": "yes"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 30
        while not (tmp_path / "waiting").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (tmp_path / "build/perf/gate/report.html").is_file()
    assert printed.splitlines()[-1].startswith("::error title=attnbench gate::Interrupted")
