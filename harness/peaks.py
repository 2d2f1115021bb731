"""Theoretical peaks, where they are known: data sheets of GPUs, and cores x clock x vector units of a CPU."""

from __future__ import annotations

from pathlib import Path

from ..impls import Device

#: Dense FLOP/s by product name, as its NVIDIA data sheet states: 16-bit tensor cores, and float32 without them.
_DATA_SHEETS: dict[str, tuple[float, float]] = {
    "H200": (989.4e12, 66.9e12),
    "H100 PCIe": (756e12, 51.2e12),
    "H100": (989.4e12, 66.9e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}
#: TF32 on tensor cores runs at half of the 16-bit rate (NVIDIA A100 and H100 data sheets).
_TF32_SHARE = 0.5
#: Fused multiply-add units of a core that any current x86 has at most.
_FMA_UNITS = 2


def peak_flops_per_s(device: Device, threads: int, float32: str, cpu_flags: str) -> dict[str, float]:
    """FLOP/s that the device cannot exceed, by dtype; empty where that is not known."""
    return _gpu(device, float32) if device.kind == "cuda" else _cpu(threads, set(cpu_flags.split()))


def _gpu(device: Device, float32: str) -> dict[str, float]:
    for name, (half, single) in _DATA_SHEETS.items():
        if all(word in device.name.replace("-", " ").split() for word in name.split()):
            return {"float16": half, "bfloat16": half, "float32": half * _TF32_SHARE if float32 == "tf32" else single}
    return {}


def _cpu(threads: int, flags: set[str]) -> dict[str, float]:
    """Known only where the highest clock can be read; on most virtual machines it cannot."""
    try:
        hertz = int(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text()) * 1000
    except (OSError, ValueError):
        return {}
    lanes = 16 if "avx512f" in flags else 8 if "avx2" in flags else None
    if lanes is None:
        return {}
    single = threads * hertz * _FMA_UNITS * lanes * 2.0
    half = 2 * single if flags & {"avx512_bf16", "avx512_fp16"} else single
    if flags & {"amx_bf16", "amx_fp16"}:
        half = threads * hertz * 2048.0  # Intel SDM: 16 x 16 x 32 multiply-adds every 8 cycles
    return {"float32": single, "bfloat16": half, "float16": half}
