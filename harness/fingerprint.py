"""What of a run's environment must be equal to compare it with a stored baseline. What is soft is not in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import environment
from .records import CeilingsMeasured, Event

#: Facts that torch itself told the run; its BLAS and cuDNN are seen nowhere else.
TORCH_FACTS = ("blas", "cpu_capability", "mkldnn", "cuda", "cudnn", "hip", "debug", "git")
#: Fields that every record has, by the field that they are in; those that neither record has do not match.
_EXPECTED: Mapping[str, tuple[str, ...]] = {
    "": (*environment.STRICT, "device_name", "threads", "versions"),
    "gpu": environment.STRICT_OF_GPU,
    "versions": environment.VERSIONS,
    "torch_facts": TORCH_FACTS,
}
#: What another version of torch changes by itself.
_OF_TORCH = frozenset({"torch_build.version", "torch_facts.git"})
_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A strict field that is not the same; `base` and `candidate` in words."""

    field: str
    base: str
    candidate: str

    def __str__(self) -> str:
        return f"{self.field}: {self.base} -> {self.candidate}"


def fingerprint(
    facts: Mapping[str, Any], versions: Mapping[str, str], torch_facts: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The strict fields of an environment as `run.json` keeps it; without `torch_facts` these are not compared."""
    strict = facts.get("strict")
    fields = dict(strict) if isinstance(strict, Mapping) else {}
    fields |= {key: facts[key] for key in ("device_name", "threads") if key in facts} | {"versions": dict(versions)}
    if torch_facts is not None:
        fields["torch_facts"] = dict(torch_facts)
    as_stored: dict[str, Any] = json.loads(json.dumps(fields))  # JSON has no tuples
    return as_stored


def torch_facts(events: Iterable[Event]) -> dict[str, str]:
    """What torch told the sessions of a run; where two were told other things, both."""
    told = [event.torch_facts for event in events if isinstance(event, CeilingsMeasured)]
    keys = dict.fromkeys(key for facts in told for key in facts)
    return {key: " / ".join(dict.fromkeys(facts[key] for facts in told if key in facts)) for key in keys}


def differences(
    base: Mapping[str, Any], candidate: Mapping[str, Any], factors: Collection[str] = ()
) -> list[Difference]:
    """Every field of two fingerprints that differs, but for the versions of `factors`: the distributions under test.

    A fact that the platform does not show is stored with the reason and equals itself; one that a record lacks equals nothing.
    """
    allowed = {f"versions.{factor}" for factor in factors} | (_OF_TORCH if "torch" in factors else frozenset())
    return [each for each in _differences("", base, candidate) if each.field not in allowed]


def _differences(field: str, base: Any, candidate: Any) -> Iterator[Difference]:
    if _is_table(base) and _is_table(candidate):
        for key in dict.fromkeys((*_EXPECTED.get(field, ()), *base, *candidate)):
            inner = f"{field}.{key}" if field else key
            yield from _differences(inner, base.get(key, _ABSENT), candidate.get(key, _ABSENT))
    elif base is _ABSENT or candidate is _ABSENT or base != candidate:
        yield Difference(field, _words(base), _words(candidate))


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and not _is_unreadable(value)


def _is_unreadable(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"unreadable"}


def _words(value: Any) -> str:
    if value is _ABSENT:
        return "not recorded"
    if _is_unreadable(value):
        return f"unreadable ({value['unreadable']})"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
