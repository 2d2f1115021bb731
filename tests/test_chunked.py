"""The in-repo implementation: right with every choice of blocks and products, on extreme scores, strided inputs, and small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.harness import contract, environment
from attnbench.harness.cell import Cell
from attnbench.harness.measure.check import check
from attnbench.harness.measure.conformance import run_case, truth_of
from attnbench.harness.measure.inputs import Inputs, draw
from attnbench.harness.measure.oracle import Selection, find_truth
from attnbench.harness.measure.subject import Subject
from attnbench.harness.measure.tasks import CellTask, TruthTask
from attnbench.harness.records import Measurement
from attnbench.harness.run.fork_server import ForkServer
from attnbench.impls import AttentionProblem, RefusedError, Tensors, get
from attnbench.impls.chunked import blocks, kernel, method, precision
from attnbench.impls.chunked.blocks import Blocks, Limits
from attnbench.impls.chunked.kernel import ChunkedAttention
from attnbench.impls.chunked.method import Method

DEVICE = environment.find_device("cpu")
MULTIPLIES_BFLOAT16 = "avx512_bf16" in str(environment.describe(DEVICE)["strict"]["cpu_flags"])
#: Choices that the defaults do not make for small problems, or not on this machine.
CHOICES: list[dict[str, Any]] = [
    {"products": "own"},
    {"products": "float32"},
    {"products": "own", "query_block": 100},
    {"products": "float32", "query_block": 48, "key_block": 64},
    {"key_block": 32, "workspace_mib": 1},
    {"softmax": "fused"},
    {"padding": "always"},
    {"products": "own", "padding": "always", "query_block": 100},
    {"products": "float32", "padding": "always", "query_block": 48, "key_block": 64},
    {"products": "float32", "padding": "always", "softmax": "unshifted", "query_block": 48, "key_block": 64},
    {"softmax": "unshifted"},
    {"products": "float32", "softmax": "unshifted", "query_block": 48, "key_block": 64},
]
#: Keys whole or cut, and the softmax fused or unshifted.
METHODS = [(cut, unshifted) for cut in (False, True) for unshifted in (False, True)]


def _method(problem: AttentionProblem, limits: Limits, products: torch.dtype, *, unshifted: bool) -> Method:
    blocks = Blocks.of(problem, limits, products.itemsize, converts=False)
    return Method(products, products, blocks, blocks, unshifted=unshifted)


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_every_choice_is_right(options: dict[str, Any]) -> None:
    """What another machine or a larger problem would choose passes the cases too."""
    problems = [each for each in contract.cases(fast_float16=False) if each.dtype != "float16"]
    for problem in problems[::8]:
        result = run_case(get("chunked", options), problem, DEVICE, truth_of(problem))
        assert not result.refusals
        assert not result.faults, f"{problem}: {result.faults}"


@pytest.mark.parametrize("base_2", [True, False])
def test_float32_exponentials_are_right(monkeypatch: pytest.MonkeyPatch, base_2: bool) -> None:
    """Of e or of 2, whichever a race says is faster; the launch record tells which."""
    monkeypatch.setattr(method, "exp2_is_faster", lambda *_: base_2)
    options = {"products": "float32", "softmax": "unshifted"}
    for problem in contract.cases(fast_float16=False)[::4]:
        if problem.dtype == "float64":
            continue
        implementation = get("chunked", options)
        result = run_case(implementation, problem, DEVICE, truth_of(problem))
        assert not result.faults, f"{problem}: {result.faults}"
        assert (implementation.backend(frozenset()) or "").endswith("powers of two" if base_2 else "exponentials")


@pytest.mark.parametrize(("padding", "ones"), [("always", True), ("auto", True), ("never", False)])
def test_16_bit_exponentials_are_right(monkeypatch: pytest.MonkeyPatch, padding: str, ones: bool) -> None:
    """Of enough keys, sums of bfloat16 exponentials pass the cases, whichever of keys and values are padded."""
    monkeypatch.setattr(blocks, "LEAST_COPIED", 1)
    monkeypatch.setattr(blocks, "LEAST_ALIGNED", 1)
    monkeypatch.setattr(method, "ones_are_faster", lambda *_: ones)
    monkeypatch.setattr(method, "padded_is_faster", lambda *_: False)
    monkeypatch.setattr(method, "aligned_is_faster", lambda *_: True)  # auto pads keys to whole tiles, and no rows
    options = {"products": "own", "softmax": "unshifted", "padding": padding, "query_block": 100, "workspace_mib": 1}
    for problem in contract.cases(fast_float16=False):
        if problem.dtype == "bfloat16" and problem.seq_kv >= 16:
            result = run_case(get("chunked", options), problem, DEVICE, truth_of(problem))
            assert not result.refusals
            assert not result.faults, f"{problem}: {result.faults}"


def test_taller_causal_blocks_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal blocks have more rows where a race says that 16-bit products of more are faster, and are right with both."""
    problem = AttentionProblem(
        heads_q=8, heads_kv=8, seq_q=600, seq_kv=600, head_dim=64, dtype="bfloat16", mask="causal"
    )
    rows = []
    for is_tall in (False, True):
        monkeypatch.setattr(method, "tall_is_faster", lambda *_, answer=is_tall: answer)
        choice = method.choose(
            problem, torch.bfloat16, torch.device("cpu"), Limits(1024, 65536, 2**24),
            products="own", softmax="auto", padding="never",
        )  # fmt: skip
        rows.append(choice.fast.backward.rows)
        assert not _faults(problem, _scaled(problem, 1.0), {"products": "own"})
    assert rows == [208, 304]


@pytest.mark.parametrize("options", [{}, {"query_block": 48, "key_block": 64}, {"key_block": 40}], ids=str)
def test_parts_cut_on_the_diagonal_are_right(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """However many pieces a part has, whether the diagonal begins in it, before or behind it, and rows see all of it or none."""
    monkeypatch.setattr(blocks, "LEAST_CUT_SCORES", 1)
    monkeypatch.setattr(blocks, "LEAST_CUT_KEYS", 8)
    monkeypatch.setattr(blocks, "FEW_BLOCKS", {2: 0, 4: 0, 8: 0})
    for problem in contract.cases(fast_float16=False):
        if problem.is_causal and problem.dtype != "float16":
            implementation = get("chunked", {"products": "float32", "softmax": "unshifted", **options})
            result = run_case(implementation, problem, DEVICE, truth_of(problem))
            assert not result.faults, f"{problem}: {result.faults}"


@pytest.mark.parametrize(
    "options",
    [
        {"softmax": "fused", "products": "own"},
        {"softmax": "fused", "products": "float32", "query_block": 100},
        {"products": "float32", "query_block": 48, "key_block": 64},
    ],
    ids=str,
)
def test_diagonals_of_many_strips_are_right(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """However many strips of rows a block has, and whether they see all of its keys, some or none."""
    monkeypatch.setattr(kernel, "STRIP", 16)
    monkeypatch.setattr(kernel, "LEAST_STRIPPED", 1)
    for problem in contract.cases(fast_float16=False):
        if problem.is_causal and problem.dtype != "float16":
            result = run_case(get("chunked", options), problem, DEVICE, truth_of(problem))
            assert not result.faults, f"{problem}: {result.faults}"


@pytest.mark.parametrize("row", [0, 150, 299])
def test_one_large_row_of_any_block_is_found(row: int) -> None:
    """Exponentials that leave float32 are not used, in whichever block they are."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=300, seq_kv=300, head_dim=64)
    inputs = draw(problem, 0)
    inputs.query[:, :, row] *= 100.0
    assert not _faults(problem, inputs, {"softmax": "unshifted", "query_block": 64})


@pytest.mark.parametrize(("factor", "is_small"), [(1.0, True), (30.0, False), (-30.0, False), (3000.0, False)])
def test_16_bit_exponentials_of_large_scores_are_not_used(
    monkeypatch: pytest.MonkeyPatch, factor: float, is_small: bool
) -> None:
    """Whether all scores of a row are large, or far below zero, products are computed again in float32."""
    for name, answer in {
        "fastest": torch.bfloat16, "exp_is_faster": True, "padded_is_faster": True, "ones_are_faster": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(method, name, lambda *_, answer=answer, **__: answer)
    problem = AttentionProblem(
        heads_q=2, heads_kv=2, seq_q=300, seq_kv=300, head_dim=64, dtype="bfloat16", mask="causal"
    )
    inputs = _scaled(problem, 1.0)
    inputs.key[..., 0] = 8 * factor  # with the queries' own first element, a score of the factor
    inputs.query[..., 0] = 1.0
    products, attend = [], kernel.attend
    monkeypatch.setattr(kernel, "attend", lambda *given: products.append(given[-1].products) or attend(*given))
    assert not _faults(problem, inputs, {})
    assert products[-1] is (torch.bfloat16 if is_small else torch.float32)


@pytest.mark.parametrize(
    ("small", "block", "expected"),
    [(8.0, 0.4, torch.bfloat16), (8.0, 0.9, torch.float32), (1.0, 2.0, torch.float32), (400.0, 0.1, torch.float32)],
)
def test_blocks_decide_the_race(
    monkeypatch: pytest.MonkeyPatch, small: float, block: float, expected: torch.dtype
) -> None:
    """A slow small product does not decide, unless it is hopelessly slow; a block's must be clearly faster than float32's."""
    times = iter([[small, 1.0], [block, 1.0]])
    monkeypatch.setattr(precision, "_least_s", lambda *_: next(times))
    assert precision._winner.__wrapped__(torch.bfloat16, 1, is_few=False) is expected


@pytest.mark.parametrize("is_few", [False, True])
def test_few_rows_are_raced_with_what_their_keys_cost(monkeypatch: pytest.MonkeyPatch, is_few: bool) -> None:
    """Where keys are read once, a copy of them in float32 is part of the race."""
    raced: list[list[Any]] = []
    monkeypatch.setattr(precision, "_product", lambda *given: given)
    monkeypatch.setattr(precision, "_least_s", lambda *calls: raced.append(list(calls)) or [1.0, 2.0])
    assert precision._winner.__wrapped__(torch.bfloat16, 1, is_few=is_few) is torch.bfloat16
    _, (own, single) = raced
    assert own[0] is torch.bfloat16
    assert own[1][1] == (4 if is_few else 256)
    assert single[2] is (torch.bfloat16 if is_few else None)


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_queries_are_right_either_way_round(monkeypatch: pytest.MonkeyPatch, is_turned: bool, dtype: Any) -> None:
    """Products of a few rows, grouped and not, turned as on some machines or not as on others."""
    monkeypatch.setattr(method, "turns", lambda of, *_: is_turned and of == torch.float32)
    for heads in (8, 2):
        problem = AttentionProblem(
            heads_q=heads, heads_kv=2, seq_q=2, seq_kv=300, head_dim=64, dtype=dtype, mask="causal"
        )
        assert not _faults(problem, _scaled(problem, 1.5), {"products": "float32"})


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with products of 16-bit operands in float32, of the same roundings as those of tensor cores."""

    def multiply(out: Tensor, left: Tensor, right: Tensor, *, beta: float, alpha: float) -> Tensor:
        assert left.dtype == right.dtype != out.dtype == torch.float32
        return out.baddbmm_(left.float(), right.float(), beta=beta, alpha=alpha)

    monkeypatch.setattr(kernel, "multiply_wider", multiply)
    monkeypatch.setattr(method, "widens", lambda dtype, _: dtype.itemsize == 2)


@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("query_block", [100, 512])
def test_float32_products_of_16_bit_operands_are_right(query_block: int) -> None:
    """What is computed on tensor cores passes the cases."""
    problems = [each for each in contract.cases(fast_float16=False) if each.dtype == "bfloat16"]
    for problem in problems[::8]:
        result = run_case(get("chunked", {"query_block": query_block}), problem, DEVICE, truth_of(problem))
        assert not result.faults, f"{problem}: {result.faults}"


@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_large_scores_stay_right_on_tensor_cores(dtype: Any) -> None:
    """No score is rounded there, so that none is too large."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=150, seq_kv=150, head_dim=64, dtype=dtype, mask="causal")
    assert not _faults(problem, _scaled(problem, 3000.0), {})


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize(("cut", "unshifted"), METHODS)
def test_gradients_by_finite_differences(mask: str, cut: bool, unshifted: bool) -> None:
    """In float64 gradients agree with finite differences, grouped and rectangular, by every method."""
    problem = AttentionProblem(batch=2, heads_q=4, heads_kv=2, seq_q=5, seq_kv=9, head_dim=3, mask=mask)
    generator = torch.Generator().manual_seed(0)
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    way = _method(problem, Limits(4, 4 if cut else 99, 2**20), torch.float64, unshifted=unshifted)
    assert way.forward.cuts_keys is cut
    assert torch.autograd.gradcheck(lambda *each: ChunkedAttention.apply(*each, 0.6, way), inputs)


def _scaled(problem: AttentionProblem, factor: float) -> Inputs:
    inputs = draw(problem, 7)
    return inputs._replace(query=inputs.query * factor)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", [{}, {"key_block": 50}, {"softmax": "unshifted"}], ids=str)
def test_large_scores_stay_right(dtype: Any, options: dict[str, Any]) -> None:
    """Scores to +-1e4 and more, where a row sees one key alone, are finite and as near as float32 products come."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=150, seq_kv=150, head_dim=64, dtype=dtype, mask="causal")
    inputs = _scaled(problem, 3000.0)
    largest = (inputs.query.float() @ inputs.key.float().transpose(-2, -1)).abs().max() * problem.softmax_scale
    assert largest > 1e4
    assert not _faults(problem, inputs, options)


def test_own_float32_products_bear_large_scores_unshifted() -> None:
    """Products asked for in the inputs' own float32 do not take the guard off the exponentials."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=150, seq_kv=150, head_dim=64, mask="causal")
    assert not _faults(problem, _scaled(problem, 3000.0), {"products": "own", "softmax": "unshifted"})


def test_one_query_with_large_scores_stays_right() -> None:
    """Where queries are few the scores themselves are looked at, and products are computed again in float32."""
    problem = AttentionProblem(heads_q=4, heads_kv=2, seq_q=1, seq_kv=150, head_dim=64, dtype="bfloat16")
    assert not _faults(problem, _scaled(problem, 1.0), {})
    assert not _faults(problem, _scaled(problem, 3000.0), {})


def test_skewed_rows_stay_right() -> None:
    """One key that outweighs all others, in its own block or not, leaves no NaN and no loss."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=64, seq_kv=300, head_dim=64)
    inputs = draw(problem, 7)
    inputs.key[:, :, 211] = 40 * inputs.query[:, :, :1].mean(2)
    for options in ({}, {"key_block": 100}):
        assert not _faults(problem, inputs, options)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1.0, 1e30])
def test_values_of_any_size_stay_right(factor: float) -> None:
    """Values that exponentials of up to e**32 would push out of float32 are kept from them."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=64, seq_kv=300, head_dim=64)
    inputs = _scaled(problem, 1.5)
    inputs = inputs._replace(value=inputs.value * factor, grad_out=inputs.grad_out / max(factor, 1.0))
    assert not _faults(problem, inputs, {"softmax": "unshifted"})


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e20])
@pytest.mark.parametrize("options", [{}, {"query_block": 48, "key_block": 64}], ids=str)
def test_gradients_of_any_size_stay_right(factor: float, options: dict[str, Any]) -> None:
    """Backward divides the gradient of out by sums of up to e**32 before it multiplies: that takes it not out of float32."""
    problem = AttentionProblem(heads_q=4, heads_kv=2, seq_q=150, seq_kv=300, head_dim=64, mask="causal")
    inputs = _scaled(problem, 4.0)
    inputs = inputs._replace(grad_out=inputs.grad_out * factor)
    assert not _faults(problem, inputs, {"softmax": "unshifted", **options})


@pytest.mark.parametrize(("heads_q", "softmax", "more"), [(4, "unshifted", 4), (2, "unshifted", 4), (4, "fused", 0)])
def test_backward_keeps_no_more_than_sums_of_rows(heads_q: int, softmax: str, more: int) -> None:
    """Beside its arguments and result, so many bytes a row, where it computes exponentials again and not a softmax."""
    problem = AttentionProblem(heads_q=heads_q, heads_kv=2, seq_q=300, seq_kv=300, head_dim=64)
    tensors = Tensors(*(each.requires_grad_() for each in draw(problem, 7)[:3]))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = get("chunked", {"softmax": softmax}).prepare(problem, tensors)()
    for each in (*tensors, out):
        kept.pop(each.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) == heads_q * problem.seq_q * more


@pytest.mark.parametrize(
    ("dtype", "seq", "options", "need"),
    [
        (
            "bfloat16",
            8,
            {"softmax": "unshifted"},
            r"softmax auto or fused; bfloat16 sums need the range of e\*\*32, and 16 keys",
        ),
        ("float16", 64, {"softmax": "unshifted"}, "softmax auto or fused; float16 sums need the range"),
        ("bfloat16", 64, {"key_block": 32}, r"seq_kv <= key_block \(32\); sums over parts of the keys need float32"),
    ],
)
def test_what_16_bit_products_cannot_do_is_refused(dtype: Any, seq: int, options: dict[str, Any], need: str) -> None:
    """Who asks for them with a softmax or blocks that need float32 is told."""
    problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=seq, seq_kv=seq, head_dim=8, dtype=dtype)
    tensors = Tensors(*(torch.zeros(1, 1, seq, 8, dtype=getattr(torch, dtype)) for _ in range(3)))
    with pytest.raises(RefusedError, match=f"products own: needs {need}"):
        get("chunked", {"products": "own", **options}).prepare(problem, tensors)


def _faults(problem: AttentionProblem, inputs: Inputs, options: dict[str, Any]) -> list[str]:
    truth = find_truth(problem, inputs, Selection.within(problem, backward=True, seed=0), backward=True)
    subject = Subject(get("chunked", options), problem, "forward_backward", "cpu")
    subject.place(inputs)
    subject.prepare()
    return check(subject, inputs, truth, subject.outputs(inputs.grad_out)).faults


@pytest.mark.parametrize(("cut", "unshifted"), METHODS)
def test_strided_inputs_are_right(cut: bool, unshifted: bool) -> None:
    """Views of `[B, S, H, D]`, and every second of a larger tensor's elements, give what their copies give."""
    problem = AttentionProblem(batch=2, heads_q=4, heads_kv=2, seq_q=33, seq_kv=70, head_dim=16, mask="causal")
    method = _method(problem, Limits(16, 32 if cut else 999, 2**20), torch.float32, unshifted=unshifted)
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)

    def run(inputs: list[torch.Tensor], grad_out: torch.Tensor) -> list[torch.Tensor]:
        leaves = [each.requires_grad_() for each in inputs]
        out = ChunkedAttention.apply(*leaves, 0.25, method)  # type: ignore[no-untyped-call]
        return [out, *torch.autograd.grad(out, leaves, grad_out)]

    plain = [torch.randn(shape) for shape in shapes]
    grad_out = torch.randn(problem.query_shape)
    turned = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in plain]
    spread = [torch.stack([each, each], dim=-1)[..., 0] for each in plain]
    expected = run([each.clone() for each in plain], grad_out)
    strided_grad = grad_out.transpose(1, 2).contiguous().transpose(1, 2)
    for inputs in (turned, spread):
        assert not all(each.is_contiguous() for each in inputs)
        for got, wanted in zip(run(inputs, strided_grad), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_is_deterministic() -> None:
    """The same inputs give the same bits."""
    problem = AttentionProblem(
        heads_q=8, heads_kv=2, seq_q=300, seq_kv=300, head_dim=64, dtype="bfloat16", mask="causal"
    )
    results = []
    for _ in range(2):
        subject = Subject(get("chunked", {}), problem, "forward_backward", "cpu")
        inputs = draw(problem, 0)
        subject.place(inputs)
        subject.prepare()
        results.append(subject.outputs(inputs.grad_out))
    for name, tensor in results[0].items():
        other = results[1][name]
        assert tensor is not None
        assert other is not None
        assert torch.equal(tensor, other)


@pytest.mark.parametrize(
    ("seq_q", "seq_kv", "mask", "heads", "limits"),
    [
        (512, 512, "causal", (8, 8), Limits(512, 65536, 8 * 2**20)),
        (257, 1000, "causal", (6, 3), Limits(48, 64, 2**20)),
        (1, 4096, "full", (32, 8), Limits(512, 65536, 8 * 2**20)),
        (997, 997, "full", (3, 1), Limits(512, 100, 2**20)),
        (600, 600, "full", (3, 3), Limits(512, 65536, 8 * 2**20, threads=2)),
        (2048, 2048, "causal", (8, 8), Limits(512, 512, 8 * 2**20, threads=2)),
        (700, 1100, "causal", (8, 8), Limits(512, 512, 8 * 2**20, threads=2)),
    ],
)
def test_blocks_visit_what_is_visible_once(
    seq_q: int, seq_kv: int, mask: Any, heads: tuple[int, int], limits: Limits
) -> None:
    """Every row of every head meets every key that it sees once, in blocks within the workspace and in their pieces."""
    problem = AttentionProblem(heads_q=heads[0], heads_kv=heads[1], seq_q=seq_q, seq_kv=seq_kv, head_dim=64, mask=mask)
    blocks = Blocks.of(problem, limits, 4, converts=False)
    seen, of_pieces = (torch.zeros(heads[1], seq_q, seq_kv, dtype=torch.int32) for _ in range(2))
    for block in blocks.forward:
        assert block.pieces[0].rows == block.rows
        for piece in block.pieces:
            of_pieces[block.heads, piece.rows, piece.keys] += 1
        for keys in block.keys:
            seen[block.heads, block.rows, keys] += 1
            counts = (each.stop - each.start for each in (block.heads, block.rows, keys))
            assert 4 * problem.group_size * math.prod(counts) <= limits.workspace_bytes
    for row in range(seq_q):
        visible = problem.mask.visible_keys(row, seq_q, seq_kv)
        assert (seen[:, row, : visible.stop] == 1).all()
        assert (of_pieces[:, row, : visible.stop] == 1).all()


def test_rows_are_not_multiplied_with_keys_behind_the_diagonal() -> None:
    """Of 2,048 tokens in blocks of 256 rows a quarter of the scores on the diagonal is left out, and of one head none."""
    many = []
    for heads in (1, 4):
        problem = AttentionProblem(heads_q=heads, heads_kv=heads, seq_q=2048, seq_kv=2048, head_dim=64, mask="causal")
        limits = Limits(256, 512, 2**24, threads=2)
        pieces = [piece for block in Blocks.of(problem, limits, 4, converts=False).forward for piece in block.pieces]
        many.append(sum(math.prod(each.stop - each.start for each in (piece.rows, piece.keys)) for piece in pieces))
    assert many == [36 * 256**2, 36 * 256**2 - 8 * 128**2]


def test_causal_rows_see_whole_tiles_of_keys() -> None:
    """All rows but the last end where a tile of keys does, of whatever length the sequence is."""
    problem = AttentionProblem(heads_q=3, heads_kv=3, seq_q=2053, seq_kv=2053, head_dim=96, mask="causal")
    last, *others = sorted(
        {block.rows.stop for block in Blocks.of(problem, Limits(1024, 65536, 2**24), 2, converts=False).forward}
    )[::-1]
    assert last == 2053
    assert others
    assert not any(stop % blocks.TILE for stop in others)


@pytest.mark.parametrize(
    ("tokens", "rows", "at_once"), [(400, 1024, 3), (509, 1024, 2), (1920, 240, 2), (1920, 160, 3)]
)
def test_threads_do_not_wait_for_a_head_with_many_scores(tokens: int, rows: int, at_once: int) -> None:
    """Of three float32 heads two threads take two at once, unless a block has few scores of each, or all of not many."""
    problem = AttentionProblem(heads_q=3, heads_kv=3, seq_q=tokens, seq_kv=tokens, head_dim=64)
    found = Blocks.of(problem, Limits(rows, 512, 2**24, threads=2), 4, converts=False)
    assert max(block.heads.stop - block.heads.start for block in found.forward) == at_once
    assert found.is_few == (tokens == 400)


@pytest.mark.parametrize(("tokens", "rows"), [(2048, 1024), (4096, 512), (8192, 256), (65536, 64)])
def test_scores_that_threads_share_stay_in_their_caches(tokens: int, rows: int) -> None:
    """A head has 4 MiB of scores at most, or 256 rows of them, or what the workspace holds."""
    problem = AttentionProblem(heads_q=8, heads_kv=8, seq_q=tokens, seq_kv=tokens, head_dim=64, dtype="bfloat16")
    limits = Limits(1024, 2**18, 2**24, threads=2)
    assert Blocks.of(problem, limits, 2, converts=False, head_bytes=2**22).rows == rows


@pytest.mark.parametrize(
    ("heads", "seq", "mask", "thread_mib", "rows", "keys"),
    [
        (8, (4096, 4096), "full", 4, 512, 512),
        (8, (4096, 4096), "full", 2, 1024, 512),
        (8, (4096, 4096), "full", 8, 1024, 512),
        (8, (8192, 8192), "causal", 2, 512, 512),
        (1, (4096, 4096), "full", 4, 512, 1024),
        (1, (4096, 4096), "full", 2, 1024, 512),
        (1, (300, 1500), "full", 2, 300, 1500),
        (8, (300, 1500), "full", 2, 300, 512),
    ],
)
def test_parts_of_keys_stay_in_a_cores_own_cache(
    heads: int, seq: tuple[int, int], mask: Any, thread_mib: int, rows: int, keys: int
) -> None:
    """A thread has a quarter of its bytes for unshifted scores, but all where that is less than 1 MiB.

    Two threads that share a head have twice a quarter, or as much as one alone if that is more, and few keys whole. Under a
    causal mask rows are no more than keys.
    """
    problem = AttentionProblem(heads_q=heads, heads_kv=heads, seq_q=seq[0], seq_kv=seq[1], head_dim=64, mask=mask)
    limits = Limits(1024, 2**18, 2**24, threads=2, thread_bytes=thread_mib * 2**20)
    choice = method.choose(
        problem, torch.float32, torch.device("cpu"), limits, products="auto", softmax="unshifted", padding="auto"
    )
    for part in (choice.fast.forward, choice.fast.backward):
        assert (part.rows, part.keys) == (rows, keys)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One server for the memory tests."""
    server = ForkServer()
    yield server
    server.close()


@pytest.mark.parametrize("products", ["own", "float32"])
@pytest.mark.parametrize(
    ("passes", "most", "times_below"), [("forward", 17_825_792, 59), ("forward_backward", 67_108_864, 32)]
)
def test_memory_at_16384_tokens_is_below_the_papers(
    passes: Any, most: int, times_below: int, products: str, server: ForkServer, tmp_path: Path
) -> None:
    """Rabe & Staats 2021, Tables 2 and 3: overhead of one head of 64 in bfloat16; forward saves nothing for backward.

    A CPU that multiplies bfloat16 in software takes minutes for so many tokens, and is asked about a quarter of them: of bytes
    alone, as buffers for scores are no smaller there.
    """
    tokens = 16384 if products == "float32" or MULTIPLIES_BFLOAT16 else 4096
    problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=tokens, seq_kv=tokens, head_dim=64, dtype="bfloat16")
    cell = Cell(implementation="chunked", options={"products": products}, problem=problem, passes=passes)
    memory = _measured(server, cell, tmp_path).memory
    assert memory is not None
    print(f"{passes}, {products} products: {memory.overhead_bytes} bytes")
    assert memory.overhead_bytes <= most
    matrices = 1 if passes == "forward" else 2
    if tokens == 16384:
        assert memory.overhead_bytes * times_below <= matrices * tokens**2 * 4
    assert not memory.saved_bytes or memory.saved_bytes < 2**20


def _measured(server: ForkServer, cell: Cell, folder: Path) -> Measurement:
    path = folder / "truth.pt"
    common: dict[str, Any] = {"device": "cpu", "threads": 2, "seed": 0}
    truth = TruthTask(**common, problem=cell.problem, backward=cell.passes != "forward", truth_path=str(path))
    assert server.run(truth, 300).result
    task = CellTask(
        **common, cell=cell, truth_path=str(path), min_time_s=0.02, max_time_s=0.1, precision=0.01, measure_time=False
    )
    reply = server.run(task, 300)
    assert reply.result, reply.output_tail
    measurement = Measurement.model_validate_json(reply.result)
    assert not measurement.detail, measurement.detail
    return measurement


class _Products(TorchDispatchMode):
    """Sees what batched products are written to, and counts all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.outs: list[Tensor] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm_):
            self.outs.append(result)
        return result


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_float32_products_of_heads_are_batches(mask: str) -> None:
    """Of matrices that are apart torch makes no batch: it has all threads share each, and scores go from core to core."""
    problem = AttentionProblem(heads_q=4, heads_kv=4, seq_q=1021, seq_kv=1021, head_dim=32, mask=mask)
    inputs = [torch.randn(1, 4, 1021, 32, requires_grad=True) for _ in range(3)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        call, seen = get("chunked").prepare(problem, Tensors(*inputs)), _Products()
        with seen:
            call().sum().backward()
    finally:
        torch.set_num_threads(threads)
    assert len(seen.outs) >= 7
    assert all(out.is_contiguous() for out in seen.outs)


@pytest.mark.parametrize(
    ("mask", "heads", "most"), [("full", (3, 3), 9), ("full", (4, 2), 10), ("causal", (3, 3), 8), ("causal", (4, 2), 9)]
)
def test_few_scores_are_computed_as_they_come(mask: str, heads: tuple[int, int], most: int) -> None:
    """Two products, a softmax and views, less than a workspace needs: that takes 10, 12, 12 and 15 calls."""
    problem = AttentionProblem(heads_q=heads[0], heads_kv=heads[1], seq_q=127, seq_kv=200, head_dim=32, mask=mask)
    inputs = Tensors(
        *(torch.randn(1, count, seq, 32) for count, seq in ((heads[0], 127), (heads[1], 200), (heads[1], 200)))
    )
    call, seen = get("chunked", {"softmax": "fused"}).prepare(problem, inputs), _Products()
    call()
    with seen:
        out = call()
    exact = get("naive").prepare(problem, inputs)()
    assert seen.calls <= most
    assert torch.allclose(out, exact, atol=1e-5)


@pytest.mark.parametrize(("seq", "is_direct"), [(512, True), (1024, False)])
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("base_2", [False, True])
def test_unshifted_scores_of_one_block_are_right(seq: int, is_direct: bool, mask: Any, base_2: bool) -> None:
    """Where the third level holds scores, twice its part does if they are all; causal ones of few heads are one block as well."""
    heads = 8 if mask == "full" else 1
    problem = AttentionProblem(heads_q=heads, heads_kv=heads, seq_q=seq, seq_kv=seq, head_dim=16, mask=mask)
    limits = Limits(1024, 2**18, 2**24, threads=2, thread_bytes=2**21, causal_rows=512)
    choice = method.choose(
        problem, torch.float32, torch.device("cpu"), limits, products="auto", softmax="unshifted", padding="never"
    )
    inputs = Tensors(*(torch.randn(1, heads, seq, 16) for _ in range(3)))
    out = kernel.attend(*inputs, problem.softmax_scale, replace(choice.fast, base_2=base_2))
    assert choice.fast.is_direct == is_direct
    assert torch.allclose(out, get("naive").prepare(problem, inputs)(), atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "seq", "rows"),
    [
        ((1, 1), (443, 443), 443),
        ((1, 1), (509, 509), 256),
        ((3, 3), (509, 509), 128),
        ((3, 3), (200, 900), 112),
        ((6, 3), (601, 601), 80),
        ((1, 1), (2100, 2100), 432),
        ((4, 4), (1100, 1100), 128),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_blocks_are_right(heads: tuple[int, int], seq: tuple[int, int], rows: int, dtype: Any) -> None:
    """Of not few scores all heads' rows are several causal blocks, and up to eight are computed as they come."""
    problem = AttentionProblem(
        heads_q=heads[0], heads_kv=heads[1], seq_q=seq[0], seq_kv=seq[1], head_dim=32, dtype=dtype, mask="causal"
    )
    options = {"products": "float32", "softmax": "fused"}
    choice = method.choose(
        problem, getattr(torch, dtype), torch.device("cpu"), Limits(1024, 2**18, 2**24, threads=2, thread_bytes=2**21),
        products="float32", softmax="fused", padding="auto",
    )  # fmt: skip
    assert (choice.safe.forward.rows, choice.safe.is_direct) == (rows, seq[0] != 1100)
    assert not _faults(problem, _scaled(problem, 1.0), options)


@pytest.mark.parametrize(
    ("heads", "seq", "is_whole"),
    [
        ((1, 1), (300, 1500), True),
        ((3, 3), (509, 509), True),
        ((6, 2), (150, 301), True),
        ((1, 1), (1024, 1024), True),
        ((1, 1), (1100, 1100), False),
        ((8, 8), (512, 1021), False),
    ],
)
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("softmax", ["unshifted", "fused"])
@pytest.mark.parametrize("padding", ["always", "never"])
def test_few_16_bit_scores_are_one_block(
    monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int], seq: tuple[int, int], is_whole: bool, mask: Any,
    softmax: Any, padding: Any,
) -> None:  # fmt: skip
    """Those of all heads are computed as they come if caches hold them, and are right with padding and without."""
    monkeypatch.setattr(method, "LEAST_PADDED_SCORES", 0)
    problem = AttentionProblem(
        heads_q=heads[0], heads_kv=heads[1], seq_q=seq[0], seq_kv=seq[1], head_dim=32, dtype="bfloat16", mask=mask
    )
    options = {"products": "own", "softmax": softmax, "padding": padding}
    choice = method.choose(
        problem,
        torch.bfloat16,
        torch.device("cpu"),
        Limits(1024, 2**18, 2**24, threads=2, thread_bytes=2**21),
        **options,
    )
    assert choice.fast.is_direct == is_whole
    assert choice.fast.forward.has_one_row_block == is_whole or seq[0] < 1024
    assert not _faults(problem, _scaled(problem, 1.0), options)


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_a_large_score_of_one_block_is_found(mask: Any, factor: float) -> None:
    """A method that looks gives up at a large score, and is right where there is none."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=40, seq_kv=40, head_dim=32, mask=mask)
    looking = replace(_method(problem, Limits(1024, 2**18, 2**24), torch.float32, unshifted=False), looks=True)
    query, key, value = (torch.randn(1, 2, 40, 32) for _ in range(3))
    inputs = Tensors(factor * query, key, value)
    assert looking.is_direct
    if factor > 1:
        with pytest.raises(precision.LargeScoresError):
            kernel.attend(*inputs, problem.softmax_scale, looking)
    else:
        out = kernel.attend(*inputs, problem.softmax_scale, looking)
        assert torch.allclose(out, get("naive").prepare(problem, inputs)(), atol=1e-5)
