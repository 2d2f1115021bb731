"""A new distribution with one implementation: templates, and what fills them in."""

from __future__ import annotations

import importlib.resources
import keyword
import re
import shutil
from pathlib import Path
from string import Template

from ...impls import names
from ..store import StoreError

#: Each file of the distribution, its own name a template too, and what it is made of.
_FILES = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    "$module.py": "implementation.py.template",
    "test_$name.py": "test.py.template",
}
_ALLOWED = "lower-case letters and digits, in words joined by single underscores, beginning with a letter"
#: A folder's and a module's name are made of it, and file systems end at 255.
_MOST_CHARACTERS = 64


class PluginNameError(ValueError):
    """A name that no plugin can have here, or a folder that is there already; the message says what to do."""


def write_plugin(name: str, out: Path) -> Path:
    """Write the distribution into a new folder under `out`; the folder. Errors: `PluginNameError`, `StoreError`."""
    _refuse(name)
    words = _words(name)
    folder = out / words["distribution"]
    if folder.exists():
        raise PluginNameError(f"{folder} is there already; allowed: a folder that is not; give another name or --out")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}") from error
    try:
        for file, template in _FILES.items():
            text = (importlib.resources.files(__package__) / template).read_text(encoding="utf-8")
            (folder / Template(file).substitute(words)).write_text(Template(text).substitute(words), encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StoreError(f"cannot write {folder}: {error.strerror}") from error
    return folder


def _refuse(name: str) -> None:
    if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > _MOST_CHARACTERS:
        raise PluginNameError(
            f"{name!r} cannot name an implementation; allowed: {_ALLOWED}, "
            f"at most {_MOST_CHARACTERS}; write such as my_kernel"
        )
    if keyword.iskeyword(name):
        raise PluginNameError(f"{name!r} is a word of Python's own; allowed: any other; write such as my_{name}")
    if name in names():
        raise PluginNameError(
            f"{name!r} is an implementation already; allowed: a name that is not registered; "
            f"write such as my_{name}; registered: {', '.join(names())}"
        )


def _words(name: str) -> dict[str, str]:
    return {
        "name": name,
        "module": f"attnbench_{name}",
        "distribution": f"attnbench-{name.replace('_', '-')}",
        "class_name": "".join(word.capitalize() for word in name.split("_")) + "Attention",
    }
