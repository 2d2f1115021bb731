"""Implementations that lie, hang and crash, registered like any other through `--plugin`."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnbench.impls import AttentionProblem, Implementation, Tensors, register


def honest(problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
    """Right attention for full masks: what the fakes bend."""
    import torch

    def call() -> Any:
        key = tensors.key.repeat_interleave(problem.group_size, dim=1)
        value = tensors.value.repeat_interleave(problem.group_size, dim=1)
        scores = tensors.query @ key.transpose(-2, -1) * problem.softmax_scale
        return torch.softmax(scores, dim=-1) @ value

    return call


@register
class Sleep(Implementation):
    """Right, and a little slow, so that a run can be interrupted."""

    name = "fake_sleep"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Honest after a nap."""
        inner = honest(problem, tensors)

        def call() -> Any:
            time.sleep(0.004)
            return inner()

        return call


@register
class Wrong(Implementation):
    """Values off by 2 %."""

    name = "fake_wrong"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Honest, times 1.02."""
        inner = honest(problem, tensors)
        return lambda: inner() * 1.02


@register
class WrongGradient(Implementation):
    """Right values, gradients of the query doubled."""

    name = "fake_wrong_gradient"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Adds a term that is zero forwards and not backwards."""
        inner = honest(problem, tensors)

        def call() -> Any:
            extra = tensors.query - tensors.query.detach()
            return inner() + extra

        return call


@register
class Nan(Implementation):
    """One NaN among right values."""

    name = "fake_nan"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Honest, but for one element."""
        inner = honest(problem, tensors)

        def call() -> Any:
            out = inner().clone()
            out[0, 0, 0, 0] = float("nan")
            return out

        return call


@register
class Cached(Implementation):
    """Computes once, and returns that for ever."""

    name = "fake_cached"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """The first answer, kept."""
        inner = honest(problem, tensors)
        kept: list[Any] = []

        def call() -> Any:
            if not kept:
                kept.append(inner())
            return kept[0]

        return call


@register
class Mutates(Implementation):
    """Right values, and a changed query."""

    name = "fake_mutates"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Scales its input in place after use."""
        import torch

        inner = honest(problem, tensors)

        def call() -> Any:
            out = inner()
            with torch.no_grad():
                tensors.query.mul_(0.5)
            return out

        return call


@register
class Aliases(Implementation):
    """Returns its value input."""

    name = "fake_aliases"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """No computation at all."""
        return lambda: tensors.value


@register
class OutOfMemory(Implementation):
    """Asks torch for more memory than there is."""

    name = "fake_out_of_memory"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """An allocation of a petabyte."""
        import torch

        return lambda: torch.ones(2**50, dtype=torch.uint8)


@register
class KilledForMemory(Implementation):
    """Is killed by the kernel, in a control group that allows 64 MiB."""

    name = "fake_killed_for_memory"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Joins the group that the test made, then touches more than it allows."""
        Path(os.environ["ATTNBENCH_TEST_CGROUP"], "cgroup.procs").write_text(str(os.getpid()))
        held = [bytearray(os.urandom(2**20)) * 8 for _ in range(64)]
        raise AssertionError(f"held {len(held)} blocks")


@register
class Hang(Implementation):
    """Never returns."""

    name = "fake_hang"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Sleeps for an hour."""
        return lambda: time.sleep(3600)


@register
class Segfault(Implementation):
    """Reads address zero."""

    name = "fake_segfault"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """As a broken kernel would."""
        return lambda: ctypes.string_at(0)


@register
class Exits(Implementation):
    """Ends the process without a word."""

    name = "fake_exits"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """`os._exit`, past every handler."""
        return lambda: os._exit(0)


@register
class Flood(Implementation):
    """Right, and prints without end."""

    name = "fake_flood"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Honest, after a megabyte on stdout and stderr."""
        inner = honest(problem, tensors)

        def call() -> Any:
            for stream in (sys.stdout, sys.stderr):
                stream.write("flood " * 100_000)
                stream.flush()
            return inner()

        return call


@register
class MissingImport(Implementation):
    """Needs a package that is not there."""

    name = "fake_missing_import"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Fails where wrapped packages are imported."""
        import a_package_that_is_not_there  # type: ignore[import-not-found]

        return a_package_that_is_not_there.attention


@register
class Instant(Implementation):
    """Right in the check, then returns at once what it has."""

    name = "fake_instant"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Honest for as many calls as the check makes."""
        inner = honest(problem, tensors)
        calls = 0
        last: Any = None

        def call() -> Any:
            nonlocal calls, last
            calls += 1
            if calls <= 3:
                last = inner()
            return last

        return call


def memoised(tensors: Tensors, inner: Callable[[], Any]) -> Callable[[], Any]:
    """Computes when an input was written to, and only then: no check of values can tell."""
    kept: list[Any] = [None, None]

    def call() -> Any:
        versions = [each._version for each in tensors]
        if kept[0] != versions:
            kept[:] = [versions, inner()]
        return kept[1]

    return call


@register
class Memoised(Implementation):
    """Always right, and faster than physics."""

    name = "fake_memoised"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """A repeated call is a lookup."""
        return memoised(tensors, honest(problem, tensors))


@register
class MemoisedSlowly(Implementation):
    """Always right, and its lookup takes as long as honest work might."""

    name = "fake_memoised_slowly"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """A repeated call naps a little, one on changed inputs forty times as long."""
        inner = honest(problem, tensors)

        def slow() -> Any:
            time.sleep(0.02)
            return inner()

        lookup = memoised(tensors, slow)

        def call() -> Any:
            time.sleep(0.0005)
            return lookup()

        return call


@register
class SlowsDown(Implementation):
    """Right, on a machine that became slow after the timing: nobody reused an answer."""

    name = "fake_slows_down"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Naps a little, and long in every call after the inputs that many calls saw were changed."""
        inner = honest(problem, tensors)
        seen: list[Any] = []
        naps = [0.0005]

        def call() -> Any:
            versions = [each._version for each in tensors]
            if seen and versions != seen[-1]:
                if len(seen) > 10:
                    naps[:] = [0.01]
                seen.clear()
            seen.append(versions)
            time.sleep(naps[0])
            return inner()

        return call


@register
class MutatesGradOut(Implementation):
    """Right values and gradients, and a changed dO."""

    name = "fake_mutates_grad_out"

    def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
        """Its backward halves what it was given, once it has used it."""
        import torch

        inner = honest(problem, tensors)

        class Halving(torch.autograd.Function):
            @staticmethod
            def forward(_ctx: Any, out: Any) -> Any:
                return out.view_as(out)

            @staticmethod
            def backward(_ctx: Any, grad_out: Any) -> Any:
                kept = grad_out.clone()
                grad_out.mul_(0.5)
                return kept

        return lambda: Halving.apply(inner())  # type: ignore[no-untyped-call]
