"""Values that each node finds by itself, such as secrets: only where they are travels with a job.

    RAY_MM_REFERENCES    {"AWS_SECRET_ACCESS_KEY": {"file": "/run/secrets/s3"}, "HF_TOKEN": {"env": "NODE_HF_TOKEN"}}

Ray calls ``apply_references`` in each process of a job before anything else; the process that starts the job calls it itself.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from ray_mm.errors import UsageError

VARIABLE = "RAY_MM_REFERENCES"
SETUP_HOOK = f"{__name__}.apply_references"
"""For Ray's ``worker_process_setup_hook``."""

_MOST_BYTES = 1 << 16


def apply_references() -> None:
    """Sets the variables of this process that RAY_MM_REFERENCES says where to find.

    Raises:
        UsageError: one of them is not where it should be. No value is in the message.
    """
    os.environ.update(resolved(json.loads(os.environ.get(VARIABLE, "{}"))))


def resolved(references: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Variable → its value on this node.

    Args:
        references: variable → ``{"env": NAME}`` or ``{"file": PATH}``.

    Raises:
        UsageError: one of them is not where it should be.
    """
    found = {}
    for name, where in references.items():
        if "env" in where:
            value = os.environ.get(where["env"])
            place = f"has no variable {where['env']}"
        else:
            place = f"has no file {where['file']} that its Ray can read"
            try:
                with Path(where["file"]).expanduser().open("rb") as stream:
                    value = stream.read(_MOST_BYTES).decode().rstrip("\r\n")
            except (OSError, ValueError, RuntimeError):
                value = None
        if value is None or "\x00" in value:
            raise UsageError(
                f"runtime.env.{name}: the node {platform.node()} {place}; give it one there, or change the cluster's profile."
            )
        found[name] = value
    return found
