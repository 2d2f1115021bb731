"""Units for people: the only place that scales."""

from __future__ import annotations

import math

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_RATES = ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"))
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
NOTHING = "–"


def seconds(value: float | None) -> str:
    """`1.23 ms`."""
    return _scaled(value, _TIMES)


def interval(low: float | None, high: float | None) -> str:
    """`1.20 to 1.26 ms`, in the unit of the upper end."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return NOTHING
    factor, unit = _unit(high, _TIMES)
    return f"{_digits(low / factor)} to {_digits(high / factor)} {unit}"


def flops_per_s(value: float | None) -> str:
    """`123 GFLOP/s`."""
    return _scaled(value, _RATES)


def size(value: float | None) -> str:
    """`1.50 MB`, a million bytes each."""
    if value is not None and value == 0:
        return "0 B"
    return _scaled(value, _SIZES)


def ratio(value: float | None) -> str:
    """`1.23 x`."""
    return NOTHING if value is None or math.isnan(value) else f"{_digits(value)} x"


def share(value: float | None) -> str:
    """`12 %`."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.0%}".replace("%", " %")


def change(log_ratio: float) -> str:
    """`+4.9 %`, of a logarithm of two times: positive is slower."""
    return f"{100 * math.expm1(log_ratio):+.1f} %"


def pair(query: int, key: int) -> str:
    """`8/2`, or `8` where both are the same."""
    return str(query) if query == key else f"{query}/{key}"


def _scaled(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    if value is None or math.isnan(value):
        return NOTHING
    factor, unit = _unit(value, units)
    return f"{_digits(value / factor)} {unit}"


def _unit(value: float, units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    return next((each for each in units if abs(value) >= each[0]), units[-1])


def _digits(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 4)}f}"
