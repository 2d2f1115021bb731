"""Implementations with the faults that a kernel's author overlooks, for `attnbench conformance --plugin`."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

from attnbench.impls import AttentionProblem, Implementation, Limits, Tensors, at_most, one_of, register


class Textbook(Implementation):
    """Right attention whose steps may be bent; not registered itself. Its limits keep the suite short."""

    name = "fake_textbook"
    limits = Limits(dtypes=one_of("float32", source="a fake"), head_dims=at_most(64, source="a fake"))

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """The mask once; the rest in the call."""
        import torch

        hidden = torch.zeros(problem.seq_q, problem.seq_kv, dtype=torch.bool)
        if problem.is_causal:
            hidden = ~torch.ones_like(hidden).tril(problem.causal_offset)
        hidden |= self.too_old(problem)

        def call() -> Any:
            self.before(problem)
            key = tensors.key.repeat_interleave(problem.group_size, dim=1)
            value = tensors.value.repeat_interleave(problem.group_size, dim=1)
            scores = tensors.query @ key.transpose(-2, -1) * problem.softmax_scale
            return self.softmax(scores.masked_fill(hidden, float("-inf"))) @ value

        return call

    def too_old(self, problem: AttentionProblem) -> Any:
        """Keys that a window hides."""
        import torch

        return torch.zeros(problem.seq_q, problem.seq_kv, dtype=torch.bool)

    def before(self, problem: AttentionProblem) -> None:
        """What happens before a call computes."""

    def softmax(self, scores: Any) -> Any:
        """The weights of the values."""
        return scores.softmax(dim=-1)


@register
class CoarseSoftmax(Textbook):
    """A softmax in bfloat16, whatever the dtype."""

    name = "fake_coarse_softmax"
    limits = Limits(dtypes=one_of("float16", source="a fake"), head_dims=at_most(64, source="a fake"))

    def softmax(self, scores: Any) -> Any:
        """Eight bits of each weight."""
        import torch

        return scores.softmax(dim=-1, dtype=torch.bfloat16).to(scores.dtype)


@register
class ShortWindow(Textbook):
    """A window that is one key too short: a query that should see every key misses the oldest."""

    name = "fake_short_window"

    def too_old(self, problem: AttentionProblem) -> Any:
        """Keys that are `seq_kv - 1` or more before the query's own; a single key stays."""
        import torch

        window = max(1, problem.seq_kv - 1)
        newest = torch.arange(problem.seq_q) + problem.causal_offset
        if not problem.is_causal:
            newest = torch.full_like(newest, problem.seq_kv - 1)
        return newest[:, None] - torch.arange(problem.seq_kv) >= window


@register
class Crashes(Textbook):
    """Reads address zero at large head dimensions with many keys, and ends the process at small ones with many queries."""

    name = "fake_crashes"
    limits = Limits(dtypes=one_of("float32", source="a fake"), head_dims=one_of(8, 256, source="a fake"))

    def before(self, problem: AttentionProblem) -> None:
        """As a kernel does that indexes past its block."""
        if problem.head_dim == 256 and problem.seq_kv >= 64:
            ctypes.string_at(0)
        if problem.head_dim == 8 and problem.seq_q == problem.seq_kv == 257:
            sys.exit(3)


@register
class Hangs(Textbook):
    """Never returns where query heads share a key/value head."""

    name = "fake_hangs"

    def before(self, problem: AttentionProblem) -> None:
        """Sleeps for an hour."""
        if problem.group_size > 1:
            time.sleep(3600)


@register
class RefusesAll(Textbook):
    """Has reasons against everything."""

    name = "fake_refuses_all"
    compiled = True  # a few cases tell as much
    limits = Limits(dtypes=one_of("float8", source="a fake"))
