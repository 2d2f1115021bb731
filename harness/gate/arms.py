"""The arms of a gate while it is measured: made when it is carried out, and removed afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from packaging.utils import canonicalize_name

from ...impls import get
from ..run.fork_server import ForkServer
from ..run.machine import ResumeError
from ..store import StoreError
from .benches import Bench
from .environments import Arm, Shared, make_arm
from .records import ArmInfo, ArmLabel, Gate, GateInfo
from .sources import OWN, ArmError, Source, opened


@contextmanager
def benches_of(gate: Gate) -> Iterator[dict[ArmLabel, Bench]]:
    """The three servers of a pair; arms are made when a gate is carried out, and removed afterwards."""
    info = gate.info
    if info.is_of_implementations:
        here = Bench(ForkServer, plugins=info.plugins)
        yield {"base": here, "candidate": here, "control": here}
        return
    folder = gate.path / "arms"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            base, candidate = stack.enter_context(_arms(folder, info))
        except OSError as error:
            raise StoreError(f"the arms cannot be made under {folder}: {error}") from error
        _keep_digests(gate, base.info, candidate.info)
        yield {"base": _bench(base), "candidate": _bench(candidate), "control": _bench(base)}


@contextmanager
def _arms(folder: Path, info: GateInfo) -> Iterator[tuple[Arm, Arm]]:
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ExitStack() as stack:
        # A branch moves: what was measured is what is measured further.
        givens = [arm.revision if len(arm.revision) == 40 else arm.given for arm in (info.base, info.candidate)]
        sources = [
            stack.enter_context(opened(given, folder / f"{label}-source"))
            for label, given in zip(("base", "cand"), givens, strict=True)
        ]
        factor = canonicalize_name(info.base.factor) or _factor(*sources, plugins=info.plugins)
        shared = Shared.made(folder, _other_packages(info, factor), with_impls=factor != OWN)
        arms = [
            make_arm(folder / label, source, factor, shared, info.plugins)
            for label, source in zip(("base", "cand"), sources, strict=True)
        ]
        yield arms[0], arms[1]


def _factor(base: Source, candidate: Source, *, plugins: Sequence[str]) -> str:
    """The distribution that differs between the arms; empty where only a plugin's file does. Errors: `ArmError`."""
    if base.name != candidate.name:
        raise ArmError(
            f"base is {base.name or 'no distribution'} and candidate {candidate.name or 'no distribution'}; "
            "both must be the same one, or name it with --factor"
        )
    if not base.name and not plugins:
        raise ArmError(f"{base.given} has no pyproject.toml with a project name; name the distribution with --factor")
    return base.name


def _other_packages(info: GateInfo, factor: str) -> list[str]:
    """What the implementations wrap, but for what is under test: compiled packages, the same ones in both arms."""
    names = {cell.implementation for each in info.comparisons for cell in (each.base, each.candidate)}
    packages = set()
    for name in names:
        try:
            packages.add(get(name).package)
        except Exception:  # noqa: BLE001, S112 - what the caller cannot make, the arms may; or they say why not
            continue
    return sorted({canonicalize_name(each) for each in packages} - {factor, OWN})


def _keep_digests(gate: Gate, base: ArmInfo, candidate: ArmInfo) -> None:
    """The first time, what the arms were made of is written down; later it must be the same. Errors: `ResumeError`."""
    for label, stored, made in (("base", gate.info.base, base), ("candidate", gate.info.candidate, candidate)):
        if stored.digest and stored.digest != made.digest:
            raise ResumeError(f"the {label} {stored.given} is not what this gate began with; begin a new gate")
    keep = {"base": _described(gate.info.base, base), "candidate": _described(gate.info.candidate, candidate)}
    gate.describe_anew(gate.info.model_copy(update=keep))


def _described(given: ArmInfo, made: ArmInfo) -> ArmInfo:
    return made.model_copy(update={"given": given.given, "revision": made.revision or given.revision})


def _bench(arm: Arm) -> Bench:
    return Bench(partial(ForkServer, arm.python, arm.environment), arm.bounds, arm.plugins)
