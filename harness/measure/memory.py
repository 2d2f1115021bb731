"""Peak memory of one pass beyond its inputs and outputs (Rabe & Staats' "overhead"), by source."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..records import Memory
from . import process
from .cuda import CudaMemoryMeter
from .subject import Subject

#: From this size on an allocation is mapped on its own, and seen at once in the resident set.
MAPPED_BYTES = 64 * 1024


class MemoryMeter(Protocol):
    """Reads the memory in use, and its peak since a mark."""

    source: str

    def settle(self) -> None:
        """Return what is freed, so that it does not hide what comes."""
        ...

    def mark(self) -> None:
        """Begin a new peak."""
        ...

    def used_bytes(self) -> int:
        """Bytes in use now."""
        ...

    def peak_bytes(self) -> int:
        """The most bytes in use since the mark."""
        ...


class ResidentSetMeter:
    """Linux: VmRSS and VmHWM of /proc/self/status; the high-water mark is reset through /proc/self/clear_refs."""

    source = "linux resident set"

    def __init__(self) -> None:
        process.map_everything_from(MAPPED_BYTES)

    @classmethod
    def is_available(cls) -> bool:
        """Whether the high-water mark can be reset here."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def settle(self) -> None:
        """Collect garbage and trim the heap."""
        gc.collect()
        process.trim()

    def mark(self) -> None:
        """Reset the high-water mark."""
        Path("/proc/self/clear_refs").write_text("5")

    def used_bytes(self) -> int:
        """VmRSS."""
        return self._status("VmRSS:")

    def peak_bytes(self) -> int:
        """VmHWM."""
        return self._status("VmHWM:")

    @staticmethod
    def _status(key: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
        raise OSError(f"/proc/self/status has no {key}")


def measure(subject: Subject, meter: MemoryMeter, *, is_warm: bool = False) -> Memory:
    """The overhead of one pass, after one warm call under the meter's own allocator settings, unless there was one."""
    if not is_warm:
        _pass(subject, meter)
    return _pass(subject, meter)


def meter_for(device: torch.device) -> MemoryMeter | None:
    """The meter of a device, which from now on governs the process's allocations; None where there is none."""
    if device.type == "cuda":
        return CudaMemoryMeter()
    return ResidentSetMeter() if ResidentSetMeter.is_available() else None


def _pass(subject: Subject, meter: MemoryMeter) -> Memory:
    meter.settle()
    before = meter.used_bytes()
    meter.mark()
    if not subject.has_backward:
        with torch.no_grad():
            out = subject.call()
        peak = meter.peak_bytes()
        return Memory(source=meter.source, overhead_bytes=max(0, peak - before - _bytes(subject, [out])))
    out = subject.call()
    forward_peak = meter.peak_bytes()
    meter.settle()
    saved = max(0, meter.used_bytes() - before - _bytes(subject, [out]))
    gradients = torch.autograd.grad(out, subject.leaves, subject.grad_out)
    # Training needs the larger of the two peaks; before backward only the output, no gradient, is a result.
    peak = meter.peak_bytes()
    overhead = max(forward_peak - _bytes(subject, [out]), peak - _bytes(subject, [out, *gradients])) - before
    return Memory(source=meter.source, overhead_bytes=max(0, overhead), saved_bytes=saved)


def _bytes(subject: Subject, outputs: list[Any]) -> int:
    tensors = [subject.implementation.as_torch(each) for each in outputs]
    return sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))
