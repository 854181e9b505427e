"""Shell scripts and units, held against the tools that their users have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_BIN = Path(sys.executable).parent


def require_clean_shell(path: Path, *allowed: str) -> None:
    """Has shellcheck look at a script; anything that it says is an error, but for what is allowed."""
    exclude = [f"--exclude={','.join(allowed)}"] if allowed else []
    done = subprocess.run([_BIN / "shellcheck", *exclude, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def require_clean_dockerfile(path: Path) -> None:
    """Has hadolint look at a Dockerfile; anything that it says is an error."""
    done = subprocess.run([_BIN / "hadolint", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def require_valid_units(paths: list[Path]) -> None:
    """Has systemd look at units; a test is skipped where this machine has none."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not on this machine; the units are read by a parser of the tests all the same")
    done = subprocess.run([tool, "verify", "--man=no", *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def unit_settings(text: str) -> dict[str, dict[str, list[str]]]:
    """Section → key → values, in the order of a unit file. Its lines are comments, sections, or settings, and no others."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] | None = None
    for line in text.splitlines():
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            assert line.endswith("]"), line
            section = found.setdefault(line[1:-1], {})
            continue
        key, equals, value = line.partition("=")
        assert equals and section is not None and key.isalpha() and not line.endswith("\\"), line
        section.setdefault(key, []).append(value)
    return found
