"""A model's folder: what every later stage starts from.

<checkpoint>/model.safetensors    the weights; or model-00001-of-00002.safetensors, ..., where a sharded training saved its state
<checkpoint>/model.json           the config that rebuilds the network, metrics, and digests of the other two files
<checkpoint>/preprocessor.json    fields, tokenizers, statistics: what turns members into its input

No pickle is ever read. A folder with these last two files alone describes a model whose weights are in another form: an
artifact has them beside its ONNX graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ray_mm.config.model import ModelConfig
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import CheckpointError, UsageError
from ray_mm.registered import on_this_machine
from ray_mm.storage import local_path, sha256_file, write_atomic, write_json
from ray_mm.tensor_files import read_tensors, whole_file
from ray_mm.version import CHECKPOINT_FORMAT

if TYPE_CHECKING:  # an artifact is described by the same files, and is loaded where there is no torch
    from torch import Tensor

    from ray_mm.models.multimodal import MultimodalModel

_FORMAT_NAME = "ray_mm.model"
WEIGHTS_KIND = "model"
WEIGHTS_FILE = whole_file(WEIGHTS_KIND)
MODEL_FILE = "model.json"
PREPROCESSOR_FILE = "preprocessor.json"


@dataclass(frozen=True)
class Description:
    """What a model is, without its weights."""

    path: Path
    config: ModelConfig
    preprocessor: Preprocessor
    metrics: dict[str, float]
    digest: str | None
    """Hex SHA-256 of ``model.safetensors``; None where the weights are elsewhere, or in parts."""
    parts: dict[str, str] = field(default_factory=dict)
    """File of a part of the weights → its hex SHA-256."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, verified."""

    path: Path
    config: ModelConfig
    preprocessor: Preprocessor
    state: dict[str, Tensor]
    metrics: dict[str, float]

    def build(self) -> MultimodalModel:
        """The model with its weights, in eval mode, on the CPU. Torch's generators are left as they were.

        Raises:
            CheckpointError: the weights are not those of this config.
        """
        import torch

        from ray_mm.models.multimodal import build_model

        with torch.random.fork_rng(devices=[]):
            model = build_model(self.config, self.preprocessor)
        try:
            model.load_state_dict(self.state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.path}: {WEIGHTS_FILE} does not fit the network that {MODEL_FILE} describes "
                f"({_first_lines(error)}); it was made by another version of ray_mm, or files were mixed up."
            ) from None
        return model.eval()


def save_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    preprocessor: Preprocessor,
    metrics: Mapping[str, float],
) -> None:
    """Writes a checkpoint into a folder, which may exist. The caller makes the folder appear at once, if need be.

    Args:
        folder: where to.
        weights: of a ``MultimodalModel``, its ``state_dict()``; on any device.
        config: what it was built from.
        preprocessor: what it was built from.
        metrics: finite figures to keep with it.
    """
    from safetensors.torch import save

    # Convolutions hold their weights as channels_last; a file has one order only.
    state = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    write_atomic(folder / WEIGHTS_FILE, save(state))
    save_description(folder, config, preprocessor, metrics, digest=sha256_file(folder / WEIGHTS_FILE))


def save_description(
    folder: Path,
    config: ModelConfig,
    preprocessor: Preprocessor,
    metrics: Mapping[str, float],
    digest: str | None,
    parts: Mapping[str, str] | None = None,
) -> None:
    """Writes ``preprocessor.json``, then ``model.json``.

    Args:
        folder: where to.
        config: of the model.
        preprocessor: of the model.
        metrics: finite figures to keep with it.
        digest: hex SHA-256 of ``model.safetensors``; None where there is none: in an artifact, or with ``parts``.
        parts: file of a part of the weights → its hex SHA-256.
    """
    write_json(folder / PREPROCESSOR_FILE, preprocessor.model_dump(mode="json"))
    content: dict[str, Any] = {
        "format": _FORMAT_NAME,
        "version": CHECKPOINT_FORMAT,
        "model": config.model_dump(mode="json"),
        "metrics": dict(metrics),
        "digest": digest,
        **({"parts": dict(parts)} if parts else {}),
        "preprocessor_digest": sha256_file(folder / PREPROCESSOR_FILE),
    }
    write_json(folder / MODEL_FILE, content)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Args:
        path: a train run or a checkpoint folder (see ``resolve_checkpoint``).

    Raises:
        CheckpointError: nothing there, damaged, or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = resolve_checkpoint(path)
    description = load_description(folder)
    if description.parts:
        state = _join_parts(description)
        return Checkpoint(folder, description.config, description.preprocessor, state, description.metrics)
    if description.digest is None:
        raise CheckpointError(
            f"{folder}: is an artifact, whose weights are in its graph; give the train run that it is from."
        )
    weights = folder / WEIGHTS_FILE
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{weights}: can't be read ({error.strerror}); the checkpoint is not whole.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != description.digest:
        raise CheckpointError(_wrong_digest(weights, found, description.digest))
    try:
        state = load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: is not a safetensors file ({error}).") from None
    return Checkpoint(folder, description.config, description.preprocessor, state, description.metrics)


def verify_checkpoint(path: str | Path) -> Path:
    """Compares all files of a checkpoint with its checksums, without torch.

    Args:
        path: a train run or a checkpoint folder (see ``resolve_checkpoint``).

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: nothing there, damaged, or of a newer format.
    """
    description = load_description(resolve_checkpoint(path))
    if not description.parts and description.digest is None:
        raise CheckpointError(f"{description.path}: has no weights; the checkpoint is not whole.")
    _verify_files(description.path, description.parts or {WEIGHTS_FILE: description.digest or ""})
    return description.path


def _verify_files(folder: Path, digests: Mapping[str, str]) -> None:
    for name, digest in digests.items():
        file = folder / name
        try:
            found = sha256_file(file)
        except OSError as error:
            raise CheckpointError(f"{file}: can't be read ({error.strerror}); the checkpoint is not whole.") from None
        if found != digest:
            raise CheckpointError(_wrong_digest(file, found, digest))


def _join_parts(description: Description) -> dict[str, Tensor]:
    _verify_files(description.path, description.parts)
    return read_tensors(description.path, WEIGHTS_KIND)


def load_description(folder: Path) -> Description:
    """Reads ``model.json`` and ``preprocessor.json`` of a checkpoint or an artifact.

    Raises:
        CheckpointError: missing, damaged, or of a newer format.
    """
    model_file, preprocessor_file = folder / MODEL_FILE, folder / PREPROCESSOR_FILE
    content = read_versioned(model_file, _FORMAT_NAME, CHECKPOINT_FORMAT)
    preprocessor = read_versioned(preprocessor_file, "ray_mm.preprocessor", CHECKPOINT_FORMAT)
    found = sha256_file(preprocessor_file)
    if found != content.get("preprocessor_digest"):
        raise CheckpointError(_wrong_digest(preprocessor_file, found, content.get("preprocessor_digest")))
    try:
        return Description(
            path=folder,
            config=ModelConfig.model_validate(content["model"]),
            preprocessor=Preprocessor.model_validate(preprocessor),
            metrics={name: float(value) for name, value in content["metrics"].items()},
            digest=content["digest"],
            parts={str(name): str(digest) for name, digest in content.get("parts", {}).items()},
        )
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: {MODEL_FILE} or {PREPROCESSOR_FILE} is damaged ({_first_lines(error)})."
        ) from None


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that a path means: of a train run its best checkpoint, else its last; or the folder itself.

    Args:
        path: of either, or the name of a model in a registry (see ``registered``).

    Raises:
        CheckpointError: neither a train run with a checkpoint, nor a checkpoint.
        RegistryError: no such model in the registry.
    """
    root = _local(on_this_machine(path))
    if (root / MODEL_FILE).is_file():
        return root
    if run_kind(root) == "train":
        for name in ("best", "last"):
            if (root / name / MODEL_FILE).is_file():
                return root / name
        raise CheckpointError(f"{root}: the train run has no checkpoint yet; let it finish an epoch.")
    if not root.exists():
        raise CheckpointError(f"{root}: no such folder; a checkpoint comes from a train job.")
    raise CheckpointError(
        f"{root}: is neither a train run nor a checkpoint folder (no {MODEL_FILE}); give the output folder of a train job."
    )


def run_kind(root: Path) -> str | None:
    """The kind of job whose output folder this is; None if it is none."""
    try:
        content = json.loads((root / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None


def read_versioned(file: Path, name: str, newest: int) -> dict[str, Any]:
    """A JSON file with ``format`` and ``version``.

    Args:
        file: the file.
        name: the format that it must have.
        newest: the newest version that this ray_mm reads.

    Raises:
        CheckpointError: missing, not JSON, of another format, or newer.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: can't be read ({error}); the folder is not whole.") from None
    if not isinstance(content, dict) or content.get("format") != name:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"{file}: has format {found!r}, expected {name!r}.")
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= newest:
        raise CheckpointError(
            f"{file}: has format version {version!r}, this ray_mm reads versions 1 to {newest}; upgrade ray_mm, or make the "
            "model with this version."
        )
    return content


def _local(path: str | Path) -> Path:
    try:
        return local_path(path)
    except UsageError as error:
        raise CheckpointError(str(error)) from None


def _wrong_digest(file: Path, found: str, expected: object) -> str:
    return (
        f"{file}: its SHA-256 digest is {found[:16]}…, {MODEL_FILE} says {str(expected)[:16]}…; the file was damaged or "
        "replaced after it was written. Copy it again, or train again."
    )


def _first_lines(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3])
