"""Examples → cards: every field drawn, the label and the prediction beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ray_mm.class_scores import mean_iou
from ray_mm.config.fields import UNLABELLED, FieldSpec, LabelField
from ray_mm.data.collate import Collator
from ray_mm.data.epochs import Epochs
from ray_mm.data.fields import Arrays, presence_name
from ray_mm.data.members import SampleReader
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.evaluation.examples import Example
from ray_mm.evaluation.report.masks import legend, mask_picture
from ray_mm.evaluation.report.svg import figure, percent
from ray_mm.evaluation.report.views import View, view

_TYPES = ("image", "video", "text", "audio", "series", "points", "vector")
"""In the order in which they are shown: what a person understands at a glance comes first."""

_NUM_BARS = 3


@dataclass(frozen=True)
class Bar:
    """The probability of a class."""

    name: str
    probability: float
    text: str
    true: bool


@dataclass(frozen=True)
class Card:
    """One example.

    Attributes:
        key: of the sample.
        shard: where it lies, relative to the dataset.
        right: whether the class is right, or all of several; None for a regression and a map.
        true: the label.
        predicted: the prediction.
        figure: what it cost, in words.
        bars: the most probable classes, and the true one.
        views: the fields that are present.
        absent: names of the fields that are not.
        maps: the true and the predicted map beside each other, and what their colours mean; None where there are none.
    """

    key: str
    shard: str
    right: bool | None
    true: str
    predicted: str
    figure: str
    bars: tuple[Bar, ...]
    views: tuple[View, ...]
    absent: tuple[str, ...]
    maps: Markup | None = None


@dataclass(frozen=True)
class FoundCard:
    """What a query found: ``right`` if it is its own other side."""

    key: str
    cosine: str
    right: bool
    views: tuple[View, ...]


@dataclass(frozen=True)
class SearchCard:
    """One query of a retrieval.

    Attributes:
        key: of its sample.
        towers: that it searches by, and that is searched.
        verdict: at which place the right one stands, in words.
        right: whether that is the first.
        views: of the fields that it searches by.
        found: the nearest.
    """

    key: str
    towers: tuple[str, str]
    verdict: str
    right: bool
    views: tuple[View, ...]
    found: tuple[FoundCard, ...]


@dataclass(frozen=True)
class Said:
    """A field, as far as a reconstruction goes: as it is, and as the model says it.

    Attributes:
        field: its name.
        type: of the field.
        original: None: it is absent.
        said: by the model, from all that is there.
    """

    field: str
    type: str
    original: Markup | None
    said: Markup


@dataclass(frozen=True)
class SaidCard:
    """One sample and its reconstruction."""

    key: str
    shard: str
    figure: str
    fields: tuple[Said, ...]


class SampleViews:
    """Reads members of a dataset again, through the index, and draws them.

    Args:
        epochs: the samples, of one dataset.
        preprocessor: of the model.
        inputs: the fields that are drawn. Not the label: decoding must not depend on it here.
    """

    def __init__(self, epochs: Epochs, preprocessor: Preprocessor, inputs: Sequence[str]) -> None:
        self._specs = {name: preprocessor.fields[name] for name in inputs}
        self._epochs, self._statistics = epochs, preprocessor.statistics
        self._collator = Collator(preprocessor.model_copy(update={"fields": self._specs}))
        self._reader = SampleReader(epochs.datasets[0], sorted(inputs))

    def draw(
        self, position: int, fields: Sequence[str] | None = None
    ) -> tuple[str, str, tuple[View, ...], tuple[str, ...]]:
        """One sample.

        Args:
            position: of the sample.
            fields: that are drawn. None: all.

        Returns:
            Its shard, its key, the fields that are there, drawn, and the names of those that are not.

        Raises:
            DatasetError: a shard is gone or has changed since it was scored.
        """
        path, key, members, arrays = self.read(position)
        names = self.in_order(self._specs if fields is None else fields)
        present = [name for name in names if arrays[presence_name(name)][0]]
        views = tuple(
            view(name, self._specs[name], arrays, bytes(members.get(name, b"")), self._statistics.get(name))
            for name in present
        )
        return path, key, views, tuple(name for name in names if name not in present)

    def read(self, position: int) -> tuple[str, str, Mapping[str, Any], Arrays]:
        """Of one sample its shard, its key, its members, and these as a batch of one.

        Raises:
            DatasetError: a shard is gone or has changed since it was scored.
        """
        place = self._epochs.places(position, position + 1)
        shard, row = int(place.shards[0]), int(place.rows[0])
        members = self._reader.members(shard, row)
        arrays = self._collator.empty(1)
        self._collator.fill(arrays, 0, [members])
        path, key = self._reader.name(shard, row)
        return path, key, members, arrays

    def in_order(self, fields: Iterable[str]) -> list[str]:
        """Fields in the order in which they are shown."""
        return sorted(fields, key=lambda name: (_TYPES.index(self._specs[name].type), name))


def make_cards(examples: Sequence[Example], samples: SampleViews, label: FieldSpec) -> list[Card]:
    """Draws examples with their labels and predictions.

    Raises:
        DatasetError: a shard is gone or has changed since it was scored.
    """
    cards = []
    for example in examples:
        path, key, views, absent = samples.draw(example.position)
        maps = _maps(example, label) if isinstance(example.label, np.ndarray) else None
        cards.append(Card(key, path, *_verdict(example, label), views, absent, maps))
    return cards


def _maps(example: Example, spec: FieldSpec) -> Markup:
    assert isinstance(spec, LabelField)
    assert isinstance(example.label, np.ndarray) and isinstance(example.prediction, np.ndarray)
    pair = {"truth": example.label, "prediction": example.prediction}
    tag = Markup("<figure>{}<figcaption><span>{}</span></figcaption></figure>")
    drawn = Markup("").join(tag.format(mask_picture(numbers, name), name) for name, numbers in pair.items())
    shown = {number for numbers in pair.values() for number in np.unique(numbers).tolist()}
    return Markup('<div class="maps">{}</div><p class="legend">{}</p>').format(drawn, legend(spec.classes or (), shown))


def _map_figure(true: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], num_classes: int) -> str:
    chosen = true != UNLABELLED
    true, predicted = true[chosen], predicted[chosen]
    counts = [np.bincount(each, minlength=num_classes).tolist() for each in (true[true == predicted], predicted, true)]
    return percent(mean_iou(*counts))


def _verdict(example: Example, spec: FieldSpec) -> tuple[bool | None, str, str, str, tuple[Bar, ...]]:
    assert isinstance(spec, LabelField)
    label, prediction = example.label, example.prediction
    if isinstance(label, np.ndarray) or isinstance(prediction, np.ndarray):
        assert isinstance(label, np.ndarray) and isinstance(prediction, np.ndarray)
        iou = _map_figure(label, prediction, len(spec.classes or ()))
        return None, "", f"mean IoU {iou}", f"loss {example.loss:.3g}", ()
    if isinstance(label, tuple) or isinstance(prediction, tuple):
        assert isinstance(label, tuple) and isinstance(prediction, tuple)
        return _several(example, label, prediction, spec.classes or ())
    if spec.target == "number":
        error = prediction - label
        sign = "+" if error >= 0 else ""
        return None, figure(label), figure(prediction), f"error {sign}{figure(error)}", ()
    classes = spec.classes or ()
    true, predicted = int(label), int(prediction)
    bars = _bars(example, classes, _NUM_BARS, (true,))
    return true == predicted, classes[true], classes[predicted], f"loss {example.loss:.3g}", bars


def _several(
    example: Example, true: tuple[int, ...], predicted: tuple[int, ...], classes: Sequence[str]
) -> tuple[bool, str, str, str, tuple[Bar, ...]]:
    """Of any number of classes: all that are predicted are drawn, and all that are true."""
    said, wanted = (", ".join(classes[number] for number in numbers) or "no class" for numbers in (predicted, true))
    bars = _bars(example, classes, max(_NUM_BARS, len(predicted)), true)
    return true == predicted, wanted, said, f"loss {example.loss:.3g}", bars


def _bars(example: Example, classes: Sequence[str], count: int, true: tuple[int, ...]) -> tuple[Bar, ...]:
    """The most probable classes, so many, then the true ones that are not among them."""
    ranked = sorted(range(len(classes)), key=lambda index: (-example.probabilities[index], index))
    chosen = [*ranked[:count], *(index for index in ranked[count:] if index in true)]
    return tuple(
        Bar(classes[index], example.probabilities[index], percent(example.probabilities[index]), index in true)
        for index in chosen
    )
