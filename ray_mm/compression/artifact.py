"""An artifact's folder: a compressed model with everything that prediction needs.

<artifact>/model.onnx          the graph with its weights
<artifact>/model.json          the model's config and its metrics, as a checkpoint has them
<artifact>/preprocessor.json   fields, tokenizers, statistics
<artifact>/artifact.json       written last: checksums of the files, the recipe, the checkpoint it was made from, what was
                               measured and what the gate said

It is built as ``candidate`` beside its place, measured there, and moved when the gate has spoken: to ``artifact``, or to
``refused`` where nobody takes it for one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_mm.checkpoint import MODEL_FILE, PREPROCESSOR_FILE, Checkpoint, load_description, save_description
from ray_mm.config.compress import QuantizeConfig
from ray_mm.model_folder import ARTIFACT_FILE, ARTIFACT_FORMAT, ARTIFACT_FORMAT_NAME, GRAPH_FILE
from ray_mm.run_folder import versions
from ray_mm.storage import sha256_file, write_json

CANDIDATE = "candidate"
ARTIFACT = "artifact"
REFUSED = "refused"

_FILES = (GRAPH_FILE, MODEL_FILE, PREPROCESSOR_FILE)


def describe_artifact(
    folder: Path,
    checkpoint: Checkpoint,
    recipe: QuantizeConfig,
    metrics: Mapping[str, float],
    measurements: Mapping[str, Any],
    gate: str | None,
) -> None:
    """Writes all of an artifact but ``model.onnx``, which is there already. Can be called again when more is known.

    Args:
        folder: of the artifact.
        checkpoint: what it was made from.
        recipe: how.
        metrics: overall figures on the dataset on which it was judged.
        measurements: everything that was measured; finite numbers and None.
        gate: ``passed`` or ``refused``; None: not judged yet.
    """
    save_description(folder, checkpoint.config, checkpoint.preprocessor, metrics, digest=None)
    files = {name: sha256_file(folder / name) for name in _FILES}
    content: dict[str, Any] = {
        "format": ARTIFACT_FORMAT_NAME,
        "version": ARTIFACT_FORMAT,
        "digest": files[GRAPH_FILE],
        "files": files,
        "recipe": {"graph": "onnx", "quantize": recipe.model_dump(mode="json")},
        "parent": {"path": str(checkpoint.path), "digest": load_description(checkpoint.path).digest},
        "measurements": dict(measurements),
        "gate": gate,
        "versions": versions(),
    }
    write_json(folder / ARTIFACT_FILE, content)


def start_candidate(run: Path) -> Path:
    """An empty folder to build an artifact in; what an interrupted run left there is removed."""
    folder = run / CANDIDATE
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(run: Path) -> Path:
    """Makes the candidate the run's artifact, in place of an older one."""
    return _move(run, ARTIFACT, REFUSED)


def refuse(run: Path) -> Path:
    """Puts the candidate aside, and removes an older artifact: the run has none now."""
    return _move(run, REFUSED, ARTIFACT)


def _move(run: Path, name: str, other: str) -> Path:
    target, previous = run / name, run / f".{name}.old"
    shutil.rmtree(previous, ignore_errors=True)
    shutil.rmtree(run / other, ignore_errors=True)
    if target.exists():
        target.replace(previous)
    (run / CANDIDATE).replace(target)
    shutil.rmtree(previous, ignore_errors=True)
    return target
