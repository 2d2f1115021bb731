"""What no plan is made of: too many cells, told by multiplying lengths before anything is built; remainders; a device's lack."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from ...impls import Device
from ..config import ConfigError, SweepConfig
from ..config.errors import MOST_MISTAKES, config_error
from ..config.sweep import Sweep
from .shape import remainders

MOST_CELLS = 100_000
_ADVICE = "shorten some axes, or split the file"


def refuse_too_many(config: SweepConfig) -> None:
    """Count the cells of each sweep, and of all. Errors: `ConfigError` beyond `MOST_CELLS`."""
    counts = [_sizes(config, sweep) for sweep in config.sweeps]
    totals = [math.prod(count for count, _ in sizes) for sizes in counts]
    mistakes = [
        config.mistake(("sweeps", index), _too_many(f"{total:,} cells ({_factors(sizes)})"))
        for index, (total, sizes) in enumerate(zip(totals, counts, strict=True))
        if total > MOST_CELLS
    ]
    if not mistakes and sum(totals) > MOST_CELLS:
        mistakes = [config.mistake(("sweeps",), _too_many(f"{sum(totals):,} cells in all"))]
    if mistakes:
        raise config_error(mistakes)


def _too_many(count: str) -> str:
    return f"{count}; allowed: at most {MOST_CELLS:,}; {_ADVICE}"


def _sizes(config: SweepConfig, sweep: Sweep) -> list[tuple[int, str]]:
    axes: dict[str, Sequence[object]] = {
        "implementations": sweep.implementations or config.implementations,
        "batch": sweep.total_tokens or sweep.batch or (1,),
        "heads": sweep.hidden or sweep.heads or (),
        "seq_len": sweep.seq_len,
        "head_dim": sweep.head_dim,
        "dtype": sweep.dtype,
        "mask": sweep.mask,
        "pass": sweep.passes,
        "cache": sweep.cache,
        "cuda_graph": sweep.cuda_graph,
        "allocator": sweep.allocator or (config.protocol.allocator,),
    }
    return [(len(values), name) for name, values in axes.items()]


def _factors(sizes: Iterable[tuple[int, str]]) -> str:
    return " x ".join(f"{count:,} {name}" for count, name in sizes if count > 1)


def refuse_remainders(config: SweepConfig) -> None:
    """Hold every total against its divisors. Errors: `ConfigError` for those that leave a remainder."""
    mistakes = [
        config.mistake(("sweeps", index, key), words)
        for index, sweep in enumerate(config.sweeps)
        for key, words in itertools.islice(remainders(sweep), MOST_MISTAKES + 1)
    ]
    if mistakes:
        raise config_error(mistakes)


def refuse_kernels(config: SweepConfig, device: Device) -> None:
    """Kernels are timed by a profiler of CUDA. Errors: `ConfigError` on any other device."""
    if "kernels" in config.protocol.measure and device.kind != "cuda":
        words = f"kernels: needs a CUDA device, this run is on {device}; allowed here: time, memory, limit"
        raise ConfigError(config.mistake(("protocol", "measure"), words))
