"""The check that every launch passes before it is timed: values, gradients, and no tricks."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..cell import Float32
from ..records import Accuracy
from .inputs import Inputs, torch_dtype
from .oracle import Reference, Selection, Truth, block_rms, find_truth, rms
from .subject import Subject

#: Rows of the second check, which sees whether the output follows its inputs.
FOLLOW_ROWS = 16


@dataclass
class Verdict:
    """What the check found; `faults` is empty where the subject is right."""

    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def check(subject: Subject, inputs: Inputs, truth: Truth, first: dict[str, Tensor | None]) -> Verdict:
    """Judge the outputs of the first run, made with these inputs, their grad_out as the truth restricts it."""
    verdict = Verdict()
    verdict.faults += _malformed(subject, first)
    verdict.faults += _changed_inputs(subject, inputs)
    if not verdict.faults:
        verdict.accuracy = _compare(subject, first, truth)
        verdict.faults += _broken_rules(verdict.accuracy)
    return verdict


def check_follows(subject: Subject, changed: Inputs, seed: int, float32: Float32 = "ieee") -> list[str]:
    """Change the inputs in place, run again, and compare some rows: a cached answer or gradient is found here."""
    problem = subject.problem
    selection = Selection.of_rows(problem, random.Random(seed), FOLLOW_ROWS)
    truth = find_truth(problem, changed, selection, backward=subject.has_backward, float32=float32)
    subject.change_inputs(changed)
    outputs = subject.outputs(selection.restrict_grad_out(changed.grad_out, problem))
    malformed = _malformed(subject, outputs)
    faults = malformed or _broken_rules(_compare(subject, outputs, truth))
    return [f"after its inputs were changed in place: {fault}" for fault in faults]


def _malformed(subject: Subject, outputs: dict[str, Tensor | None]) -> list[str]:
    """Kind, shape, dtype, device, aliasing: what must hold before values can be compared."""
    faults = []
    problem = subject.problem
    for name, tensor in outputs.items():
        if tensor is None:
            faults.append(f"{name} is missing: the output does not depend on that input's graph (detached)")
            continue
        if not isinstance(tensor, Tensor):
            faults.append(f"{name} is a {type(tensor).__name__}: the call must return a tensor")
            continue
        shape = subject.layout_shape(problem.key_shape if name in ("dk", "dv") else problem.query_shape)
        if tuple(tensor.shape) != shape:
            faults.append(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype != torch_dtype(problem.dtype):
            faults.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected {problem.dtype}")
        if tensor.device.type != subject.device.type:
            faults.append(f"{name} is on {tensor.device}, expected {subject.device}")
        elif _shares_storage(tensor, subject.leaves):
            faults.append(f"{name} shares memory with an input")
    return faults


def _shares_storage(tensor: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    own = tensor.untyped_storage().data_ptr()
    return any(own == each.untyped_storage().data_ptr() for each in inputs)


def _changed_inputs(subject: Subject, inputs: Inputs) -> list[str]:
    used = (*subject.leaves, *([subject.used_grad_out] if subject.has_backward else []))
    return [
        f"the call changed its input {name}"
        for name, tensor, original in zip(inputs._fields, used, inputs, strict=False)
        if not torch.equal(subject.as_problem(tensor), original)
    ]


def _compare(subject: Subject, outputs: dict[str, Tensor | None], truth: Truth) -> dict[str, Accuracy]:
    accuracy = {}
    for name, tensor in outputs.items():
        assert tensor is not None
        reference = truth.references[name]
        selected = truth.selection.of(name, subject.as_problem(tensor), subject.problem)
        accuracy[name] = _accuracy(selected, reference)
    return accuracy


def _accuracy(selected: Tensor, reference: Reference) -> Accuracy:
    # A value that is not finite is further off than any bound; the largest double stands for it, JSON has no infinity.
    error = (selected.double() - reference.value).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    worst, spread = error.max().item(), rms(error)
    most = torch.finfo(torch.float64).max
    block_error, block_bound = _worst_block(error, reference)
    return Accuracy(
        block_rms_error=None if block_error is None else min(block_error, most),
        block_rms_bound=block_bound,
        max_error=min(worst, most),
        max_bound=reference.max_bound,
        rms_error=min(spread, most),
        rms_bound=reference.rms_bound,
        rms_reference=reference.rms,
        elements=selected.numel(),
    )


def _worst_block(error: Tensor, reference: Reference) -> tuple[float | None, float | None]:
    """RMS error and bound of the block that uses the largest share of its bound."""
    bounds, errors = reference.block_bounds, block_rms(error)
    if bounds is None or errors is None:
        return None, None
    worst = int((errors / bounds.clamp_min(torch.finfo(torch.float64).tiny)).nan_to_num(nan=math.inf).argmax())
    return errors.flatten()[worst].item(), bounds.flatten()[worst].item()


def _broken_rules(accuracy: dict[str, Accuracy]) -> list[str]:
    faults = []
    for name, each in accuracy.items():
        if each.max_error >= torch.finfo(torch.float64).max:
            faults.append(f"{name} has NaN or infinity where the truth is finite")
        elif each.max_error > each.max_bound:
            faults.append(f"{name} is off by {each.max_error:.3g}, allowed {each.max_bound:.3g}")
        elif each.rms_bound is not None and each.rms_error > each.rms_bound:
            faults.append(f"{name} has an RMS error of {each.rms_error:.3g}, allowed {each.rms_bound:.3g}")
        elif each.block_rms_error is not None and each.block_rms_error > (each.block_rms_bound or 0.0):
            faults.append(
                f"{name} has an RMS error of {each.block_rms_error:.3g} in one block of rows, "
                f"allowed {each.block_rms_bound or 0.0:.3g}"
            )
    return faults
