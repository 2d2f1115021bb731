"""Planted faults: each is a mistake that a kernel's author makes, and each is caught by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attnbench.harness import contract, environment
from attnbench.harness.measure.conformance import run_case, truth_of
from attnbench.impls import AttentionProblem, Implementation, Tensors

DEVICE = environment.find_device("cpu")
CASES = {str(problem): problem for problem in contract.cases(fast_float16=False)}


class Faulty(Implementation):
    """Eager attention in float32 with places to go wrong; not registered."""

    name = "faulty"
    fault = "none"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Every step reads the fault's name where that fault would sit."""
        import torch

        offset = problem.causal_offset + {"mask off by one": 1, "top-left alignment": -problem.causal_offset}.get(
            self.fault, 0
        )
        scale = problem.softmax_scale * {"missing scale": 1 / problem.softmax_scale, "scale wrong by 1 %": 1.01}.get(
            self.fault, 1
        )
        group = problem.group_size

        def repeat(tensor: Any) -> Any:
            if self.fault == "wrong head grouping":
                return tensor.repeat(1, group, 1, 1)
            return tensor.repeat_interleave(group, dim=1)

        def call() -> Any:
            key, value = repeat(tensors.key).float(), repeat(tensors.value).float()
            query = tensors.query.detach() if self.fault == "detached gradient" else tensors.query
            scores = query.float() @ key.transpose(-2, -1) * scale
            if problem.is_causal:
                seen = torch.ones(problem.seq_q, problem.seq_kv, dtype=torch.bool).tril(offset)
                scores = scores.masked_fill(~seen, float("-inf"))
            weights = torch.softmax(scores, dim=-1)
            if self.fault == "float16 accumulation":
                return _accumulated_in_float16(weights, value).to(tensors.query.dtype)
            return (weights @ value).to(tensors.query.dtype)

        return call


def _accumulated_in_float16(weights: Any, value: Any) -> Any:
    total = (weights[..., :1] * value[..., :1, :]).half()
    for key in range(1, weights.shape[-1]):
        total = (total.float() + weights[..., key : key + 1] * value[..., key : key + 1, :]).half()
    return total


def faults_of(fault: str, problem: AttentionProblem) -> tuple[str, ...]:
    """What the check says of the planted fault in a case."""
    implementation = Faulty()
    implementation.fault = fault
    return run_case(implementation, problem, DEVICE, truth_of(problem)).faults


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        ("mask off by one", "b3-h1-s257-d8-float32-causal"),
        ("mask off by one", "b2-h6/3-s129/257-d16-bfloat16-causal"),
        ("missing scale", "b3-h8/2-s1/257-d8-float32-full"),
        ("missing scale", "b3-h1-s257-d8-bfloat16-causal"),
        ("scale wrong by 1 %", "b3-h8/2-s1/257-d8-float32-full"),
        ("scale wrong by 1 %", "b3-h1-s257-d8-bfloat16-causal"),
        ("scale wrong by 1 %", "b3-h1-s257-d8-float16-full"),
        ("top-left alignment", "b3-h8/2-s1/257-d8-float32-causal"),
        ("top-left alignment", "b3-h1-s1/257-d256-bfloat16-causal"),
        ("wrong head grouping", "b3-h8/2-s1-d256-float32-full"),
        ("wrong head grouping", "b3-h8/2-s1/257-d8-bfloat16-full"),
        ("float16 accumulation", "b3-h1-s257-d8-float16-causal"),
        ("float16 accumulation", "b3-h1-s1/257-d256-float32-full"),
        ("detached gradient", "b3-h1-s257/1-d8-float32-full"),
        ("detached gradient", "b3-h1-s1/257-d256-bfloat16-causal"),
    ],
)
def test_catches(fault: str, case: str) -> None:
    """The planted fault is found in this case, which an implementation without it passes."""
    assert faults_of(fault, CASES[case])
    assert not faults_of("none", CASES[case])
