"""The machine and its software, told without torch: the device, the fingerprint, and what is soft."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from ..impls import Device
from . import control_groups, gpus

#: Distributions whose versions belong to a run.
DISTRIBUTIONS = (
    "attnbench", "torch", "numpy", "triton", "nvidia-ml-py", "xformers", "mslk",
    "flash-attn", "flash-attn-3", "flash-attn-4", "flash-attn-cute", "onnx", "onnxruntime", "openvino", "jax", "jaxlib",
)  # fmt: skip

#: The strict facts of every record. One that a record lacks matches nothing, not even where the other lacks it too.
STRICT = (
    "cpu_model", "cpu_family", "cpu_number", "cpu_stepping", "cpu_flags", "cores_physical", "cores_logical", "affinity",
    "cgroup_cpus", "memory_class_gib", "last_level_cache_bytes", "architecture", "kernel", "libc", "governor", "turbo",
    "smt", "virtualisation", "thread_settings", "torch_build", "gpu",
)  # fmt: skip
#: Those of a GPU, where one was used.
STRICT_OF_GPU = ("name", "capability", "memory_bytes", *gpus.CUDA_FACTS)
#: Versions that are in every record, since attnbench needs these.
VERSIONS = ("python", "attnbench", "torch", "numpy")
CPU_FILE = Path("/proc/cpuinfo")
#: What /proc/cpuinfo of an ARM CPU calls the facts that an x86's has.
_ARM_FACTS = {"cpu family": "CPU architecture", "model": "CPU part", "stepping": "CPU revision", "flags": "Features"}


class DeviceError(ValueError):
    """A device that is not there; the message says what is."""


def find_device(asked: str) -> Device:
    """The device that a configuration asks for: auto, cpu, cuda or cuda:N. Errors: `DeviceError`."""
    if asked == "cpu":
        return _cpu()
    found = _gpus()
    if asked == "auto":
        return found[0] if found and torch_has_cuda() else _cpu()
    index = int(asked.partition(":")[2] or 0)
    if not torch_has_cuda():
        raise DeviceError(
            f"device {asked} was asked for, but the installed torch is built for the CPU alone; use device: cpu"
        )
    if index >= len(found):
        seen = ", ".join(f"{gpu} ({gpu.name})" for gpu in found) or "no GPU"
        raise DeviceError(f"device {asked} was asked for, but this machine shows {seen}; use device: auto")
    return found[index]


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA or ROCm; reads its version file, imports nothing."""
    return _torch_build().get("cuda", "None") != "None" or _is_rocm()


def usable_threads() -> int:
    """Physical cores that affinity and the control group's quota allow, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    physical = psutil.cpu_count(logical=False) or allowed
    quota = control_groups.cpus()
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
        "cgroup_cpus": control_groups.cpus() or "unlimited",
        "memory_class_gib": round(_memory_bytes() / 2**30),
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


def machine_slug() -> str:
    """The CPU's name for a file: `amd-epyc-25-1`, with family and model, which tell generations apart."""
    facts = _cpu_facts()
    words = " ".join(facts.get(key, "") for key in ("model name", "cpu family", "model")) or platform.machine()
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "unknown"


def _stated(key: str, value: Any) -> Any:
    return {"unreadable": f"this platform does not show {key}"} if value is None or value == "" else value


def _sets_threads(key: str) -> bool:
    return key.startswith(("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "TORCH_NUM", "MALLOC_", "LD_PRELOAD"))


def _cpu() -> Device:
    name = _cpu_facts().get("model name") or platform.processor() or platform.machine()
    return Device("cpu", name=name, memory_bytes=_memory_bytes())


def _memory_bytes() -> int:
    """What the machine has, or the control group's limit where that is less."""
    total = psutil.virtual_memory().total
    return min(total, control_groups.memory_limit_bytes() or total)


def cpu_flags() -> frozenset[str]:
    """The instruction sets of the CPU, in the words of /proc/cpuinfo; empty where it does not say."""
    return frozenset(_cpu_facts().get("flags", "").split())


def _cpu_facts() -> dict[str, str]:
    """The first processor of /proc/cpuinfo, in the words of an x86."""
    facts = {}
    for line in (_read(CPU_FILE) or "").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    if "CPU part" in facts:
        facts |= {key: facts[arm] for key, arm in _ARM_FACTS.items() if arm in facts}
        maker, variant = facts.get("CPU implementer"), facts.get("CPU variant")
        facts.setdefault("model name", f"ARM implementer {maker}, part {facts['CPU part']}, variant {variant}")
    return facts


def _turbo() -> str | None:
    boost = _read("/sys/devices/system/cpu/cpufreq/boost")
    return boost or _read("/sys/devices/system/cpu/intel_pstate/no_turbo")


def _gpus() -> list[Device]:
    found, build = (gpus.rocm(), "rocm") if _is_rocm() else (gpus.cuda(), "cuda")
    return [Device("cuda", index, gpu.name, gpu.capability, gpu.memory_bytes, build) for index, gpu in enumerate(found)]


def _gpu_facts(device: Device) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": device.name, "capability": device.capability, "memory_bytes": device.memory_bytes}
    if _is_rocm():
        facts |= dict.fromkeys(gpus.CUDA_FACTS) | {"driver": _read("/sys/module/amdgpu/version")}
    else:
        facts |= gpus.cuda_facts(gpus.cuda()[device.index])
    return {key: _stated(key, value) for key, value in facts.items()}


def _is_rocm() -> bool:
    return _torch_build().get("hip", "None") != "None"


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
