"""What a configuration leaves out of its sweeps: values and comparisons that a cell is held against."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ...impls import Dtype, Pass, names, near
from .errors import shown
from .fields import MOST_WHOLE, Axis, Pair, Reader, mask_word, pair, text, whole, word

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_COMPARISON = re.compile(r"(<=|>=|!=|<|>) *([0-9]{1,10})")


@dataclass(frozen=True)
class Test:
    """One value or comparison; `operator` is empty for a value."""

    value: Any
    operator: str = ""

    def holds(self, value: Any) -> bool:
        """Whether a cell's value passes. A comparison holds if either side of a pair does."""
        if not self.operator:
            return bool(value == self.value)
        sides = (value.query, value.key) if isinstance(value, Pair) else (value,)
        return any(_OPERATORS[self.operator](side, self.value) for side in sides)

    def __str__(self) -> str:
        return f"{self.operator}{self.value}"


def _test(values: Reader) -> Reader:
    """A value of an axis."""

    def accept(given: Any) -> Test | None:
        value = values.accept(given)
        return None if value is None else Test(value)

    return Reader(accept, values.allowed, values.json_schema, values.words)


def _comparable(sizes: Reader) -> Reader:
    """A size of an axis, or a comparison with a whole number."""
    values = _test(sizes)

    def accept(given: Any) -> Test | None:
        match = _COMPARISON.fullmatch(given) if isinstance(given, str) else None
        if match is None:
            value: Test | None = values.accept(given)
            return value
        return Test(int(match[2]), match[1]) if int(match[2]) <= MOST_WHOLE else None

    schema = {"anyOf": [sizes.json_schema, {"type": "string", "pattern": f"^{_COMPARISON.pattern}$"}]}
    return Reader(accept, f"{sizes.allowed}, or a comparison such as '>4096'", schema)


_SIZES = _comparable(whole())
_Tests = tuple[Test, ...] | None


class Exclude(BaseModel):
    """Leaves out the cells for which all keys of this entry hold; a list holds if one of its values does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    implementation: Annotated[_Tests, Axis(_test(text(".+", "the name of an implementation")))] = Field(
        None, description="Name of an implementation, or a list of them; with any options."
    )
    batch: Annotated[_Tests, Axis(_SIZES)] = Field(None, description="Batch sizes, or comparisons such as '>8'.")
    heads: Annotated[_Tests, Axis(_comparable(pair("32/8", shared=True)))] = Field(
        None, description="Heads, a pair query/kv, or a comparison, which holds if either side of a pair does."
    )
    seq_len: Annotated[_Tests, Axis(_comparable(pair("1/4096")))] = Field(
        None, description="Lengths, a pair query/kv, or a comparison, which holds if either side of a pair does."
    )
    head_dim: Annotated[_Tests, Axis(_SIZES)] = Field(None, description="Head dimensions, or comparisons.")
    dtype: Annotated[_Tests, Axis(_test(word(*get_args(Dtype))))] = Field(None, description="Element types.")
    mask: Annotated[_Tests, Axis(_test(mask_word()))] = Field(None, description="Masks.")
    passes: Annotated[_Tests, Axis(_test(word(*get_args(Pass))))] = Field(None, alias="pass", description="Passes.")

    @field_validator("implementation")
    @classmethod
    def _known(cls, tests: _Tests, info: ValidationInfo) -> _Tests:
        known = names()
        tolerant = bool((info.context or {}).get("tolerate_unknown"))
        for test in () if tolerant else tests or ():
            if test.value not in known:
                raise ValueError(
                    f"unknown implementation {shown(test.value)}; known: {', '.join(known)}{near(test.value, known)}"
                )
        return tests

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.tests:
            raise ValueError("an entry without keys would leave out every cell; name at least one key")
        return self

    @cached_property
    def tests(self) -> dict[str, tuple[Test, ...]]:
        """The tests of each key that is given."""
        given = {field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items()}
        return {key: tests for key, tests in given.items() if tests is not None}

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Whether this entry leaves out a cell, given the cell's value of every key."""
        return all(any(test.holds(values[key]) for test in tests) for key, tests in self.tests.items())

    def __str__(self) -> str:
        return f"{{{', '.join(f'{key}: {_listing(tests)}' for key, tests in self.tests.items())}}}"


def _listing(tests: tuple[Test, ...]) -> str:
    return str(tests[0]) if len(tests) == 1 else f"[{', '.join(map(str, tests))}]"
