"""An environment for each arm: an interpreter that sees the arm's code, the caller's harness, and one torch for both.

<gate>/arms/base/                     a venv; `cand` is as long, since lengths of paths move memory
  site-packages/attnbench/impls       the arm's own; or the distribution under test, installed
  site-packages/attnbench_gate.pth    the two folders below
<gate>/arms/harness/attnbench/        links to the caller's harness, reports and configs
<gate>/arms/shared/                   links to torch and what the harness needs, alone: nothing else of the caller is seen
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..measure.tasks import Bounds
from .records import ArmInfo
from .sources import OWN, ArmError, Source, applies

#: What a worker imports beside the implementations: their versions are the caller's in both arms.
HARNESS_NEEDS = ("torch", "numpy", "pydantic", "PyYAML", "psutil", "packaging", "nvidia-ml-py")
#: What attnbench needs in the calling process alone.
CALLER_NEEDS = frozenset({"typer", "rich", "jinja2", "pandas", "pyarrow", "seaborn", "scipy", OWN})
#: What a source tree holds beside its source.
_NOT_SOURCE = (".git", ".venv*", "venv", "build", "dist", "*.egg-info", "__pycache__", "results", "node_modules")
_MISLEADING = frozenset({"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT"})
_HARNESS_PARTS = ("harness", "reports", "configs")


@dataclass(frozen=True)
class Arm:
    """An interpreter with the code of one arm."""

    python: str
    environment: dict[str, str]
    bounds: Bounds | None
    plugins: tuple[str, ...]
    info: ArmInfo


@dataclass(frozen=True)
class Shared:
    """What both arms see of the caller."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, packages: Iterable[str], *, with_impls: bool) -> Shared:
        """Link the caller's harness, and each package with what it requires. Errors: `OSError`."""
        shared = cls(folder)
        parts = (*_HARNESS_PARTS, "impls") if with_impls else _HARNESS_PARTS
        own = shared.harness / OWN
        own.mkdir(parents=True)
        for part in parts:
            (own / part).symlink_to(_own_folder(part), target_is_directory=True)
        shared.packages.mkdir()
        for name in closure([*HARNESS_NEEDS, *packages]):
            _link(name, shared.packages)
        _link_metadata(importlib.metadata.distribution(OWN), shared.packages)
        return shared

    @property
    def harness(self) -> Path:
        """The folder that holds `attnbench`."""
        return self.folder / "harness"

    @property
    def packages(self) -> Path:
        """The folder that holds torch."""
        return self.folder / "shared"


def make_arm(folder: Path, source: Source, factor: str, shared: Shared, plugins: Sequence[str]) -> Arm:
    """A venv with the arm's code. Errors: `ArmError`, `OSError`."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    python = str(folder / "bin" / "python")
    site = _site_packages(folder)
    (site / "attnbench_gate.pth").write_text(f"{shared.harness}\n{shared.packages}\n")
    if factor == OWN:
        _place_impls(source, site / OWN / "impls")
        _install(python, _own_gaps(source), source)
    elif factor:
        _install(python, [str(_buildable(source, folder / "build"))], source)
    compileall.compile_dir(site, quiet=2)
    placed = tuple(_placed_plugin(each, source, folder / "plugins" / str(at)) for at, each in enumerate(plugins))
    return Arm(
        python, _environment(), Bounds(folder=str(folder), factor=factor), placed,
        ArmInfo(given=source.given, revision=source.revision, factor=factor, digest=_digest(site, placed)),
    )  # fmt: skip


def closure(names: Iterable[str]) -> list[str]:
    """The distributions and all that they require, of those that are installed here."""
    found: dict[str, None] = {}
    todo = [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = None
        todo += [canonicalize_name(each.name) for each in map(Requirement, requires) if applies(each)]
    return list(found)


def _own_folder(part: str) -> Path:
    """Where a part of this attnbench lies."""
    import attnbench  # type: ignore[import-untyped, unused-ignore]

    for root in attnbench.__path__:
        if (Path(root) / part).is_dir():
            return (Path(root) / part).resolve()
    return Path(__file__).resolve().parents[2] / part


def _link(name: str, folder: Path) -> None:
    """Link what a distribution put at the top of its site-packages."""
    distribution = importlib.metadata.distribution(name)
    tops = {
        file.parts[0] for file in distribution.files or () if ".." not in file.parts and file.parts[0] != "__pycache__"
    }
    for top in sorted(tops):
        target = Path(str(distribution.locate_file(top)))
        link = folder / top
        if target.is_dir() and link.exists():
            _merge(target, link)  # a namespace that two distributions share, such as nvidia
        elif not link.exists():
            link.symlink_to(target)


def _merge(target: Path, link: Path) -> None:
    """Both distributions' files of one namespace lie in one folder already, which is linked whole."""
    if link.resolve() != target.resolve():
        raise ArmError(f"{target} and {link.resolve()} are parts of one package in two folders; install them into one")


def _link_metadata(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    """Link a distribution's metadata alone: its version can be told, its code is not there."""
    for file in distribution.files or ():
        if file.name == "METADATA" and file.parts[0].endswith(".dist-info"):
            link = folder / file.parts[0]
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(file.parts[0]))))


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _place_impls(source: Source, target: Path) -> None:
    """The arm's implementations, copied: what is measured does not change while it is."""
    target.parent.mkdir(parents=True)
    if source.is_wheel:
        with zipfile.ZipFile(source.path) as archive:
            members = [name for name in archive.namelist() if name.startswith(f"{OWN}/impls/")]
            archive.extractall(target.parent.parent, members)
    elif (source.path / "impls").is_dir():
        shutil.copytree(source.path / "impls", target, ignore=shutil.ignore_patterns("__pycache__"))
    if not target.is_dir():
        raise ArmError(
            f"{source.given} has no {OWN}.impls: an arm of {OWN} supplies that; or name what differs with --factor"
        )


def _own_gaps(source: Source) -> list[str]:
    """What an arm of attnbench requires that is not shared: another version of what is, or something new."""
    have = {name: importlib.metadata.version(name) for name in closure(HARNESS_NEEDS)}

    def is_met(requirement: Requirement) -> bool:
        version = have.get(canonicalize_name(requirement.name))
        return version is not None and requirement.specifier.contains(version, prereleases=True)

    needed = [each for each in source.requirements if canonicalize_name(each.name) not in CALLER_NEEDS]
    pinned = [each for each in source.pins if canonicalize_name(each.name) in have]
    return [str(each) for each in (*needed, *pinned) if not is_met(each)]


def _environment() -> dict[str, str]:
    """The caller's, without what would show an arm packages of the caller, or have pip install elsewhere."""
    kept = {key: value for key, value in os.environ.items() if key not in _MISLEADING}
    return kept | {"PYTHONNOUSERSITE": "1"}


def _install(python: str, what: Sequence[str], source: Source) -> None:
    """By the caller's pip into the arm; what the shared folder has already is not installed again. Errors: `ArmError`."""
    if not what:
        return
    pins = source.path / "constraints.txt"
    constraints = ["--constraint", str(pins)] if not source.is_wheel and pins.is_file() else []
    command = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run(  # noqa: S603
        [*command, *constraints, *what], env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()[-3:]
        raise ArmError(f"{source.given}: pip could not install {' '.join(what)}: {'; '.join(lines[:3])}")


def _placed_plugin(plugin: str, source: Source, folder: Path) -> str:
    """A plugin's file is the arm's own, copied, since each launch reads it anew. A module's name means one that the arm has."""
    if not plugin.endswith(".py"):
        return plugin
    relative = Path(os.path.relpath(plugin)) if Path(plugin).is_absolute() else Path(plugin)
    file = source.path / relative
    if source.is_wheel or not file.is_file():
        raise ArmError(f"{source.given} has no plugin {plugin}; each arm supplies its own, at the same place")
    folder.mkdir(parents=True)
    return str(shutil.copy(file, folder / file.name))


def _buildable(source: Source, folder: Path) -> Path:
    """A wheel as it is. Of a tree a copy: a build leaves files, and takes those that an earlier one left."""
    if source.is_wheel:
        return source.path
    shutil.copytree(source.path, folder, ignore=shutil.ignore_patterns(*_NOT_SOURCE), symlinks=True)
    if (source.path / ".git").exists():
        (folder / ".git").symlink_to(source.path / ".git")  # versions may be told from it
    return folder


def _digest(site: Path, plugins: Iterable[str]) -> str:
    """Of the files that the arm brought, by name and content."""
    digest = hashlib.sha256()
    own = [path for path in site.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".pth")]
    for path in [*sorted(own), *map(Path, plugins)]:
        if path.name not in ("RECORD", "direct_url.json", "INSTALLER", "REQUESTED"):
            name = path.relative_to(site) if path.is_relative_to(site) else path.name
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
