"""onnxruntime, OpenVINO and JAX against the contract, in processes of their own, and what their launches record."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.harness.records import Launch, Outcome
from attnbench.harness.store import Run

Command = Callable[..., subprocess.CompletedProcess[str]]
PACKAGES = ("jax", "onnxruntime", "openvino")

CONFIG = """
name: packages
device: cpu
implementations:
  - sdpa_flash
  - onnxruntime
  - {name: onnxruntime, operator: Attention}
  - {name: onnxruntime, operator: MultiHeadAttention}
  - {name: onnxruntime, operator: GroupQueryAttention}
  - openvino
  - jax
sweeps:
  - {heads: 4/2, seq_len: [64, 64/128], head_dim: 32, dtype: [float32, bfloat16, float16], mask: causal}
  - {heads: 4, seq_len: 128, head_dim: 64, dtype: [float32, bfloat16, float16], mask: [full, causal]}
  - {heads: 4, seq_len: 64, head_dim: 64, dtype: float32, mask: full, pass: forward_backward}
protocol: {launches: 1, threads: 2, min_time_s: 0.005, max_time_s: 0.02}
"""


@pytest.mark.parametrize("name", PACKAGES)
def test_conforms(attnbench: Command, name: str) -> None:
    """Every case of the contract suite is right, or refused with a reason; each in a process of its own."""
    done = attnbench("conformance", name, timeout=580)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def launches(
    attnbench_in: Callable[[Path], Command], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Launch]:
    """A sweep's launches, by the arm and the rest of the cell's name."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "c.yaml").write_text(CONFIG)
    done = attnbench_in(folder)("run", "c.yaml", "--out", "runs", timeout=400)
    assert done.returncode == 0, done.stderr
    run = Run.open(folder / done.stdout.splitlines()[-1])
    return {tuple(each.name.split("/", 1)): each for each in run.launches()}  # type: ignore[misc]


def of_package(launches: dict[tuple[str, str], Launch], package: str, words: str) -> list[Launch]:
    """The launches of a package whose cell's name has these words."""
    return [each for (arm, cell), each in launches.items() if arm.startswith(package) and words in cell]


def test_names_what_ran(launches: dict[tuple[str, str], Launch]) -> None:
    """A timed launch names version, operator or precision, and threads."""
    said = {"onnxruntime": "Attention", "openvino": "f32", "jax": "xla"}
    for package, word in said.items():
        timed = [each for each in of_package(launches, package, "float32") if each.outcome is Outcome.OK]
        assert timed
        assert all(each.samples and word in each.backend and "2 threads" in each.backend for each in timed)


def test_a_named_operator_is_the_one_that_ran(launches: dict[tuple[str, str], Launch]) -> None:
    """`operator` is kept to, where it takes the problem; where not, that is a reason."""
    for operator in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
        own = of_package(launches, f"onnxruntime[operator={operator}]", "/forward")
        right = [each for each in own if each.outcome is Outcome.OK]
        assert right
        assert all(f" {operator}," in each.backend for each in right)
        assert all(each.outcome is Outcome.UNSUPPORTED and each.detail for each in own if each not in right)


@pytest.mark.parametrize("package", PACKAGES)
def test_backward_is_refused(launches: dict[tuple[str, str], Launch], package: str) -> None:
    """They are forward only, and that is the reason for any other pass."""
    own = of_package(launches, package, "forward_backward")
    assert own
    for launch in own:
        assert launch.outcome is Outcome.UNSUPPORTED
        assert "pass forward_backward: needs forward" in launch.detail


def test_another_precision_is_refused(launches: dict[tuple[str, str], Launch]) -> None:
    """OpenVINO asked for float16 runs it or is refused; it does not run bfloat16 in its place. JAX may refuse too."""
    for package, own in (("openvino", " f16"), ("jax", "xla")):
        asked = of_package(launches, package, "b1-h4-s128-d64-float16")
        assert len(asked) == 2
        for launch in asked:
            if launch.outcome is Outcome.OK:
                assert own in launch.backend
            else:
                assert launch.outcome is Outcome.UNSUPPORTED, launch.detail


@pytest.mark.parametrize("name", PACKAGES)
def test_prepare_loads_one_alone(name: str) -> None:
    """Their thread pools spin: preparing one imports none of the others, nor what reports its use."""
    program = f"""
import sys
import torch
from attnbench.impls import AttentionProblem, Tensors, get
problem = AttentionProblem(heads_q=4, heads_kv=4, seq_q=4, seq_kv=4, head_dim=8)
implementation = get({name!r})
tensors = Tensors(*(implementation.from_torch(torch.ones(1, 4, 4, 8)) for _ in range(3)))
implementation.prepare(problem, tensors)()
print(sorted(set({(*PACKAGES, "openvino_telemetry.main")!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == repr([name])
