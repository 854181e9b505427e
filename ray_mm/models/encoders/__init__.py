"""Encoders: the arrays of one field → tokens [B, T, D] and a mask bool [B, T] of those that count.

    image.py     cnn: convolutions to a grid of tokens
    text.py      recurrent (GRU), transformer
    mel.py       waveform → log-mel spectrogram, in plain matrix products
    audio.py     mel_cnn: convolutions over the spectrogram
    series.py    cnn, recurrent: over time steps
    points.py    pointnet: the same network on each point, then a few summaries of the cloud
    vector.py    mlp

Every encoder is made of (spec of the field, config, statistics, dim) and called with the field's arrays: the content and,
where the field has one, the length. What lies beyond a sample's length has no influence on its tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ray_mm.config.fields import FieldSpec
from ray_mm.config.model import EncoderConfig, encoder_name
from ray_mm.data.manifest import Statistics
from ray_mm.models.encoders.audio import MelCnn
from ray_mm.models.encoders.image import ImageCnn
from ray_mm.models.encoders.points import PointNet
from ray_mm.models.encoders.series import SeriesCnn, SeriesRecurrent
from ray_mm.models.encoders.text import TextRecurrent, TextTransformer
from ray_mm.models.encoders.vector import VectorMlp

_CLASSES: dict[tuple[str, str], Callable[..., nn.Module]] = {
    ("image", "cnn"): ImageCnn,
    ("text", "recurrent"): TextRecurrent,
    ("text", "transformer"): TextTransformer,
    ("audio", "mel_cnn"): MelCnn,
    ("series", "cnn"): SeriesCnn,
    ("series", "recurrent"): SeriesRecurrent,
    ("points", "pointnet"): PointNet,
    ("vector", "mlp"): VectorMlp,
}


def build_encoder(spec: FieldSpec, config: EncoderConfig, statistics: Statistics | None, dim: int) -> nn.Module:
    """An encoder with fresh weights from torch's global generator.

    Args:
        spec: the field, complete.
        config: which encoder and size; ``config.model.check_model`` has passed.
        statistics: of the field in the training data; None: values are taken as they are.
        dim: width of the tokens.
    """
    return _CLASSES[spec.type, encoder_name(spec, config)](spec, config, statistics, dim)
