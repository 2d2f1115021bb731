"""The truth of a problem in float64, and the error that an honest eager implementation makes in the tested dtype.

Shares no code with any implementation. Legend: G query heads of a group, R selected query rows, D head dimension.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...impls import AttentionProblem
from ..cell import Float32
from .inputs import Inputs, torch_dtype

#: Floating-point operations that the truth of one problem may take; a larger problem is checked in part.
CHECK_FLOPS = 8_000_000_000
#: Scores held at once, in elements.
BLOCK_ELEMENTS = 2**21
#: Below this many elements the root mean square says too little to be asked about.
RMS_ELEMENTS = 4096
#: A block of the rule (c): this many rows of one head at least, and `RMS_ELEMENTS` elements.
BLOCK_ROWS = 64
#: How much more than (b) allows a single block may have: torch's flash kernel reaches 1.05 in dv of grouped queries in
#: bfloat16, which it rounds head by head, and 1.01 in float16 in sums over 16 rows; every other one stays below 0.9.
BLOCK_SLACK = 1.5


@dataclass(frozen=True)
class Selection:
    """What of a problem is checked: whole (batch, key/value head) groups, or some rows of one group.

    Where rows are selected, grad_out is zero elsewhere, so that dk and dv are sums over these rows alone.
    """

    groups: tuple[tuple[int, int], ...]
    rows: tuple[int, ...] | None = None

    @classmethod
    def within(cls, problem: AttentionProblem, *, backward: bool, seed: int, flops: float = CHECK_FLOPS) -> Selection:
        """The largest selection within a FLOP budget, drawn by a seed."""
        generator = random.Random(seed)
        groups = [(b, h) for b in range(problem.batch) for h in range(problem.heads_kv)]
        row_flops = (14 if backward else 4) * problem.group_size * problem.seq_kv * problem.head_dim
        count = int(flops // (row_flops * problem.seq_q))
        if count >= len(groups):
            return cls(tuple(groups))
        if count >= 1:
            return cls(tuple(sorted(generator.sample(groups, count))))
        return cls.of_rows(problem, generator, int(flops // row_flops))

    @classmethod
    def of_rows(cls, problem: AttentionProblem, generator: random.Random, count: int) -> Selection:
        """At most `count` rows of one group; the first and the last are among them, where masks go wrong first."""
        group = (generator.randrange(problem.batch), generator.randrange(problem.heads_kv))
        ends = {0, problem.seq_q - 1}
        others = [row for row in range(problem.seq_q) if row not in ends]
        drawn = generator.sample(others, max(0, min(count - len(ends), len(others))))
        return cls((group,), tuple(sorted({*ends, *drawn})))

    def share(self, problem: AttentionProblem) -> float:
        """The checked share of the output's elements."""
        rows = problem.seq_q if self.rows is None else len(self.rows)
        return len(self.groups) * rows / (problem.batch * problem.heads_kv * problem.seq_q)

    def restrict_grad_out(self, grad_out: Tensor, problem: AttentionProblem) -> Tensor:
        """grad_out `[B, Hq, Sq, D]` as the check uses it: zero outside the selected rows."""
        if self.rows is None:
            return grad_out
        kept = torch.zeros_like(grad_out)
        for b, h in self.groups:
            heads = slice(h * problem.group_size, (h + 1) * problem.group_size)
            kept[b, heads, list(self.rows)] = grad_out[b, heads, list(self.rows)]
        return kept

    def of(self, name: str, tensor: Tensor, problem: AttentionProblem) -> Tensor:
        """The selected part of out or dq `[n, G, R, D]`, or of dk or dv `[n, Skv, D]`, from the whole tensor."""
        parts = []
        for b, h in self.groups:
            if name in ("dk", "dv"):
                parts.append(tensor[b, h])
                continue
            group = tensor[b, h * problem.group_size : (h + 1) * problem.group_size]
            parts.append(group if self.rows is None else group[:, list(self.rows)])
        return torch.stack(parts)


@dataclass(frozen=True)
class Reference:
    """One tensor's truth and what may differ from it."""

    value: Tensor  # float64
    max_bound: float
    rms_bound: float | None
    rms: float
    block_bounds: Tensor | None = None  # of the RMS of each block of `block_rms`


@dataclass(frozen=True)
class Truth:
    """The references of a problem's outputs for a selection: out, and dq, dk, dv where there is a backward."""

    selection: Selection
    references: dict[str, Reference]

    def save(self, path: Path) -> None:
        """Write to a file that `load` reads."""
        plain: dict[str, Any] = {"groups": self.selection.groups, "rows": self.selection.rows}
        plain["references"] = {
            name: (each.value, each.max_bound, each.rms_bound, each.rms, each.block_bounds)
            for name, each in self.references.items()
        }
        torch.save(plain, path)

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Read what `save` wrote; tensors only, no code."""
        plain = torch.load(path, weights_only=True, mmap=True)
        references = {name: Reference(*each) for name, each in plain["references"].items()}
        return cls(Selection(plain["groups"], plain["rows"]), references)


@dataclass(frozen=True)
class _Precision:
    """How an honest eager implementation computes: the dtype of its tensors, and what its products make of float32."""

    dtype: torch.dtype
    tf32: bool

    @property
    def eps(self) -> float:
        return 2.0**-10 if self.tf32 else torch.finfo(self.dtype).eps

    @property
    def factor(self) -> int:
        """float32 sums differ by their order alone, and so by more than one rounding of a 16-bit dtype does."""
        return 4 if self.dtype == torch.float32 and not self.tf32 else 2

    def operand(self, tensor: Tensor) -> Tensor:
        """An operand of a product."""
        return _to_tf32(tensor) if self.tf32 else tensor

    def step(self, tensor: Tensor) -> Tensor:
        """A result as it is stored."""
        return tensor.to(self.dtype).to(tensor.dtype)


def find_truth(
    problem: AttentionProblem, inputs: Inputs, selection: Selection, *, backward: bool, float32: Float32 = "ieee"
) -> Truth:
    """Float64 truth and bounds of the selected part, by the rule that `bounds` states."""
    dtype = torch_dtype(problem.dtype)
    precision = _Precision(dtype, tf32=float32 == "tf32" and dtype == torch.float32)
    parts = [_Part.of(problem, inputs, selection, group, backward=backward) for group in selection.groups]
    exact = [_attention(part, torch.float64, _keep, _keep) for part in parts]
    sums = [_sums(part, each) for part, each in zip(parts, exact, strict=True)]
    eager = [_attention(part, torch.float32, precision.step, precision.step, precision.operand) for part in parts]
    yards, values = _stacked(eager), _stacked(exact)
    if not all(_usable(yards[name], value) for name, value in values.items()):
        yards = _stacked([_attention(part, torch.float32, _keep, precision.step) for part in parts])
    absolute, spread = (_stacked([each[kind] for each in sums]) for kind in (0, 1))
    slack = BLOCK_SLACK if selection.rows is not None and len(selection.rows) < BLOCK_ROWS else 1.0
    references = {
        name: bounds(name, value, yards[name], absolute[name], spread[name], precision, slack)
        for name, value in values.items()
    }
    return Truth(selection, references)


def bounds(
    name: str, value: Tensor, yard: Tensor, absolute: Tensor, spread: Tensor, precision: _Precision, slack: float = 1.0
) -> Reference:
    """The rule of correctness for one tensor.

    (a) max|x - ref| <= factor max|yard - ref| + max(2 max|(ref + 0.3 - 0.3) - ref|, eps(dtype) max|ref|)
    + 4 eps(float32) A, factor 2 for out and 3 for gradients, twice that in float32, A the largest sum of absolute terms.
    (b) from 4,096 elements on, rms(x - ref) <= 2 rms(yard - ref), 4 in float32, + 4 eps(float32) rms(R), R the root of
    the sum of squared terms: without it a gradient that is truly zero (a single key) must be zero to the last bit. `slack`
    times that where fewer rows than a block of (c) are checked.
    (c) the same as (b) with `BLOCK_SLACK` times the bound for every block of rows of a head, so that a few wrong rows
    do not hide among many right ones.
    Source of (a) without its last two terms: flash-attention, tests/test_flash_attn.py.
    """
    error = (yard.double() - value).abs()
    rounded = value.to(precision.dtype)
    shift = ((rounded + 0.3 - 0.3) - rounded).abs().max().item()
    own_rounding = max(2 * shift, precision.eps * value.abs().max().item())
    summation = 4 * torch.finfo(torch.float32).eps
    factor = precision.factor * (1.0 if name == "out" else 1.5)
    max_bound = factor * error.max().item() + own_rounding + summation * absolute.abs().max().item()
    rms_bound = None
    if value.numel() >= RMS_ELEMENTS:
        rms_bound = slack * (precision.factor * rms(error) + summation * rms(spread))
    block_bounds = None
    if (error_blocks := block_rms(error)) is not None and (spread_blocks := block_rms(spread)) is not None:
        block_bounds = BLOCK_SLACK * (precision.factor * error_blocks + summation * spread_blocks)
    return Reference(value, max_bound, rms_bound, rms(value), block_bounds)


def block_rms(tensor: Tensor) -> Tensor | None:
    """Of a tensor `[..., R, D]` the root mean square of each block of rows, `[heads, blocks]`; None if it has too few rows.

    The last block is the last rows, so that none is left out and none is short.
    """
    *_, rows, dim = tensor.shape
    step = max(BLOCK_ROWS, math.ceil(RMS_ELEMENTS / dim))
    if rows < step:
        return None
    by_row = tensor.double().square().mean(-1).reshape(-1, rows)
    starts = [*range(0, rows - step, step), rows - step]
    return torch.stack([by_row[:, start : start + step].mean(-1) for start in starts], dim=-1).sqrt()


def _stacked(groups: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in groups]) for name in groups[0]}


def rms(tensor: Tensor) -> float:
    """The root mean square of a float64 tensor."""
    return math.sqrt(tensor.double().square().mean().item())


def _usable(yard: Tensor, value: Tensor) -> bool:
    """Extreme logits make the yardstick itself useless: not finite, or off by more than a tenth."""
    return bool(yard.isfinite().all()) and rms(yard.double() - value) <= 0.1 * rms(value)


@dataclass(frozen=True)
class _Part:
    """One group: query and grad_out `[G, R, D]`, key and value `[Skv, D]`, the rows' numbers, the mask's last seen keys."""

    problem: AttentionProblem
    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor | None
    rows: Tensor

    @classmethod
    def of(
        cls, problem: AttentionProblem, inputs: Inputs, selection: Selection, group: tuple[int, int], *, backward: bool
    ) -> _Part:
        b, h = group
        heads = slice(h * problem.group_size, (h + 1) * problem.group_size)
        rows = torch.arange(problem.seq_q) if selection.rows is None else torch.tensor(selection.rows)
        grad_out = inputs.grad_out[b, heads, rows] if backward else None
        return cls(problem, inputs.query[b, heads, rows], inputs.key[b, h], inputs.value[b, h], grad_out, rows)

    def hidden(self, block: slice) -> Tensor:
        """True where a row of the block does not see a key, `[r, Skv]`; from the mask's own definition."""
        keys = torch.arange(self.problem.seq_kv)
        seen = [
            self.problem.mask.visible_keys(int(row), self.problem.seq_q, self.problem.seq_kv)
            for row in self.rows[block]
        ]
        first = torch.tensor([each.start for each in seen]).unsqueeze(-1)
        stop = torch.tensor([each.stop for each in seen]).unsqueeze(-1)
        return (keys < first) | (keys >= stop)

    def blocks(self) -> list[slice]:
        """Rows in blocks, so that scores never take more than a bounded part of memory."""
        step = max(1, BLOCK_ELEMENTS // (self.query.shape[0] * self.key.shape[0]))
        return [slice(start, start + step) for start in range(0, self.query.shape[1], step)]


_Rounding = Callable[[Tensor], Tensor]


def _keep(tensor: Tensor) -> Tensor:
    return tensor


def _attention(
    part: _Part, work: torch.dtype, step: _Rounding, final: _Rounding, operand: _Rounding = _keep
) -> dict[str, Tensor]:
    """Plain softmax(QK^T)V and its gradients over one group.

    `operand` rounds what products take, `step` what is stored between them, `final` the results.
    """
    query, key, value = (operand(each.to(work)) for each in (part.query, part.key, part.value))
    results: dict[str, list[Tensor]] = {"out": [], "dq": []}
    # By query head: an eager implementation repeats keys and values, so that each head's gradient is rounded before their sum.
    dk, dv = (torch.zeros(len(query), *each.shape, dtype=work) for each in (key, value))
    for block in part.blocks():
        weights = _weights(part, query, key, block, step)
        results["out"].append(final(operand(weights) @ value))
        if part.grad_out is None:
            continue
        grad_out = operand(part.grad_out[:, block].to(work))
        grad_scores = operand(_grad_scores(weights, grad_out, value, step))
        scale = part.problem.softmax_scale
        results["dq"].append(final(scale * (grad_scores @ key)))
        dk += scale * (grad_scores.transpose(1, 2) @ query[:, block])
        dv += operand(weights).transpose(1, 2) @ grad_out
    out = {"out": torch.cat(results["out"], dim=1)}
    if part.grad_out is not None:
        out |= {"dq": torch.cat(results["dq"], dim=1), "dk": final(step(dk).sum(0)), "dv": final(step(dv).sum(0))}
    return out


def _weights(part: _Part, query: Tensor, key: Tensor, block: slice, step: _Rounding) -> Tensor:
    """Softmax rows `[G, r, Skv]`."""
    scores = step(step(query[:, block] @ key.T) * part.problem.softmax_scale)
    return step(torch.softmax(scores.masked_fill(part.hidden(block), float("-inf")), dim=-1))


def _grad_scores(weights: Tensor, grad_out: Tensor, value: Tensor, step: _Rounding) -> Tensor:
    """dS = P (dP - sum P dP), `[G, r, Skv]`."""
    grad_weights = step(grad_out @ value.T)
    delta = (weights * grad_weights).sum(dim=-1, keepdim=True)
    return step(weights * (grad_weights - delta))


def _sums(part: _Part, exact: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the rounding of float32 sums scales with, element by element: sums of absolute terms, and roots of sums of squares.

    The terms of out are P v, of dv P dO, of dq and dk `scale P (|dP| + |delta|)` times k or q. dP itself is a sum over D
    whose terms may cancel, so it counts with at least the root of its terms' squares. So is a score: P is as uncertain as
    its terms' root makes it, which out and dv have on top of their terms, as the root of squares.
    """
    query, key, value = part.query.double(), part.key.double(), part.value.double()
    absolute: dict[str, Tensor] = {name: exact[name].abs() for name in ("out", "dv") if name in exact}
    out: list[Tensor] = []
    unsure: list[Tensor] = []
    dq: list[tuple[Tensor, Tensor]] = []
    dk, dk_squares = torch.zeros_like(key), torch.zeros_like(key)
    dv_squares, dv_unsure = torch.zeros_like(value), torch.zeros_like(value)
    for block in part.blocks():
        weights = _weights(part, query, key, block, _keep)
        out.append((weights.square() @ value.square()).sqrt())
        score_squares = part.problem.softmax_scale**2 * (query[:, block].square() @ key.square().T)
        uncertain = weights.square() * score_squares
        unsure.append((uncertain @ value.square()).sqrt())
        if part.grad_out is None:
            continue
        grad_out = part.grad_out[:, block].double()
        grad_weights = torch.maximum((grad_out @ value.T).abs(), (grad_out.square() @ value.square().T).sqrt())
        delta = (weights * grad_weights).sum(dim=-1, keepdim=True)
        terms = part.problem.softmax_scale * weights * (grad_weights + delta)
        dq.append((terms @ key.abs(), (terms.square() @ key.square()).sqrt()))
        dk += torch.einsum("grk,grd->kd", terms, query[:, block].abs())
        dk_squares += torch.einsum("grk,grd->kd", terms.square(), query[:, block].square())
        dv_squares += torch.einsum("grk,grd->kd", weights.square(), grad_out.square())
        dv_unsure += torch.einsum("grk,grd->kd", uncertain, grad_out.square())
    spread = {"out": torch.cat(out, dim=1)}
    absolute["out"] += torch.cat(unsure, dim=1)
    if part.grad_out is not None:
        absolute["dv"] += dv_unsure.sqrt()
        absolute |= {"dq": torch.cat([each for each, _ in dq], dim=1), "dk": dk}
        spread |= {"dq": torch.cat([each for _, each in dq], dim=1), "dk": dk_squares.sqrt(), "dv": dv_squares.sqrt()}
    return absolute, spread


def _to_tf32(tensor: Tensor) -> Tensor:
    """float32 rounded to the nearest value with 10 bits of mantissa, ties to even, as tensor cores take their operands."""
    bits = tensor.view(torch.int32)
    return (bits + 0xFFF + ((bits >> 13) & 1)).bitwise_and_(-0x2000).view(torch.float32)
