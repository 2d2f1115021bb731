"""The cases of the contract suite: every pair of axis values, and all corners. No torch.

Square and rectangular, odd and prime sizes; multi-head, grouped and multi-query; three dtypes, both masks, and a scale that is
no default.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..impls import FULL, AttentionProblem

#: Axis values, small ones first: the ends of each axis make the corners.
AXES: dict[str, tuple[Any, ...]] = {
    "batch": (1, 2, 3),
    "heads": ((1, 1), (3, 3), (4, 1), (6, 3), (8, 2)),
    "seq_q": (1, 7, 64, 129, 257),
    "seq_kv": (1, 7, 64, 129, 257),
    "head_dim": (8, 16, 40, 64, 80, 96, 128, 256),
    "dtype": ("float32", "bfloat16", "float16"),
    "mask": ("full", "causal"),
    # No default of these head dimensions, and no scores so large that kernels differ by how they round an exponential.
    "scale": (None, 0.15),
}
#: Multiply-adds of one product up to which float16 is tried where the processor has none: it is a thousand times slower.
SLOW_FLOAT16_PRODUCTS = 2**22
#: Axes of which every value is a corner, and one of which the first is: pairs with the other axes tell enough of it.
_ALL_VALUES, _FIRST_VALUE = ("dtype", "mask"), "scale"
_Values = dict[str, Any]


def cases(*, fast_float16: bool) -> tuple[AttentionProblem, ...]:
    """The suite, the same everywhere but for large float16 cases; at most 400."""
    chosen: dict[str, AttentionProblem] = {}
    for values in itertools.chain(_corners(), _pairwise(fast_float16=fast_float16)):
        if _is_meant(values, fast_float16=fast_float16):
            problem = _problem(values)
            chosen.setdefault(str(problem), problem)
    return tuple(chosen.values())


def few_cases(count: int) -> tuple[AttentionProblem, ...]:
    """A selection for implementations that compile each shape: as many different axis values as so few cases can hold."""
    left = [problem for problem in cases(fast_float16=False) if problem.pairs * problem.head_dim > 1]
    seen: set[tuple[str, Any]] = set()
    chosen: list[AttentionProblem] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda problem: len(_facts(problem) - seen))
        chosen.append(best)
        seen |= _facts(best)
        left.remove(best)
    return tuple(chosen)


def work(problem: AttentionProblem) -> int:
    """How large a case is: the multiply-adds of one of its products."""
    return problem.batch * problem.heads_q * problem.pairs * problem.head_dim


def simpler(problem: AttentionProblem, part: str) -> Iterator[AttentionProblem]:
    """The problem with less of one of `PARTS`, boldest steps first, where that has a meaning."""
    for values in _LESS[part](problem):
        with contextlib.suppress(ValueError):  # causal with fewer keys than queries
            yield AttentionProblem.model_validate(problem.model_dump() | values)


def pairs_of(problem: AttentionProblem) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """The pairs of axis values that a case covers."""
    values = {
        "batch": problem.batch, "heads": (problem.heads_q, problem.heads_kv), "seq_q": problem.seq_q,
        "seq_kv": problem.seq_kv, "head_dim": problem.head_dim, "dtype": problem.dtype, "mask": problem.mask.kind,
        "scale": problem.scale,
    }  # fmt: skip
    return _pairs(values)


def all_pairs() -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every pair of values of two axes that has a meaning at all."""
    pairs = set()
    for (first, ones), (second, others) in itertools.combinations(AXES.items(), 2):
        pairs |= {((first, one), (second, other)) for one, other in itertools.product(ones, others)}
    return pairs


def _corners() -> Iterator[_Values]:
    ends = [
        values if name in _ALL_VALUES else values[:1] if name == _FIRST_VALUE else (values[0], values[-1])
        for name, values in AXES.items()
    ]
    return (dict(zip(AXES, combination, strict=True)) for combination in itertools.product(*ends))


def _pairwise(*, fast_float16: bool) -> Iterator[_Values]:
    """Greedy: for a pair that is not covered yet, of some random completions the one that covers most."""
    generator = random.Random(0)
    missing = sorted(all_pairs(), key=repr)
    while missing:
        tries = [_completed(missing[0], generator) for _ in range(60)]
        valid = [values for values in tries if _is_meant(values, fast_float16=fast_float16)]
        best = max(valid, key=lambda values: len(_pairs(values).intersection(missing)))
        yield best
        covered = _pairs(best)
        missing = [pair for pair in missing if pair not in covered]


def _completed(pair: Iterable[tuple[str, Any]], generator: random.Random) -> _Values:
    return {name: generator.choice(values) for name, values in AXES.items()} | dict(pair)


def _is_meant(values: _Values, *, fast_float16: bool) -> bool:
    if values["mask"] == "causal" and values["seq_q"] > values["seq_kv"]:
        return False
    products = values["heads"][0] * values["batch"] * values["seq_q"] * values["seq_kv"] * values["head_dim"]
    return fast_float16 or values["dtype"] != "float16" or products <= SLOW_FLOAT16_PRODUCTS


def _problem(values: _Values) -> AttentionProblem:
    heads_q, heads_kv = values["heads"]
    given = {name: value for name, value in values.items() if name != "heads"}
    return AttentionProblem(heads_q=heads_q, heads_kv=heads_kv, **given)


def _pairs(values: _Values) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    ordered = [(name, values[name]) for name in AXES]
    return set(itertools.combinations(ordered, 2))


def _facts(problem: AttentionProblem) -> set[tuple[str, Any]]:
    return {fact for pair in pairs_of(problem) for fact in pair} | {
        ("relation", (problem.seq_q == problem.seq_kv, problem.mask.kind)),
        ("grouping", (problem.group_size > 1, problem.dtype)),
    }


def _fewer(value: int) -> list[int]:
    """One, then ever smaller steps down: by a half, a quarter, and so on, by one."""
    steps = [value - (value >> shift) for shift in range(1, value.bit_length())]
    return list(dict.fromkeys([1, *steps])) if value > 1 else []


def _fewer_heads(problem: AttentionProblem) -> list[_Values]:
    group = problem.group_size
    pairs = dict.fromkeys([(1, 1), (2, 1), (2, 2), (group, 1), (2 * group, 2)])
    less = [pair for pair in pairs if pair[0] < problem.heads_q and pair[1] <= problem.heads_kv]
    return [{"heads_q": heads_q, "heads_kv": heads_kv} for heads_q, heads_kv in less]


def _fewer_tokens(problem: AttentionProblem) -> list[_Values]:
    """A square problem that stays one."""
    if problem.seq_q != problem.seq_kv:
        return []
    return [{"seq_q": length, "seq_kv": length} for length in _fewer(problem.seq_q)]


#: What each part of a problem may shrink to.
_LESS: dict[str, Callable[[AttentionProblem], list[_Values]]] = {
    "batch": lambda problem: [{"batch": batch} for batch in _fewer(problem.batch)],
    "heads": _fewer_heads,
    "scale": lambda problem: [{"scale": None}] if problem.scale is not None else [],
    # One query sees every key either way.
    "mask": lambda problem: [{"mask": FULL}] if problem.is_causal and problem.seq_q == 1 else [],
    "head_dim": lambda problem: [{"head_dim": dim} for dim in AXES["head_dim"] if dim < problem.head_dim],
    "seq_len": _fewer_tokens,
    "seq_q": lambda problem: [{"seq_q": length} for length in _fewer(problem.seq_q)],
    "seq_kv": lambda problem: [{"seq_kv": length} for length in _fewer(problem.seq_kv)],
}
#: The parts of a problem that can shrink.
PARTS = tuple(_LESS)
