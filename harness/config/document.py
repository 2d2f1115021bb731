"""A YAML document as plain data, with the line of every key. Nothing in a document can name code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml.composer import ComposerError

from .errors import ConfigError, KeyPath, Places, config_error, dotted, shown
from .scalar import CORE, PLAIN, scalar, unknown_tag

Data: TypeAlias = "str | int | float | bool | list[Data] | dict[str, Data] | None"

MOST_BYTES = 1_000_000
#: Values of a document, those that aliases repeat included.
MOST_NODES = 200_000
MOST_DEPTH = 50
_EXPECTED = "allowed: a mapping with the keys name, implementations and sweeps"


@dataclass(frozen=True)
class Document:
    """The data of a file, its text, and the places of its keys."""

    data: dict[str, Data]
    text: str
    places: Places

    def line(self, path: KeyPath) -> int:
        """The line, from 1, in which a key or list entry stands. Errors: `KeyError` for a path that is not there."""
        return self.places.lines[path]


def read(raw: bytes, source: str) -> Document:
    """A file's bytes as a document; `source` is the file's name in messages. Errors: `ConfigError`."""
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"{source}: larger than {MOST_BYTES:,} bytes; a configuration is a short YAML file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{source}:{line}: not UTF-8 text; save the file as UTF-8") from error
    data, lines = _load(text, lambda line: f"{source}:{line}")
    if not isinstance(data, dict):
        what = "the file is empty" if data is None else f"the file holds {shown(data)}"
        raise ConfigError(f"{source}:{lines.get((), 1)}: {what}; {_EXPECTED}")
    return Document(data, text, Places(source, lines))


def read_value(text: str, argument: str) -> Data:
    """One value as YAML writes it, such as `[128, 256]`; `argument` is what it came from. Errors: `ConfigError`."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{argument}: larger than {MOST_BYTES:,} characters")
    return _load(text, lambda _line: argument)[0]


def _load(text: str, place: Callable[[int], str]) -> tuple[Data, dict[KeyPath, int]]:
    """The data of a text, and the line of every key. Errors: `ConfigError`, for all that can be told at once."""
    try:
        node = _Composer(text).get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, text, place)) from error
    except (ValueError, OverflowError) as error:  # PyYAML: escapes beyond Unicode, endless version numbers
        raise ConfigError(f"{place(1)}: not valid YAML: {error}") from error
    builder = _Builder(place)
    data = builder.build(node, ()) if node is not None else None
    if builder.mistakes:
        raise config_error(builder.mistakes)
    return data, builder.lines


def _not_yaml(error: yaml.YAMLError, text: str, place: Callable[[int], str]) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        return f"{place(mark.line + 1 if mark else 1)}: not valid YAML: {words}; check indentation, brackets and quotes"
    position = getattr(error, "position", 0)
    line = text.count("\n", 0, position) + 1
    return f"{place(line)}: YAML does not allow the character {text[position : position + 1]!a}; remove it"


class _Composer(yaml.SafeLoader):
    """PyYAML's parser without its ideas of what plain scalars mean, and with a bound on depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node and all below it. Errors: `ComposerError` for more than `MOST_DEPTH` levels."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ComposerError(None, None, f"nested deeper than {MOST_DEPTH} levels", self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """The tag of a node that has none: an unquoted scalar is told apart from a quoted one."""
        if kind is yaml.ScalarNode:
            return PLAIN if implicit[0] else f"{CORE}str"
        return f"{CORE}seq" if kind is yaml.SequenceNode else f"{CORE}map"


@dataclass
class _Builder:
    """Makes data of nodes; an alias is built anew each time and counts each time, so that bombs stay small."""

    place: Callable[[int], str]
    mistakes: list[str] = field(default_factory=list)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    open_nodes: set[int] = field(default_factory=set)
    count: int = 0

    def build(self, node: yaml.Node, path: KeyPath, line: int | None = None) -> Data:
        """The data of a node; `line` is that of its key. Errors: `ConfigError` for what has no end."""
        line = self.lines[path] = line or node.start_mark.line + 1
        self.count += 1
        if self.count > MOST_NODES:
            raise ConfigError(
                self._words(path, line, f"more than {MOST_NODES:,} values, aliases filled in; shorten it")
            )
        if len(path) > MOST_DEPTH:
            raise ConfigError(self._words(path, line, f"nested deeper than {MOST_DEPTH} levels, aliases filled in"))
        if id(node) in self.open_nodes:
            raise ConfigError(self._words(path, line, "an alias that contains itself; write the value out"))
        self.open_nodes.add(id(node))
        data = self._maker(node)(node, path)
        self.open_nodes.discard(id(node))
        return data

    def _maker(self, node: yaml.Node) -> Callable[[Any, KeyPath], Data]:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar
        if node.tag == f"{CORE}seq" and isinstance(node, yaml.SequenceNode):
            return self._sequence
        if node.tag == f"{CORE}map" and isinstance(node, yaml.MappingNode):
            return self._mapping
        return self._refused

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Data:
        try:
            return scalar(node.tag, node.value)
        except ValueError as error:
            self._note(path, self.lines[path], str(error))
            return None

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> Data:
        return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> Data:
        data: dict[str, Data] = {}
        for key_node, value_node in node.value:
            key, line = self._key(key_node, path), key_node.start_mark.line + 1
            if key in data:
                first = self.lines[*path, key]
                self._note((*path, key), line, f"the key is given twice, first in line {first}; remove one of them")
            elif key is not None:
                data[key] = self.build(value_node, (*path, key), line)
        return data

    def _refused(self, node: yaml.Node, path: KeyPath) -> Data:
        self._note(path, self.lines[path], unknown_tag(node.tag))
        return None

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        try:
            return _word(node)
        except ValueError as error:
            self._note(path, node.start_mark.line + 1, str(error))
            return None

    def _note(self, path: KeyPath, line: int, words: str) -> None:
        self.mistakes.append(self._words(path, line, words))

    def _words(self, path: KeyPath, line: int, words: str) -> str:
        return ": ".join(part for part in (self.place(line), dotted(path), words) if part)


def _word(node: yaml.Node) -> str:
    """A mapping's key. Errors: `ValueError` in words for a message."""
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("a list or mapping stands as a key; allowed: words")  # noqa: TRY004 - words for a message
    if node.tag == PLAIN and node.value == "<<":
        raise ValueError("merge keys (<<) are not supported; write the keys out")
    key = scalar(node.tag, node.value)
    if not isinstance(key, str):
        raise ValueError(f"the key {shown(key)} is no word; put it in quotes if it is meant as one")  # noqa: TRY004
    return key
