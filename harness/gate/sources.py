"""What an arm is made of: a folder, a wheel, or a revision of the git repository that the command runs in."""

from __future__ import annotations

import re
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

OWN = "attnbench"


class ArmError(Exception):
    """An arm that cannot be made; the message says what was given, what is allowed and what to do."""


@dataclass(frozen=True)
class Source:
    """A source tree or a wheel. `revision` is a commit, a wheel's version or empty; `name` is the distribution's, empty where
    there is none.
    """

    given: str
    path: Path
    revision: str
    name: str
    requirements: tuple[Requirement, ...]
    pins: tuple[Requirement, ...]

    @property
    def is_wheel(self) -> bool:
        """Whether it is built already."""
        return self.path.suffix == ".whl"


@contextmanager
def opened(given: str, checkout: Path) -> Iterator[Source]:
    """The source while the block lasts; a revision is checked out at `checkout`, which git forgets afterwards.

    Errors: `ArmError`.
    """
    path = Path(given)
    if path.suffix == ".whl" and path.is_file():
        yield _wheel(given, path.resolve())
    elif path.is_dir() and ("/" in given or given.startswith(".") or not _commit(given)):
        yield _tree(given, path.resolve(), "")
    else:
        commit = _commit(given)
        if not commit:
            raise ArmError(_unknown(given))
        with _worktree(commit, checkout) as folder:
            yield _tree(given, folder, commit)


def applies(requirement: Requirement) -> bool:
    """Whether it holds on this platform, without an extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _unknown(given: str) -> str:
    here = _git(["rev-parse", "--show-toplevel"])
    where = f"the git repository {here}" if here else "a git repository, and this folder is in none"
    return f"{given!r} is no folder, no wheel file and no revision of {where}; give one of these"


def _commit(given: str) -> str:
    """The commit that a revision names; empty where it names none."""
    return "" if given.startswith("-") else _git(["rev-parse", "--verify", "--quiet", f"{given}^{{commit}}"])


@contextmanager
def _worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The commit's files, without what the caller's folder has uncommitted; the caller's part of the repository."""
    part = _git(["rev-parse", "--show-prefix"])
    try:
        _git(["worktree", "add", "--detach", "--force", str(folder), commit], must="check out")
        yield folder / part
    finally:
        _git(["worktree", "remove", "--force", str(folder)])


def _git(arguments: Sequence[str], *, must: str = "") -> str:
    """What git prints; empty where it fails. Errors: `ArmError` where it must not fail."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except OSError as error:
        if must:
            raise ArmError(f"git is needed to {must} a revision, and could not be run: {error}") from error
        return ""
    if done.returncode and must:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        raise ArmError(f"git could not {must} {arguments[-1]}: {lines[-1]}")
    return done.stdout.strip() if not done.returncode else ""


def _tree(given: str, folder: Path, revision: str) -> Source:
    project = _project(given, folder)
    return Source(
        given=given, path=folder, revision=revision, name=canonicalize_name(str(project.get("name", ""))),
        requirements=_requirements(project.get("dependencies", ())), pins=_pins(folder / "constraints.txt"),
    )  # fmt: skip


def _project(given: str, folder: Path) -> dict[str, Any]:
    try:
        with (folder / "pyproject.toml").open("rb") as stream:
            project = tomllib.load(stream).get("project", {})
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArmError(f"{given}: its pyproject.toml cannot be read: {error}") from error
    if not isinstance(project, dict):
        raise ArmError(f"{given}: project in its pyproject.toml is no table")
    return project


def _wheel(given: str, path: Path) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            metadata = Parser().parsestr(archive.read(names[0]).decode())
    except (OSError, zipfile.BadZipFile, IndexError, UnicodeDecodeError) as error:
        raise ArmError(f"{given} is no wheel that can be read: {error or 'it has no METADATA'}") from error
    required = _requirements(metadata.get_all("Requires-Dist") or ())
    name, version = metadata.get("Name", ""), metadata.get("Version", "")
    return Source(given, path, f"version {version}", canonicalize_name(name), required, ())


def _requirements(lines: Sequence[str]) -> tuple[Requirement, ...]:
    """Those that hold here without an extra."""
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise ArmError(f"requirement {line!r} cannot be read: {error}") from error
        if applies(requirement):
            found.append(requirement)
    return tuple(found)


def _pins(file: Path) -> tuple[Requirement, ...]:
    """What a constraints file pins; its other lines, and hashes, are pip's to read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    found = []
    for line in lines:
        text = re.split(r"\s*(?:#|\\|--hash)", line.strip())[0]
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if applies(requirement):
            found.append(requirement)
    return tuple(found)
