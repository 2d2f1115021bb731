"""The problem: work counted against brute force, shapes, refusals, names."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from attnbench.impls import AttentionProblem

SIZES = (1, 2, 5, 8)


def brute_force(problem: AttentionProblem) -> dict[str, int]:
    """Multiply-adds of every product, counted one attended pair at a time, times two."""
    forward = backward = 0
    for _, row in itertools.product(range(problem.batch * problem.heads_q), range(problem.seq_q)):
        for key in range(problem.seq_kv):
            if problem.mask.kind == "causal" and key > row + problem.seq_kv - problem.seq_q:
                continue
            for _ in range(problem.head_dim):
                forward += 2 + 2  # q k, p v
                backward += 2 * 5  # q k again, dO v, p dO, dS k, dS q
    return {"forward": forward, "backward": backward, "forward_backward": forward + backward}


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize(("seq_q", "seq_kv"), list(itertools.product(SIZES, SIZES)))
def test_flops_equal_brute_force(seq_q: int, seq_kv: int, mask: str) -> None:
    """The counter is exact per element for every mask and rectangle that has a meaning."""
    if mask == "causal" and seq_q > seq_kv:
        pytest.skip("rows that see nothing have no softmax")
    problem = AttentionProblem(batch=2, heads_q=4, heads_kv=2, seq_q=seq_q, seq_kv=seq_kv, head_dim=3, mask=mask)
    assert {each: problem.flops(each) for each in brute_force(problem)} == brute_force(problem)


def test_pairs_follow_visible_keys() -> None:
    """The closed form and the mask's own definition count the same pairs."""
    for seq_q, seq_kv in itertools.product(range(1, 9), range(1, 9)):
        for mask in ("full", "causal"):
            if mask == "causal" and seq_q > seq_kv:
                continue
            problem = AttentionProblem(heads_q=1, heads_kv=1, seq_q=seq_q, seq_kv=seq_kv, head_dim=1, mask=mask)
            rows = (len(problem.mask.visible_keys(row, seq_q, seq_kv)) for row in range(seq_q))
            assert problem.pairs == sum(rows)


def test_papers_convention() -> None:
    """4 B H S^2 D, halved for causal, backward 2.5 times: the label that papers use."""
    problem = AttentionProblem(batch=2, heads_q=4, heads_kv=4, seq_q=16, seq_kv=16, head_dim=8, mask="causal")
    assert problem.flops("forward", "papers") == 4 * 2 * 4 * 16 * 16 * 8 // 2
    assert problem.flops("backward", "papers") == 5 * problem.flops("forward", "papers") // 2


def test_bytes_count_inputs_and_output_once() -> None:
    """Forward traffic is q, k, v and out."""
    problem = AttentionProblem(batch=2, heads_q=8, heads_kv=2, seq_q=3, seq_kv=5, head_dim=7, dtype="bfloat16")
    assert problem.forward_bytes() == 2 * (2 * 2 * 8 * 3 * 7 + 2 * 2 * 2 * 5 * 7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads_kv": 3}, "multiple of key/value heads"),
        ({"seq_q": 9, "mask": "causal"}, "rows that see nothing"),
        ({"head_dim": 0}, "greater than or equal to 1"),
        ({"dtype": "float8"}, "float32"),
    ],
)
def test_refuses_what_has_no_meaning(change: dict[str, object], words: str) -> None:
    """A problem that cannot be computed cannot be made."""
    given = {"heads_q": 4, "heads_kv": 2, "seq_q": 8, "seq_kv": 8, "head_dim": 8} | change
    with pytest.raises(ValidationError, match=words):
        AttentionProblem.model_validate(given)


def test_name_says_what_differs() -> None:
    """Pairs are written query/kv only where the two differ."""
    problem = AttentionProblem(
        heads_q=8, heads_kv=2, seq_q=1024, seq_kv=1024, head_dim=64, dtype="bfloat16", mask="causal"
    )
    assert str(problem) == "b1-h8/2-s1024-d64-bfloat16-causal"
