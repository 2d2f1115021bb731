"""The arrows between the parts, over the syntax trees, and what each entry may import, in a process of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("impls", "harness", "reports")
#: Which parts a part may import; the command line alone may import reports, inside its commands.
ALLOWED = {"impls": {"impls"}, "harness": {"harness", "impls"}, "reports": {"reports", "harness", "impls"}}
MODULES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(absolute module, at the top) of every import of a file; relative ones resolved, `from x import y` as x and x.y."""
    package = ["attnbench", *path.relative_to(ROOT).parent.parts]
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, node.module] if node.module else base)
            found += [(name, id(node) in top)] + [(f"{name}.{alias.name}", id(node) in top) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_one_way(path: Path) -> None:
    """reports -> harness -> impls, never back; the command line reaches reports inside its functions only."""
    part = path.relative_to(ROOT).parts[0]
    for name, at_top in imports_of(path):
        if not name.startswith("attnbench."):
            continue
        target = name.split(".")[1]
        shows = (
            (path.parent == ROOT / "harness" / "cli" or path == ROOT / "harness" / "listing.py")
            and target == "reports"
            and not at_top
        )
        assert target in ALLOWED[part] or shows, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    """torch at the top only in harness.measure and in kernel modules; pandas, seaborn and jinja2 only in reports."""
    relative = path.relative_to(ROOT)
    in_reports = relative.parts[0] == "reports"
    for name, at_top in imports_of(path):
        package = name.split(".")[0]
        if package in ("pandas", "seaborn", "matplotlib", "jinja2"):
            assert in_reports, f"{relative} imports {package}"
        if package == "torch":
            kernel = relative.parts[0] == "impls" and len(relative.parts) > 2 and path.name != "__init__.py"
            inside = relative.parts[0] == "impls" and not at_top
            assert relative.parts[:2] == ("harness", "measure") or kernel or inside, f"{relative} imports torch"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name == "impls"], ids=lambda path: path.stem)
def test_implementations_do_not_know_each_other(path: Path) -> None:
    """An implementation's module imports the contract, and no other implementation."""
    contract = {"api", "limits", "packages", "problem", "registry", "blocks", "kernel"}
    if path.stem in contract | {"__init__"}:
        return
    for name, _ in imports_of(path):
        if name.startswith("attnbench.impls."):
            assert name.split(".")[2] in contract, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "module", ["attnbench.impls", "attnbench.harness.cli", "attnbench.harness.run.runs", "attnbench.reports"]
)
def test_imports_no_torch(module: str) -> None:
    """Every package starts without torch, pandas and scipy."""
    code = f"import sys, {module}; print([m for m in ('torch', 'pandas', 'scipy', 'seaborn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [["--help"], ["plan", "quick"]])
def test_starts_without_torch(command: list[str]) -> None:
    """`--help` and `plan` never import torch; the best of a few starts is printed for the reader."""
    code = (
        "import sys; sys.argv = ['attnbench', *sys.argv[1:]]\n"
        "from attnbench.harness.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    print(f"{' '.join(command)}: {time.perf_counter() - begin:.2f} s")
    assert done.returncode == 0, done.stderr
