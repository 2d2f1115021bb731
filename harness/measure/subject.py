"""The subject of a measurement: an implementation with one problem's inputs, prepared and ready to be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...impls import AttentionProblem, Implementation, Pass, Tensors
from .inputs import Inputs


class Subject:
    """Holds the inputs in the implementation's layout, and runs its pass.

    `call` is what `prepare` returned. Query, key and value require gradients where the pass has a backward.
    """

    def __init__(self, implementation: Implementation, problem: AttentionProblem, passes: Pass, device: str) -> None:
        self.implementation = implementation
        self.problem = problem
        self.passes = passes
        self.device = torch.device(device)
        self.call: Callable[[], Any]
        self.leaves: tuple[Tensor, Tensor, Tensor]
        self.grad_out: Tensor
        self.used_grad_out: Tensor  # of the last `outputs`

    @property
    def has_backward(self) -> bool:
        """Whether gradients belong to the pass."""
        return self.passes != "forward"

    def place(self, inputs: Inputs) -> None:
        """Lay the inputs out on the device; the first step."""
        query, key, value, grad_out = (self._laid_out(each) for each in inputs)
        self.leaves = (query, key, value)
        for leaf in self.leaves:
            leaf.requires_grad_(self.has_backward)
        self.grad_out = grad_out

    def prepare(self) -> None:
        """The implementation's own preparation, with its own kind of tensors."""
        native = Tensors(*(self.implementation.from_torch(leaf) for leaf in self.leaves))
        self.call = self.implementation.prepare(self.problem, native)

    def change_inputs(self, inputs: Inputs) -> None:
        """New values in place; an implementation that holds copies of its inputs prepares anew."""
        with torch.no_grad():
            for leaf, new in zip((*self.leaves, self.grad_out), inputs, strict=True):
                leaf.copy_(self._laid_out(new))
        if self.implementation.copies_inputs:
            self.prepare()

    def outputs(self, grad_out: Tensor) -> dict[str, Tensor | None]:
        """One untimed run of the pass: out, dq, dk, dv as torch tensors in the implementation's layout; None if detached.

        `grad_out` is `[B, Hq, Sq, D]` on any device.
        """
        self.used_grad_out = self._laid_out(grad_out)
        with torch.set_grad_enabled(self.has_backward):
            out: Tensor = self.implementation.as_torch(self.call())
        outputs: dict[str, Tensor | None] = {"out": out}
        if self.has_backward:
            gradients: tuple[Tensor | None, ...] = (None, None, None)
            if isinstance(out, Tensor) and out.requires_grad:
                gradients = torch.autograd.grad(out, self.leaves, self.used_grad_out, allow_unused=True)
            outputs |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
        return outputs

    def as_problem(self, tensor: Tensor) -> Tensor:
        """From the implementation's layout to the problem's `[B, H, S, D]`, on the CPU."""
        tensor = tensor.detach().cpu()
        return tensor.transpose(1, 2) if self.implementation.layout == "BSHD" else tensor

    def layout_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape `[B, H, S, D]` in the implementation's layout."""
        batch, heads, seq, dim = shape
        return (batch, seq, heads, dim) if self.implementation.layout == "BSHD" else shape

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self.implementation.layout == "BSHD":
            tensor = tensor.transpose(1, 2)
        return tensor.to(self.device, copy=True).contiguous()
