"""One task in a process of its own: the edge where whatever an implementation does becomes an outcome."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ...impls import AttentionProblem
from ..cell import Conditions
from ..environment import find_device
from ..records import Outcome
from . import ceilings, composite, noise, process
from .conformance import run_case
from .failure import outcome_of
from .inputs import draw, problem_seed
from .launch import measure_cell
from .oracle import Selection, find_truth
from .origin import find
from .tasks import (
    CaseDone,
    CasesDone,
    CasesTask,
    CeilingsTask,
    CellTask,
    LimitsDone,
    LimitsTask,
    NoiseTask,
    Probe,
    Task,
    TruthDone,
    TruthTask,
)


def perform(task: Task) -> str:
    """Do a task; the result as JSON."""
    if isinstance(task, CellTask):
        return measure_cell(task).model_dump_json()
    if isinstance(task, CasesTask):
        return CasesDone(cases=tuple(_check_cases(task))).model_dump_json()
    if isinstance(task, NoiseTask):
        process.fix(task.conditions, task.threads)
        return noise.measure(task).model_dump_json()
    process.fix_threads(task.threads)
    if isinstance(task, TruthTask):
        process.protect_host(limit_memory=True)
        return _store_truth(task).model_dump_json()
    process.fix_precision(task.conditions)
    if isinstance(task, LimitsTask):
        process.fix_allocator(task.conditions.allocator)
        return LimitsDone(limits=composite.measure(task.works)).model_dump_json()
    return _probe(task).model_dump_json()


def _check_cases(task: CasesTask) -> Iterator[CaseDone]:
    begin = time.monotonic()
    process.fix(Conditions(device="cuda" if task.device.startswith("cuda") else "cpu"), task.threads)
    for number, problem in enumerate(task.problems):
        if number and time.monotonic() - begin > task.begin_within_s:
            break
        yield _check_case(task, problem)


def _check_case(task: CasesTask, problem: AttentionProblem) -> CaseDone:
    """Supports, inputs, prepare, check. Whatever is raised becomes an outcome with its reason."""
    try:
        implementation = find(task.implementation, task.options, task.plugins)
        if task.device.startswith("cuda"):
            torch.cuda.set_device(task.device)
        result = run_case(implementation, problem, find_device(task.device), seed=task.seed)
    except Exception as error:  # noqa: BLE001 - the worker's edge, as for cells
        outcome, detail = outcome_of(error)
        return CaseDone(outcome=outcome, details=(detail,))
    if result.refusals:
        return CaseDone(passes=result.passes, outcome=Outcome.UNSUPPORTED, details=result.refusals)
    outcome = Outcome.INCORRECT if result.faults else Outcome.OK
    return CaseDone(passes=result.passes, outcome=outcome, details=result.faults)


def _store_truth(task: TruthTask) -> TruthDone:
    seed = problem_seed(task.problem, task.seed)
    selection = Selection.within(task.problem, backward=task.backward, seed=seed)
    truth = find_truth(task.problem, draw(task.problem, seed), selection, backward=task.backward, float32=task.float32)
    truth.save(Path(task.truth_path))
    return TruthDone(checked_share=selection.share(task.problem))


def _probe(task: CeilingsTask) -> Probe:
    if task.device.startswith("cuda"):
        torch.cuda.set_device(task.device)
    facts = {
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": str(torch.backends.mkldnn.is_available()),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "hip": str(torch.version.hip),
        "debug": str(torch.version.debug),
        "git": str(torch.version.git_version),
    }
    return Probe(ceilings=ceilings.measure(task.device, task.dtypes, task.last_level_cache_bytes), torch_facts=facts)
