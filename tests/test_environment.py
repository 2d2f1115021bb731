"""The machine without torch: control groups and GPUs, as files and tools of many machines tell them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.harness import control_groups, environment, gpus
from attnbench.harness.gpus import Gpu

MIB = 2**20
FIRST = Gpu("GPU-aaaa1111-0", "H100", 80 * 2**30, (9, 0))
SECOND = Gpu("GPU-aabb2222-0", "A100", 40 * 2**30, (8, 0))
THIRD = Gpu("GPU-cccc3333-0", "L4", None, None)


def process(folder: Path, cgroup: str, mounts: dict[str, str], files: dict[str, str]) -> Path:
    """A /proc/self whose control groups lie in a folder: mounts by folder as `root type options`, files by path."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text + "\n")
    lines = []
    for point, words in mounts.items():
        (folder / point).mkdir(parents=True, exist_ok=True)
        root, kind, options = words.split()
        lines.append(f"31 23 0:28 {root} {folder / point} rw,relatime shared:4 - {kind} {kind} {options}")
    (folder / "cgroup").write_text(cgroup + "\n")
    (folder / "mountinfo").write_text("\n".join(["1 0 8:1 / / rw - ext4 /dev/sda rw", *lines]) + "\n")
    return folder


V2 = {"fs": "/ cgroup2 rw"}
V1 = {"cpu": "/ cgroup rw,cpu,cpuacct", "memory": "/ cgroup rw,memory", "unified": "/ cgroup2 rw"}
NESTED_V1 = "4:memory:/jobs/one\n3:cpuacct,cpu:/jobs/one\n0::/"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "allowed"),
    [
        ("0::/jobs/one", V2, {"fs/jobs/one/cpu.max": "150000 100000"}, 1.5),
        ("0::/jobs/one", V2, {"fs/jobs/one/cpu.max": "max 100000", "fs/jobs/cpu.max": "200000 100000"}, 2.0),
        ("0::/gone", V2, {"fs/cpu.max": "300000 100000"}, 3.0),
        ("0::/../other", V2, {"fs/cpu.max": "300000 100000"}, 3.0),
        ("0::/pod/one", {"fs": "/pod cgroup2 rw"}, {"fs/one/cpu.max": "400000 100000"}, 4.0),
        (NESTED_V1, V1, {"cpu/jobs/one/cpu.cfs_quota_us": "50000", "cpu/jobs/one/cpu.cfs_period_us": "100000"}, 0.5),
        (NESTED_V1, V1, {"cpu/jobs/one/cpu.cfs_quota_us": "-1", "cpu/jobs/one/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {}, {}, None),
    ],
    ids=["own", "parent", "no such folder", "outside of the mount", "mount of a part", "v1", "v1 unlimited", "none"],
)
def test_quota(tmp_path: Path, cgroup: str, mounts: dict[str, str], files: dict[str, str], allowed: float) -> None:
    """The smallest quota from the own group up counts; a path that is not in the mount falls back to its root."""
    assert control_groups.cpus(process(tmp_path, cgroup, mounts, files)) == allowed


def test_memory_of_version_2(tmp_path: Path) -> None:
    """The limit of a parent counts, files that the kernel can drop are left, and kills are those of the own group."""
    files = {
        "fs/jobs/one/memory.max": "max",
        "fs/jobs/one/memory.events": "low 0\noom 3\noom_kill 2",
        "fs/jobs/memory.max": str(100 * MIB),
        "fs/jobs/memory.current": str(70 * MIB),
        "fs/jobs/memory.stat": f"anon {40 * MIB}\ninactive_file {30 * MIB}",
    }
    own = process(tmp_path, "0::/jobs/one", V2, files)
    assert control_groups.memory_limit_bytes(own) == 100 * MIB
    assert control_groups.memory_left_bytes(own) == 60 * MIB
    assert control_groups.memory_kills(own) == 2


def test_memory_of_version_1(tmp_path: Path) -> None:
    """The same of version 1, where the largest number means no limit."""
    files = {
        "memory/jobs/one/memory.limit_in_bytes": str(100 * MIB),
        "memory/jobs/one/memory.usage_in_bytes": str(120 * MIB),
        "memory/jobs/one/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    own = process(tmp_path, NESTED_V1, V1, files)
    assert control_groups.memory_limit_bytes(own) == 100 * MIB
    assert control_groups.memory_left_bytes(own) == 0
    assert control_groups.memory_kills(own) == 7
    top = process(tmp_path, "4:memory:/", V1, {})
    assert control_groups.memory_limit_bytes(top) is None
    assert control_groups.memory_left_bytes(top) is None


def test_throttling_of_any_group_counts(tmp_path: Path) -> None:
    """Time that the own group or one above it was held back."""
    files = {
        "fs/jobs/one/cpu.stat": "throttled_usec 2000000",
        "fs/jobs/cpu.stat": "usage_usec 9\nthrottled_usec 500000",
    }
    assert control_groups.throttled_s(process(tmp_path, "0::/jobs/one", V2, files)) == 2.5
    assert control_groups.throttled_s(process(tmp_path, "0::/", {}, {})) is None


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (None, [FIRST, SECOND, THIRD]),
        ("", []),
        ("-1", []),
        ("1,0", [SECOND, FIRST]),
        ("1,-1,0", [SECOND]),
        ("0,7,1", [FIRST]),
        ("GPU-cccc3333-0, GPU-aab", [THIRD, SECOND]),
        ("GPU-aa", []),
        ("MIG-GPU-aabb2222-0/1/0", [SECOND]),
        ("nonsense,0", []),
    ],
)
def test_visible_devices(names: str | None, left: list[Gpu]) -> None:
    """Indices and beginnings of UUIDs in their order, up to the first that names nothing or more than one."""
    assert gpus.named([FIRST, SECOND, THIRD], names) == left


def test_nvidia_smi_may_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tool writes for a field that a GPU does not have is a field that is not known."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        "echo 'GPU-1, NVIDIA GB10, [N/A], 12.1'\n"
        "echo 'GPU-2, Tesla K80, 11441, [Not Supported]'\n"
        "echo 'a warning'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.cuda() == [
        Gpu("GPU-1", "NVIDIA GB10", None, (12, 1)),
        Gpu("GPU-2", "Tesla K80", 11441 * MIB, None),
    ]


def test_facts_are_of_the_selected_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:0 under CUDA_VISIBLE_DEVICES=1 is the driver's second GPU, and so are its facts; queries may not be supported."""
    monkeypatch.setitem(sys.modules, "pynvml", _nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(environment, "_torch_build", lambda: {"cuda": "12.8"})
    device = environment.find_device("cuda:0")
    assert (device.name, device.memory_bytes) == ("GPU-1", None)
    facts = environment.describe(device)["strict"]["gpu"]
    assert facts["power_limit_w"] == 201
    assert "not supported" in facts["ecc"]["unreadable"]


def _nvml() -> Any:
    """NVML of two GPUs whose handles are their UUIDs."""

    class NVMLError(Exception):
        pass

    def refuse(_: str) -> Any:
        raise NVMLError("not supported")

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: f"GPU-{index}",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetName=lambda handle: handle,
        nvmlDeviceGetMemoryInfo=refuse,
        nvmlDeviceGetCudaComputeCapability=lambda handle: [9, 0],
        nvmlSystemGetDriverVersion=lambda: "580",
        nvmlDeviceGetPowerManagementLimit=lambda handle: 200_000 + 1000 * int(handle[-1]),
        nvmlDeviceGetMigMode=lambda handle: [0, 0],
        nvmlDeviceGetEccMode=refuse,
    )


def test_rocm_gpu_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is built for ROCm, the kernel driver's nodes are its GPUs; a CPU among them is not."""
    for number, properties in enumerate(
        ("cpu_cores_count 64\nsimd_count 0", "simd_count 416\ngfx_target_version 90010")
    ):
        (tmp_path / str(number) / "mem_banks" / "0").mkdir(parents=True)
        (tmp_path / str(number) / "properties").write_text(properties + "\n")
        (tmp_path / str(number) / "name").write_text("aldebaran\n")
        (tmp_path / str(number) / "mem_banks" / "0" / "properties").write_text(
            f"heap_type 1\nsize_in_bytes {64 * 2**30}\n"
        )
    monkeypatch.setattr(gpus, "KFD_NODES", tmp_path)
    monkeypatch.setattr(environment, "_torch_build", lambda: {"cuda": "None", "hip": "6.4"})
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    device = environment.find_device("cuda")
    assert (device.platform, device.name, device.capability) == ("rocm", "aldebaran (gfx90a)", (9, 0))
    assert device.memory_bytes == 64 * 2**30
    assert environment.describe(device)["strict"]["gpu"]["name"] == device.name
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    with pytest.raises(environment.DeviceError, match="no GPU"):
        environment.find_device("cuda")
