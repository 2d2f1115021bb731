"""What a worker fixes about its own process before it measures: allocator, threads, precision, and the host's protection."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import psutil
import torch

from .. import control_groups
from ..cell import Allocator, Conditions

MIB = 2**20
#: glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: mmap and trim thresholds in bytes. steady: where glibc's own adaptation ends in a long-lived process.
_THRESHOLDS: dict[str, tuple[int, int]] = {"steady": (32 * MIB, 64 * MIB), "resident": (1024 * MIB, 1024 * MIB)}
#: Memory that a worker leaves to the rest of the machine.
RESERVE_BYTES = 1024 * MIB


def fix(conditions: Conditions, threads: int) -> None:
    """Everything that a launch's conditions ask for."""
    fix_allocator(conditions.allocator)
    protect_host(limit_memory=conditions.device == "cpu")
    fix_threads(threads)
    fix_precision(conditions)
    quiet_compilers()


def fix_allocator(allocator: Allocator) -> None:
    """Set glibc's thresholds; elsewhere, and for `system`, nothing."""
    if allocator in _THRESHOLDS:
        mmap_bytes, trim_bytes = _THRESHOLDS[allocator]
        mallopt(_M_MMAP_THRESHOLD, mmap_bytes)
        mallopt(_M_TRIM_THRESHOLD, trim_bytes)


def mallopt(parameter: int, value: int) -> bool:
    """glibc's mallopt; False where there is none."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(parameter, value))
    except (OSError, AttributeError):
        return False


def map_everything_from(size_bytes: int) -> bool:
    """Make allocations of at least this size appear in, and vanish from, the resident set at once."""
    return mallopt(_M_MMAP_THRESHOLD, size_bytes)


def trim() -> None:
    """Give freed heap memory back to the system, where glibc can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def fix_threads(threads: int) -> None:
    """torch's threads within an operator, and one between operators."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(
            1
        )  # raises where work between operators began: then the launch is not as promised


def fix_precision(conditions: Conditions) -> None:
    """float32 products as asked; 16-bit products never reduce in 16 bits."""
    torch.set_float32_matmul_precision("highest" if conditions.float32 == "ieee" else "high")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def protect_host(*, limit_memory: bool) -> None:
    """Be the first to be killed when memory runs out, and let torch raise before that.

    CUDA reserves address space beyond all memory, so that no limit can be set there.
    """
    with contextlib.suppress(OSError):  # a platform without it has no such killer
        Path("/proc/self/oom_score_adj").write_text("1000")
    if not limit_memory or not sys.platform.startswith("linux"):
        return
    import resource

    available = _available_bytes()
    allowed = max(available - RESERVE_BYTES, available // 2)
    used = psutil.Process().memory_info().data  # what this limit counts: private writable memory, touched or not
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = used + allowed if hard == resource.RLIM_INFINITY else min(used + allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _available_bytes() -> int:
    """What the machine can give, or the control group's limit leaves where that is less."""
    available = psutil.virtual_memory().available
    left = control_groups.memory_left_bytes()
    return available if left is None else min(available, left)


def quiet_compilers() -> None:
    """inductor compiles in this process: a pool of compilers would outlive the launch."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
