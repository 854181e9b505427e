"""The docs are run: every file that a page shows is written, every command that it gives is executed, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "cluster").glob("*.md")))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

ELSEWHERE = {
    "make demo": "the demo's own test runs it",
    "make test": "this is it",
}
"""Commands that something else in CI runs."""


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page in one language."""
    return [match[2] for match in _BLOCK.finditer(page.read_text()) if match[1] == language]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_leads_from_files_to_a_compressed_model(tmp_path: Path) -> None:
    _run_page(ROOT / "docs" / "tutorial.md", tmp_path)
    report = tmp_path / "runs" / "lamps" / "evaluate" / "report.html"
    assert report.stat().st_size > 10_000
    assert (tmp_path / "runs/lamps/compress/artifact/model.onnx").exists()
    # The page on Python works on what the tutorial left.
    _run_page(ROOT / "docs" / "python.md", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_the_docs_is_run_somewhere(page: Path) -> None:
    run_here = {"tutorial.md", "python.md"}
    commands = [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    if page.name not in run_here:
        unknown = [command for command in commands if command not in ELSEWHERE]
        assert not unknown, "run it in a test and name that test in ELSEWHERE, or move it to a page that is run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _run_page(page: Path, folder: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for match in _BLOCK.finditer(page.read_text()):
        language, code = match[1], match[2]
        name = re.match(r"# file: (\S+)\n", code)
        if name is not None:
            (folder / name[1]).write_text(code)
        elif language == "sh":
            for command in code.splitlines():
                done = subprocess.run(
                    ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}\n{done.stderr}"
