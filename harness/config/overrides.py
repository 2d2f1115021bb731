"""Changes to a configuration before it is checked: `--set KEY=VALUE` and `--only NAME,...` of the command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from .document import Data, read_value
from .errors import ConfigError, KeyPath, Places, config_error, dotted, shown


def apply_settings(data: dict[str, Data], places: Places, settings: Sequence[str]) -> tuple[dict[str, Data], Places]:
    """The data with each `KEY=VALUE` set in order (`KEY=` removes), and its places. Errors: `ConfigError`."""
    data = copy.deepcopy(data)
    mistakes = []
    for setting in settings:
        argument = _argument("--set", setting)
        try:
            places = places.replaced(_set(data, setting, argument), argument)
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise config_error(mistakes)
    return data, places


def restrict(data: dict[str, Data], places: Places, only: Sequence[str]) -> tuple[dict[str, Data], Places]:
    """The data with exactly these implementations, also in each sweep that names its own; options are kept."""
    if not only:
        return data, places
    argument = _argument("--only", ",".join(only))
    top = _entries(data.get("implementations"))
    restricted: dict[str, Data] = data | {"implementations": _restricted(top, only)}
    places = places.replaced(("implementations",), argument)
    sweeps = _entries(data.get("sweeps"))
    for index, sweep in enumerate(sweeps):
        if isinstance(sweep, dict) and "implementations" in sweep:
            own = _entries(sweep["implementations"])
            sweeps[index] = sweep | {"implementations": _restricted(own + top, only)}
            places = places.replaced(("sweeps", index, "implementations"), argument)
    if "sweeps" in data:
        restricted["sweeps"] = sweeps
    return restricted, places


def _restricted(entries: list[Data], only: Sequence[str]) -> list[Data]:
    """The entries of each name in turn, or the name alone where no entry has it."""
    restricted: list[Data] = []
    for name in dict.fromkeys(only):
        restricted += [entry for entry in entries if _name(entry) == name] or [name]
    return restricted


def _entries(value: Data) -> list[Data]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _name(entry: Data) -> Data:
    return entry.get("name") if isinstance(entry, dict) else entry


def _argument(option: str, value: str) -> str:
    text = f"{option} {value}"
    return text if text.isprintable() else f"{option} {shown(value)}"


def _set(data: dict[str, Data], setting: str, argument: str) -> KeyPath:
    """Set one value in place; the path that was set. Errors: `ConfigError`."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{argument}: not of the form KEY=VALUE; write such as --set protocol.launches=5")
    value = read_value(text, argument)
    holder: Data = data
    path: KeyPath = ()
    for part in parts[:-1]:
        step = _step(holder, part, path, argument)
        holder = _below(holder, step)
        path = (*path, step)
    step = _step(holder, parts[-1], path, argument)
    if isinstance(holder, list) and isinstance(step, int):
        holder[step] = value
    elif isinstance(holder, dict) and isinstance(step, str):
        _set_key(holder, step, value)
    return (*path, step)


def _set_key(holder: dict[str, Data], key: str, value: Data) -> None:
    """Without a value the key is removed, so that `batch` can make room for `total_tokens`."""
    if value is None:
        holder.pop(key, None)
    else:
        holder[key] = value


def _below(holder: Data, step: str | int) -> Data:
    """What lies under a step; a mapping is made where nothing does, so that `protocol.launches` needs no `protocol`."""
    if isinstance(holder, list) and isinstance(step, int):
        return holder[step]
    if isinstance(holder, dict) and isinstance(step, str):
        if holder.get(step) is None:
            holder[step] = {}
        return holder[step]
    return None


def _step(holder: Data, part: str, path: KeyPath, argument: str) -> str | int:
    """A part of a dotted key as a key or an index of what it looks into. Errors: `ConfigError`."""
    where = dotted(path)
    if isinstance(holder, dict):
        return part
    if not isinstance(holder, list):
        raise ConfigError(f"{argument}: {where} is {shown(holder)} and has no {shown(part)}; set {where} itself")
    if not (part.isascii() and part.isdigit() and len(part) < 7 and int(part) < len(holder)):
        allowed = f"an index from 0 to {len(holder) - 1}" if holder else "nothing: it is empty"
        raise ConfigError(f"{argument}: {shown(part)} is given for an entry of {where}; allowed: {allowed}")
    return int(part)
