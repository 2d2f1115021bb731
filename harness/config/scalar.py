"""What one YAML scalar means: the core schema of YAML 1.2, without infinities.

`1e-3` is a number; `yes`, `on`, `1:30`, `1/4096` and dates are strings.
"""

from __future__ import annotations

import math
import re

from .errors import shown

Scalar = str | int | float | bool | None

#: Integers beyond 64 bits are typing errors, and Python refuses to read the longest of them.
MOST_DIGITS = 19
CORE = "tag:yaml.org,2002:"
#: The tag of a scalar that is not quoted and has no tag of its own.
PLAIN = "plain"

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TYPES: dict[str, tuple[type, ...]] = {
    f"{CORE}int": (int,),
    f"{CORE}float": (float, int),
    f"{CORE}bool": (bool,),
    f"{CORE}null": (type(None),),
}


def scalar(tag: str, text: str) -> Scalar:
    """The value of a scalar. Errors: `ValueError` in words for a message."""
    if tag == f"{CORE}str":
        return _string(text)
    if tag == PLAIN:
        return _plain(text)
    if tag not in _TYPES:
        raise ValueError(unknown_tag(tag))
    value = _plain(text)
    if type(value) not in _TYPES[tag]:
        raise ValueError(f"{shown(text)} does not fit its tag {tag.replace(CORE, '!!')}; remove the tag")
    return float(value) if tag == f"{CORE}float" and isinstance(value, int) else value


def unknown_tag(tag: str) -> str:
    """The words for a tag that is refused: a document is data and cannot name code."""
    return f"the tag {shown(tag.replace(CORE, '!!'))} is not supported; allowed: values without a tag"


def _plain(text: str) -> Scalar:
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is given; allowed: finite numbers")
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return _float(text)
    return _string(text)


def _integer(text: str) -> int:
    if len(text.lstrip("+-0")) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits; allowed: at most {MOST_DIGITS} digits")
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is too large a number; allowed: finite numbers")
    return number


def _string(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{shown(text)} holds half of a character (a lone surrogate); remove it")
    return text
