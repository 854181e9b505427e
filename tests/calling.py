"""``ray-mm`` in a process of its own, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.config.jobs import SMALLEST

REPOSITORY = Path(__file__).parents[1]

Ran = subprocess.CompletedProcess[str]


def python(code: str, folder: Path, **variables: str) -> Ran:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(REPOSITORY)} | variables
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def ray_mm(folder: Path, *arguments: str, before: str = "") -> Ran:
    """Runs ``ray-mm``; ``before`` is code that runs first in the same process."""
    return python(f"import sys\n{before}\nsys.argv[1:] = {arguments!r}\nfrom ray_mm.cli import main\nmain()", folder)


def write_job(folder: Path, kind: str = "train", **overrides: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(json.dumps({**SMALLEST[kind], **overrides}))
    return path
