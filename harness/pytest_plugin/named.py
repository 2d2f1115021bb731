"""The YAML files that the command line names, and which of them are sweep configurations."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

_SUFFIXES = (".yaml", ".yml")
#: How the key is found in a file that is no YAML after it: the reader of configurations says what is wrong.
_KEY = re.compile(rb"""^["']?sweeps["']?\s*:""", re.MULTILINE)


def files(config: pytest.Config) -> tuple[Path, ...]:
    """The YAML files among the arguments, as pytest writes their paths; none of `testpaths`, where nobody named them."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return ()
    folder = config.invocation_params.dir
    paths = (argument.partition("[")[0].partition("::")[0] for argument in config.args)
    found = (Path(os.path.abspath(folder / path)) for path in paths if path.endswith(_SUFFIXES))  # noqa: PTH100 - links stay
    return tuple(dict.fromkeys(found))


def is_sweep(file: Path) -> bool:
    """Whether a file's top level is a mapping with the key `sweeps`."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    try:
        return "sweeps" in _top_keys(content)
    except (yaml.YAMLError, ValueError):
        return _KEY.search(content) is not None


def shown(file: Path, config: pytest.Config) -> str:
    """A file as messages name it: relative to where pytest was started."""
    try:
        return os.path.relpath(file, config.invocation_params.dir)
    except ValueError:  # another drive
        return str(file)


def _top_keys(content: bytes) -> set[str]:
    """The keys of the first document's top level; what is below is parsed, not built."""
    keys, depth, is_key = set(), 0, True
    for event in yaml.parse(content, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            is_key = not is_key if depth == 1 else is_key
        elif isinstance(event, yaml.NodeEvent):
            if depth == 0 and not isinstance(event, yaml.MappingStartEvent):
                return set()
            if depth == 1:
                if is_key and isinstance(event, yaml.ScalarEvent):
                    keys.add(event.value)
                if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                    is_key = not is_key
            depth += isinstance(event, yaml.CollectionStartEvent)
        elif isinstance(event, yaml.DocumentEndEvent):
            break
    return keys
