"""Whether a wrapped package is there, told without importing it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
from pathlib import Path


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_module(name: str) -> bool:
    """Whether a top-level module can be found; never imports it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def has_extension(package: str, stem: str) -> bool:
    """Whether a top-level package's folder holds a compiled extension named `stem`; never imports either."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    folders = (spec.submodule_search_locations or []) if spec else []
    suffixes = (*importlib.machinery.EXTENSION_SUFFIXES, ".so", ".pyd")
    return any((Path(folder) / f"{stem}{suffix}").exists() for folder in folders for suffix in suffixes)
