"""The machine in the words of pytest-benchmark and py-cpuinfo, from what a run recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def machine_info(environment: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """The facts that were recorded; what was not, or was unreadable, is left out. Of a GPU that was used all is kept."""
    strict, soft = environment.get("strict", {}), environment.get("soft", {})
    system, _, release = _word(strict.get("kernel")).partition(" ")
    facts = {
        "node": _word(soft.get("hostname")),
        "machine": _word(strict.get("architecture")),
        "python_version": versions.get("python", ""),
        "system": system,
        "release": release,
    }
    gpu = strict.get("gpu")
    return {
        **{key: value for key, value in facts.items() if value},
        "cpu": _cpu(strict),
        **({"gpu": dict(gpu)} if isinstance(gpu, Mapping) and "name" in gpu else {}),
    }


def _cpu(strict: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "brand_raw": _word(strict.get("cpu_model")),
        "arch_string_raw": _word(strict.get("architecture")),
        "count": _number(strict.get("cores_logical")),
        "family": _number(strict.get("cpu_family")),
        "model": _number(strict.get("cpu_number")),
        "stepping": _number(strict.get("cpu_stepping")),
        "flags": _word(strict.get("cpu_flags")).split(),
    }
    return {key: value for key, value in facts.items() if value not in ("", None, [])}


def _word(fact: Any) -> str:
    """A fact as text; empty where it is absent or unreadable."""
    return fact if isinstance(fact, str) else ""


def _number(fact: Any) -> int | None:
    return int(fact) if isinstance(fact, int | str) and str(fact).isdecimal() else None
