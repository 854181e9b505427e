"""Samples of a reconstruction → cards: each field as it is, beside what the model says of it; and which is said from which."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ray_mm.config.fields import (
    AudioField,
    FieldSpec,
    ImageField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
    VideoField,
)
from ray_mm.data.fields import Arrays, length_name, presence_name
from ray_mm.data.manifest import Statistics
from ray_mm.evaluation.examples import Example
from ray_mm.evaluation.report.cards import Said, SaidCard, SampleViews
from ray_mm.evaluation.report.content import ReconstructionDetails, ReportContent
from ray_mm.evaluation.report.tables import metric_text
from ray_mm.evaluation.report.views import view
from ray_mm.predictor import Predictor

Floats = npt.NDArray[np.float32]

_LEVELS = 48.0
"""Grey levels of a standard deviation in a drawn spectrogram, whose mean is grey."""


def reconstruction_cards(
    examples: Sequence[Example], samples: SampleViews, predictor: Predictor, targets: Callable[[Arrays], Floats]
) -> list[SaidCard]:
    """Draws samples and what the model says of them.

    Args:
        examples: which.
        samples: reads them.
        predictor: the model.
        targets: what is to be said of the samples of a batch, [N, numbers].

    Raises:
        DatasetError: a shard is gone or has changed since it was scored.
    """
    fields, statistics = predictor.preprocessor.fields, predictor.preprocessor.statistics
    cards = []
    for example in examples:
        path, key, _, arrays = samples.read(example.position)
        true, said = (predictor.reconstruction(each[0]) for each in (targets(arrays), predictor.outputs(arrays)[0]))
        found = []
        for name in samples.in_order(predictor.reconstructed or ()):
            spec, known = fields[name], statistics.get(name)
            if isinstance(spec, TextField):
                continue  # words without their order are no text
            there = bool(arrays[presence_name(name)][0])
            length = int((~np.isnan(true[name][:, 0])).sum()) if there and isinstance(spec, SeriesField) else None
            original = _drawn(name, spec, true[name], true[name], known, length) if there else None
            found.append(Said(name, spec.type, original, _drawn(name, spec, said[name], true[name], known, length)))
        cards.append(SaidCard(key, path, f"mean squared error {example.loss:.3g}", tuple(found)))
    return cards


def said_rows(content: ReportContent, details: ReconstructionDetails) -> list[tuple[str, ...]]:
    """Of each single field, and of all of them: R² of every field that is reconstructed from it, as texts."""
    shown = [score for score in content.subsets if len(score.fields) == 1 or score is content.subsets[-1]]
    return [
        (
            " + ".join(score.fields),
            *(metric_text("r2", score.metrics[f"r2/{name}"]) for name in details.fields),
            metric_text("r2", score.metrics["r2"]),
        )
        for score in shown
    ]


def _drawn(
    name: str, spec: FieldSpec, values: Floats, original: Floats, statistics: Statistics | None, length: int | None
) -> Markup:
    """A target in its own unit, as a field of its type would be; pictures of what no person could look at otherwise."""
    match spec:
        case AudioField():
            # What is said beyond a recording's end means nothing; of one that is absent all is shown. Low frequencies below.
            ended = np.isnan(original) & ~np.isnan(original).all()
            levels = np.where(ended, 0.0, 128 + _LEVELS * values).T[::-1]
            return _picture(name, levels[..., None])
        case PointsField():
            highest = max(float(original[..., 0].max()), 1e-6) if not np.isnan(original[..., 0]).any() else 1.0
            # x to the right, y upwards.
            return _picture(name, 255 * values[..., 0].T[::-1][..., None] / highest)
        case ImageField():
            return _picture(name, values)
        case VideoField():
            return _picture(name, values[(len(values) - 1) // 2])
        case SeriesField():
            kept = values[:length]
            arrays: Arrays = {name: kept[None], length_name(name): np.array([len(kept)], np.int32)}
            whole = spec.model_copy(update={"rate_hz": None})
            return view(name, whole, arrays, b"", statistics).content
        case VectorField():
            return view(name, spec, {name: values[None]}, b"", statistics).content
        case _:
            raise AssertionError(f"a {spec.type} is not drawn")


def _picture(name: str, levels: Floats) -> Markup:
    pixels = levels.round().clip(0, 255).astype(np.uint8)
    spec = ImageField(height=pixels.shape[0], width=pixels.shape[1], channels=3 if pixels.shape[2] == 3 else 1)
    return view(name, spec, {name: pixels[None]}, b"", None).content
