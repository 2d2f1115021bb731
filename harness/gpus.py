"""The GPUs of this machine as their driver shows them, told without torch, and which of them this process may use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Where the ROCm kernel driver describes processors; a CPU among them has no SIMD units.
KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")

#: What `cuda_facts` tells.
CUDA_FACTS = ("driver", "power_limit_w", "mig", "ecc")


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where the driver does not say. `capability` is CUDA's, or ROCm's major and minor gfx version."""

    uuid: str
    name: str
    memory_bytes: int | None
    capability: tuple[int, int] | None


def cuda() -> list[Gpu]:
    """NVIDIA's that CUDA_VISIBLE_DEVICES leaves, in its order."""
    return named(_by_nvml() or _by_tool(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def rocm() -> list[Gpu]:
    """AMD's that ROCm's variables leave, in their order."""
    nodes = sorted(KFD_NODES.glob("[0-9]*"), key=lambda node: int(node.name))
    visible = named([gpu for gpu in map(_by_kfd, nodes) if gpu], os.environ.get("ROCR_VISIBLE_DEVICES"))
    return named(visible, os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")))


def named(gpus: list[Gpu], names: str | None) -> list[Gpu]:
    """What a variable like CUDA_VISIBLE_DEVICES leaves: all without it, and none from its first invalid name on.

    A name is an index, or the beginning of one GPU's UUID. An instance of a partitioned GPU (MIG) stands for its GPU.
    """
    if names is None:
        return gpus
    left: list[Gpu] = []
    for name in names.split(","):
        gpu = _named(gpus, name.strip())
        if gpu is None:
            break
        left.append(gpu)
    return left


def cuda_facts(gpu: Gpu) -> dict[str, Any]:
    """What the driver tells of an NVIDIA GPU that shapes its speed; `{"unreadable": reason}` where it does not."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    except Exception as error:  # noqa: BLE001 - the driver's library fails in its own ways; the record says how
        return {key: {"unreadable": f"{type(error).__name__}: {error}"} for key in CUDA_FACTS}
    readers: dict[str, Callable[[], Any]] = {
        "driver": pynvml.nvmlSystemGetDriverVersion,
        "power_limit_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        "mig": lambda: pynvml.nvmlDeviceGetMigMode(handle)[0],
        "ecc": lambda: pynvml.nvmlDeviceGetEccMode(handle)[0],
    }
    return {key: _stated(reader) for key, reader in readers.items()}


def _named(gpus: list[Gpu], name: str) -> Gpu | None:
    if name.isdecimal():
        return gpus[int(name)] if int(name) < len(gpus) else None
    if name.startswith("MIG-"):  # older drivers name the GPU in it; newer ones do not, which is clear with one GPU
        parents = [gpu for gpu in gpus if gpu.uuid and gpu.uuid in name]
        return next(iter(parents or (gpus if len(gpus) == 1 else [])), None)
    matches = [gpu for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else None


def _by_nvml() -> list[Gpu]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []

    def attempt(read: Callable[[Any], Any], handle: Any) -> Any:
        try:
            return read(handle)
        except pynvml.NVMLError:  # this GPU does not support the query
            return None

    return [
        Gpu(
            uuid=attempt(pynvml.nvmlDeviceGetUUID, handle) or "",
            name=attempt(pynvml.nvmlDeviceGetName, handle) or "",
            memory_bytes=attempt(lambda each: int(pynvml.nvmlDeviceGetMemoryInfo(each).total), handle),
            capability=attempt(lambda each: tuple(pynvml.nvmlDeviceGetCudaComputeCapability(each)), handle),
        )
        for handle in handles
    ]


def _by_tool() -> list[Gpu]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line.split(", ") for line in answer.strip().splitlines()]
    return [_of_line(*line) for line in lines if len(line) == 4]


def _of_line(uuid: str, name: str, memory: str, capability: str) -> Gpu:
    """A line of nvidia-smi, which writes [N/A] or [Not Supported] for what it cannot tell."""
    major, _, minor = capability.strip().partition(".")
    known = major.isdecimal() and minor.isdecimal()
    mebibytes = int(memory) if memory.strip().isdecimal() else None
    return Gpu(
        uuid=uuid.strip(),
        name=name.strip(),
        memory_bytes=None if mebibytes is None else mebibytes * 2**20,
        capability=(int(major), int(minor)) if known else None,
    )


def _by_kfd(node: Path) -> Gpu | None:
    """The GPU of a node; None for a CPU, and for a GPU that this control group may not use."""
    properties = _properties(node)
    if not properties.get("simd_count"):
        return None
    version = properties.get("gfx_target_version", 0)  # 90010 is gfx90a: major, minor and stepping, two digits each
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    try:
        name = (node / "name").read_text().strip()
    except OSError:
        name = "AMD GPU"
    banks = [_properties(bank).get("size_in_bytes", 0) for bank in node.glob("mem_banks/*")]
    return Gpu(
        uuid=f"GPU-{properties.get('unique_id', 0):016x}",
        name=f"{name} (gfx{major}{minor:x}{stepping:x})",
        memory_bytes=sum(banks) or None,
        capability=(major, minor),
    )


def _properties(folder: Path) -> dict[str, int]:
    try:
        lines = (folder / "properties").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _stated(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - a fact that cannot be read is stored with the reason, whatever it is
        return {"unreadable": f"{type(error).__name__}: {error}"}
