"""Small models over fields of every type, and batches of noise for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_mm.config.encoders import ENCODERS
from ray_mm.config.fields import (
    AudioField,
    FieldSpec,
    ImageField,
    LabelField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
    VideoField,
)
from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import labels_of
from ray_mm.data.fields import length_name, presence_name, time_name
from ray_mm.data.manifest import Statistics
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.models.multimodal import MultimodalModel, build_model
from ray_mm.preprocessing.tokenizer import train_tokenizer

FIELDS: dict[str, FieldSpec] = {
    "audio": AudioField(rate_hz=4000, max_seconds=0.5),
    "image": ImageField(height=12, width=20),
    "points": PointsField(channels=4, max_points=9),
    "series": SeriesField(channels=3, max_length=11),
    "text": TextField(max_tokens=7, vocabulary_size=16),
    "vector": VectorField(size=5),
    "video": VideoField(num_frames=5, height=12, width=16),
}
"""A field of every type that can be an input, named after its type."""

LABELS: dict[str, FieldSpec] = {
    "kind": LabelField(classes=("a", "b", "c", "d")),
    "amount": LabelField(target="number"),
}
STATISTICS = {
    "points": Statistics(mean=(1.0, 2.0, 3.0, 4.0), std=(1.0, 2.0, 0.5, 3.0)),
    "series": Statistics(mean=(0.5, -1.0, 0.0), std=(1.0, 2.0, 0.5)),
    "amount": Statistics(mean=(20.0,), std=(4.0,)),
}
FUSIONS = (
    *("late", "concat", "gated", "low_rank", "film", "experts"),
    *("cross_attention", "bottleneck", "latent"),
)
ENCODERS_OF = {kind: (*ENCODERS[kind], *(("lstm",) if "recurrent" in ENCODERS[kind] else ())) for kind in FIELDS}
"""Field type → the encoders that take it; ``lstm`` is the recurrent one in another form."""
ALL_ENCODERS = [(kind, encoder) for kind in FIELDS for encoder in ENCODERS_OF[kind]]


def model_config(
    fields: Iterable[str],
    fusion: str = "gated",
    *,
    encoders: Mapping[str, str] = MappingProxyType({}),
    task: str = "classify",
    dim: int = 16,
    dropout: float = 0.0,
    **more: Any,
) -> ModelConfig:
    """A narrow model. ``encoders`` names those that are not the default; ``more`` goes to the fusion."""
    return ModelConfig.model_validate(
        {
            "fields": {name: encoder_content(encoders.get(name)) | {"dropout": dropout} for name in fields},
            "fusion": {"method": fusion, "dim": dim, "dropout": dropout, **more},
            "task": {"type": task, "label": "kind" if task == "classify" else "amount"},
        }
    )


def encoder_content(encoder: str | None) -> dict[str, Any]:
    """What a config says of an encoder of these fields."""
    if encoder == "lstm":
        return {"encoder": "recurrent", "cell": "lstm", "layers": 2}
    return {"encoder": encoder, **({"patch": 4} if encoder == "vit" else {})}


def preprocessor_of(config: ModelConfig, fields: Mapping[str, FieldSpec] = FIELDS) -> Preprocessor:
    """What the model's fields and its label need."""
    names = [*config.fields, *labels_of(config.task)]
    known = {**fields, **LABELS}
    return Preprocessor(
        fields={name: known[name] for name in names},
        tokenizers={name: train_tokenizer(["one two three"], 16) for name in names if known[name].type == "text"},
        statistics={name: STATISTICS[name] for name in names if name in STATISTICS},
    )


def seeded_model(config: ModelConfig, fields: Mapping[str, FieldSpec] = FIELDS) -> MultimodalModel:
    """The same weights at every call, in eval mode."""
    torch.manual_seed(0)
    return build_model(config, preprocessor_of(config, fields)).eval()


def noise(
    config: ModelConfig, size: int, *, seed: int = 0, fields: Mapping[str, FieldSpec] = FIELDS
) -> dict[str, Tensor]:
    """A batch of noise with everything present, padded with zeros, with the label of the task."""
    random = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name in sorted(config.fields):
        arrays |= _noise_of(name, fields[name], size, random)
        arrays[presence_name(name)] = np.ones(size, np.bool_)
    for label in labels_of(config.task):
        is_class = label == "kind"
        arrays[label] = random.integers(0, 4, size) if is_class else random.normal(20, 4, size).astype(np.float32)
        arrays[presence_name(label)] = np.ones(size, np.bool_)
    arrays["weight"] = np.ones(size, np.float32)
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def _noise_of(name: str, spec: FieldSpec, size: int, random: np.random.Generator) -> dict[str, Any]:
    match spec:
        case ImageField(height=height, width=width, channels=channels):
            return {name: random.integers(0, 256, (size, height, width, channels)).astype(np.uint8)}
        case VideoField(num_frames=longest, height=height, width=width, channels=channels):
            lengths = random.integers(1, longest + 1, size)
            inside = np.arange(longest) < lengths[:, None]
            frames = random.integers(0, 256, (size, longest, height, width, channels)) * inside[..., None, None, None]
            times = np.arange(longest, dtype=np.float32) / 4 * inside
            return {
                name: frames.astype(np.uint8),
                time_name(name): times.astype(np.float32),
                length_name(name): lengths.astype(np.int32),
            }
        case VectorField(size=width):
            return {name: random.normal(size=(size, width)).astype(np.float32)}
        case TextField(max_tokens=longest, vocabulary_size=vocabulary):
            lengths = random.integers(1, longest + 1, size)
            tokens = random.integers(1, vocabulary, (size, longest)) * (np.arange(longest) < lengths[:, None])
            return {name: tokens.astype(np.int32)}
        case AudioField(rate_hz=rate, max_seconds=seconds):
            longest = round(rate * seconds)
            lengths = random.integers(longest // 4, longest + 1, size)
            values = random.normal(0, 3000, (size, longest)) * (np.arange(longest) < lengths[:, None])
            return {name: values.astype(np.int16), length_name(name): lengths.astype(np.int32)}
        case SeriesField(channels=channels, max_length=longest) | PointsField(channels=channels, max_points=longest):
            lengths = random.integers(1, longest + 1, size)
            inside = np.arange(longest)[None, :, None] < lengths[:, None, None]
            values = random.normal(size=(size, longest, channels)) * inside
            return {name: values.astype(np.float32), length_name(name): lengths.astype(np.int32)}
        case _:
            raise AssertionError(f"{spec.type} is no input")
