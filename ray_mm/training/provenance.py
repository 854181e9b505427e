"""Where a training comes from: the code of its working folder, its settings in one list."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class WorkingCopy:
    """What git knows of a folder.

    Attributes:
        commit: that is checked out.
        dirty: whether files that git tracks were changed since.
    """

    commit: str
    dirty: bool


def working_copy(folder: Path) -> WorkingCopy | None:
    """What git knows of a folder; None where there is no commit, or no git."""

    def git(*arguments: str) -> str:
        # Looking must not wait for, or break, what somebody else does there.
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_S, env=environment
        )
        return done.stdout.strip()

    try:
        return WorkingCopy(git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def flattened(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key → value as text, of a job as JSON; lists of sections are counted, such as ``data.train.0.path``."""
    if isinstance(content, Mapping) and content:
        for key, inner in content.items():
            yield from flattened(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list) and any(isinstance(inner, (Mapping, list)) for inner in content):
        for place, inner in enumerate(content):
            yield from flattened(inner, f"{prefix}.{place}")
    else:
        yield prefix, content if isinstance(content, str) else json.dumps(content)
