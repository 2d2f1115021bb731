"""Changes to a configuration from the command line: `--set KEY=VALUE` and `--only NAME,...`, made before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from ..impls import near
from .config_errors import ConfigError, Places, config_error, dotted, shown
from .document import Data, read_value


def apply_overrides(data: dict[str, Data], places: Places, overrides: Sequence[str]) -> tuple[dict[str, Data], Places]:
    """The data with every `KEY=VALUE` set, in order, and where its keys now come from. Errors: `ConfigError`."""
    data = copy.deepcopy(data)
    mistakes = []
    for override in overrides:
        argument = f"--set {override}"
        argument = argument if argument.isprintable() else shown(argument)
        try:
            path = _set(data, override, argument)
            places = places.replaced(path, argument)
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise config_error(mistakes)
    return data, places


def restrict(data: dict[str, Data], places: Places, only: Sequence[str]) -> tuple[dict[str, Data], Places]:
    """The data with these implementations alone, at the top and in every sweep that names its own; options are kept."""
    if not only:
        return data, places
    argument = f"--only {','.join(only)}"
    top = _entries(data.get("implementations"))
    data = data | {"implementations": _restricted(top, (), only)}
    places = places.replaced(("implementations",), argument)
    sweeps = data.get("sweeps")
    for index, sweep in enumerate(sweeps if isinstance(sweeps, list) else []):
        if isinstance(sweep, dict) and "implementations" in sweep:
            own = _entries(sweep["implementations"])
            sweep["implementations"] = _restricted(own, top, only)
            places = places.replaced(("sweeps", index, "implementations"), argument)
    return data, places
