"""What the control groups (Linux cgroups, version 1 and 2) of this process allow and tell.

A limit of a group holds for all below it, so that every group from the process's own up to the root of the mount counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

#: `cgroup` names the process's groups, `mountinfo` where their files lie.
SELF = Path("/proc/self")
#: Version 1 says "no limit" with the largest multiple of a page.
_UNLIMITED = 2**62


def cpus(process: Path = SELF) -> float | None:
    """Processors that the quotas allow; None without a quota."""
    return min(filter(None, map(_quota, _folders("cpu", process))), default=None)


def memory_limit_bytes(process: Path = SELF) -> int | None:
    """Memory that the limits allow in all; None without a limit."""
    return min((limit for _, limit in _memory_limits(process)), default=None)


def memory_left_bytes(process: Path = SELF) -> int | None:
    """Memory that the limits leave, files that the kernel can drop included; None without a limit."""
    return min((max(0, limit - _held_bytes(folder)) for folder, limit in _memory_limits(process)), default=None)


def memory_kills(process: Path = SELF) -> int:
    """How often a process of the own group has been killed for memory."""
    own = next(_folders("memory", process), None)
    counts = (_entry(own / file, "oom_kill") for file in ("memory.events", "memory.oom_control")) if own else ()
    return sum(filter(None, counts))


def throttled_s(process: Path = SELF) -> float | None:
    """Seconds that the groups were held back in all; None where none tells."""
    seconds = []
    for folder in _folders("cpu", process):
        for key, unit in (("throttled_usec", 1e-6), ("throttled_time", 1e-9)):
            count = _entry(folder / "cpu.stat", key)
            seconds += [] if count is None else [count * unit]
    return sum(seconds) if seconds else None


def _folders(controller: str, process: Path) -> Iterator[Path]:
    """The controller's folders, the process's own first; where its path does not lie in the mount, the mount's root alone.

    The unified hierarchy comes last: beside version 1 it has no controllers.
    """
    groups = _groups(process)
    for mounted, root, names in _mounts(process):
        if controller in names or "" in names:
            group = groups.get(controller if controller in names else "", "")
            inside = Path(group).relative_to(root) if Path(group).is_relative_to(root) else Path()
            own = mounted / inside
            if ".." in inside.parts or not own.is_dir():
                own = mounted
            yield own
            while own != mounted:
                own = own.parent
                yield own


def _groups(process: Path) -> dict[str, str]:
    """The process's path in each hierarchy, by controller; the unified one by an empty name."""
    lines = (line.split(":", 2) for line in (_read(process / "cgroup") or "").splitlines())
    return {name: parts[2] for parts in lines if len(parts) == 3 for name in parts[1].split(",")}


def _mounts(process: Path) -> list[tuple[Path, str, set[str]]]:
    """(mount point, the group that is its root, controllers) of each hierarchy, the unified one last."""
    found = []
    for line in (_read(process / "mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split(" ") if after else ("", "")
        if kind in ("cgroup", "cgroup2"):
            root, point = before.split(" ")[3:5]
            found.append((Path(point), root, {""} if kind == "cgroup2" else set(options.split(","))))
    return sorted(found, key=lambda mount: "" in mount[2])


def _quota(folder: Path) -> float | None:
    words = (_read(folder / "cpu.max") or "").split() or [
        _read(folder / f"cpu.cfs_{each}_us") or "" for each in ("quota", "period")
    ]
    try:
        allowed, period = map(int, words)
    except ValueError:  # "max", or no such files
        return None
    return allowed / period if allowed > 0 and period > 0 else None


def _memory_limits(process: Path) -> Iterator[tuple[Path, int]]:
    for folder in _folders("memory", process):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            yield folder, limit


def _held_bytes(folder: Path) -> int:
    usage = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    stat = folder / "memory.stat"
    return usage - (_entry(stat, "total_inactive_file") or _entry(stat, "inactive_file") or 0)


def _number(file: Path) -> int | None:
    text = _read(file) or ""
    return int(text) if text.isdecimal() else None


def _entry(file: Path, key: str) -> int | None:
    """The number after a key, in a file of lines `key number`."""
    for line in (_read(file) or "").splitlines():
        name, _, number = line.partition(" ")
        if name == key:
            return int(number)
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None
