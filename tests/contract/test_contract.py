"""The contract suite: every implementation that can run here against every case, values and gradients."""

from __future__ import annotations

import functools

import pytest

from attnbench.harness import contract, environment
from attnbench.harness.measure.conformance import run_case, truth_of
from attnbench.harness.measure.oracle import Truth
from attnbench.impls import AttentionProblem, get, names

DEVICE = environment.find_device("cpu")
KNOWN = [name for name in names() if not name.startswith("fake_")]
AVAILABLE = [name for name in KNOWN if not get(name).unavailable(DEVICE)]
#: Packages with thread pools of their own are tried in processes of their own: tests/packages.
HERE = [name for name in AVAILABLE if get(name).package in {"torch", "attnbench"}]
COMPILED = [name for name in HERE if get(name).compiled]


@functools.cache
def cases() -> tuple[AttentionProblem, ...]:
    """The suite for this processor."""
    flags = environment.describe(DEVICE)["strict"]["cpu_flags"]
    return contract.cases(fast_float16="avx512_fp16" in str(flags))


@functools.cache
def truth(problem: AttentionProblem) -> Truth:
    """A case's truth, computed once."""
    return truth_of(problem)


def test_covers_all_pairs_and_corners() -> None:
    """Every pair of axis values is in some case, and there are at most 400."""
    covered = set().union(*(contract.pairs_of(problem) for problem in cases()))
    assert contract.all_pairs() <= covered
    assert 150 <= len(cases()) <= 400


@pytest.mark.parametrize("problem", cases(), ids=str)
@pytest.mark.parametrize("name", [name for name in HERE if name not in COMPILED])
def test_is_right(name: str, problem: AttentionProblem) -> None:
    """An honest implementation is right in every case that it does not refuse."""
    result = run_case(get(name), problem, DEVICE, truth(problem))
    assert not result.faults
    assert not result.refusals


@pytest.mark.filterwarnings("default")  # torch warns of its own deprecations while it compiles
@pytest.mark.parametrize("problem", contract.few_cases(12), ids=str)
@pytest.mark.parametrize("name", [name for name in HERE if name in COMPILED])
def test_compiled_is_right(name: str, problem: AttentionProblem) -> None:
    """An implementation that compiles each shape is right in a selection of cases."""
    result = run_case(get(name), problem, DEVICE, truth(problem))
    assert not result.faults
    assert not result.refusals


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in AVAILABLE])
def test_refuses_with_reasons(name: str) -> None:
    """What cannot run here says why, in a sentence that names what is needed."""
    reasons = get(name).supports(cases()[0], "forward", DEVICE).reasons
    assert reasons
    assert all(len(reason) > 10 for reason in reasons)
