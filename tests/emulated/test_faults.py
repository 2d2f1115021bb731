"""Planted faults of a wrapper: each turns the emulated lane red, in a named case that the wrapper without it passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness import environment
from attnbench.harness.measure.conformance import run_case, truth_of
from attnbench.impls import CAUSAL, FULL, AttentionProblem, Implementation, get, load_plugin

load_plugin(str(Path(__file__).parent / "adapters.py"))
DEVICE = environment.find_device("cpu")
SQUARE = AttentionProblem(batch=2, heads_q=3, heads_kv=3, seq_q=7, seq_kv=7, head_dim=16, dtype="float16", mask=FULL)
RECTANGLE = AttentionProblem(heads_q=3, heads_kv=3, seq_q=7, seq_kv=64, head_dim=16, dtype="float16", mask=CAUSAL)
SCALED = AttentionProblem(heads_q=3, heads_kv=3, seq_q=7, seq_kv=64, head_dim=16, dtype="float16", mask=FULL, scale=0.5)
GROUPED = AttentionProblem(heads_q=6, heads_kv=3, seq_q=7, seq_kv=64, head_dim=16, dtype="float16", mask=FULL)
Function = Callable[..., Any]


def without_scale(function: Function) -> Function:
    """The scale is not handed on."""

    def call(*tensors: Any, softmax_scale: float, **rest: Any) -> Any:
        return function(*tensors, **rest)

    return call


def top_left(function: Function) -> Function:
    """Query i sees keys up to i: as if the causal mask began at the first key."""

    def call(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        rows = query.shape[1] if rest["causal"] else key.shape[1]
        return function(query, key[:, :rows], value[:, :rows], **rest)

    return call


def repeated_wrongly(function: Function) -> Function:
    """The heads of key and value as a whole are repeated, and not each of them."""

    def call(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        group = query.shape[2] // key.shape[2]
        return function(query, key.repeat(1, 1, group, 1), value.repeat(1, 1, group, 1), **rest)

    return call


def with_dropout(function: Function) -> Function:
    """A tenth of the weights is dropped, as in training."""
    return lambda *tensors, **rest: function(*tensors, dropout_p=0.1, **rest)


def faults(implementation: Implementation, problem: AttentionProblem) -> tuple[str, ...]:
    """What the check says."""
    return run_case(implementation, problem, DEVICE, truth_of(problem)).faults


@pytest.mark.parametrize(
    ("plant", "problem"),
    [(without_scale, SCALED), (top_left, RECTANGLE), (repeated_wrongly, GROUPED), (with_dropout, RECTANGLE)],
    ids=["scale omitted", "top-left for bottom-right", "kv heads repeated wrongly", "dropout left on"],
)
def test_planted_fault_is_caught(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[Function], Function], problem: AttentionProblem
) -> None:
    """What the wrapper binds is flash-attn's own function, changed as a careless wrapper would call it."""
    import flash_attn

    assert not faults(get("flash_attn2_emulated"), problem)
    monkeypatch.setattr(flash_attn, "flash_attn_func", plant(flash_attn.flash_attn_func))
    assert faults(get("flash_attn2_emulated"), problem)


@pytest.mark.parametrize("name", ["flash_attn2_emulated", "xformers_emulated"])
def test_layout_fault_is_caught(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`[B, H, S, D]` given to a kernel that reads `[B, S, H, D]`."""
    assert not faults(get(name), SQUARE)
    monkeypatch.setattr(type(get(name)), "layout", "BHSD")
    assert faults(get(name), SQUARE)


def test_alignment_fault_of_xformers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the keys that a bias counts are as many as the queries, its causal mask begins at the first key."""
    from xformers.ops.fmha import attn_bias

    bias = attn_bias.BlockDiagonalCausalWithOffsetPaddedKeysMask
    original = bias.from_seqlens

    def top_left_bias(q_seqlen: list[int], kv_padding: int, kv_seqlen: list[int], **rest: Any) -> Any:
        return original(q_seqlen, kv_padding, q_seqlen, **rest)

    assert not faults(get("xformers_emulated"), RECTANGLE)
    monkeypatch.setattr(bias, "from_seqlens", top_left_bias)
    assert faults(get("xformers_emulated"), RECTANGLE)
