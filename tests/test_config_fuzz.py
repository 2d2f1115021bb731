"""Whatever a file or an argument holds, it ends in a valid configuration or in a `ConfigError`."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attnbench import configs
from attnbench.harness.config import ConfigError, SweepConfig, load_config, load_stored
from attnbench.harness.config.document import read_value
from attnbench.harness.plan import make_plan
from attnbench.impls import Device

VALID = [
    path.read_text()
    for path in sorted(Path(str(configs.__file__)).parent.glob("*.yaml"))
    if path.stem in {"quick", "decode", "ci"}
]
CPU = Device("cpu")
#: What a mutation puts in: the signs of YAML, and values at the edge of what is allowed.
SNIPPETS = [
    "[", "]", "{", "}", ":", ": ", "- ", "\n", "\n\t", "\n  ", "'", '"', "#", "&a ", "*a", "!!int ",
    "!!python/name:os ", "|", "%YAML 9", "---", "...", "<<: ", "?", "~", "\0", "\ufeff", "\x85", "\u2028", "\ud7ff",
    ">", "1e999", ".inf", "-1", "0", "99999999999", "1/0", "8/3", "9/1", "true", "x" * 80, "\\ud800", "=", "@", "`", "!",
    "☃",
]  # fmt: skip
fuzzed = settings(
    max_examples=250, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["naive", "sdpa", "32/8", "1/4096", ">4096", "float32", "causal", "forward", "all", "cpu", "time"]
    )
)
keys = st.text(max_size=6) | st.sampled_from(
    [
        "name", "device", "implementations", "sweeps", "exclude", "protocol", "batch", "heads", "seq_len", "head_dim",
        "dtype", "mask", "pass", "total_tokens", "hidden", "implementation", "launches", "threads", "measure",
        "options",
    ]
)  # fmt: skip
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=20
)
finite = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=5),
    max_leaves=20,
)
few = st.lists(scalars, max_size=3) | scalars
#: The shape of a configuration, with any values in it.
shaped = st.fixed_dictionaries(
    {
        "name": scalars | st.just("x"),
        "implementations": st.lists(st.sampled_from(["naive", "sdpa"]) | nested, max_size=3) | st.just("naive"),
        "sweeps": st.lists(
            st.fixed_dictionaries(
                {"heads": few | st.just(4), "seq_len": few | st.just(8), "head_dim": few | st.just(8)},
                optional={"batch": few, "mask": few, "pass": few, "total_tokens": few, "hidden": few, "dtype": few},
            ),
            max_size=2,
        ),
    },
    optional={
        "exclude": st.lists(st.dictionaries(keys, few, max_size=3), max_size=2),
        "protocol": st.dictionaries(keys, few, max_size=3),
        "device": scalars,
    },
)


def ends_well(text: str | bytes, file: Path, *overrides: str) -> None:
    """Load, and plan if that went well: nothing but `ConfigError` may be raised, and its message can be printed."""
    file.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    try:
        loaded = load_config(str(file), overrides=overrides)
        again = load_stored(json.loads(json.dumps(loaded.data)))
        assert again.model_dump() == loaded.config.model_dump()
        plan(loaded.config)
    except ConfigError as error:
        printable(error)


def plan(config: SweepConfig) -> None:
    """A plan, unless it is too large to be quick."""
    make_plan(config, CPU)


def printable(error: ConfigError) -> None:
    """A message has words, few lines, and can be written to a terminal."""
    assert str(error).strip()
    assert len(str(error).splitlines()) <= 21
    assert str(error).encode("utf-8")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to load."""
    return tmp_path / "fuzz.yaml"


@fuzzed
@given(st.text())
@example("a: &a\n  - *a")
@example("%YAML " + "9" * 5000 + ".1\n---\na: 1")
@example('"\\U00110000": 1')
@example("name: " + "[" * 3000)
def test_any_text(file: Path, text: str) -> None:
    """No text ends in anything but a configuration or a `ConfigError`."""
    ends_well(text, file)


@fuzzed
@given(st.binary(max_size=200))
def test_any_bytes(file: Path, raw: bytes) -> None:
    """No bytes end in anything but a configuration or a `ConfigError`."""
    ends_well(raw, file)


@fuzzed
@given(st.data())
def test_mutated(file: Path, data: st.DataObject) -> None:
    """A valid file with a few pieces cut out, doubled or put in never ends in anything else either."""
    text = data.draw(st.sampled_from(VALID))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 20)))
        piece = data.draw(st.sampled_from([*SNIPPETS, "", text[start:end] * 2]))
        text = text[:start] + piece + text[end:]
    ends_well(text, file)


@fuzzed
@given(nested)
def test_any_data(file: Path, data: Any) -> None:
    """No data ends in anything but a configuration or a `ConfigError`, written as YAML or stored as JSON."""
    ends_well(yaml.safe_dump(data, allow_unicode=True), file)
    try:
        load_stored(data)
    except ConfigError as error:
        printable(error)


@fuzzed
@given(shaped)
def test_shaped_data(file: Path, data: dict[str, Any]) -> None:
    """Data that looks like a configuration but for its values never ends in anything else either."""
    ends_well(yaml.safe_dump(data), file)
    try:
        plan(load_stored(data))
    except ConfigError as error:
        printable(error)


@fuzzed
@given(st.lists(st.builds("{}={}".format, st.text(string.ascii_lowercase + "0123456789._", max_size=12), st.text())))
@example(["sweeps.0.seq_len=[1", "sweeps.0=5", "sweeps.0.x=5", "sweeps." + "9" * 5000 + "=1", "\ud800=\ud800"])
@example(["." * 5000 + "=1", ".".join("a" * 3000) + "=1"])
def test_any_setting(file: Path, overrides: list[str]) -> None:
    """No `--set` argument ends in anything but a configuration or a `ConfigError`."""
    ends_well(VALID[0], file, *overrides)


@fuzzed
@given(st.text(), st.lists(st.text(max_size=10), max_size=2))
@example("\ud800", ["\ud800"])
@example("\ud800.yaml", [])
def test_any_name(source: str, only: list[str]) -> None:
    """No name of a configuration and no `--only` ends in anything but a configuration or a `ConfigError`."""
    for name in (source, "ci"):
        try:
            load_config(name, only=only)
        except ConfigError as error:
            printable(error)


@fuzzed
@given(finite)
def test_values_survive(value: Any) -> None:
    """What JSON says, this reader of YAML reads alike, or refuses."""
    try:
        assert read_value(json.dumps(value), "--set") == value
    except ConfigError as error:
        printable(error)
