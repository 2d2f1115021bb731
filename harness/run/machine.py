"""The machine that a session measures on, as it was found when the session began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ...impls import Device
from .. import environment
from ..config import ConfigError, SweepConfig
from ..fingerprint import differences, fingerprint
from ..peaks import peak_flops_per_s


class ResumeError(ConfigError):
    """What cannot go on here as it began; the message says what differs and what to do."""


@dataclass(frozen=True)
class Machine:
    """What a session needs to know of the machine; `facts` are its environment as `run.json` keeps it."""

    device: Device
    threads: int
    last_level_cache_bytes: int | None = None
    peak_flops_per_s: dict[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def found(cls, config: SweepConfig, device: Device) -> Self:
        """The machine there is, with as many threads as the configuration asks for."""
        protocol = config.protocol
        threads = environment.usable_threads() if protocol.threads == "all" else protocol.threads
        facts = environment.describe(device)
        peaks = peak_flops_per_s(device, threads, protocol.float32, str(facts["strict"].get("cpu_flags", "")))
        facts |= {"device_name": device.name, "threads": threads}
        return cls(device, threads, environment.last_level_cache_bytes(), peaks, facts)

    def refuse_another(self, path: Path, stored: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Launches of one folder are compared with each other: what the fingerprint calls strict must not have changed.

        Errors: `ResumeError`.
        """
        changes = differences(fingerprint(stored, versions), fingerprint(self.facts, environment.versions()))
        if changes:
            raise ResumeError(
                f"{path} was measured under other conditions than there are now: {'; '.join(map(str, changes))}; "
                "begin a new run, or resume where these are as they were"
            )
