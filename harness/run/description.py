"""What runs and gates are described by, and what going on with one of them asks."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from .. import environment
from ..config import LoadedConfig
from ..records import Description
from .journal import now
from .machine import Machine, ResumeError


def facts_of(loaded: LoadedConfig, machine: Machine, plugins: Sequence[str]) -> dict[str, Any]:
    """The fields of a `Description` but its id: the configuration, the machine and the versions as they are now."""
    return {
        "name": loaded.config.name, "created_at": now(), "config_source": loaded.source, "config_text": loaded.text,
        "overrides": loaded.overrides, "config": dict(loaded.data), "device": str(machine.device), "plugins": tuple(plugins),
        "versions": environment.versions(), "environment": dict(machine.facts), "seed": loaded.config.protocol.seed,
        "attnbench_version": importlib.metadata.version("attnbench"),
    }  # fmt: skip


def refuse_missing_plugins(info: Description, plugins: Sequence[str]) -> None:
    """Nothing is imported because a file says so. Errors: `ResumeError` where a plugin of the description was not named again."""
    if any(plugin not in plugins for plugin in info.plugins):
        again = " ".join(f"--plugin {plugin}" for plugin in info.plugins)
        raise ResumeError(
            f"{info.id} used plugins, and none is imported because a file says so; name them again: {again}"
        )
