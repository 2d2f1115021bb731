"""Every reason for which an implementation cannot run: on simulated devices, and with packages absent, whole or half there."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from attnbench import impls
from attnbench.impls import AttentionProblem, Device, Implementation, Limit, Limits, get, packages

Command = Callable[..., subprocess.CompletedProcess[str]]

CPU = Device("cpu")
TURING, AMPERE, ADA, HOPPER, BLACKWELL, CONSUMER_BLACKWELL = (
    Device("cuda", capability=capability, platform="cuda")
    for capability in ((7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
)
ROCM = Device("cuda", platform="rocm", capability=(9, 4))
UNREADABLE = Device("cuda", platform="cuda")

#: Packages of which all is there that a wrapper looks for: distribution and version, then their files.
WHOLE: dict[tuple[str, str], tuple[str, ...]] = {
    ("xformers", "0.0.35"): ("xformers/__init__.py", "xformers/ops/fmha/__init__.py", "xformers/_C.so"),
    ("flash_attn", "2.8.3"): ("flash_attn/__init__.py", "flash_attn/flash_attn_interface.py", "flash_attn_2_cuda.so"),
    ("flash_attn_3", "3.0.0b1"): ("flash_attn_interface.py", "flash_attn_3/_C.abi3.so"),
    ("flash_attn_4", "4.0.0b20"): ("flash_attn/cute/interface.py", "cutlass/__init__.py"),
    ("fbgemm_gpu_genai", "1.4.0"): ("fbgemm_gpu/__init__.py",),
}
#: What the stub form of xformers has in the place of its operators.
STUB = "try:\n    from mslk.attention.fmha import memory_efficient_attention\nexcept ModuleNotFoundError:\n    pass\n"


def lay(folder: Path, contents: Mapping[tuple[str, str], tuple[str, ...]]) -> None:
    """Write distributions that are nothing but their names and files: importing one would end the process."""
    for (distribution, version), files in contents.items():
        info = folder / f"{distribution}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("import os\nos._exit(9)\n" if file.endswith(".py") else "")


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wrapped package, whole."""
    lay(tmp_path, WHOLE)
    monkeypatch.syspath_prepend(tmp_path)


class Asked(NamedTuple):
    """A question to an implementation; `words` are those of all its reasons, none where it accepts."""

    implementation: str
    device: Device
    words: tuple[str, ...] = ()
    options: Mapping[str, str] = {}
    passes: str = "forward"
    problem: Mapping[str, Any] = {}

    def __str__(self) -> str:
        device = f"{self.device.platform}{self.device.capability or ''}"
        changes = ",".join(f"{key}={value}" for key, value in {**self.options, **self.problem}.items())
        return f"{self.implementation}-{device}-{self.passes}-{changes}"


def fmha(operator: str) -> dict[str, str]:
    """The options of one of xformers' operators."""
    return {"operator": operator}


GROUPED = {"heads_q": 8, "heads_kv": 2}
TRAINING = {"passes": "forward_backward"}
TABLE = (
    # torch's flash backend: sm80 to sm121, 16-bit, head dimensions to 256.
    Asked("sdpa_flash", TURING, ("compute capability 7.5: needs at least 8.0 and below 12.2",)),
    Asked("sdpa_flash", AMPERE),
    Asked("sdpa_flash", AMPERE, **TRAINING, problem={"head_dim": 224}),
    Asked("sdpa_flash", ADA, ("head_dim 224: needs at most 192 or above 224",), **TRAINING, problem={"head_dim": 224}),
    Asked("sdpa_flash", ADA, problem={"head_dim": 224}),
    Asked("sdpa_flash", HOPPER, **TRAINING, problem={"head_dim": 224}),
    Asked("sdpa_flash", HOPPER, ("head_dim 320: needs at most 256", "dtype float32: needs float16 or bfloat16"),
          problem={"head_dim": 320, "dtype": "float32"}),
    Asked("sdpa_flash", CONSUMER_BLACKWELL, ("head_dim 200: needs at most 192",), **TRAINING, problem={"head_dim": 200}),
    Asked("sdpa_flash", ROCM),
    Asked("sdpa_flash", UNREADABLE),
    Asked("sdpa_flash", CPU, problem={"dtype": "float32", "head_dim": 320}),
    # Its memory-efficient backend: any GPU since sm50, bfloat16 since sm80, heads not shared.
    Asked("sdpa_efficient", TURING, ("dtype bfloat16: needs float32 or float16",)),
    Asked("sdpa_efficient", TURING, problem={"dtype": "float16"}),
    Asked("sdpa_efficient", AMPERE, ("query heads per key/value head 4: needs 1",), problem=GROUPED),
    Asked("sdpa_efficient", BLACKWELL, problem={"dtype": "float32"}),
    Asked("sdpa_efficient", ROCM),
    Asked("sdpa_efficient", CPU, ("device cpu: needs cuda",)),
    # cuDNN: no ROCm; head dimensions above 128 on 9.0 and 10.x alone.
    Asked("sdpa_cudnn", TURING, ("compute capability 7.5",)),
    Asked("sdpa_cudnn", AMPERE, problem={"head_dim": 128}),
    Asked("sdpa_cudnn", AMPERE, ("head_dim 256: needs at most 128 and a multiple of 8",), problem={"head_dim": 256}),
    Asked("sdpa_cudnn", HOPPER, problem={"head_dim": 256}),
    Asked("sdpa_cudnn", HOPPER, ("head_dim 100: needs at most 256 and a multiple of 8",), problem={"head_dim": 100}),
    Asked("sdpa_cudnn", BLACKWELL, problem={"head_dim": 256}),
    Asked("sdpa_cudnn", BLACKWELL, ("seq_kv 1: needs at least 2",), problem={"seq_q": 1, "seq_kv": 1}),
    Asked("sdpa_cudnn", CONSUMER_BLACKWELL, ("head_dim 256: needs at most 128",), problem={"head_dim": 256}),
    Asked("sdpa_cudnn", ROCM, ("platform rocm: needs cuda",)),
    Asked("sdpa_cudnn", CPU, ("device cpu: needs cuda",)),
    # flash-attn 2: Ampere and later; its cache function has no backward.
    Asked("flash_attn2", TURING, ("compute capability 7.5: needs at least 8.0",)),
    Asked("flash_attn2", AMPERE, **TRAINING, problem=GROUPED),
    Asked("flash_attn2", AMPERE, ("head_dim 320: needs at most 256", "dtype float32"),
          problem={"head_dim": 320, "dtype": "float32"}),
    Asked("flash_attn2", HOPPER, ("pass forward_backward: needs forward",), {"function": "flash_attn_with_kvcache"},
          **TRAINING),
    Asked("flash_attn2", HOPPER, options={"function": "flash_attn_with_kvcache"}),
    Asked("flash_attn2", BLACKWELL, options={"function": "flash_attn_varlen_func"}, **TRAINING),
    Asked("flash_attn2", ROCM),
    Asked("flash_attn2", CPU, ("device cpu: needs cuda",)),
    # FlashAttention-3: Hopper alone.
    Asked("flash_attn3", TURING, ("compute capability 7.5: needs at least 9.0 and below 10.0",)),
    Asked("flash_attn3", AMPERE, ("compute capability 8.0",)),
    Asked("flash_attn3", HOPPER, **TRAINING, problem=GROUPED),
    Asked("flash_attn3", HOPPER, ("head_dim 20: needs at most 256 and a multiple of 8", "dtype float32"),
          problem={"head_dim": 20, "dtype": "float32"}),
    Asked("flash_attn3", BLACKWELL, ("compute capability 10.0",)),
    Asked("flash_attn3", ROCM, ("platform rocm: needs cuda",)),
    Asked("flash_attn3", CPU, ("device cpu: needs cuda",)),
    # FlashAttention-4: Hopper and Blackwell, which differ in their head dimensions.
    Asked("flash_attn4", AMPERE, ("compute capability 8.0: needs at least 9.0 and below 12.0",)),
    Asked("flash_attn4", HOPPER, **TRAINING, problem={"head_dim": 192}),
    Asked("flash_attn4", HOPPER, ("head_dim 4: needs 8 to 256 and a multiple of 8",), problem={"head_dim": 4}),
    Asked("flash_attn4", BLACKWELL, ("head_dim 192: needs 8 to 128 and a multiple of 8, or 256",),
          problem={"head_dim": 192}),
    Asked("flash_attn4", BLACKWELL, **TRAINING, problem={"head_dim": 256, **GROUPED}),
    Asked("flash_attn4", CONSUMER_BLACKWELL, ("compute capability 12.0",)),
    Asked("flash_attn4", ROCM, ("platform rocm: needs cuda",)),
    Asked("flash_attn4", CPU, ("device cpu: needs cuda",)),
    # xformers as it picks: bfloat16 since Ampere, shared heads forwards.
    Asked("xformers", TURING, ("dtype bfloat16: needs float32 or float16",)),
    Asked("xformers", TURING, problem={"dtype": "float16"}),
    Asked("xformers", AMPERE, problem=GROUPED),
    Asked("xformers", AMPERE, ("pass forward_backward with grouped queries: needs forward",), **TRAINING, problem=GROUPED),
    Asked("xformers", ROCM),
    Asked("xformers", CPU, ("device cpu: needs cuda",)),
    # Its operators.
    Asked("xformers", AMPERE, options=fmha("cutlass"), **TRAINING, problem={"dtype": "float32"}),
    Asked("xformers", AMPERE, options=fmha("cutlass"), problem=GROUPED),
    Asked("xformers", BLACKWELL, ("compute capability 10.0: needs at least 5.0 and below 9.1",), fmha("cutlass")),
    Asked("xformers", ROCM, ("platform rocm: needs cuda",), fmha("cutlass")),
    Asked("xformers", HOPPER, ("compute capability 9.0: needs at least 10.0",), fmha("cutlass_blackwell")),
    Asked("xformers", BLACKWELL, options=fmha("cutlass_blackwell"), **TRAINING),
    Asked("xformers", BLACKWELL, ("head_dim 96: needs 64 or 128", "scale 0.3: needs default"), fmha("cutlass_blackwell"),
          problem={"head_dim": 96, "scale": 0.3}),
    Asked("xformers", TURING, ("compute capability 7.5: needs at least 8.0", "dtype bfloat16"), fmha("flash")),
    Asked("xformers", AMPERE, ("head_dim 20: needs at most 256 and a multiple of 8",), fmha("flash"),
          problem={"head_dim": 20}),
    Asked("xformers", HOPPER, options=fmha("flash"), **TRAINING),
    Asked("xformers", BLACKWELL, ("compute capability 10.0: needs at least 8.0 and below 9.1",), fmha("flash3")),
    Asked("xformers", HOPPER, options=fmha("flash3"), problem={"head_dim": 32}),
    Asked("xformers", HOPPER, ("head_dim 32: needs 64 to 256 and a multiple of 8",), fmha("flash3"), **TRAINING,
          problem={"head_dim": 32}),
    Asked("xformers", HOPPER, ("pass forward_backward: needs forward", "head_dim 96: needs 16 or 32 or 64"),
          fmha("triton_splitk"), **TRAINING, problem={"head_dim": 96}),
    Asked("xformers", HOPPER, ("causal seq_q 64: needs at most 16",), fmha("triton_splitk"), problem={"mask": "causal"}),
    Asked("xformers", HOPPER, options=fmha("triton_splitk"), problem={"mask": "causal", "seq_q": 16, **GROUPED}),
    Asked("xformers", HOPPER, ("platform cuda: needs rocm",), fmha("ck")),
    Asked("xformers", ROCM, ("head_dim 512: needs at most 256",), fmha("ck"), **TRAINING, problem={"head_dim": 512}),
    Asked("xformers", ROCM, options=fmha("ck"), problem={"head_dim": 512}),
    # FlexAttention runs where torch compiles; on the CPU it has no backward.
    Asked("flex_attention", TURING, **TRAINING),
    Asked("flex_attention", ROCM, **TRAINING),
    Asked("flex_attention", CPU, ("pass forward_backward: needs forward",), **TRAINING),
    Asked("flex_attention", HOPPER, ("head_dim 8: needs at least 16",), problem={"head_dim": 8}),
    Asked("flex_attention", CPU, problem={"head_dim": 8}),
)  # fmt: skip


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("asked", TABLE, ids=str)
def test_limits_of_devices(asked: Asked) -> None:
    """Each reason is given, with where it is documented, and no other; nothing that a device can do is refused."""
    given = {"heads_q": 4, "heads_kv": 4, "seq_q": 64, "seq_kv": 64, "head_dim": 64, "dtype": "bfloat16"}
    problem = AttentionProblem(**given | asked.problem)
    reasons = get(asked.implementation, asked.options).supports(problem, asked.passes, asked.device).reasons
    assert len(reasons) == len(asked.words), reasons
    for word in asked.words:
        assert any(reason.startswith(word) for reason in reasons), reasons
    assert all(": needs " in reason and reason.endswith(")") for reason in reasons)


def limits_in(value: object) -> Iterator[Limits]:
    """The limits that a module, a class or a mapping states."""
    if isinstance(value, Limits):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from limits_in(each)
    elif isinstance(value, type) and issubclass(value, Implementation):
        for each in vars(value).values():
            yield from limits_in(each)


@pytest.mark.parametrize("module", [each.name for each in pkgutil.iter_modules(impls.__path__)])
def test_every_limit_has_its_source(module: str) -> None:
    """A stated limit says what it allows, and where that is written: a file, a function or a page, with a version."""
    stated = vars(importlib.import_module(f"attnbench.impls.{module}"))
    every = [limit for value in list(stated.values()) for limits in limits_in(value) for limit in vars(limits).values()]
    for limit in every:
        assert limit is None or (isinstance(limit, Limit) and limit.allowed and len(limit.source) > 10), limit


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("xformers", "xformers is not installed: pip install 'attnbench[gpu]'"),
        ("flash_attn2", "flash-attn is not installed: pip install flash-attn --no-build-isolation"),
        ("flash_attn3", "flash-attn-3 is not installed: build it from hopper/"),
        ("flash_attn4", "flash-attn-4 is not installed: pip install flash-attn-4"),
    ],
)
def test_packages_that_are_absent(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    """A package that is not there is a reason of its own, on a GPU too; what to do is said."""
    monkeypatch.setattr(packages, "version", lambda *_: None)
    (reason,) = get(name).unavailable(HOPPER)
    assert reason.startswith(words)


#: Two packages share the folder `flash_attn`.
TWO, FOUR = ({key: WHOLE[key]} for key in (("flash_attn", "2.8.3"), ("flash_attn_4", "4.0.0b20")))


@pytest.mark.parametrize(
    ("contents", "available"),
    [(TWO, {"flash_attn2"}), (FOUR, {"flash_attn4"}), (TWO | FOUR, {"flash_attn2", "flash_attn4"})],
    ids=["2 alone", "4 alone", "both"],
)
def test_flash_attn_2_and_4_are_told_apart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: dict[tuple[str, str], tuple[str, ...]],
    available: set[str],
) -> None:
    """Each is there without the other, though both live in one folder."""
    lay(tmp_path, contents)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("flash_attn2", "flash_attn4")
    assert {name for name in names if not get(name).unavailable(HOPPER)} == available
    for name in {*names} - available:
        assert "is not installed" in get(name).unavailable(HOPPER)[0]


def test_flash_attn_4_under_its_former_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash-attn-cute` is the same package, and had versions of its own."""
    lay(tmp_path, {("flash_attn_cute", "0.1.0"): WHOLE["flash_attn_4", "4.0.0b20"]})
    monkeypatch.syspath_prepend(tmp_path)
    assert get("flash_attn4").unavailable(HOPPER) == ()


@pytest.mark.parametrize(
    ("contents", "reasons"),
    [
        ({}, ("xformers 0.0.36 is a stub over the package mslk, which is not installed: pip install mslk",)),
        ({("mslk", "1.3.0"): ("mslk/__init__.py", "mslk/attention/fmha/__init__.py")}, ()),
    ],
    ids=["without mslk", "with mslk"],
)
def test_xformers_as_a_stub(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: dict[tuple[str, str], tuple[str, ...]],
    reasons: tuple[str, ...],
) -> None:
    """Its operators are in mslk, without which it imports in silence and has none: the reason says so, not that kernels lack."""
    lay(tmp_path, {("xformers", "0.0.36"): ("xformers/__init__.py", "xformers/ops/fmha/__init__.py"), **contents})
    (tmp_path / "xformers/ops/fmha/__init__.py").write_text(STUB)
    monkeypatch.syspath_prepend(tmp_path)
    assert get("xformers").unavailable(HOPPER) == reasons


@pytest.mark.parametrize(
    ("distribution", "version", "files", "words"),
    [
        ("xformers", "0.0.35", ["xformers/__init__.py"], "xformers 0.0.35 is installed without its kernels"),
        (
            "xformers", "0.0.35", ["xformers/__init__.py", "xformers/_C.so", "flash_attn/cute/interface.py"],
            "xformers fails to import beside flash-attn-4 without flash-attn",
        ),
        ("flash_attn", "2.8.3", ["flash_attn/__init__.py"], "flash-attn 2.8.3 is installed without its CUDA kernels"),
        ("flash_attn", "3.0.0", ["flash_attn/__init__.py"], "flash-attn 3.0.0 is installed: this wrapper is for version 2"),
        ("flash_attn", "2.0.9", ["flash_attn/__init__.py"], "aligns causal top-left"),
        ("flash_attn", "2.7rc1", ["flash_attn/__init__.py"], "flash-attn 2.7rc1 is installed without its CUDA kernels"),
        ("flash_attn", "2.8.3.post1", ["flash_attn/__init__.py"], "flash-attn 2.8.3.post1 is installed without its CUDA"),
        ("flash_attn", "2.8.3+cu12torch2.7", ["flash_attn/__init__.py"], "2.8.3+cu12torch2.7 is installed without its CUDA"),
        ("flash_attn", "two", ["flash_attn/__init__.py"], "flash-attn two is installed: its version cannot be read"),
        ("flash_attn_3", "3.0.0b1", ["flash_attn_interface.py"], "flash-attn-3 3.0.0b1 is installed without its kernels"),
        ("flash_attn_3", "4.1", ["flash_attn_interface.py"], "flash-attn-3 4.1 is installed: this wrapper is for version 3"),
        ("flash_attn_4", "4.0.0b20", ["flash_attn/cute/interface.py"], "is installed without nvidia-cutlass-dsl"),
        ("flash_attn_4", "5.0", ["flash_attn/cute/interface.py"], "flash-attn-4 5.0 is installed: this wrapper is for version 4"),
        ("mslk", "1.0.0", ["mslk/__init__.py"], "mslk 1.0.0 that is installed has no attention/fmha"),
    ],
)  # fmt: skip
def test_packages_that_are_half_there(
    attnbench: Command, tmp_path: Path, distribution: str, version: str, files: list[str], words: str
) -> None:
    """A package without kernels, or of a version that means something else, is a reason; importing it would crash here."""
    lay(tmp_path, {(distribution, version): tuple(files)})
    if distribution == "mslk":
        lay(tmp_path, {("xformers", "0.0.36"): ("xformers/__init__.py", "xformers/ops/fmha/__init__.py")})
        (tmp_path / "xformers/ops/fmha/__init__.py").write_text(STUB)
    done = attnbench("list", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert words in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("operator", "device", "missing", "words"),
    [
        ("flash3", HOPPER, ("flash_attn_3", "3.0.0b1"), "operator flash3: needs the package flash-attn-3"),
        ("cutlass_blackwell", BLACKWELL, ("fbgemm_gpu_genai", "1.4.0"), "needs the package fbgemm-gpu-genai"),
    ],
)
def test_operators_that_need_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str, device: Device, missing: tuple[str, str], words: str
) -> None:
    """xformers may be whole and yet lack an operator, whose kernels another package has."""
    lay(tmp_path, {key: files for key, files in WHOLE.items() if key != missing})
    monkeypatch.syspath_prepend(tmp_path)
    (reason,) = get("xformers", {"operator": operator}).unavailable(device)
    assert words in reason
    assert get("xformers").unavailable(device) == ()


def test_all_reasons_at_once() -> None:
    """A refusal gives every reason: of the device, the package, the problem and the pass."""
    problem = AttentionProblem(heads_q=8, heads_kv=2, seq_q=64, seq_kv=64, head_dim=320, mask="causal")
    reasons = " ".join(get("flash_attn2").supports(problem, "forward", TURING).reasons)
    for words in ("compute capability 7.5", "flash-attn is not installed", "head_dim 320", "dtype float32"):
        assert words in reasons
