"""The contract suite for the wrappers of GPU packages, against the real packages in Triton's interpreter."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from attnbench.harness import contract, environment
from attnbench.harness.measure.conformance import run_case, truth_of
from attnbench.harness.measure.oracle import Truth
from attnbench.impls import AttentionProblem, Implementation, get, load_plugin

load_plugin(str(Path(__file__).parent / "adapters.py"))
DEVICE = environment.find_device("cpu")
#: The interpreter is as slow as a CPU without float16 products: the largest cases are left to others.
FLOAT16 = [problem for problem in contract.cases(fast_float16=False) if problem.dtype == "float16"]
FEW = [
    problem
    for problem in FLOAT16
    if problem.seq_kv <= 256 and problem.batch * problem.heads_q * problem.pairs * problem.head_dim < 2**20
]


@functools.cache
def truth(problem: AttentionProblem) -> Truth:
    """A case's truth, computed once."""
    return truth_of(problem)


def refusals_or_right(implementation: Implementation, problem: AttentionProblem) -> tuple[str, ...]:
    """Its refusals; where there are none it is right."""
    result = run_case(implementation, problem, DEVICE, truth(problem))
    assert not result.faults
    return result.refusals


@pytest.mark.parametrize("problem", FLOAT16, ids=str)
def test_flash_attn2_is_right(problem: AttentionProblem) -> None:
    """Every float16 case, values and gradients; nothing is refused."""
    assert not refusals_or_right(get("flash_attn2_emulated"), problem)


@pytest.mark.parametrize("problem", FEW, ids=str)
@pytest.mark.parametrize("function", ["flash_attn_varlen_func", "flash_attn_with_kvcache"])
def test_other_functions_are_right(function: str, problem: AttentionProblem) -> None:
    """flash-attn's other entry points give the same answers."""
    assert not refusals_or_right(get("flash_attn2_emulated", {"function": function}), problem)


@pytest.mark.parametrize("problem", FLOAT16, ids=str)
def test_xformers_is_right(problem: AttentionProblem) -> None:
    """Every float16 case that `triton_splitk` takes; what it does not is refused by a limit with its source."""
    refusals = refusals_or_right(get("xformers_emulated"), problem)
    taken = problem.head_dim in {16, 32, 64, 128, 256} and (not problem.is_causal or problem.seq_q <= 16)
    assert taken != bool(refusals)
    assert all("triton_splitk.py" in reason for reason in refusals)


def test_the_cases_are_there() -> None:
    """Grouped, multi-query, rectangular, causal, scaled: each is in the cases above."""
    assert len(FLOAT16) >= 60
    assert len(FEW) > 20
    for problems in (FLOAT16, FEW):
        assert {problem.group_size for problem in problems} >= {1, 2, 4}
        assert any(problem.is_causal and problem.causal_offset for problem in problems)
        assert any(problem.scale for problem in problems)
