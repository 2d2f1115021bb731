"""Whether a wrapped package is there, told without importing it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import re
from pathlib import Path


def version(*distributions: str) -> str | None:
    """The installed version of a distribution, or None; of several names the first that is there."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def has_module(name: str) -> bool:
    """Whether a top-level module can be found; never imports it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def has_extension(package: str, stem: str) -> bool:
    """Whether a top-level package's folder holds a compiled extension named `stem`; never imports either."""
    suffixes = (*importlib.machinery.EXTENSION_SUFFIXES, ".so", ".pyd")
    return any(has_file(package, f"{stem}{suffix}") for suffix in suffixes)


def has_file(package: str, path: str) -> bool:
    """Whether a top-level package's folder holds a file; never imports the package."""
    return _find(package, path) is not None


def mentions(package: str, path: str, words: str) -> bool:
    """Whether a file in a top-level package's folder holds these words; never imports the package."""
    found = _find(package, path)
    return found is not None and words in found.read_text(encoding="utf-8", errors="replace")


def extract(package: str, path: str, pattern: str) -> str | None:
    """What the group of a pattern matches in a file of a top-level package's folder; never imports the package."""
    file = _find(package, path)
    match = file and re.search(pattern, file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match[1] if match else None


def _find(package: str, path: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((each for each in (Path(folder) / path for folder in folders) if each.is_file()), None)
