"""Encoders: the arrays of one field → tokens [B, T, D] and a mask bool [B, T] of those that count.

    image.py     cnn: convolutions to a grid of tokens
    vit.py       vit: a transformer over the patches of a picture
    text.py      recurrent (GRU or LSTM), transformer
    mel.py       waveform → log-mel spectrogram, in plain matrix products
    audio.py     mel_cnn: convolutions over the spectrogram; mel_transformer: over patches of it
    video.py     transformer, recurrent: over frames, each seen by a cnn
    series.py    cnn, recurrent: over time steps; transformer: over patches of them
    patches.py   sequences as patches of some steps
    points.py    pointnet: the same network on each point, then a few summaries of the cloud
    pillars.py   pillars: the same network on each point, then convolutions over a grid seen from above
    vector.py    mlp
    pretrained.py  models of transformers, with weights that others trained
    backbone.py    their networks

Every encoder is made of (spec of the field, config, statistics, dim) and called with the field's arrays: the content and,
where the field has one, the length. What lies beyond a sample's length has no influence on its tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ray_mm.config.encoders import EncoderConfig, encoder_name
from ray_mm.config.fields import FieldSpec
from ray_mm.data.manifest import Statistics
from ray_mm.data.pretrained import Pretrained
from ray_mm.models.encoders.audio import MelCnn, MelTransformer
from ray_mm.models.encoders.image import ImageCnn
from ray_mm.models.encoders.pillars import Pillars
from ray_mm.models.encoders.points import PointNet
from ray_mm.models.encoders.pretrained import build_pretrained
from ray_mm.models.encoders.series import SeriesCnn, SeriesRecurrent, SeriesTransformer
from ray_mm.models.encoders.text import TextRecurrent, TextTransformer
from ray_mm.models.encoders.vector import VectorMlp
from ray_mm.models.encoders.video import VideoRecurrent, VideoTransformer
from ray_mm.models.encoders.vit import ImageTransformer
from ray_mm.models.own import own_encoder

_CLASSES: dict[tuple[str, str], Callable[..., nn.Module]] = {
    ("image", "cnn"): ImageCnn,
    ("image", "vit"): ImageTransformer,
    ("text", "recurrent"): TextRecurrent,
    ("text", "transformer"): TextTransformer,
    ("audio", "mel_cnn"): MelCnn,
    ("audio", "mel_transformer"): MelTransformer,
    ("series", "cnn"): SeriesCnn,
    ("series", "recurrent"): SeriesRecurrent,
    ("series", "transformer"): SeriesTransformer,
    ("video", "transformer"): VideoTransformer,
    ("video", "recurrent"): VideoRecurrent,
    ("points", "pointnet"): PointNet,
    ("points", "pillars"): Pillars,
    ("vector", "mlp"): VectorMlp,
}


def build_encoder(
    spec: FieldSpec,
    config: EncoderConfig,
    statistics: Statistics | None,
    dim: int,
    pretrained: Pretrained | None = None,
) -> nn.Module:
    """An encoder with fresh weights from torch's global generator.

    Args:
        spec: the field, complete.
        config: which encoder and size; ``config.model.check_model`` has passed.
        statistics: of the field in the training data; None: values are taken as they are.
        dim: width of the tokens.
        pretrained: the model that ``config.pretrained`` names.
    """
    if config.pretrained is not None:
        assert pretrained is not None, "whoever plans a training or loads a checkpoint has found it"
        return build_pretrained(spec, config, pretrained, dim)
    if config.encoder == "own":
        return own_encoder(spec, config, statistics, dim)
    return _CLASSES[spec.type, encoder_name(spec, config)](spec, config, statistics, dim)
