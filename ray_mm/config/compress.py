"""``kind: compress``: a checkpoint → a smaller artifact, or a refusal."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ray_mm.config.base import Config, Fraction, Location, Name, Resources
from ray_mm.config.source import AnySource


class QuantizeConfig(Config):
    """Static 8-bit integers in an ONNX graph (onnxruntime, per channel)."""

    method: Literal["static_int8"] = "static_int8"
    calibration_samples: int = Field(default=256, ge=1)
    """Samples of the calibration dataset that set the ranges of the activations."""
    calibrate: Literal["minmax", "entropy", "percentile"] = "minmax"
    """How the ranges are chosen."""


class LatencyConfig(Config):
    """How latency is measured: original and artifact in turn, warm, on fixed threads."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 64), min_length=1)
    """Batch sizes to time; the gate judges each."""
    rounds: int = Field(default=50, ge=3)
    """Timed calls of each model at each batch size."""
    threads: int = Field(default=1, ge=1)
    """Threads that each model may use."""


class GateConfig(Config):
    """What the artifact must meet. Anything missed, or not measured, refuses it."""

    max_metric_drop: Fraction = 0.01
    """Largest loss of the main metric (accuracy, or micro F1; for a regression the relative rise of the error)."""
    max_size_ratio: float = Field(default=0.35, gt=0)
    """Largest artifact, as a share of the original's weights on disk."""
    min_speedup: float = Field(default=1.0, ge=0)
    """Smallest ratio of median latencies, original to artifact, at every batch size."""


class CompressJob(Config):
    """Exports, quantises, measures, and publishes the artifact only if the gate agrees."""

    kind: Literal["compress"]
    name: Name
    """Of the run, as its reports and results show it."""
    checkpoint: Location
    """A train run (its best checkpoint is taken) or a checkpoint folder; or a model by its name in a registry,
    ``registry:ROOT#NAME@champion``."""
    calibration_data: AnySource
    """Dataset for calibration: training or validation data, never test data."""
    data: AnySource
    """Dataset on which original and artifact are compared."""
    quantize: QuantizeConfig = QuantizeConfig()
    """How weights and activations become integers."""
    latency: LatencyConfig = LatencyConfig()
    """How latency is measured."""
    gate: GateConfig = GateConfig()
    """What the artifact must meet."""
    resources: Resources = Resources()
    """What the run may use."""
    output: Location
    """Folder for the artifact, ``result.json`` and the evaluation of both models."""
