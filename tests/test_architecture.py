"""What the code says about its own structure is so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ray_mm"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
FOLDERS = sorted(path.parent for path in MODULES if path.name == "__init__.py" and path.parent != PACKAGE)
RAY_AT_THE_EDGES = re.compile(
    r"(session|placement|travel|seen_by_all|quiet|forking/server|doctor|data/source|data/loader|data/indexing|preprocessing/\w+|training/\w+|tuning/(tune|trial)|actors/pool|launch/\w+)\.py"
)
MAX_LINES = 400


def parts_of(folder: Path) -> set[str]:
    """The modules and sub-packages of a package, as they are written: ``plan.py``, ``decode/``."""
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
    return modules | {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_a_package_lists_its_modules_and_no_other(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = set(re.findall(r"(?<![\w./])(\w+\.py|\w+/)(?=\s|,|$)", text))
    assert listed == parts_of(folder)


def test_the_architecture_page_names_every_part_of_the_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert {name for name in parts_of(PACKAGE) if name not in page} == set()


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_a_module_says_what_it_is_and_fits_on_a_few_screens(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module begins with what comes in and what goes out"
    assert text.count("\n") < MAX_LINES


def test_ray_is_imported_at_the_edges_only() -> None:
    inside = [
        relative(module)
        for module in MODULES
        if not RAY_AT_THE_EDGES.fullmatch(relative(module))
        and any(name.split(".")[0] == "ray" for name in imported(module))
    ]
    assert inside == []


def imported(module: Path) -> set[str]:
    """Names of all modules that a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import sys, ray_mm; print(sorted({'torch', 'ray', 'numpy', 'pydantic', 'pyarrow'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.stdout == "[]\n", ran.stderr
