"""An emulated launch is correctness only: the record says so, it has no time, and no table ranks it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from attnbench.harness.records import Outcome
from attnbench.harness.store import Run
from attnbench.reports import frame

Command = Callable[..., subprocess.CompletedProcess[str]]
ADAPTERS = Path(__file__).parent / "adapters.py"

CONFIG = """
name: emulated
device: cpu
implementations: [sdpa_flash, flash_attn2_emulated, xformers_emulated]
sweeps:
  - {heads: 4/2, seq_len: 16/24, head_dim: 16, dtype: float16, mask: causal}
protocol: {launches: 1, min_time_s: 0.005, max_time_s: 0.02}
"""


def test_has_no_time_and_no_rank(attnbench: Command, tmp_path: Path) -> None:
    """Three cells are right; one is timed, and it alone is in the table of winners."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    done = attnbench("run", "c.yaml", "--out", "runs", "--plugin", ADAPTERS)
    assert done.returncode == 0, done.stderr
    path = tmp_path / done.stdout.splitlines()[-1]
    launches = {each.implementation: each for each in Run.open(path).launches() if each.implementation != "naive"}
    assert {each.outcome for each in launches.values()} == {Outcome.OK}, launches
    for name, launch in launches.items():
        is_emulated = name.endswith("_emulated")
        assert launch.emulated is is_emulated
        assert (launch.samples is None) is is_emulated
        assert (launch.memory is None) is is_emulated
        assert launch.accuracy
    rows = frame.cells(Run.open(path)).set_index("implementation")
    assert rows["ranked"].to_dict() == {name: not name.endswith("_emulated") for name in rows.index}
    assert set(rows.loc[~rows["ranked"], "unranked_because"]) == {"emulated: checked, not timed"}
