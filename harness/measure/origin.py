"""Where an implementation comes from: in a gate, an arm that fills a gap with the caller's code would compare it with itself."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from ...impls import Implementation, OptionValue, get, load_plugin, names
from .tasks import Bounds


class StrayError(RuntimeError):
    """The code under test lies outside its arm."""


def find(
    name: str, options: Mapping[str, OptionValue], plugins: Sequence[str], *, is_bounded: bool = False
) -> Implementation:
    """The implementation of this name; plugins are loaded until one of them brings it: a plugin touches no other cell.

    In a gate's arm a module is one that the arm has installed; elsewhere the current folder may have it too.
    """
    for plugin in plugins:
        if name in names():
            break
        if is_bounded and not plugin.endswith(".py"):
            importlib.import_module(plugin)
        else:
            load_plugin(plugin)
    return get(name, options)


def origin_of(implementation: Implementation, bounds: Bounds) -> str:
    """The file of the implementation's class. Errors: `StrayError` where it lies outside the arm.

    A wrapper of the caller's is right where it wraps the distribution under test, and that lies inside.
    """
    file = inspect.getfile(type(implementation))
    if _is_inside(file, bounds) or (
        canonicalize_name(implementation.package) == bounds.factor and _is_installed_inside(bounds)
    ):
        return file
    raise StrayError(
        f"{implementation.name} comes from {file}, outside its arm {bounds.folder}: {bounds.factor or 'the arm'} does not "
        "provide it; gate what it provides alone, with --only"
    )


def _is_installed_inside(bounds: Bounds) -> bool:
    try:
        return _is_inside(str(importlib.metadata.distribution(bounds.factor).locate_file("")), bounds)
    except importlib.metadata.PackageNotFoundError:
        return False


def _is_inside(path: str, bounds: Bounds) -> bool:
    return Path(path).resolve().is_relative_to(Path(bounds.folder).resolve())
