"""The registry of implementations: in-repo modules, entry points of other distributions, and named plugin modules."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from .api import Implementation, OptionValue

ENTRY_POINT_GROUP = "attnbench.impls"
ImplementationType = TypeVar("ImplementationType", bound=type[Implementation])

_classes: dict[str, type[Implementation]] = {}
_broken: dict[str, str] = {}
_discovered = False


class UnknownImplementationError(LookupError):
    """No implementation of that name; the message names near matches and all known names."""


class OptionError(ValueError):
    """An option that the implementation does not have, or a value that it does not take."""


class BrokenImplementationError(ImportError):
    """The implementation is announced by a distribution or plugin, but importing it failed."""


def register(cls: ImplementationType) -> ImplementationType:
    """Make an implementation known by its name; also a decorator. A second class of the same name is an error."""
    known = _classes.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"implementation {cls.name!r} is registered twice: {_where(known)} and {_where(cls)}")
    _classes[cls.name] = cls
    return cls


def names() -> tuple[str, ...]:
    """All known names, sorted; those whose import failed included."""
    _discover()
    return tuple(sorted({*_classes, *_broken}))


def get(name: str, options: Mapping[str, OptionValue] | None = None) -> Implementation:
    """A new instance of the implementation `name` with its options.

    Errors: `UnknownImplementationError`, `BrokenImplementationError`, `OptionError`.
    """
    _discover()
    if name in _classes:
        cls = _classes[name]
        _check_options(cls, options or {})
        return cls(**(options or {}))
    if name in _broken:
        raise BrokenImplementationError(f"implementation {name!r} could not be imported: {_broken[name]}")
    raise UnknownImplementationError(f"unknown implementation {name!r}{choices(name, names(), 'known')}")


def load_plugin(module: str) -> None:
    """Import a plugin: a module name, or a path that ends in `.py`. Its `@register` lines do the rest.

    Errors: whatever the import raises.
    """
    if not module.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        importlib.import_module(module)
        return
    path = Path(module).resolve()
    # Files of one name in two folders are two plugins.
    name = f"attnbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {module}")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known word is close, else nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def choices(word: str, known: Iterable[str], title: str) -> str:
    """`; did you mean 'x'? title: x, y` where a known word is close, else `; title: x, y`."""
    hint = near(word, known)
    return f"{hint or ';'} {title}: {', '.join(known) or 'none'}"


def _discover() -> None:
    global _discovered  # noqa: PLW0603 - the registry is the one global
    if _discovered:
        return
    _discovered = True
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
            if isinstance(loaded, type) and issubclass(loaded, Implementation):
                register(loaded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - another distribution's import may fail in any way, SystemExit included
            _broken[entry.name] = f"entry point {entry.value}: {type(error).__name__}: {error}"


def _check_options(cls: type[Implementation], options: Mapping[str, OptionValue]) -> None:
    for key, value in options.items():
        if key not in cls.options:
            raise OptionError(f"{cls.name} has no option {key!r}{choices(key, cls.options, 'options')}")
        if not cls.options[key].accepts(value):
            raise OptionError(f"{cls.name}: option {key} is {value!r}; allowed: {cls.options[key].words}")


def _where(cls: type[Implementation]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
