"""The timed region of each pass: what happens outside the clock, and what inside."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any

import torch

from .subject import Subject


class Region(ABC):
    """`set_up(n)` outside the clock, `run(n)` inside: n times the pass."""

    #: The most inner repeats, bounded where each needs memory of its own.
    most_repeats: int = 1_000_000

    def set_up(self, repeats: int) -> None:  # noqa: B027 - most passes have nothing to set up
        """Whatever `run` needs that does not belong to the pass."""

    @abstractmethod
    def run(self, repeats: int) -> None:
        """The pass, `repeats` times, and nothing else."""

    def clear(self) -> None:  # noqa: B027 - most passes keep nothing
        """Let go of what `set_up` made."""


class Forward(Region):
    """The call alone, under `no_grad`."""

    def __init__(self, subject: Subject) -> None:
        self._call = subject.call

    def run(self, repeats: int) -> None:
        """The call, `repeats` times."""
        call = self._call
        with torch.no_grad():
            for _ in itertools.repeat(None, repeats):
                call()


class ForwardBackward(Region):
    """The call, then `torch.autograd.grad`; nothing accumulates."""

    def __init__(self, subject: Subject) -> None:
        self._call, self._leaves, self._grad_out = subject.call, subject.leaves, subject.grad_out

    def run(self, repeats: int) -> None:
        """The call and its gradients, `repeats` times."""
        call, leaves, grad_out, grad = self._call, self._leaves, self._grad_out, torch.autograd.grad
        for _ in itertools.repeat(None, repeats):
            grad(call(), leaves, grad_out)


class Backward(Region):
    """Fresh graphs outside the clock, their gradients inside."""

    most_repeats = 64

    def __init__(self, subject: Subject) -> None:
        self._call, self._leaves, self._grad_out = subject.call, subject.leaves, subject.grad_out
        self._graphs: list[Any] = []

    def set_up(self, repeats: int) -> None:
        """Build `repeats` graphs."""
        self._graphs = [self._call() for _ in range(repeats)]

    def run(self, repeats: int) -> None:
        """The gradients of `repeats` graphs."""
        leaves, grad_out, grad = self._leaves, self._grad_out, torch.autograd.grad
        for out in self._graphs[:repeats]:
            grad(out, leaves, grad_out)

    def clear(self) -> None:
        """Let go of the graphs."""
        self._graphs = []


class Empty(Region):
    """Nothing: what the clock and the loop themselves take."""

    def run(self, repeats: int) -> None:
        """An empty call, `repeats` times."""
        call = _nothing
        for _ in itertools.repeat(None, repeats):
            call()


def once(region: Region) -> None:
    """One pass with its set-up, for whoever looks at what it does."""
    region.set_up(1)
    region.run(1)
    region.clear()


def _nothing() -> None:
    return None


def region_of(subject: Subject) -> Region:
    """The region of the subject's pass."""
    if subject.passes == "forward":
        return Forward(subject)
    return Backward(subject) if subject.passes == "backward" else ForwardBackward(subject)
