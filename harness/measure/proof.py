"""Proof of what ran: the operators that one call dispatched and, on CUDA, the kernels that it launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _OperatorRecorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and the guard that torch would add imports all of torch._dynamo: 0.7 s

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(str(func))
        return func(*args, **(kwargs or {}))


def dispatched(call: Callable[[], Any]) -> frozenset[str]:
    """The aten operators that one call under `no_grad` dispatches, such as `aten.bmm.default`."""
    with torch.no_grad(), _OperatorRecorder() as recorder:
        call()
    return frozenset(recorder.operators)


def cuda_kernels(call: Callable[[], Any]) -> tuple[str, ...]:
    """The names of the kernels that one call launches, by torch's profiler, in the order of their total time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    return tuple(event.key for event in events if not event.key.startswith(("Memcpy", "Memset", "cuda")))
