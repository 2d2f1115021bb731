"""One case of the contract suite for one implementation, in this process."""

from __future__ import annotations

from dataclasses import dataclass

from ...impls import AttentionProblem, Device, Implementation, Pass, RefusedError
from .check import check, check_follows
from .inputs import draw, problem_seed, turned
from .oracle import Selection, Truth, find_truth
from .subject import Subject


@dataclass(frozen=True)
class CaseResult:
    """How a case ended: right where both are empty."""

    passes: Pass
    refusals: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def truth_of(problem: AttentionProblem, seed: int = 0) -> Truth:
    """The whole truth of a case, gradients included; the same for every implementation."""
    inputs = draw(problem, problem_seed(problem, seed))
    selection = Selection.within(problem, backward=True, seed=seed)
    return find_truth(problem, inputs, selection, backward=True)


def run_case(
    implementation: Implementation,
    problem: AttentionProblem,
    device: Device,
    truth: Truth | None = None,
    seed: int = 0,
) -> CaseResult:
    """Values and gradients where the implementation has them, values alone where not; or its refusals.

    A truth that is not given is found, where the case is not refused.
    """
    passes: Pass = "forward_backward"
    support = implementation.supports(problem, passes, device)
    if not support:
        passes = "forward"
        support = implementation.supports(problem, passes, device)
    if not support:
        return CaseResult(passes, refusals=support.reasons)
    if truth is None:
        truth = truth_of(problem, seed)
    subject = Subject(implementation, problem, passes, str(device))
    inputs = draw(problem, problem_seed(problem, seed))
    subject.place(inputs)
    checked = inputs._replace(grad_out=truth.selection.restrict_grad_out(inputs.grad_out, problem))
    try:
        with implementation.context():
            subject.prepare()
            first = subject.outputs(checked.grad_out)
            faults = check(subject, checked, truth, first).faults
            if not faults:
                faults = check_follows(subject, turned(inputs, 1), seed=seed)
    except RefusedError as error:
        return CaseResult(passes, refusals=(str(error),))
    return CaseResult(passes, faults=tuple(faults))
