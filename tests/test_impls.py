"""Implementations: registry, options, pinned backends, and the plumbing of wrapped packages; their limits: test_reasons.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnbench.harness import contract
from attnbench.impls import (
    AttentionProblem,
    OptionError,
    RefusedError,
    Tensors,
    UnknownImplementationError,
    WrongBackendError,
    get,
    names,
    packages,
)
from attnbench.impls.sdpa import takes_lower_right


def test_near_match_of_a_name() -> None:
    """A misspelt name is answered with the one that was meant and all that are known."""
    with pytest.raises(
        UnknownImplementationError, match=r"unknown implementation 'sdp'; did you mean 'sdpa'\? known: .*, naive, "
    ):
        get("sdp")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("xformers", {"operater": "flash"}, "did you mean 'operator'"),
        (
            "xformers",
            {"operator": "fast"},
            "auto or cutlass or cutlass_blackwell or flash or flash3 or triton_splitk or ck",
        ),
        ("chunked", {"query_block": 0}, "a positive integer"),
        ("naive", {"block": 3}, "options: none"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, str | int], words: str) -> None:
    """An option that there is not, or a value that it does not take, is named with what is allowed."""
    with pytest.raises(OptionError, match=words):
        get(name, options)


@pytest.mark.parametrize("name", names())
def test_every_implementation_introduces_itself(name: str) -> None:
    """`list` has a line for each; a name is what YAML says."""
    assert get(name).summary


@pytest.mark.parametrize(
    ("operator", "backend"),
    [("aten.bmm.default", "math"), ("aten._scaled_dot_product_flash_attention_for_cpu.default", "flash")],
)
def test_backend_is_told_from_its_operator(operator: str, backend: str) -> None:
    """`sdpa` names the backend that torch picked; a pinned one refuses to have been another."""
    assert get("sdpa").backend(frozenset({operator})) == backend
    other = {"math": "sdpa_flash", "flash": "sdpa_math"}[backend]
    with pytest.raises(WrongBackendError, match=f"{backend} ran"):
        get(other).backend(frozenset({operator}))


@pytest.mark.parametrize(
    ("pinned", "aligned", "taken"),
    [
        (None, {"flash", "efficient"}, True),
        (None, {"efficient"}, True),
        (None, set(), False),
        ("flash", set(), True),
        ("efficient", set(), True),
        ("math", {"flash"}, False),
        ("cudnn", {"flash"}, False),
    ],
)
def test_mask_of_a_rectangle(pinned: str | None, aligned: set[str], taken: bool) -> None:
    """torch's lower-right bias goes where a kernel knows it or refuses by itself; elsewhere the mask is made before the clock."""
    assert takes_lower_right(pinned, frozenset(aligned)) is taken


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_chunked_gradients_by_finite_differences(mask: str) -> None:
    """gradcheck in float64, over several blocks of queries and keys, grouped heads, a rectangle."""
    problem = AttentionProblem(batch=1, heads_q=4, heads_kv=2, seq_q=5, seq_kv=7, head_dim=3, mask=mask)
    generator = torch.Generator().manual_seed(0)
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    implementation = get("chunked", {"query_block": 4, "key_block": 3})

    def attention(*given: torch.Tensor) -> torch.Tensor:
        out = implementation.prepare(problem, Tensors(*given))()
        assert isinstance(out, torch.Tensor)
        return out

    assert torch.autograd.gradcheck(attention, tensors)


def test_chunked_takes_strided_inputs() -> None:
    """Tensors that lie as `[B, S, H, D]` in memory give the same answer, whatever the block sizes."""
    problem = AttentionProblem(batch=2, heads_q=4, heads_kv=2, seq_q=33, seq_kv=70, head_dim=16, mask="causal")
    generator = torch.Generator().manual_seed(0)
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)
    plain = [torch.randn(shape, generator=generator) for shape in shapes]
    strided = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in plain]
    whole = get("chunked").prepare(problem, Tensors(*plain))()
    blocks = get("chunked", {"query_block": 5, "key_block": 11}).prepare(problem, Tensors(*strided))()
    torch.testing.assert_close(whole, blocks)


#: What xformers 0.0.35 says on a Turing GPU, without the description of the inputs.
XFORMERS_REFUSAL = """No operator found for `memory_efficient_attention_forward` with inputs:
     query       : shape=(1, 64, 2, 320) (torch.float64)
     p           : 0.0
`fa2F@v2.5.7-pt` is not supported because:
    max(query.shape[-1], value.shape[-1]) > 256
    requires device with capability >= (8, 0) but your GPU has capability (7, 5) (too old)
`cutlassF-pt` is not supported because:
    dtype=torch.float64 (supported: {torch.float32, torch.bfloat16, torch.float16})"""


def fake_xformers(monkeypatch: pytest.MonkeyPatch, attention: Callable[..., torch.Tensor]) -> None:
    """A stand-in for the package, which computes nothing on a CPU: it checks our plumbing, and nothing of xformers."""
    fmha = SimpleNamespace(
        memory_efficient_attention=attention,
        cutlass=SimpleNamespace(FwOp=SimpleNamespace(NAME="cutlassF-pt"), BwOp=None),
        triton_splitk=SimpleNamespace(FwOp=SimpleNamespace(NAME="triton_splitKF")),
        attn_bias=SimpleNamespace(
            LowerTriangularFromBottomRightMask=lambda: "bottom-right",
            BlockDiagonalCausalWithOffsetPaddedKeysMask=SimpleNamespace(from_seqlens=lambda **given: given),
        ),
        Inputs=lambda query, key, value, **_: SimpleNamespace(query=query, key=key, value=value),
        _dispatch_fw=lambda _, needs_gradient: SimpleNamespace(NAME="with gradient" if needs_gradient else "without"),
    )
    ops = SimpleNamespace(fmha=fmha)
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def raising(error: Exception) -> Callable[..., Any]:
    """A function that raises."""

    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def xformers_tensors(problem: AttentionProblem, *, gradients: bool = False) -> Tensors:
    """Ones, laid out `[B, S, H, D]`."""
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)
    return Tensors(*(torch.ones(shape).transpose(1, 2).contiguous().requires_grad_(gradients) for shape in shapes))


@pytest.mark.parametrize("kind", [NotImplementedError, ValueError])
def test_xformers_refusal_is_one_line(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    """Every operator with all its reasons on one line, as a refusal. Plumbing only: the package is a fake."""
    fake_xformers(monkeypatch, raising(kind(XFORMERS_REFUSAL)))
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=4, seq_kv=4, head_dim=8)
    with pytest.raises(RefusedError) as refused:
        get("xformers").prepare(problem, xformers_tensors(problem))
    assert str(refused.value) == (
        "xformers refuses: fa2F@v2.5.7-pt: max(query.shape[-1], value.shape[-1]) > 256, requires device with "
        "capability >= (8, 0) but your GPU has capability (7, 5) (too old); cutlassF-pt: dtype=torch.float64 "
        "(supported: {torch.float32, torch.bfloat16, torch.float16})"
    )


@pytest.mark.parametrize(("built", "hint"), [("1208", "built for CUDA 12, torch here for CUDA 13"), ("1300", "")])
def test_xformers_for_another_cuda_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: str, hint: str
) -> None:
    """It says that it was built without CUDA where its kernels are those of another: the refusal adds which."""
    files = {"xformers/cpp_lib.json": f'{{"version": {{"cuda": {built}, "hip": null}}}}',
             "torch/version.py": "__all__ = ['cuda']\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(packages, "_find", lambda package, path: tmp_path / package / path)
    fake_xformers(monkeypatch, raising(NotImplementedError("xFormers wasn't build with CUDA support")))
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=4, seq_kv=4, head_dim=8)
    with pytest.raises(RefusedError) as refused:
        get("xformers").prepare(problem, xformers_tensors(problem))
    assert str(refused.value).startswith("xformers refuses: xFormers wasn't build with CUDA support")
    assert hint in str(refused.value)
    assert ("CUDA 12" in str(refused.value)) == bool(hint)


def test_xformers_mistake_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError that speaks of no operator stays an error: it is our mistake. Plumbing only: the package is a fake."""
    fake_xformers(monkeypatch, raising(ValueError("Incompatible shapes for attention inputs")))
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=4, seq_kv=4, head_dim=8)
    with pytest.raises(ValueError, match="Incompatible shapes"):
        get("xformers").prepare(problem, xformers_tensors(problem))


@pytest.mark.parametrize(
    ("options", "heads_kv", "gradients", "name"),
    [
        ({}, 4, False, "without"),
        ({}, 4, True, "with gradient"),
        ({}, 2, False, "without"),
        ({"operator": "cutlass"}, 4, True, "cutlassF-pt"),
    ],
)
def test_xformers_names_the_operator_that_ran(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], heads_kv: int, gradients: bool, name: str
) -> None:
    """The backend is the operator named, or picked by the dispatcher for this call. Plumbing only: the package is a fake."""
    fake_xformers(monkeypatch, lambda query, *_, **__: query)
    problem = AttentionProblem(heads_q=4, heads_kv=heads_kv, seq_q=4, seq_kv=4, head_dim=8)
    implementation = get("xformers", options)
    out = implementation.prepare(problem, xformers_tensors(problem, gradients=gradients))()
    assert out.shape == (1, 4, 4, 8)
    assert str(implementation.backend(frozenset())).endswith(f" {name}")


def test_splitk_takes_causal_sequences_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """`triton_splitk` knows a causal bias of blocks alone: one batch, its lengths in the bias. Plumbing only: a fake."""
    seen: dict[str, Any] = {}

    def attention(query: torch.Tensor, *_: torch.Tensor, **given: Any) -> torch.Tensor:
        seen.update(given, shape=tuple(query.shape))
        return query

    fake_xformers(monkeypatch, attention)
    problem = AttentionProblem(batch=3, heads_q=4, heads_kv=2, seq_q=4, seq_kv=8, head_dim=16, mask="causal")
    out = get("xformers", {"operator": "triton_splitk"}).prepare(problem, xformers_tensors(problem))()
    assert out.shape == (3, 4, 4, 16)
    assert seen["shape"] == (1, 3 * 4, 2, 2, 16)
    assert seen["attn_bias"]["q_seqlen"] == [4] * 3
    assert (seen["attn_bias"]["kv_padding"], seen["attn_bias"]["kv_seqlen"]) == (8, [8] * 3)
    assert seen["scale"] is None


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, causal: bool) -> torch.Tensor:
    """Attention over `[B, S, H, D]`, bottom-right, as the flash-attn packages document theirs."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask if causal else None, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def flash_attn_func(*tensors: torch.Tensor, softmax_scale: float, causal: bool) -> torch.Tensor:
    """As flash-attn 2 and recent versions of 3."""
    return dense(*tensors, scale=softmax_scale, causal=causal)


def with_log_sum_exp(*tensors: torch.Tensor, softmax_scale: float, causal: bool) -> tuple[torch.Tensor, None]:
    """As 4, and early versions of 3."""
    return flash_attn_func(*tensors, softmax_scale=softmax_scale, causal=causal), None


def flash_attn_varlen_func(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts_q: torch.Tensor, starts_kv: torch.Tensor,
    most_q: int, most_kv: int, *, softmax_scale: float, causal: bool,
) -> torch.Tensor:  # fmt: skip
    """As flash-attn 2: `[total, H, D]`, each sequence by where it begins and ends."""
    assert (starts_q.dtype, starts_kv.dtype) == (torch.int32, torch.int32)
    outs = []
    for at in range(len(starts_q) - 1):
        rows, columns = slice(*starts_q[at : at + 2].tolist()), slice(*starts_kv[at : at + 2].tolist())
        assert (rows.stop - rows.start, columns.stop - columns.start) == (most_q, most_kv)
        one = (query[None, rows], key[None, columns], value[None, columns])
        outs.append(dense(*one, scale=softmax_scale, causal=causal)[0])
    return torch.cat(outs)


@pytest.mark.parametrize(
    ("name", "options", "module", "functions"),
    [
        ("flash_attn2", {}, "flash_attn", {"flash_attn_func": flash_attn_func}),
        ("flash_attn2", {"function": "flash_attn_with_kvcache"}, "flash_attn", {"flash_attn_with_kvcache": flash_attn_func}),
        ("flash_attn2", {"function": "flash_attn_varlen_func"}, "flash_attn", {"flash_attn_varlen_func": flash_attn_varlen_func}),
        ("flash_attn3", {}, "flash_attn_interface", {"flash_attn_func": flash_attn_func}),
        ("flash_attn3", {}, "flash_attn_interface", {"flash_attn_func": with_log_sum_exp}),
        ("flash_attn4", {}, "flash_attn.cute", {"flash_attn_func": with_log_sum_exp}),
    ],
    ids=["2", "2 cache", "2 varlen", "3", "3 with lse", "4 with lse"],
)  # fmt: skip
@pytest.mark.parametrize("problem", contract.few_cases(12), ids=str)
def test_flash_wrappers_say_what_they_mean(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, str], module: str,
    functions: dict[str, Callable[..., Any]], problem: AttentionProblem,
) -> None:  # fmt: skip
    """Layout, scale, alignment and heads as the packages document them. Plumbing only: the package is a fake in torch."""
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**functions))
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    laid_out = Tensors(*(each.transpose(1, 2) for each in plain))
    out = get(name, options).prepare(problem, laid_out)().transpose(1, 2)
    expected = get("naive").prepare(problem, Tensors(*plain))()
    torch.testing.assert_close(out, expected)
    given = torch.autograd.grad(out.sum(), plain)
    torch.testing.assert_close(given, torch.autograd.grad(expected.sum(), plain))
