"""Plugins that the command line names: imported once, each failure kept with its reason."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..impls import load_plugin


def load_plugins(modules: Sequence[str]) -> dict[str, str]:
    """Import each; the ones that failed, with the reason, also told on standard error."""
    failed = {}
    for module in modules:
        try:
            load_plugin(module)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may fail in any way, SystemExit included
            failed[module] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
            print(f"attnbench: plugin {module} failed to import: {failed[module]}", file=sys.stderr)  # noqa: T201
    return failed
