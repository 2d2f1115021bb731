"""A configuration: what is swept, what is left out, and how it is measured, read from YAML and checked.

`load_config` is the way in. Every mistake of a file is told at once, with its line, in a `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from .document import read
from .errors import ConfigError, ConfigFileError, KeyPath, Places, config_error, mistakes_of
from .exclude import Exclude
from .fields import Listed, text
from .goals import Figure, Goal, Published
from .overrides import apply_settings, restrict
from .protocol import Protocol
from .shipped import read_source, shipped_names
from .sweep import Entries, ImplementationEntry, Sweep
from .where import Where, values_of

__all__ = [
    "ConfigError",
    "ConfigFileError",
    "Exclude",
    "Figure",
    "Goal",
    "ImplementationEntry",
    "LoadedConfig",
    "Protocol",
    "Published",
    "Sweep",
    "SweepConfig",
    "Where",
    "config_schema",
    "load_config",
    "load_stored",
    "shipped_names",
    "values_of",
]

_NAME = text(
    "[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_' and '-', at most 64, since it names a folder"
)
_DEVICE = text("auto|cpu|cuda|cuda:[0-9]{1,3}", "auto, cpu, cuda, cuda:N", "auto", "cpu", "cuda")


class SweepConfig(BaseModel):
    """A configuration of attnbench: sweeps over attention problems."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, _NAME] = Field(description="Names the run and its folder.")
    device: Annotated[str, _DEVICE] = Field("auto", description="auto takes a GPU that torch can use, else the CPU.")
    implementations: Entries = Field((), description="What is compared; `attnbench list` shows what there is.")
    sweeps: Annotated[tuple[Sweep, ...], Field(min_length=1), Listed()] = Field(
        description="Each is a cartesian product of its axes; equal cells of two sweeps are one."
    )
    exclude: Annotated[tuple[Exclude, ...], Listed()] = Field(
        (), description="Cells that are left out: those for which all keys of an entry hold."
    )
    protocol: Protocol = Field(Protocol(), description="How every cell is measured.")
    goals: Annotated[tuple[Goal, ...], Listed()] = Field((), description="What is promised of the results.")
    published: Published | None = Field(None, description="Published figures to show beside the results.")

    _places: Places = PrivateAttr(default=Places("the configuration"))

    @model_validator(mode="after")
    def _implementations_everywhere(self) -> Self:
        without = [str(index) for index, sweep in enumerate(self.sweeps) if not sweep.implementations]
        if without and not self.implementations:
            raise ValueError(f"implementations must be given: sweeps {', '.join(without)} name none of their own")
        return self

    def mistake(self, path: KeyPath, words: str) -> str:
        """A line of a `ConfigError`, with the place in which a key of this configuration was written."""
        return self._places.mistake(path, words)


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration with what a run stores of it: source, text, the changes made, and the data that was checked."""

    config: SweepConfig
    source: str
    text: str
    overrides: tuple[str, ...]
    data: dict[str, Any]


def load_config(
    source: str, *, overrides: Sequence[str] = (), only: Sequence[str] = (), tolerate_unknown: bool = False
) -> LoadedConfig:
    """Read a file, or a shipped configuration by its name, and check it.

    `overrides` are `KEY=VALUE`, `only` names of implementations; both change the data before it is checked.
    `tolerate_unknown` leaves names of unknown implementations in place: a plugin that should bring them has failed.
    Errors: `ConfigError` with every mistake, `ConfigFileError` for a file that cannot be read.
    """
    raw, file = read_source(source)
    document = read(raw, file)
    data, places = apply_settings(document.data, document.places, overrides)
    data, places = restrict(data, places, only)
    config = _checked(data, places, tolerate_unknown)
    changes = (*(f"--set {each}" for each in overrides), *([f"--only {','.join(only)}"] if only else []))
    return LoadedConfig(config, source, document.text, changes, data)


def load_stored(data: Mapping[str, Any], *, tolerate_unknown: bool = False) -> SweepConfig:
    """Check the data of a stored run again. Errors: `ConfigError`."""
    return _checked(data, Places("run.json"), tolerate_unknown)


def config_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration, for editors."""
    schema = SweepConfig.model_json_schema()
    _tidy(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "attnbench configuration"}


def _checked(data: Mapping[str, Any], places: Places, tolerate_unknown: bool) -> SweepConfig:
    try:
        config = SweepConfig.model_validate(data, context={"tolerate_unknown": tolerate_unknown})
    except ValidationError as error:
        keys = {
            section: [field.alias or name for name, field in model.model_fields.items()]
            for section, model in _SECTIONS.items()
        }
        raise config_error(mistakes_of(error.errors(), data, places, keys)) from None
    config._places = places  # noqa: SLF001 - set once, here, by the only maker of configurations from files
    return config


_SECTIONS: dict[str, type[BaseModel]] = {
    "": SweepConfig,
    "sweeps": Sweep,
    "exclude": Exclude,
    "protocol": Protocol,
    "goals": Goal,
    "published": Published,
    "where": Where,
    "figures": Figure,
}


def _tidy(schema: Any) -> None:
    """Leave out what editors would show without use: titles made of keys, and null for keys that are not given."""
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _tidy(part)
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        if schema.get("default", ...) is None:
            del schema["default"]
