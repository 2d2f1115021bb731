"""Proof of what ran: the operators that one call dispatched and, on CUDA, the kernels that it launched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode


class _OperatorRecorder(TorchDispatchMode):
    def __init__(self, operators: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = operators

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and the guard that torch would add imports all of torch._dynamo: 0.7 s

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded(operators: set[str]) -> Iterator[None]:
    """Adds the aten operators that are dispatched meanwhile, such as `aten.bmm.default`."""
    with _OperatorRecorder(operators):
        yield


def cuda_kernels(call: Callable[[], Any]) -> tuple[str, ...]:
    """The names of the kernels that one call launches, by torch's profiler, in the order of their total time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return kernel_names(profiler.key_averages())


def kernel_names(events: Iterable[Any]) -> tuple[str, ...]:
    """Of the profiler's averages those of the device, which are kernels, copies and fills; the host's are runtime calls."""
    on_device = [
        each for each in events if each.device_type == DeviceType.CUDA and not each.key.startswith(("Memcpy", "Memset"))
    ]
    return tuple(each.key for each in sorted(on_device, key=lambda each: -each.self_device_time_total))
