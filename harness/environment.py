"""The machine and its software, told without torch: the device, the fingerprint, and what is soft."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ..impls import Device

#: Distributions whose versions belong to a run.
DISTRIBUTIONS = ("attnbench", "torch", "numpy", "xformers", "flash-attn", "triton", "nvidia-ml-py")


class DeviceError(ValueError):
    """A device that is not there; the message says what is."""


def find_device(asked: str) -> Device:
    """The device that a configuration asks for: auto, cpu, cuda or cuda:N. Errors: `DeviceError`."""
    if asked == "cpu":
        return _cpu()
    gpus = _gpus()
    if asked == "auto":
        return gpus[0] if gpus and torch_has_cuda() else _cpu()
    index = int(asked.partition(":")[2] or 0)
    if not torch_has_cuda():
        raise DeviceError(
            f"device {asked} was asked for, but the installed torch is built for the CPU alone; use device: cpu"
        )
    if index >= len(gpus):
        seen = ", ".join(f"{gpu} ({gpu.name})" for gpu in gpus) or "no GPU"
        raise DeviceError(f"device {asked} was asked for, but this machine shows {seen}; use device: auto")
    return gpus[index]


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA or ROCm; reads its version file, imports nothing."""
    built = _torch_build()
    return built.get("cuda", "None") != "None" or built.get("hip", "None") != "None"


def usable_threads() -> int:
    """Physical cores that affinity and the control group's quota allow, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    physical = psutil.cpu_count(logical=False) or allowed
    quota = _cgroup_cpus()
    return max(1, min(allowed, physical, int(quota) if quota else allowed))


def last_level_cache_bytes() -> int | None:
    """The size of the largest cache of CPU 0."""
    sizes = []
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", _read(size) or "")
        if match:
            sizes.append(int(match[1]) * 1024 ** " KMG".index(match[2] or " "))
    return max(sizes, default=None)


def versions() -> dict[str, str]:
    """Versions of Python and of the distributions that are there."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(device: Device) -> dict[str, Any]:
    """`strict`: what must be equal to compare with a stored baseline; `soft`: recorded, never compared.

    A fact that the platform does not show is stored as `{"unreadable": reason}`.
    """
    cpu = _cpu_facts()
    strict: dict[str, Any] = {
        "cpu_model": cpu.get("model name"),
        "cpu_family": cpu.get("cpu family"),
        "cpu_number": cpu.get("model"),
        "cpu_stepping": cpu.get("stepping"),
        "cpu_flags": cpu.get("flags"),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cgroup_cpus": _cgroup_cpus() or "unlimited",
        "memory_class_gib": round(psutil.virtual_memory().total / 2**30),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "architecture": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(),
        "smt": _read("/sys/devices/system/cpu/smt/active"),
        "virtualisation": "virtual" if "hypervisor" in cpu.get("flags", "") else "none seen",
        "thread_settings": {key: os.environ[key] for key in sorted(os.environ) if _sets_threads(key)},
        "torch_build": _torch_build(),
        "gpu": _gpu_facts(device) if device.kind == "cuda" else "none used",
    }
    soft = {
        "hostname": platform.node(),
        "load": _attempt(lambda: [round(each, 2) for each in psutil.getloadavg()]),
        "boot_time": psutil.boot_time(),
        "available_bytes": psutil.virtual_memory().available,
        "mhz": cpu.get("cpu MHz"),
        "executable": Path(sys.executable).name,
    }
    return {"strict": {key: _stated(key, value) for key, value in strict.items()}, "soft": soft}


def machine_name(environment: Mapping[str, Any]) -> str:
    """The machine in a few words: CPU, cores, memory and, where it was used, the GPU."""
    strict = environment.get("strict", {})
    words = [
        f"{strict.get('cpu_model')}",
        f"{strict.get('cores_physical')} cores",
        f"{strict.get('memory_class_gib')} GiB",
    ]
    gpu = strict.get("gpu")
    return ", ".join(words + ([str(gpu.get("name"))] if isinstance(gpu, Mapping) and "name" in gpu else []))


def _stated(key: str, value: Any) -> Any:
    return {"unreadable": f"this platform does not show {key}"} if value is None or value == "" else value


def _sets_threads(key: str) -> bool:
    return key.startswith(("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "TORCH_NUM", "MALLOC_", "LD_PRELOAD"))


def _cpu() -> Device:
    name = _cpu_facts().get("model name") or platform.processor() or platform.machine()
    return Device("cpu", name=name, memory_bytes=psutil.virtual_memory().total)


def _cpu_facts() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    facts = {}
    for line in (_read("/proc/cpuinfo") or "").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    return facts


def _turbo() -> str | None:
    boost = _read("/sys/devices/system/cpu/cpufreq/boost")
    return boost or _read("/sys/devices/system/cpu/intel_pstate/no_turbo")


def _cgroup_cpus() -> float | None:
    """Processors that the control group's quota allows; None without a quota."""
    quota = (_read("/sys/fs/cgroup/cpu.max") or "").split()
    if not quota:
        quota = [
            _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "",
            _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us") or "",
        ]
    try:
        allowed, period = int(quota[0]), int(quota[1])
    except (ValueError, IndexError):
        return None
    return allowed / period if allowed > 0 else None


@dataclass(frozen=True)
class _Gpu:
    name: str
    memory_bytes: int | None
    capability: tuple[int, int] | None


def _gpus() -> list[Device]:
    build = "rocm" if _torch_build().get("hip", "None") != "None" else "cuda"
    found = _visible(_gpus_by_nvml() or _gpus_by_tool())
    return [Device("cuda", index, gpu.name, gpu.capability, gpu.memory_bytes, build) for index, gpu in enumerate(found)]


def _visible(gpus: list[_Gpu]) -> list[_Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by number, in its order; all without it, or where it names them otherwise."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [part.strip() for part in (named or "").split(",") if part.strip()]
    if named is None or not all(number.isdigit() for number in numbers):
        return gpus
    return [gpus[int(number)] for number in numbers if int(number) < len(gpus)]


def _gpus_by_nvml() -> list[_Gpu]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            _Gpu(
                str(pynvml.nvmlDeviceGetName(handle)),
                int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
            )
            for handle in handles
        ]
    except pynvml.NVMLError:
        return []


def _gpus_by_tool() -> list[_Gpu]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in answer.strip().splitlines():
        name, memory, capability = (part.strip() for part in line.rsplit(",", 2))
        major, _, minor = capability.partition(".")
        gpus.append(_Gpu(name, int(memory) * 2**20, (int(major), int(minor))))
    return gpus


def _gpu_facts(device: Device) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": device.name, "capability": device.capability, "memory_bytes": device.memory_bytes}
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index)
    except Exception as error:  # noqa: BLE001 - the driver's library fails in its own ways; the record says how
        return facts | {"driver": {"unreadable": f"{type(error).__name__}: {error}"}}
    readers: dict[str, Callable[[], Any]] = {
        "driver": pynvml.nvmlSystemGetDriverVersion,
        "power_limit_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        "mig": lambda: pynvml.nvmlDeviceGetMigMode(handle)[0],
        "ecc": lambda: pynvml.nvmlDeviceGetEccMode(handle)[0],
    }
    return facts | {key: _attempt(reader) for key, reader in readers.items()}


def _torch_build() -> dict[str, str]:
    """`version`, `cuda` and `hip` from torch's own version file, read as text."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    folders = (spec.submodule_search_locations or []) if spec else []
    text = _read(Path(folders[0]) / "version.py") if folders else None
    pattern = r"^(__version__|cuda|hip)(?:\s*:[^=]*)?\s*=\s*(?:'([^']*)'|(\w+))"
    matches = re.findall(pattern, text or "", flags=re.MULTILINE)
    return {name.strip("_"): quoted or word for name, quoted, word in matches}


def _read(path: Path | str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _attempt(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - a fact that cannot be read is stored with the reason, whatever it is
        return {"unreadable": f"{type(error).__name__}: {error}"}
