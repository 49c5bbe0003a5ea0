"""Imports point down: every one of them, also those inside functions, is held to the ranks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "scfm"

RANKS = {
    "errors": 0,
    "batch": 0,
    "version": 0,
    "metrics": 1,
    "config": 1,
    "data": 1,
    "tokens": 2,
    "model": 3,
    "objectives": 3,
    "train": 4,
    "tasks": 5,
    "evaluate": 6,
    "preprocessing": 7,
    "tools": 7,
    "plotting": 7,
    "demo": 8,
    "cli": 9,
    "__init__": 10,  # hands out what lies below, lazily
}
NO_TORCH_IN = ("errors", "batch", "version", "metrics", "config", "data", "tokens")


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Every module a file imports, as dotted names; relative imports are refused elsewhere."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            found.append(node.module or "")
            if node.module == "scfm":
                found += [f"scfm.{alias.name}" for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_unit_has_a_rank():
    assert {unit_of(path) for path in FILES} == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    unit = unit_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "scfm" or len(parts) == 1:
            continue
        other = parts[1]
        assert other in RANKS, f"{path}: imports {name}, which is no unit of scfm"
        assert other == unit or RANKS[other] < RANKS[unit], (
            f"{path.relative_to(PACKAGE)} (rank {RANKS[unit]}) imports {name} "
            f"(rank {RANKS[other]}): imports must point to lower ranks"
        )


@pytest.mark.parametrize(
    "path", [f for f in FILES if unit_of(f) in NO_TORCH_IN], ids=lambda p: p.name
)
def test_below_the_model_no_torch(path):
    heavy = {"torch", "lightning", "transformers", "scanpy"}
    assert not {name.split(".")[0] for name in imports_of(path)} & heavy


def test_no_cycles_within_units():
    """Modules of one unit may import each other, but not in a circle."""
    graph = {module_name(path): set() for path in FILES}
    for path in FILES:
        own = module_name(path)
        graph[own] = {n for n in imports_of(path) if n in graph and n != own}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def module_name(path: Path) -> str:
    parts = ["scfm", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("module", ["scfm.tools.preparation", "scfm.tools.info", "scfm.data.store"])
def test_what_only_looks_at_files_loads_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "code", ["import scfm", "import sys; from scfm.cli.app import main; main(['--help'])"]
)
def test_start_up_loads_nothing_heavy(code):
    watched = "{'torch', 'scanpy', 'lightning', 'transformers', 'anndata', 'numba', 'pandas'}"
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', sorted({watched} & set(sys.modules))))\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"
