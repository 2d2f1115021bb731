"""Implementations: registry, options, limits with their sources, packages that are missing or half there, pinned backends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnbench.impls import (
    AttentionProblem,
    Device,
    OptionError,
    RefusedError,
    Tensors,
    UnknownImplementationError,
    WrongBackendError,
    get,
    names,
)
from attnbench.impls.sdpa import takes_lower_right

Command = Callable[..., subprocess.CompletedProcess[str]]
PROBLEM = AttentionProblem(heads_q=8, heads_kv=2, seq_q=64, seq_kv=64, head_dim=320, dtype="float32", mask="causal")
AMPERE = Device("cuda", capability=(8, 0), platform="cuda")
TURING = Device("cuda", capability=(7, 5), platform="cuda")


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
        ("xformers", {"operator": "fast"}, "auto or cutlass or flash or triton_splitk"),
        ("chunked", {"query_block": 0}, "a positive integer"),
        ("naive", {"block": 3}, "options: none"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, str | int], words: str) -> None:
    """An option that there is not, or a value that it does not take, is named with what is allowed."""
    with pytest.raises(OptionError, match=words):
        get(name, options)


@pytest.mark.parametrize(
    ("name", "device", "passes", "words"),
    [
        (
            "sdpa_flash",
            TURING,
            "forward",
            ["compute capability 7.5: needs at least 8.0", "dtype float32", "head_dim 320"],
        ),
        ("sdpa_efficient", AMPERE, "forward", ["query heads per key/value head 4: needs 1"]),
        ("sdpa_cudnn", AMPERE, "forward", ["dtype float32: needs float16 or bfloat16"]),
        ("flash_attn2", TURING, "forward", ["compute capability 7.5", "head_dim 320: needs at most 256"]),
        ("xformers", AMPERE, "backward", ["pass backward with grouped queries: needs forward"]),
        ("flex_attention", Device("cpu"), "backward", ["pass backward on the CPU: needs forward"]),
    ],
)
def test_all_reasons_at_once(name: str, device: Device, passes: str, words: list[str]) -> None:
    """A refusal gives every reason, each with what was asked, what is allowed and where that is documented."""
    reasons = get(name).supports(PROBLEM, passes, device).reasons
    for word in words:
        assert any(word in reason for reason in reasons), reasons
    limits = [reason for reason in reasons if ": needs" in reason]
    assert all(reason.endswith(")") for reason in limits)


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


@pytest.mark.parametrize(
    ("distribution", "module", "version", "words"),
    [
        ("xformers", "xformers", "0.0.35", "xformers 0.0.35 is installed without its kernels"),
        ("flash_attn", "flash_attn", "2.8.3", "flash-attn 2.8.3 is installed without its CUDA kernels"),
        ("flash_attn", "flash_attn", "3.0.0", "flash-attn 3.0.0 is installed: this wrapper is for version 2"),
        ("flash_attn", "flash_attn", "2.0.9", "aligns causal top-left"),
        ("flash_attn", "flash_attn", "2.7rc1", "flash-attn 2.7rc1 is installed without its CUDA kernels"),
        ("flash_attn", "flash_attn", "2.8.3.post1", "flash-attn 2.8.3.post1 is installed without its CUDA kernels"),
        ("flash_attn", "flash_attn", "2.8.3+cu12torch2.7", "2.8.3+cu12torch2.7 is installed without its CUDA kernels"),
        ("flash_attn", "flash_attn", "two", "flash-attn two is installed: its version cannot be read"),
    ],
)
def test_packages_that_are_half_there(
    attnbench: Command, tmp_path: Path, distribution: str, module: str, version: str, words: str
) -> None:
    """A package without kernels, or of a version that means something else, is a reason; importing it would crash here."""
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("import os\nos._exit(9)\n")
    info = tmp_path / f"{distribution}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    done = attnbench("list", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert words in " ".join(done.stdout.replace("│", " ").split())


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
        MemoryEfficientAttentionCutlassOp=(SimpleNamespace(NAME="cutlassF-pt"), None),
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
