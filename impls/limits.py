"""What an implementation can and cannot do, as data with sources, and the answer to "does it support this?"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .problem import AttentionProblem, Pass


@dataclass(frozen=True)
class Device:
    """The machine part that attention would run on, described without torch.

    `capability` is CUDA's (major, minor), None elsewhere or where it could not be read; `memory_bytes` is what the
    device has in all.
    """

    kind: str
    index: int = 0
    name: str = ""
    capability: tuple[int, int] | None = None
    memory_bytes: int | None = None
    platform: str = "cpu"  # cpu, cuda, rocm: torch calls both of the latter "cuda"

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.kind == "cuda" else self.kind


@dataclass(frozen=True)
class Support:
    """Truthy when supported; otherwise every reason why not."""

    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Limit:
    """One stated limit: a test, the words for what passes it, and where the limit is documented."""

    allows: Callable[[Any], bool]
    allowed: str
    source: str


def one_of(*values: Any, source: str) -> Limit:
    """Only these values."""
    return Limit(lambda value: value in values, " or ".join(map(str, values)), source)


def at_most(most: int, *, least: int = 1, multiple_of: int = 1, also: int | None = None, source: str) -> Limit:
    """Integers from `least` up to `most`, in steps of `multiple_of`, and `also` where given."""
    words = f"{least} to {most}" if least > 1 else f"at most {most}"
    words += f" and a multiple of {multiple_of}" if multiple_of > 1 else ""
    words += f", or {also}" if also is not None else ""
    return Limit(
        lambda value: (least <= value <= most and value % multiple_of == 0) or value == also,
        words,
        source,
    )


def at_least(least: tuple[int, int], *, below: tuple[int, int] | None = None, source: str) -> Limit:
    """Versions from `least` on, and before `below` where given; a version that could not be read passes."""
    words = f"at least {_dotted(least)}" + (f" and below {_dotted(below)}" if below else "")
    return Limit(lambda value: value is None or (value >= least and (below is None or value < below)), words, source)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class Limits:
    """The limits of an implementation; a field that is None limits nothing."""

    devices: Limit | None = None
    platforms: Limit | None = None
    capability: Limit | None = None
    dtypes: Limit | None = None
    masks: Limit | None = None
    passes: Limit | None = None
    head_dims: Limit | None = None
    group_sizes: Limit | None = None
    seq_kv: Limit | None = None
    causal_seq_q: Limit | None = None
    causal_offsets: Limit | None = None
    scales: Limit | None = None

    def refusals(self, problem: AttentionProblem, passes: Pass, device: Device) -> tuple[str, ...]:
        """Every limit that this problem, pass and device break, in words that name what was asked and what is allowed."""
        asked = self._about_device(device) | {
            "dtypes": ("dtype", problem.dtype),
            "masks": ("mask", problem.mask.kind),
            "passes": ("pass", passes),
            "head_dims": ("head_dim", problem.head_dim),
            "group_sizes": ("query heads per key/value head", problem.group_size),
            "seq_kv": ("seq_kv", problem.seq_kv),
            "causal_seq_q": ("causal seq_q", problem.seq_q if problem.is_causal else 1),
            "causal_offsets": ("causal seq_kv - seq_q", problem.causal_offset if problem.is_causal else 0),
            "scales": ("scale", "default" if problem.scale is None else problem.scale),
        }
        return self._broken(asked)

    def device_refusals(self, device: Device) -> tuple[str, ...]:
        """The limits that the device alone breaks."""
        return self._broken(self._about_device(device))

    @staticmethod
    def _about_device(device: Device) -> dict[str, tuple[str, Any]]:
        about: dict[str, tuple[str, Any]] = {"devices": ("device", device.kind)}
        if device.kind == "cuda":
            about["platforms"] = ("platform", device.platform)
            if device.platform == "cuda":  # ROCm's gfx versions are no compute capabilities
                about["capability"] = ("compute capability", device.capability)
        return about

    def _broken(self, asked: dict[str, tuple[str, Any]]) -> tuple[str, ...]:
        reasons = []
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is None or field.name not in asked:
                continue
            subject, value = asked[field.name]
            if not limit.allows(value):
                shown = _dotted(value) if isinstance(value, tuple) else value
                reasons.append(f"{subject} {shown}: needs {limit.allowed} ({limit.source})")
        return tuple(reasons)


#: Limits by the compute capability from which on they hold, up to the next.
ByCapability = Mapping[tuple[int, int], Limits]


def for_device(table: ByCapability, device: Device) -> Limits:
    """The limits that hold for the device's compute capability; none on ROCm, or where it could not be read."""
    if device.platform != "cuda" or device.capability is None:
        return Limits()
    reached = [least for least in table if least <= device.capability]
    return table[max(reached)] if reached else Limits()
