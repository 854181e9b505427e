"""``model.fields`` of a train job: which encoder each input gets, and whether the field suits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from ray_mm.config.base import Config
from ray_mm.config.fields import FieldSpec, ImageField, VideoField
from ray_mm.config.own import OWN_ENCODERS, find_own
from ray_mm.errors import UsageError

ENCODERS: dict[str, tuple[str, ...]] = {
    "image": ("cnn", "vit"),
    "text": ("recurrent", "transformer"),
    "audio": ("mel_cnn", "mel_transformer"),
    "series": ("cnn", "recurrent", "transformer"),
    "video": ("transformer", "recurrent"),
    "points": ("pointnet", "pillars"),
    "vector": ("mlp",),
}
"""Field type → the encoders that take it, the default first."""

DEFAULT_PATCH = 16
"""Side of the patches of ``vit``, in pixels."""

DEFAULT_CELLS = 32
"""Cells of the grid of ``pillars`` in each direction."""

PRETRAINED_TYPES = ("audio", "image", "text", "video")
"""Field types that a pretrained model can read."""

_KEYS_OF_ONE = {
    "patch": "vit",
    "max_places": "cnn",
    "cells": "pillars",
    "extent": "pillars",
    "cell": "recurrent",
    "layers": "recurrent",
    "name": "own",
    "options": "own",
}
"""Key → the encoder that alone has it."""


class LoraConfig(Config):
    """Low-rank additions to the weights of a pretrained model (LoRA, arXiv 2106.09685): all that is trained of it."""

    rank: int = Field(default=8, ge=1, le=1024)
    """Of each addition."""
    alpha: float = Field(default=16.0, gt=0)
    """The addition is multiplied by ``alpha / rank``."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before each addition."""
    targets: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(default=None, min_length=1)
    """Names of the layers that get one, such as ``[query, value]``. Unset: every linear layer."""


class EncoderConfig(Config):
    """One field's encoder."""

    encoder: (
        Literal[
            "cnn",
            "vit",
            "recurrent",
            "transformer",
            "mel_cnn",
            "mel_transformer",
            "pointnet",
            "pillars",
            "mlp",
            "own",
        ]
        | None
    ) = None
    """Which architecture; ``own``: one that another package brings along. Unset: the default for the field's type."""
    size: Literal["small", "base"] = "small"
    """Width and depth."""
    pretrained: Annotated[str, Field(min_length=1)] | None = None
    """A pretrained model in place of ``encoder`` and ``size``: a folder that transformers has written, or a model's name on the
    Hugging Face hub. Fields of type image, text, audio and video can have one; see ``docs/pretrained.md``."""
    tune: Literal["frozen", "full", "lora"] | None = None
    """What is trained of ``pretrained``: ``frozen`` nothing but the projection behind it, ``full`` all of it, ``lora`` low-rank
    additions to its weights. Unset: ``frozen``."""
    lora: LoraConfig | None = None
    """Of ``tune: lora``."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the encoder."""
    patch: int | None = Field(default=None, ge=2, le=256)
    """Of ``vit``: side of a patch in pixels, which divides height and width. Unset: 16."""
    max_places: int | None = Field(default=None, ge=4, le=65536)
    """Of ``cnn`` for pictures: these are halved until at most so many places are left, each a token. Unset: 81, and 1,024 of the
    picture that a map is made from (``model.task.on``)."""
    cell: Literal["gru", "lstm"] | None = None
    """Of ``recurrent``: what its layers are made of. Unset: ``gru``, which is smaller and usually as good."""
    layers: int | None = Field(default=None, ge=1, le=8)
    """Of ``recurrent``: layers one above the other. Unset: 1, with ``size: base`` 2."""
    cells: int | None = Field(default=None, ge=4, le=256)
    """Of ``pillars``: cells of its grid along x and along y. Unset: 32."""
    extent: tuple[float, float, float, float] | None = None
    """Of ``pillars``: where its grid begins and ends along x, then along y, in metres. Unset: three standard deviations of the
    training data around their mean."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """Of ``own``: its entry point in the group ``ray_mm.encoders``; see ``docs/extending.md``."""
    options: dict[str, JsonValue] | None = None
    """Of ``own``: settings of its own. Unset: none."""

    @model_validator(mode="after")
    def _extent_goes_upwards(self) -> EncoderConfig:
        if self.extent is not None:
            low_x, high_x, low_y, high_y = self.extent
            if not (low_x < high_x and low_y < high_y):
                raise ValueError(
                    f"extent {list(self.extent)} must be [x from, x to, y from, y to], each from below its to"
                )
        return self

    @model_validator(mode="after")
    def _pretrained_keys_fit(self) -> EncoderConfig:
        if self.pretrained is None:
            for key in ("tune", "lora"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} is of a pretrained model, and pretrained is not set; set it, or leave {key} out"
                    )
            return self
        if self.encoder is not None:
            raise ValueError(
                f"encoder: {self.encoder} and pretrained are two encoders for one field; leave one of them out"
            )
        if self.size != "small":
            raise ValueError(
                f"size: {self.size} is of ray_mm's own encoders, a pretrained model has its own; leave size out"
            )
        if self.lora is not None and self.tune != "lora":
            raise ValueError(f"lora is given and tune is {self.tune or 'unset'}; set tune: lora, or leave lora out")
        return self


MIN_IMAGE_SIDE = 8
"""Pixels that a picture must have in both directions: after two halvings something of it is left."""


def encoder_name(spec: FieldSpec, config: EncoderConfig) -> str:
    """The encoder that a field gets: the configured one, or the default for its type."""
    return config.encoder or ENCODERS[spec.type][0]


def check_input(key: str, name: str, encoder: EncoderConfig, fields: Mapping[str, FieldSpec]) -> None:
    """Checks one input of a model.

    Args:
        key: where the job says it, for messages.
        name: of the field.
        encoder: as configured.
        fields: of the dataset.

    Raises:
        UsageError: the field is not there or a label, or the encoder or one of its keys does not suit it.
    """
    spec = fields.get(name)
    inputs = sorted(known for known, field in fields.items() if field.type != "label")
    if spec is None:
        raise UsageError(
            f"{key}: the dataset has no field {name!r}; fields that can be inputs are {', '.join(inputs)}."
        )
    if spec.type == "label":
        raise UsageError(f"{key}: {name!r} is a label and can't be an input; inputs can be {', '.join(inputs)}.")
    if encoder.pretrained is not None:
        _check_pretrained(key, encoder, spec)
        return
    chosen = encoder_name(spec, encoder)
    if chosen == "own":
        find_own(f"{key}.name", OWN_ENCODERS, encoder.name)
    elif chosen not in ENCODERS[spec.type]:
        raise UsageError(
            f"{key}.encoder: {encoder.encoder!r} does not take a field of type {spec.type}; choose "
            f"{' or '.join(ENCODERS[spec.type])}, or leave the key out."
        )
    for own, owner in _KEYS_OF_ONE.items():
        if getattr(encoder, own) is not None and chosen != owner:
            raise UsageError(
                f"{key}.{own}: only {owner} has this key, and the encoder is {chosen}; leave the key out, or set encoder to "
                f"{owner}."
            )
    if encoder.max_places is not None and not isinstance(spec, ImageField):
        raise UsageError(f"{key}.max_places: {name!r} is of type {spec.type}, and only pictures have it; leave it out.")
    if isinstance(spec, ImageField | VideoField) and chosen != "own":
        height, width = spec.height, spec.width
        patch = encoder.patch or DEFAULT_PATCH
        if chosen == "vit" and height is not None and width is not None and (height % patch or width % patch):
            raise UsageError(
                f"{key}.patch: {patch} pixels do not divide pictures of {width}×{height}; choose a patch that does, or set "
                f"data.fields.{name}.height and width to multiples of it."
            )
        if height is not None and width is not None and min(height, width) < MIN_IMAGE_SIDE:
            what = "frames" if isinstance(spec, VideoField) else "pictures"
            raise UsageError(
                f"{key}: {what} of {width}×{height} pixels are too small, the encoder needs {MIN_IMAGE_SIDE} in both directions; "
                f"set data.fields.{name}.height and width."
            )


def _check_pretrained(key: str, encoder: EncoderConfig, spec: FieldSpec) -> None:
    """What can be said of a pretrained encoder without looking at the model; ``data.pretrained`` does that."""
    if spec.type not in PRETRAINED_TYPES:
        raise UsageError(
            f"{key}.pretrained: there are none for a field of type {spec.type}, only for {', '.join(PRETRAINED_TYPES)}; choose "
            f"encoder: {' or '.join(ENCODERS[spec.type])}."
        )
    for own, owner in _KEYS_OF_ONE.items():
        if getattr(encoder, own) is not None:
            raise UsageError(
                f"{key}.{own}: only {owner} has this key, and the encoder is a pretrained model; leave it out."
            )
