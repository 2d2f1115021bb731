"""A sweep as a configuration writes it: implementations, axes, and how they are measured. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic_core import CoreSchema

from ...impls import (
    FULL,
    Dtype,
    Implementation,
    Mask,
    OptionError,
    OptionValue,
    Pass,
    UnknownImplementationError,
    get,
    names,
)
from ..cell import Allocator, Cache
from .errors import shown
from .fields import Axis, Listed, Pair, flag, mask_word, pair, whole, word

_MODEL = ConfigDict(frozen=True, extra="forbid")
_SCALARS = get_args(OptionValue)
_LENGTHS, _HEADS = pair("1/4096"), pair("32/8", shared=True)


class ImplementationEntry(BaseModel):
    """An implementation with options: in YAML a name, or `{name: xformers, operator: cutlass}`."""

    model_config = _MODEL

    name: str
    options: dict[str, OptionValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, given: object) -> object:
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise ValueError(  # noqa: TRY004 - what pydantic collects
                f"{shown(given)} is given; allowed: the name of an implementation, or {{name: ..., option: value}}"
            )
        options = {key: value for key, value in given.items() if key != "name"}
        wrong = [f"{shown(key)} is {shown(value)}" for key, value in options.items() if not isinstance(value, _SCALARS)]
        if wrong:
            raise ValueError(f"option {', '.join(wrong)}; allowed: a string, a number, true or false")
        return {"name": given["name"], "options": options}

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        tolerant = bool((info.context or {}).get("tolerate_unknown"))
        try:
            get(self.name, self.options)
        except UnknownImplementationError as error:
            if not tolerant:
                raise ValueError(str(error)) from None
        except OptionError as error:
            raise ValueError(str(error)) from None
        except Exception:  # noqa: BLE001, S110 - what cannot be imported or made is a result of the run, not a mistake here
            pass
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A name, or a mapping with options; the names of this distribution are offered, others are allowed."""
        value = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean")]}
        own = [name for name in names() if _is_own(name)]
        name: dict[str, Any] = {"anyOf": [{"enum": own}, {"type": "string"}]}
        options = {
            "type": "object",
            "properties": {"name": name},
            "required": ["name"],
            "additionalProperties": value,
        }
        return {"anyOf": [*name["anyOf"], options]}


def _is_own(name: str) -> bool:
    try:
        return type(get(name)).__module__.startswith(f"{Implementation.__module__.rpartition('.')[0]}.")
    except Exception:  # noqa: BLE001 - a foreign implementation may fail in any way, and is not offered
        return False


Entries = Annotated[tuple[ImplementationEntry, ...], Field(min_length=1), Listed()]


class Sweep(BaseModel):
    """A cartesian product of axes; each axis is a value or a list of values."""

    model_config = _MODEL

    batch: Annotated[tuple[int, ...] | None, Axis(whole())] = Field(
        None, description="Sequences of one call; 1 unless this or total_tokens is given."
    )
    total_tokens: Annotated[tuple[int, ...] | None, Axis(whole())] = Field(
        None,
        description="Tokens of one call, in place of batch: batch = total_tokens / seq_len, which must divide evenly.",
    )
    heads: Annotated[tuple[Pair, ...] | None, Axis(_HEADS)] = Field(
        None, description="Attention heads; a pair query/kv such as 32/8 for grouped queries."
    )
    hidden: Annotated[tuple[int, ...] | None, Axis(whole())] = Field(
        None, description="Model width, in place of heads: heads = hidden / head_dim, which must divide evenly."
    )
    seq_len: Annotated[tuple[Pair, ...], Axis(_LENGTHS)] = Field(
        description="Sequence length in tokens; a pair query/kv such as 1/4096 for decoding."
    )
    head_dim: Annotated[tuple[int, ...], Axis(whole())] = Field(
        description="Elements of one head's query, key and value."
    )
    dtype: Annotated[tuple[Dtype, ...], Axis(word(*get_args(Dtype)))] = Field(("float32",), description="Element type.")
    mask: Annotated[tuple[Mask, ...], Axis(mask_word())] = Field(
        (FULL,),
        description="Which keys a query sees; causal is aligned bottom-right.",
        json_schema_extra={"default": "full"},
    )
    passes: Annotated[tuple[Pass, ...], Axis(word(*get_args(Pass)))] = Field(
        ("forward",), alias="pass", description="What is timed; backward times the gradients alone."
    )
    cache: Annotated[tuple[Cache, ...], Axis(word(*get_args(Cache)))] = Field(
        ("warm",), description="cold clears the GPU's cache before each sample; on a CPU warm only."
    )
    cuda_graph: Annotated[tuple[bool, ...], Axis(flag())] = Field(
        (False,), description="true replays a captured CUDA graph; on a CPU false only."
    )
    allocator: Annotated[tuple[Allocator, ...] | None, Axis(word(*get_args(Allocator)))] = Field(
        None, description="glibc's thresholds, in place of the protocol's."
    )
    implementations: Entries | None = Field(
        None, description="The implementations of this sweep, in place of the top level's."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        mistakes = []
        if self.batch and self.total_tokens:
            mistakes.append("batch and total_tokens are both given; allowed: one of them")
        if self.heads and self.hidden:
            mistakes.append("heads and hidden are both given; allowed: one of them")
        if not self.heads and not self.hidden:
            mistakes.append("heads must be given, or hidden (heads = hidden / head_dim)")
        uneven = [str(length) for length in self.seq_len if length.query != length.key]
        if self.total_tokens and uneven:
            mistakes.append(f"total_tokens is given with seq_len {', '.join(uneven)}; a pair needs batch instead")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self
