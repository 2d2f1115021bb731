"""Plans: which cells a configuration means, which cannot run, what is refused, and the order of a round."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness.config import ConfigError, SweepConfig, load_config, load_stored, shipped_names
from attnbench.harness.config.protocol import Protocol
from attnbench.harness.plan import Plan, cost_of, make_plan, order
from attnbench.impls import AttentionProblem, Device, Implementation, Tensors, register, registry

CPU = Device("cpu", memory_bytes=24 * 2**30)
GPU = Device("cuda", name="a GPU", capability=(9, 0), memory_bytes=80 * 2**30, platform="cuda")
SWEEP = {"heads": 4, "seq_len": 256, "head_dim": 64}


def config(*sweeps: dict[str, Any], **more: Any) -> SweepConfig:
    """A configuration of these sweeps."""
    written = {"name": "x", "implementations": ["naive"], "sweeps": list(sweeps), "protocol": {"threads": 2}}
    return load_stored(written | more)


def planned(*sweeps: dict[str, Any], device: Device = CPU, **more: Any) -> Plan:
    """The plan of these sweeps, without a control cell."""
    return make_plan(config(*sweeps, **more), device, control=False)


def refusal(*sweeps: dict[str, Any], **more: Any) -> str:
    """The message of the error that planning must end in."""
    with pytest.raises(ConfigError) as caught:
        planned(*sweeps, **more)
    return str(caught.value)


def test_product() -> None:
    """A sweep is the product of its axes, by problem first and implementation last."""
    plan = planned(
        {"batch": [1, 2], "heads": "8/2", "seq_len": "1/512", "head_dim": 64, "pass": ["forward", "backward"]},
        implementations=["naive", "sdpa"],
        protocol={},
    )
    assert [cell.name for cell in plan.cells] == [
        f"{implementation}/b{batch}-h8/2-s1/512-d64-float32-full/{passes}"
        for batch in (1, 2)
        for passes in ("forward", "backward")
        for implementation in ("naive", "sdpa")
    ]


def test_every_axis_is_used() -> None:
    """Each axis of a sweep reaches the cells, conditions included."""
    sweep = {
        "batch": 3, "heads": "8/2", "seq_len": "5/7", "head_dim": 32, "dtype": "bfloat16", "mask": "causal",
        "pass": "backward", "cache": "cold", "cuda_graph": True,
    }  # fmt: skip
    protocol = {"threads": 5, "allocator": "resident", "float32": "tf32"}
    (cell,) = planned(sweep, device=GPU, protocol=protocol).cells
    assert cell.problem == AttentionProblem(
        batch=3, heads_q=8, heads_kv=2, seq_q=5, seq_kv=7, head_dim=32, dtype="bfloat16", mask="causal"
    )
    assert cell.passes == "backward"
    assert cell.conditions.model_dump() == {
        "device": "cuda", "cache": "cold", "cuda_graph": True, "threads": 5, "allocator": "resident", "float32": "tf32",
    }  # fmt: skip


def test_equal_cells_merge() -> None:
    """Equal cells of two sweeps are one, also where an option is written out at its default."""
    plan = planned(
        SWEEP,
        {**SWEEP, "seq_len": [256, 512]},
        implementations=["chunked", {"name": "chunked", "query_block": 1024}, {"name": "chunked", "query_block": 64}],
    )
    assert [(cell.arm, cell.problem.seq_q) for cell in plan.cells] == [
        ("chunked", 256), ("chunked[query_block=64]", 256), ("chunked", 512), ("chunked[query_block=64]", 512),
    ]  # fmt: skip


def test_own_implementations() -> None:
    """A sweep's own implementations stand in place of the top level's."""
    plan = planned(SWEEP, {**SWEEP, "implementations": "sdpa"})
    assert [cell.implementation for cell in plan.cells] == ["naive", "sdpa"]


def test_totals() -> None:
    """`total_tokens` and `hidden` become batch and heads, as the papers use them."""
    plan = planned({"total_tokens": 4096, "hidden": 512, "seq_len": [512, 1024], "head_dim": [64, 128]})
    found = [(c.problem.batch, c.problem.heads_q, c.problem.heads_kv, c.problem.head_dim) for c in plan.cells]
    assert found == [(8, 8, 8, 64), (8, 4, 4, 128), (4, 8, 8, 64), (4, 4, 4, 128)]


def test_remainders() -> None:
    """A total that its divisor does not divide is refused, for each such pair."""
    found = refusal({"total_tokens": 4096, "hidden": [512, 100], "seq_len": [512, 1000], "head_dim": 64})
    assert found.splitlines() == [
        (
            "run.json: sweeps.0.total_tokens: 4096 tokens leave a remainder of 96 in sequences of seq_len 1000; "
            "allowed: multiples of every seq_len"
        ),
        (
            "run.json: sweeps.0.hidden: 100 leaves a remainder of 36 in heads of head_dim 64; "
            "allowed: multiples of every head_dim"
        ),
    ]


def test_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a plan can find wrong still names the file and the line."""
    monkeypatch.chdir(tmp_path)
    text = "name: x\nimplementations: naive\nsweeps:\n- seq_len: 3\n  head_dim: 64\n  heads: 4\n  total_tokens: 4\n"
    Path("a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"^a\.yaml:7: sweeps\.0\.total_tokens: 4 tokens leave a remainder of 1 in "):
        make_plan(load_config("a.yaml").config, CPU)


def test_too_many_cells() -> None:
    """More than 100,000 cells are refused by multiplying lengths, in no time, for a sweep and for all."""
    many = list(range(1, 2001))
    begin = time.perf_counter()
    found = refusal({**SWEEP, "batch": many, "seq_len": many, "head_dim": many, "pass": ["forward", "backward"]})
    assert time.perf_counter() - begin < 5
    assert found == (
        "run.json: sweeps.0: 16,000,000,000 cells (2,000 batch x 2,000 seq_len x 2,000 head_dim x 2 pass); "
        "allowed: at most 100,000; shorten some axes, or split the file"
    )
    half = {**SWEEP, "batch": many, "head_dim": list(range(1, 31))}
    assert refusal(half, half) == (
        "run.json: sweeps: 120,000 cells in all; allowed: at most 100,000; shorten some axes, or split the file"
    )


def test_many_remainders_are_bounded() -> None:
    """A sweep of totals that never divide ends at the first mistakes."""
    sweep = {
        "total_tokens": list(range(10**6, 10**6 + 300)),
        "seq_len": list(range(2000, 2300)),
        "heads": 1,
        "head_dim": 8,
    }
    assert len(refusal(sweep).splitlines()) == 21


def test_meaningless_combination() -> None:
    """Causal rows that see nothing are refused, once a shape, with the way to leave them out; which then works."""
    sweep = {**SWEEP, "seq_len": ["4/2", 4], "mask": ["full", "causal"], "pass": ["forward", "backward"]}
    assert refusal(sweep, implementations=["naive", "sdpa"]) == (
        "run.json: sweeps.0: seq_len 4/2: causal with more queries (4) than keys (2) leaves rows that see nothing; "
        "use seq_q <= seq_kv, or leave it out by an entry {seq_len: 4/2, mask: causal} under exclude"
    )
    assert len(planned(sweep, exclude=[{"seq_len": "4/2", "mask": "causal"}]).cells) == 6


@pytest.mark.parametrize(
    ("entry", "left"),
    [
        ({"seq_len": ">4096"}, ["1/4096", "512", "4096"]),
        ({"seq_len": ">=4096"}, ["512"]),
        ({"seq_len": "<512"}, ["512", "4096", "4096/8192"]),
        ({"seq_len": "!=512"}, ["512"]),
        ({"seq_len": 4096}, ["1/4096", "512", "4096/8192"]),
        ({"seq_len": "1/4096"}, ["512", "4096", "4096/8192"]),
        ({"seq_len": [512, ">4096"]}, ["1/4096", "4096"]),
        ({"seq_len": "> 4096"}, ["1/4096", "512", "4096"]),
        ({"seq_len": "<=4096", "head_dim": 32}, ["1/4096", "512", "4096", "4096/8192"]),
        ({"seq_len": ">512", "dtype": ["float32", "float16"]}, ["512"]),
        ({"implementation": "naive", "seq_len": 512}, ["1/4096", "4096", "4096/8192"]),
        ({"implementation": "sdpa"}, ["1/4096", "512", "4096", "4096/8192"]),
        (
            {"mask": "full", "pass": "forward", "batch": "<2", "heads": [4], "seq_len": 512},
            ["1/4096", "4096", "4096/8192"],
        ),
        ({"pass": "backward"}, ["1/4096", "512", "4096", "4096/8192"]),
    ],
)
def test_exclude(entry: dict[str, Any], left: list[str]) -> None:
    """All keys of an entry must hold; of a list one; a comparison holds if either side of a pair does."""
    lengths = ["1/4096", 512, 4096, "4096/8192"]
    plan = planned({**SWEEP, "seq_len": lengths}, exclude=[entry])
    assert [str(cell.problem).split("-s")[1].split("-")[0] for cell in plan.cells] == left
    assert len(plan.cells) + len(plan.excluded) == len(lengths)
    assert all(rule is not None for _, rule in plan.excluded)


def test_excluded_names_its_rule() -> None:
    """A cell that was left out keeps the entry that did it, in words."""
    rules = [{"batch": 9}, {"implementation": ["naive", "sdpa"], "seq_len": ">256"}]
    plan = planned({**SWEEP, "seq_len": [256, 512]}, exclude=rules)
    ((cell, rule),) = plan.excluded
    assert (cell.problem.seq_q, str(rule)) == (512, "{implementation: [naive, sdpa], seq_len: >256}")


def test_nothing_left() -> None:
    """Exclusions that leave nothing are a mistake."""
    assert refusal(SWEEP, exclude=[{"seq_len": 256}]) == "run.json: exclude: all 1 cells are left out; exclude less"


def test_refused_on_cpu() -> None:
    """What the device cannot run is refused with every reason, and stays in the plan."""
    sweep = {**SWEEP, "cache": ["warm", "cold"], "cuda_graph": [False, True]}
    plan = planned(sweep, implementations=["naive", "sdpa_efficient", "flex_attention"])
    reasons = {cell.name: plan.refused.get(cell.id, ()) for cell in plan.cells}
    assert len(plan.cells) == 12
    assert reasons["naive/b1-h4-s256-d64-float32-full/forward/threads=2"] == ()
    assert [text.split(":")[0] for text in reasons[
        "naive/b1-h4-s256-d64-float32-full/forward/cache=cold,cuda_graph=True,threads=2"
    ]] == ["cache cold", "cuda_graph true"]  # fmt: skip
    assert "device cpu" in reasons["sdpa_efficient/b1-h4-s256-d64-float32-full/forward/threads=2"][0]
    assert not planned(sweep, device=GPU).refused


def test_unknown_is_broken() -> None:
    """An unknown implementation that was tolerated is in the plan, with what will be recorded of it."""
    written = {"name": "x", "implementations": ["naive", "mine"], "sweeps": [SWEEP]}
    plan = make_plan(load_stored(written, tolerate_unknown=True), CPU)
    broken = [plan.broken.get(cell.id, "") for cell in plan.cells]
    assert broken[0] == ""
    assert broken[1].startswith("unknown implementation 'mine'")
    assert not plan.refused


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    registry.names()
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))


@pytest.mark.usefixtures("_own_registry")
def test_failing_supports_is_broken() -> None:
    """An implementation whose `supports` raises breaks its own cells alone; its revision is the cell's."""

    @register
    class Moody(Implementation):
        name = "moody"
        revision = 7

        def supports(self, *_args: Any, **_kwargs: Any) -> Any:
            raise RuntimeError("not today")

        def prepare(self, problem: AttentionProblem, tensors: Tensors) -> Callable[[], Any]:
            raise NotImplementedError

    plan = planned(SWEEP, implementations=["moody", "naive"])
    assert list(plan.broken.values()) == ["moody: supports() failed: RuntimeError: not today"]
    assert [cell.revision for cell in plan.cells] == [7, 1]


def test_control() -> None:
    """The control cell is one small naive problem, under the run's conditions, whatever is swept."""
    plan = make_plan(config(SWEEP, implementations=["sdpa"], protocol={"allocator": "resident"}), CPU)
    (control,) = plan.control
    assert control.name == "naive/b1-h4-s256-d64-float32-full/forward/allocator=resident"
    assert control not in plan.cells
    same = make_plan(config(SWEEP), CPU)
    assert same.control == same.cells


def test_order() -> None:
    """A round's order depends on seed and round alone, holds every cell once, and differs between rounds."""
    cells = planned({**SWEEP, "batch": list(range(1, 30))}).cells
    first = order(cells, 0, 0)
    assert first == order(list(cells), 0, 0)
    assert sorted(cell.id for cell in first) == sorted(cell.id for cell in cells)
    assert len({tuple(cell.id for cell in order(cells, seed, round_)) for seed in (0, 1) for round_ in (0, 1)}) == 4


def test_estimate_grows() -> None:
    """Estimates grow with length; naive needs memory for its scores, a linear implementation does not."""
    protocol = Protocol(threads=2)
    naive = planned({**SWEEP, "seq_len": [1024, 4096], "pass": ["forward", "forward_backward"]}).cells
    found = [cost_of(cell, CPU, protocol) for cell in naive]
    assert found[0].seconds_per_launch < found[1].seconds_per_launch < found[3].seconds_per_launch
    assert found[2].memory_bytes > 3 * 4 * 4 * 4096**2
    (linear,) = planned({**SWEEP, "seq_len": 4096}, implementations=["chunked"]).cells
    assert cost_of(linear, CPU, protocol).memory_bytes == 4 * 4 * 4 * 4096 * 64
    assert cost_of(linear, GPU, protocol).seconds_per_launch > 0
    longer = Protocol(threads=2, max_time_s=5)
    assert cost_of(linear, CPU, longer).seconds_per_launch > cost_of(linear, CPU, protocol).seconds_per_launch + 3


def test_memory_alone_is_one_round() -> None:
    """A memory-only protocol is estimated as the one launch of each cell that it takes."""
    protocol = {"launches": 8, "measure": ["memory"]}
    assert planned(SWEEP, protocol=protocol).seconds == planned(SWEEP, protocol=protocol | {"launches": 1}).seconds
    assert planned(SWEEP, protocol={"launches": 8}).seconds > planned(SWEEP, protocol={"launches": 1}).seconds


def test_totals_of_a_plan() -> None:
    """A plan tells its seconds, and which measured cells need more memory than there is."""
    plan = planned({**SWEEP, "seq_len": [256, 65536]}, implementations=["naive", "chunked", "sdpa_efficient"])
    assert [cell.name.split("/")[0] for cell in plan.beyond_memory] == ["naive"]
    launches = sum(each.seconds_per_launch for each in plan.costs.values())
    assert len(plan.costs) == 4
    assert plan.seconds == pytest.approx(3 * (2.5 + launches))
    assert not planned({**SWEEP, "seq_len": 65536}, device=Device("cpu")).beyond_memory


@pytest.mark.parametrize(
    ("name", "device"),
    [(name, device) for name in shipped_names() for device in (CPU, GPU)
     if load_config(name).config.device in ("auto", device.kind)],
    ids=str,
)  # fmt: skip
def test_shipped(name: str, device: Device) -> None:
    """Every shipped configuration plans where it asks to run, with cells that are measured and none beyond a machine."""
    plan = make_plan(load_config(name).config, device)
    assert plan.costs
    assert not plan.broken
    assert not plan.beyond_memory


def test_quick_is_quick() -> None:
    """`quick` has at most 90 cells, all measured on a CPU with a compiler, one of them FlexAttention's."""
    plan = make_plan(load_config("quick").config, CPU)
    assert len(plan.cells) <= 90
    assert {cell.implementation for cell in plan.cells if cell.id in plan.refused} <= {"flex_attention"}
    assert sum(cell.implementation == "flex_attention" for cell in plan.cells) == 1
    slow = [cell.problem for cell in plan.cells if cell.implementation == "naive" and cell.problem.dtype != "float32"]
    assert all(problem.seq_q <= 512 and problem.heads_q <= 4 for problem in slow)
