"""YAML as plain data: what scalars mean, where keys stand, and what is refused."""

from __future__ import annotations

import pytest

from attnbench.harness.config.document import MOST_BYTES, MOST_DEPTH, Document, read, read_value
from attnbench.harness.config.errors import ConfigError


def parse(text: str) -> Document:
    """A document of a text."""
    return read(text.encode(), "sweep.yaml")


def refusal(text: str | bytes) -> str:
    """The message of the error that reading the text must end in."""
    with pytest.raises(ConfigError) as caught:
        read(text if isinstance(text, bytes) else text.encode(), "sweep.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5e3", 1500.0),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("0x10", 16),
        ("0o10", 8),
        ("010", 10),
        ("true", True),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("1/4096", "1/4096"),
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        ("inf", "inf"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("!!int 12", 12),
        ("!!float 12", 12.0),
        ("=", "="),
    ],
)
def test_scalars(text: str, value: object) -> None:
    """A scalar means what YAML 1.2 says, not what YAML 1.1 said."""
    found = read_value(text, "--set")
    assert found == value
    assert type(found) is type(value)


def test_lines() -> None:
    """Every key path knows its line, in block and flow style, keys of values on a later line included."""
    document = parse("a: 1\nb:\n  - x\n  - {c: 2,\n     d:\n       3}\n")
    assert document.data == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert [document.line(path) for path in [("a",), ("b",), ("b", 0), ("b", 1), ("b", 1, "c"), ("b", 1, "d")]] == [
        1, 2, 3, 4, 4, 5,
    ]  # fmt: skip
    assert document.places.of(("b", 1, "missing")) == "sweep.yaml:4"


def test_aliases() -> None:
    """An alias is the value it names, and no two places share one object."""
    data = parse("a: &x [1, 2]\nb: *x\n").data
    assert data == {"a": [1, 2], "b": [1, 2]}
    assert data["a"] is not data["b"]


def test_byte_order_mark() -> None:
    """A byte order mark, as some editors write it, is no part of the first key."""
    assert read(b"\xef\xbb\xbfa: 1\n", "sweep.yaml").data == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n  b: 1\n  c: 2\n  b: 3\n",
            "sweep.yaml:4: a.b: the key is given twice, first in line 2; remove one of them",
        ),
        (
            "a: !!python/object:os.system x\n",
            "sweep.yaml:1: a: the tag '!!python/object:os.system' is not supported; allowed: values without a tag",
        ),
        (
            "a: !!python/tuple [1]\n",
            "sweep.yaml:1: a: the tag '!!python/tuple' is not supported; allowed: values without a tag",
        ),
        (
            "a: !!binary aGk=\n",
            "sweep.yaml:1: a: the tag '!!binary' is not supported; allowed: values without a tag",
        ),
        ("a: !!int x\n", "sweep.yaml:1: a: 'x' does not fit its tag !!int; remove the tag"),
        ("a: {<<: {b: 1}}\n", "sweep.yaml:1: a: merge keys (<<) are not supported; write the keys out"),
        ("1: x\n", "sweep.yaml:1: the key 1 is no word; put it in quotes if it is meant as one"),
        ("[a]: x\n", "sweep.yaml:1: a list or mapping stands as a key; allowed: words"),
        ("a: [.inf]\n", "sweep.yaml:1: a.0: .inf is given; allowed: finite numbers"),
        ("a: .nan\n", "sweep.yaml:1: a: .nan is given; allowed: finite numbers"),
        ("a: 1e999\n", "sweep.yaml:1: a: '1e999' is too large a number; allowed: finite numbers"),
        (f"a: {'9' * 5000}\n", "sweep.yaml:1: a: an integer of 5000 digits; allowed: at most 19 digits"),
        ("a: &x [*x]\n", "sweep.yaml:1: a.0: an alias that contains itself; write the value out"),
        (
            "",
            "sweep.yaml:1: the file is empty; allowed: a mapping with the keys name, implementations and sweeps",
        ),
        (
            "# only a comment\n",
            "sweep.yaml:1: the file is empty; allowed: a mapping with the keys name, implementations and sweeps",
        ),
        (
            "\n- a\n",
            'sweep.yaml:2: the file holds ["a"]; allowed: a mapping with the keys name, implementations and sweeps',
        ),
        (
            "a: [1\n",
            (
                "sweep.yaml:2: not valid YAML: while parsing a flow sequence, "
                "expected ',' or ']', but got '<stream end>'; check indentation, brackets and quotes"
            ),
        ),
        ("a: 1\x00\n", "sweep.yaml:1: YAML does not allow the character '\\x00'; remove it"),
        (b"a: 1\nb: \xff\n", "sweep.yaml:2: not UTF-8 text; save the file as UTF-8"),
        (
            'a: "\\ud800"\n',
            "sweep.yaml:1: a: '\\ud800' holds half of a character (a lone surrogate); remove it",
        ),
    ],
)
def test_refusals(text: str | bytes, message: str) -> None:
    """What is no plain data is refused, with line, key and what to do."""
    assert refusal(text) == message


def test_all_mistakes_at_once() -> None:
    """A file with several mistakes names every one of them."""
    assert len(refusal("a: .inf\nb: !!binary x\na: 2\n").splitlines()) == 3


def test_more_than_one_document() -> None:
    """A second document in the file is an error, not ignored."""
    assert "expected a single document" in refusal("a: 1\n---\nb: 2\n")


def test_escape_beyond_unicode() -> None:
    """An escape that names no character is an error in the file, not in the parser."""
    assert "not valid YAML" in refusal('a: "\\UFFFFFFFF"\n')


def test_alias_bomb() -> None:
    """Aliases of aliases end at a bound, quickly."""
    levels = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(12))
    assert "more than 200,000 values" in refusal(f"a0: &a0 x\n{levels}")


@pytest.mark.parametrize("text", ["a: " + "[" * 10_000, "a: " + "{a: " * 10_000, "- " * 10_000, "? " * 10_000])
def test_depth(text: str) -> None:
    """Nesting ends at a bound, before Python's own."""
    assert f"nested deeper than {MOST_DEPTH} levels" in refusal(text)


def test_depth_by_aliases() -> None:
    """Aliases do not get round the bound on depth."""
    levels = "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(80))
    assert f"nested deeper than {MOST_DEPTH} levels" in refusal(f"a0: &a0 x\n{levels}")


def test_size() -> None:
    """A file that is no configuration is refused by its size, before it is parsed."""
    assert "larger than 1,000,000 bytes" in refusal(b"#" * (MOST_BYTES + 1))
