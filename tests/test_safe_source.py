"""The source itself: nothing that was stored is run, no YAML makes objects; and docs/security.md names tests that are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ray_mm").rglob("*.py"))

FORBIDDEN = {
    **dict.fromkeys(
        ("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads"), "runs code"
    ),
    **dict.fromkeys(
        ("marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads"), "runs code"
    ),
    **dict.fromkeys(("torch.load", "pandas.read_pickle", "pd.read_pickle"), "reads pickles"),
    **dict.fromkeys(("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"), "makes objects"),
    **dict.fromkeys(("yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader"), "makes objects"),
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "os.system", "os.popen"), "runs code"),
    **dict.fromkeys(("tempfile.mktemp", "os.tempnam"), "is a name that another process may take"),
}
ALLOWED = {
    ("session.py", "pickle.loads"): "results of tasks of the same run, in the memory of a Ray that unpickles by itself",
    ("forking/server.py", "marshal.loads"): "what the launcher wrote a moment ago, through a socket of this user",
    ("forking/server.py", "exec"): "Ray's own worker script, in the place of a new Python",
    ("forking/server.py", "compile"): "the same",
}


def uses(tree: ast.AST) -> Iterator[str]:
    """Names that are called or taken, such as ``pickle.loads``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_nothing_that_was_stored_is_unpickled_or_run() -> None:
    assert len(FILES) > 300
    found = set()
    for path in FILES:
        name = str(path.relative_to(ROOT / "ray_mm"))
        tree = ast.parse(path.read_text())
        for use in uses(tree):
            if use in FORBIDDEN:
                assert (name, use) in ALLOWED, f"{name}: {use} {FORBIDDEN[use]}"
                found.add((name, use))
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                given = (node.arg, node.value.value)
                assert given not in (("allow_pickle", True), ("shell", True), ("weights_only", False)), (name, given)
                assert given not in (("trust_remote_code", True), ("verify", False)), (name, given)
    assert found == set(ALLOWED), "what is not needed any more is not allowed either"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "from pickle import loads",
        "eval('1')",
        "import yaml\nyaml.load(x, yaml.Loader)",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert set(uses(ast.parse(source))) & FORBIDDEN.keys()


def test_every_line_of_the_threat_model_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [
        line for line in page.split("## What is defended")[1].split("\n## ")[0].splitlines() if line.startswith("| ")
    ][1:]
    assert len(rows) >= 14
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text())
            assert any(isinstance(node, ast.FunctionDef) and node.name == test for node in ast.walk(tree)), (
                f"{file}::{test}"
            )
