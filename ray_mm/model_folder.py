"""Where a model lies, and whether it is whole: a checkpoint's folder or an artifact's, found by the run that made it or by a
registry's name. Nothing is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ray_mm.checkpoint import (
    MODEL_FILE,
    load_description,
    read_versioned,
    resolve_checkpoint,
    run_kind,
    verify_checkpoint,
)
from ray_mm.errors import CheckpointError
from ray_mm.registered import on_this_machine
from ray_mm.storage import local_path, sha256_file

ARTIFACT_FILE = "artifact.json"
GRAPH_FILE = "model.onnx"
ARTIFACT_FORMAT_NAME = "ray_mm.artifact"
ARTIFACT_FORMAT = 1


def model_folder(path: str | Path) -> Path:
    """The folder of the checkpoint or the artifact that ``load_predictor`` takes; the errors are its own, too."""
    path = on_this_machine(path)
    return artifact_folder(path) or resolve_checkpoint(path)


def model_digest(folder: Path) -> str:
    """Hex SHA-256 of what identifies a checkpoint or an artifact: the files that tell the digests of all others.

    Args:
        folder: from ``model_folder``.
    """
    names = [name for name in (ARTIFACT_FILE, MODEL_FILE) if (folder / name).is_file()]
    return hashlib.sha256("\0".join(sha256_file(folder / name) for name in names).encode()).hexdigest()


def artifact_folder(path: str | Path) -> Path | None:
    """The artifact folder that a path means, if it means one."""
    if "://" in str(path) and not str(path).startswith("file://"):
        return None
    root = local_path(path)
    if (root / ARTIFACT_FILE).is_file():
        return root
    if run_kind(root) != "compress":
        return None
    if (root / "artifact" / ARTIFACT_FILE).is_file():
        return root / "artifact"
    raise CheckpointError(f"{root}: the compress run has published no artifact; its result.json says why.")


def verified_model_folder(path: str | Path) -> Path:
    """As ``model_folder``, with every file's checksum looked at. Nothing is loaded.

    Raises:
        CheckpointError: nothing there, damaged, or of a newer format.
    """
    path = on_this_machine(path)
    folder = artifact_folder(path)
    if folder is not None:
        verify_artifact(folder)
        load_description(folder)
        return folder
    return verify_checkpoint(path)


def verify_artifact(folder: Path) -> None:
    """Compares every file of an artifact with the checksum that it was published with.

    Raises:
        CheckpointError: a file is missing or changed, or of a newer format.
    """
    content = read_versioned(folder / ARTIFACT_FILE, ARTIFACT_FORMAT_NAME, ARTIFACT_FORMAT)
    # All of it was judged together: another preprocessor beside the same graph is another model.
    for name, expected in {GRAPH_FILE: content.get("digest"), **_files(content)}.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing; the artifact is not whole.")
        found = sha256_file(file)
        if found != expected:
            raise CheckpointError(
                f"{file}: its SHA-256 digest is {found[:16]}…, {ARTIFACT_FILE} says {str(expected)[:16]}…; the file was damaged "
                "or replaced after it was written. Copy it again, or compress again."
            )


def _files(artifact: dict[str, Any]) -> dict[str, Any]:
    """Name → SHA-256 of an artifact's files; of names in its own folder only."""
    files = artifact.get("files", {})
    return {Path(name).name: digest for name, digest in files.items()} if isinstance(files, dict) else {}
