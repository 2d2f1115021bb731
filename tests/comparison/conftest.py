"""Runs that tests compose: real folders of the store, with the times, ends and environments that a test asks for."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from attnbench.harness.cell import Cell
from attnbench.harness.plan import CONTROL
from attnbench.harness.records import CeilingsMeasured, Launch, Outcome, RunInfo, Samples, SessionEnded
from attnbench.harness.store import Run
from attnbench.impls import AttentionProblem

FACTS: dict[str, Any] = {
    "strict": {
        "cpu_model": "Test CPU", "cpu_family": "26", "cpu_number": "2", "cpu_stepping": "1", "cpu_flags": "fpu avx2",
        "cores_physical": 2, "cores_logical": 4, "affinity": [0, 1], "cgroup_cpus": "unlimited", "memory_class_gib": 24,
        "last_level_cache_bytes": 2**25, "architecture": "x86_64", "kernel": "Linux 6.1", "libc": "glibc 2.36",
        "governor": {"unreadable": "this platform does not show governor"},
        "turbo": {"unreadable": "this platform does not show turbo"},
        "smt": "1", "virtualisation": "virtual", "thread_settings": {"OMP_NUM_THREADS": "2"},
        "torch_build": {"version": "2.13.0", "cuda": "12.8", "hip": "None"},
        "gpu": {"name": "H100", "capability": [9, 0], "memory_bytes": 80, "driver": "580", "power_limit_w": 700.0,
                "mig": 0, "ecc": 1},
    },
    "soft": {"hostname": "here", "load": [0.1, 0.2, 0.3], "boot_time": 1.0, "available_bytes": 5, "mhz": "2596",
             "executable": "python3"},
    "device_name": "Test CPU",
    "threads": 2,
}  # fmt: skip
VERSIONS = {"python": "3.11.7", "attnbench": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "jax": "0.10.2"}
TORCH_FACTS = {
    "blas": "MKL", "cpu_capability": "AVX2", "mkldnn": "True", "cuda": "12.8", "cudnn": "91000", "hip": "None",
    "debug": "False", "git": "cf30153",
}  # fmt: skip
MakeRun = Callable[..., Path]


def make_cell(implementation: str = "chunked", seq: int = 64, **changes: Any) -> Cell:
    """A cell of a small problem."""
    problem = AttentionProblem(heads_q=2, heads_kv=2, seq_q=seq, seq_kv=seq, head_dim=16)
    return Cell(**({"implementation": implementation, "problem": problem, "passes": "forward"} | changes))


CONTROL_CELL = Cell(implementation="naive", problem=CONTROL, passes="forward")


@pytest.fixture
def cell() -> Callable[..., Cell]:
    """Makes cells."""
    return make_cell


@pytest.fixture
def facts() -> dict[str, Any]:
    """Facts of a machine with a GPU, to be changed."""
    return copy.deepcopy(FACTS)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run's folder `tmp_path/name`."""

    def make(
        name: str,
        cells: Sequence[Cell],
        *,
        times_s: Mapping[str, float] | None = None,
        slower: float = 1.0,
        noise: float = 0.001,
        launches: int = 8,
        servers: int = 1000,
        ends: Mapping[str, Outcome | None] | None = None,
        control: Cell | None = CONTROL_CELL,
        controls_slower: float = 1.0,
        environment: Mapping[str, Any] = FACTS,
        versions: Mapping[str, str] = VERSIONS,
        torch_facts: Mapping[str, str] = TORCH_FACTS,
        backend: str = "",
        void: str = "",
    ) -> Path:
        """Every cell takes `times_s` of its name, else a millisecond, times `slower`; None as an end leaves it unmeasured."""
        info = RunInfo(
            id=name, name="test", created_at="2026-11-24T00:00:00", config_source="test.yaml", config_text="name: test\n",
            config={"name": "test"}, device="cpu", versions=dict(versions), environment=dict(environment),
            cells=tuple(cells), control=(control.id,) if control else (), seed=0, attnbench_version="0.1.0",
        )  # fmt: skip
        run = Run.create(tmp_path, info)
        run.append(CeilingsMeasured(at="", ceilings=None, torch_facts=dict(torch_facts), seconds=1))
        generator = random.Random(name)
        every = [(each, slower * (times_s or {}).get(each.name, 1e-3)) for each in cells]
        every += [(control, controls_slower * 1e-3)] if control else []
        for round_ in range(launches):
            for position, (of, time_s) in enumerate(every):
                end = (ends or {}).get(of.name, Outcome.OK)
                if end is None:
                    continue
                times = tuple(time_s * (1 + noise * generator.gauss(0, 1)) for _ in range(3))
                samples = Samples(repeats=1, times_s=times, stop="precision", warmup_calls=1, warmup_s=0.1)
                run.append(Launch(
                    outcome=end, detail="" if end is Outcome.OK else f"it ended as {end}", cell=of.id, name=of.name,
                    implementation=of.implementation, round=round_, attempt=0, position=position, backend=backend, void=void,
                    server=f"s{round_ % servers}", started_at="", samples=samples if end is Outcome.OK else None,
                ))  # fmt: skip
        run.append(SessionEnded(at="", status="finished", wall_s=1, split_s={"rest": 1.0}))
        return run.path

    return make
