"""Stored baselines: `<root>/<name>/`, a run's folder that keeps of each launch what a comparison needs, and is small."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..impls import choices
from .config import ConfigError
from .fingerprint import torch_facts
from .records import CeilingsMeasured, Launch, Notice, Outcome
from .store import RUN_FILE, Run, StoreError

ROOT = Path("results/baselines")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: What stays of a launch beside its time.
_KEPT = frozenset(
    {"outcome", "detail", "void", "backend", "emulated", "cell", "round", "attempt", "implementation", "name", "server",
     "position", "skipped", "started_at"}
)  # fmt: skip


class MissingBaselineError(LookupError):
    """No baseline of that name; the message names those that there are. Exit code 12."""


def save(run: Run, root: Path, name: str, *, replace: bool = False) -> Run:
    """Keep a run as a baseline; a reader sees all of it or none.

    Errors: `ConfigError` for a name that is not allowed or taken, and for a run without a time; `StoreError`.
    """
    from .verdicts.estimate import counted  # numpy, which --help does not need

    path = _path(root, name)
    if path.exists() and not replace:
        raise ConfigError(f"there is a baseline {name!r} in {root} already; --replace overwrites it")
    launches = [_compact(launch) for launch in counted(run.launches())]
    if not any(launch.samples for launch in launches):
        raise ConfigError(f"{run.path} holds no time of any cell: there is nothing to compare with")
    environment = {key: value for key, value in run.info.environment.items() if key != "soft"}
    info = run.info.model_copy(update={"id": name, "environment": environment})
    with _staging(root, name) as staging:
        made = Run.create(staging, info)
        made.append(_notice(run))
        for event in run.events():
            if isinstance(event, CeilingsMeasured):
                made.append(event)
        for launch in launches:
            made.append(launch)
        _swap(made.path, path, staging)
    return Run(path, info)


def find(root: Path, name: str) -> Run:
    """The baseline of a name. Errors: `MissingBaselineError`, `StoreError`, `ConfigError` for a name that is not allowed."""
    path = _path(root, name)
    if not path.is_dir():
        raise MissingBaselineError(
            f"there is no baseline {name!r} in {root}{choices(name, names(root), 'baselines')}; "
            f"keep a run as one with: attnbench baseline save RUN {name}"
        )
    return Run.open(path)


def names(root: Path) -> list[str]:
    """The names of all baselines, sorted; none where there is no such folder. Errors: `StoreError`."""
    try:
        return sorted(each.name for each in root.iterdir() if each.is_dir() and _NAME.fullmatch(each.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {root}: {error.strerror}") from error


def remove(root: Path, name: str) -> None:
    """Remove a baseline. Errors: `MissingBaselineError`, `StoreError`, also for a folder that holds no run, `ConfigError`."""
    path = _path(root, name)
    if path.is_dir() and not (path / RUN_FILE).exists():
        raise StoreError(f"{path} holds no baseline: there is no {RUN_FILE}; remove it by hand if it is not needed")
    if not path.is_dir():
        find(root, name)
    with _staging(root, name) as staging:
        path.rename(staging / name)


def weaknesses(baseline: Run) -> list[str]:
    """Why comparisons with a baseline will say less than they could, each in a sentence."""
    from .verdicts.compare import FEWEST_LAUNCHES

    timed: dict[str, set[str]] = {cell.id: set() for cell in baseline.info.cells}
    for launch in baseline.launches():
        if launch.samples and launch.cell in timed:
            timed[launch.cell].add(launch.server)
    few = sum(0 < len(servers) < FEWEST_LAUNCHES for servers in timed.values())
    none = sum(not servers for servers in timed.values())
    found = []
    if few:
        found.append(f"no verdict rests on {few} of {len(timed)} cells, which have fewer than {FEWEST_LAUNCHES} launches "
                     f"from as many servers; measure with --set protocol.launches={FEWEST_LAUNCHES}")  # fmt: skip
    if none:
        found.append(f"{none} of {len(timed)} cells have no time")
    if not torch_facts(baseline.events()):
        found.append("torch's facts were not recorded, and without them no fingerprint is equal")
    return found


def size_bytes(baseline: Run) -> int:
    """What a baseline takes on disk."""
    return sum(file.stat().st_size for file in baseline.path.iterdir())


def _path(root: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a baseline; allowed: letters, digits, '.', '_' and '-', at most 64, "
            "the first a letter or a digit"
        )
    return root / name


def _compact(launch: Launch) -> Launch:
    """A launch with the median of its samples as its only one."""
    kept = {key: getattr(launch, key) for key in _KEPT}
    if launch.samples is None or launch.outcome is not Outcome.OK:
        return Launch(**kept)
    median = statistics.median(launch.samples.times_s)
    return Launch(**kept, samples=launch.samples.model_copy(update={"times_s": (median,), "wall_times_s": ()}))


def _notice(run: Run) -> Notice:
    text = f"a baseline of run {run.info.id}: the launches that count, each with the median of its samples alone"
    return Notice(at=run.info.created_at, text=text)


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """A folder beside the baselines, removed at the end with all that is left in it. Errors: `StoreError`."""
    staging = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
        yield staging
    except OSError as error:
        raise StoreError(f"cannot write {root / name}: {error.strerror}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(made: Path, path: Path, staging: Path) -> None:
    """Put the new baseline in place. A folder cannot be renamed over another: the old one steps aside, and back on failure."""
    old = staging / "old"
    if path.exists():
        path.rename(old)
    try:
        made.rename(path)
        _flush(path.parent)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
