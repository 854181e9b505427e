"""Examples → cards: every field drawn, the label and the prediction beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_mm.config.fields import LabelField
from ray_mm.data.collate import Collator
from ray_mm.data.epochs import Epochs
from ray_mm.data.fields import presence_name
from ray_mm.data.members import SampleReader
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.evaluation.examples import Example
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
        right: whether the class is right, or all of several; None for a regression.
        true: the label.
        predicted: the prediction.
        figure: what it cost, in words.
        bars: the most probable classes, and the true one.
        views: the fields that are present.
        absent: names of the fields that are not.
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


def make_cards(examples: Sequence[Example], epochs: Epochs, preprocessor: Preprocessor, label: str) -> list[Card]:
    """Reads the examples' members again, through the index, and draws them.

    Raises:
        DatasetError: a shard is gone or has changed since it was scored.
    """
    inputs = {name: spec for name, spec in preprocessor.fields.items() if name != label}
    # Without the label: decoding must not depend on it here.
    shown = preprocessor.model_copy(update={"fields": inputs})
    reader, collator = SampleReader(epochs.datasets[0], sorted(inputs)), Collator(shown)
    names = sorted(inputs, key=lambda name: (_TYPES.index(inputs[name].type), name))
    cards = []
    for example in examples:
        place = epochs.places(example.position, example.position + 1)
        shard, row = int(place.shards[0]), int(place.rows[0])
        members = reader.members(shard, row)
        arrays = collator.empty(1)
        collator.fill(arrays, 0, [members])
        present = [name for name in names if arrays[presence_name(name)][0]]
        views = tuple(
            view(name, inputs[name], arrays, bytes(members.get(name, b"")), preprocessor.statistics.get(name))
            for name in present
        )
        path, key = reader.name(shard, row)
        absent = tuple(name for name in names if name not in present)
        cards.append(Card(key, path, *_verdict(example, preprocessor.fields[label]), views, absent))
    return cards


def _verdict(example: Example, spec: object) -> tuple[bool | None, str, str, str, tuple[Bar, ...]]:
    assert isinstance(spec, LabelField)
    label, prediction = example.label, example.prediction
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
