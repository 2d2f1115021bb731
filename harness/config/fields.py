"""The values that a configuration may hold: how each is read, what is said of a wrong one, and its JSON Schema."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ...impls import CAUSAL, FULL, Mask, near
from .errors import shown

#: No axis of an attention problem is longer; it bounds the arithmetic of a plan.
MOST_WHOLE = 2**31 - 1
_MASKS: dict[str, Mask] = {"full": FULL, "causal": CAUSAL}
_PAIR = re.compile(r"([1-9][0-9]{0,9})/([1-9][0-9]{0,9})")


@dataclass(frozen=True)
class Pair:
    """A size of the query side and of the key/value side: heads, or sequence lengths. `32/8` in YAML."""

    query: int
    key: int

    def __str__(self) -> str:
        return str(self.query) if self.query == self.key else f"{self.query}/{self.key}"


@dataclass(frozen=True)
class Reader:
    """Annotates a field with how one value is read. `accept` returns it, or None for one that is not allowed."""

    accept: Callable[[Any], Any]
    allowed: str
    json_schema: dict[str, Any]
    #: Words that a misspelt one is compared with.
    words: tuple[str, ...] = ()

    def read(self, given: Any) -> Any:
        """The value read. Errors: `ValueError` with what was given, what is allowed and a near match."""
        value = self.accept(given)
        if value is None:
            hint = near(given, self.words) if isinstance(given, str) else ""
            raise ValueError(f"{shown(given)} is given; allowed: {self.allowed}{hint}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """One validator in place of pydantic's own: its text is the message."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The part of the JSON Schema that editors read."""
        return self.json_schema


@dataclass(frozen=True)
class Axis:
    """Annotates a field that holds a tuple of values; in YAML a list, or a scalar for a list of one."""

    reader: Reader

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Each value by the reader, so that an error names the index of its entry."""
        item = core_schema.no_info_plain_validator_function(self.reader.read)
        return core_schema.no_info_before_validator_function(
            listed, core_schema.tuple_variable_schema(item, min_length=1)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A value or a list of them."""
        return value_or_list(self.reader.json_schema)


@dataclass(frozen=True)
class Listed:
    """Annotates a field that holds a tuple of models; in YAML a list, or one mapping for a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A tuple first, then pydantic's own reading of its entries."""
        return core_schema.no_info_before_validator_function(listed, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """An entry or a list of them."""
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


def listed(given: Any) -> tuple[Any, ...]:
    """A scalar is a list of one."""
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def value_or_list(item: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a value or a list of them that is not empty."""
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


def whole(least: int = 1, most: int = MOST_WHOLE) -> Reader:
    """An integer between two bounds; no boolean, string or fraction."""

    def accept(given: Any) -> int | None:
        return given if type(given) is int and least <= given <= most else None

    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Reader(accept, f"a whole number from {least} to {most}", schema)


def number(most: float, unit: str = "") -> Reader:
    """A finite number above 0."""

    def accept(given: Any) -> float | None:
        fits = type(given) in {int, float} and math.isfinite(given) and 0 < given <= most
        return float(given) if fits else None

    schema = {"type": "number", "exclusiveMinimum": 0, "maximum": most}
    return Reader(accept, f"a number above 0 and at most {most:g}{unit and f' {unit}'}", schema)


def flag() -> Reader:
    """YAML's own booleans, true and false."""
    return Reader(lambda given: given if type(given) is bool else None, "true or false", {"type": "boolean"})


def word(*words: str) -> Reader:
    """One of some words."""
    return Reader(_one_of(words), ", ".join(words), {"enum": list(words)}, words)


def text(pattern: str, allowed: str, *words: str) -> Reader:
    """A string of a pattern."""

    def accept(given: Any) -> str | None:
        return given if isinstance(given, str) and re.fullmatch(pattern, given) else None

    return Reader(accept, allowed, {"type": "string", "pattern": f"^({pattern})$"}, words)


def either(first: Reader, second: Reader) -> Reader:
    """What one of two readers takes. Neither may read a value as false or 0 that the other means differently."""

    def accept(given: Any) -> Any:
        value = first.accept(given)
        return second.accept(given) if value is None else value

    schema = {"anyOf": [first.json_schema, second.json_schema]}
    return Reader(accept, f"{first.allowed}, or {second.allowed}", schema, first.words + second.words)


def mask_word() -> Reader:
    """A mask that has no parameters, by its word."""

    def accept(given: Any) -> Mask | None:
        return _MASKS.get(given) if isinstance(given, str) else None

    return Reader(accept, ", ".join(_MASKS), {"enum": list(_MASKS)}, tuple(_MASKS))


def pair(example: str, *, shared: bool = False) -> Reader:
    """A whole number for both sides, or `query/kv`. `shared`: the query side must be a multiple of the other."""

    def accept(given: Any) -> Pair | None:
        sides = _sides(given)
        if sides is None or max(sides.query, sides.key) > MOST_WHOLE or (shared and sides.query % sides.key):
            return None
        return sides

    rule = ", query a multiple of kv" if shared else ""
    schema = {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": MOST_WHOLE},
            {"type": "string", "pattern": f"^{_PAIR.pattern}$"},
        ]
    }
    return Reader(accept, f"a whole number from 1, or a pair query/kv such as {example}{rule}", schema)


def _sides(given: Any) -> Pair | None:
    if type(given) is int:
        return Pair(given, given) if given >= 1 else None
    match = _PAIR.fullmatch(given) if isinstance(given, str) else None
    return Pair(int(match[1]), int(match[2])) if match else None


def _one_of(words: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda given: given if isinstance(given, str) and given in words else None
