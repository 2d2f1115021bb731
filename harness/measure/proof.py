"""Proof of what ran: the operators that one call dispatched and, on CUDA, the kernels that it launched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

#: How the profiler names what moves bytes without a kernel.
_COPIES = ("Memcpy", "Memset")


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


class BlindProfilerError(RuntimeError):
    """The profiler shows no kernel of this device, not even one that surely ran."""


@dataclass(frozen=True)
class Profile:
    """What a call launched: its kernels by total time, and the seconds that these, copies and fills took on the device."""

    kernels: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether the device did nothing at all."""
        return not self.kernels and not self.copies


#: For a call the averages that a profiler makes of it.
EventsOf = Callable[[Callable[[], Any]], Iterable[Any]]


def cuda_events(call: Callable[[], Any]) -> Iterable[Any]:
    """The averages of torch's profiler over one call."""
    from torch.profiler import ProfilerActivity, profile

    # Without acc_events torch warns that it keeps one cycle alone; there is only one.
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    averages: Iterable[Any] = profiler.key_averages()
    return averages


def profiled(call: Callable[[], Any], events_of: EventsOf = cuda_events) -> Profile:
    """What one call launched. Errors: `BlindProfilerError` where the profiler does not see what is known to run either."""
    found = profile_of(events_of(call))
    if found.is_empty and profile_of(events_of(_known_kernel)).is_empty:
        raise BlindProfilerError(
            "torch's profiler shows no kernel on this device, though one ran: needs the right to read the GPU's counters "
            "(CUPTI); without it leave out kernels under protocol.measure, and cuda_graph"
        )
    return found


def cuda_kernels(call: Callable[[], Any]) -> tuple[str, ...]:
    """The names of the kernels that one call launches, in the order of their total time. Errors: `BlindProfilerError`."""
    return profiled(call).kernels


def profile_of(events: Iterable[Any]) -> Profile:
    """Of the profiler's averages those of the device, which are kernels, copies and fills; the host's are runtime calls."""
    on_device = sorted(
        (each for each in events if each.device_type == DeviceType.CUDA), key=lambda each: -each.self_device_time_total
    )
    return Profile(
        kernels=tuple(each.key for each in on_device if not each.key.startswith(_COPIES)),
        copies=tuple(each.key for each in on_device if each.key.startswith(_COPIES)),
        seconds=sum(each.self_device_time_total for each in on_device) * 1e-6,
    )


def _known_kernel() -> None:
    torch.ones(1, device="cuda").add_(1)
