"""Which cells an entry of a configuration speaks of: values and comparisons that a cell is held against."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ...impls import Dtype, Pass, names, near
from ..cell import Allocator, Cell
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


def equals(values: Reader) -> Reader:
    """A value of an axis, as a test."""

    def accept(given: Any) -> Test | None:
        value = values.accept(given)
        return None if value is None else Test(value)

    return Reader(accept, values.allowed, values.json_schema, values.words)


def _comparable(sizes: Reader) -> Reader:
    """A size of an axis, or a comparison with a whole number."""
    values = equals(sizes)

    def accept(given: Any) -> Test | None:
        match = _COMPARISON.fullmatch(given) if isinstance(given, str) else None
        if match is None:
            value: Test | None = values.accept(given)
            return value
        return Test(int(match[2]), match[1]) if int(match[2]) <= MOST_WHOLE else None

    schema = {"anyOf": [sizes.json_schema, {"type": "string", "pattern": f"^{_COMPARISON.pattern}$"}]}
    return Reader(accept, f"{sizes.allowed}, or a comparison such as '>4096'", schema)


_SIZES = _comparable(whole())
Tests = tuple[Test, ...] | None


class Where(BaseModel):
    """The cells for which all keys of this entry hold; a list holds if one of its values does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    implementation: Annotated[Tests, Axis(equals(text(".+", "the name of an implementation")))] = Field(
        None, description="Name of an implementation, or a list of them; with any options."
    )
    batch: Annotated[Tests, Axis(_SIZES)] = Field(None, description="Batch sizes, or comparisons such as '>8'.")
    heads: Annotated[Tests, Axis(_comparable(pair("32/8", shared=True)))] = Field(
        None, description="Heads, a pair query/kv, or a comparison, which holds if either side of a pair does."
    )
    seq_len: Annotated[Tests, Axis(_comparable(pair("1/4096")))] = Field(
        None, description="Lengths, a pair query/kv, or a comparison, which holds if either side of a pair does."
    )
    head_dim: Annotated[Tests, Axis(_SIZES)] = Field(None, description="Head dimensions, or comparisons.")
    dtype: Annotated[Tests, Axis(equals(word(*get_args(Dtype))))] = Field(None, description="Element types.")
    mask: Annotated[Tests, Axis(equals(mask_word()))] = Field(None, description="Masks.")
    passes: Annotated[Tests, Axis(equals(word(*get_args(Pass))))] = Field(None, alias="pass", description="Passes.")
    allocator: Annotated[Tests, Axis(equals(word(*get_args(Allocator))))] = Field(None, description="Allocators.")

    @field_validator("implementation")
    @classmethod
    def _known(cls, tests: Tests, info: ValidationInfo) -> Tests:
        known = names()
        tolerant = bool((info.context or {}).get("tolerate_unknown"))
        for test in () if tolerant else tests or ():
            if test.value not in known:
                raise ValueError(
                    f"unknown implementation {shown(test.value)}; known: {', '.join(known)}{near(test.value, known)}"
                )
        return tests

    @cached_property
    def tests(self) -> dict[str, tuple[Test, ...]]:
        """The tests of each key that is given."""
        given = {field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items()}
        return {key: tests for key, tests in given.items() if isinstance(tests, tuple)}

    def matches(self, values: Mapping[str, Any]) -> bool:
        """Whether this entry speaks of a cell, given the cell's value of every key."""
        return all(any(test.holds(values[key]) for test in tests) for key, tests in self.tests.items())

    def __str__(self) -> str:
        return f"{{{', '.join(f'{key}: {_listing(tests)}' for key, tests in self.tests.items())}}}"


def values_of(cell: Cell) -> dict[str, Any]:
    """A cell's value of every key that an entry may test."""
    problem = cell.problem
    return {
        "implementation": cell.implementation,
        "batch": problem.batch,
        "heads": Pair(problem.heads_q, problem.heads_kv),
        "seq_len": Pair(problem.seq_q, problem.seq_kv),
        "head_dim": problem.head_dim,
        "dtype": problem.dtype,
        "mask": problem.mask,
        "pass": cell.passes,
        "allocator": cell.conditions.allocator,
    }


def _listing(tests: tuple[Test, ...]) -> str:
    return str(tests[0]) if len(tests) == 1 else f"[{', '.join(map(str, tests))}]"
