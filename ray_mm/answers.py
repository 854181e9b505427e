"""What a model puts out → what it says: probabilities, values in the label's own unit, an answer per sample. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.config.tasks import RetrieveTask, SeveralTask, TaskConfig, labelled_tasks
from ray_mm.data.manifest import Statistics

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """The answer for one sample."""

    label: str | tuple[str, ...] | float | None
    """The most probable class; of several per sample those more probable than not; or the value in the label's own unit. A
    retrieval, a reconstruction and a map have none."""
    probabilities: dict[str, float] | None
    """Class → probability; None where there are no classes."""
    presence: dict[str, bool]
    """Input field → was it there?"""
    embeddings: dict[str, Floats] | None = None
    """Of a retrieval: tower → its vector of length 1, float32 [E], of those towers that have a field; else None."""
    tasks: dict[str, Prediction] | None = None
    """Of several tasks: name → what it says; ``label`` and ``probabilities`` are then None. Else None."""
    reconstruction: dict[str, Floats] | None = None
    """Of a reconstruction: field → what it is thought to be like, whether it was there or not, in its own unit, of the shape that
    ``data.targets`` says; else None."""
    mask: npt.NDArray[np.uint8] | None = None
    """Of a class for every cell of a map: the numbers of the most probable ones, uint8 [H, W]; else None."""


def _std(statistics: Statistics | None) -> np.float32:
    assert statistics is not None
    return np.float32(statistics.std[0])


def _mean(statistics: Statistics | None) -> np.float32:
    assert statistics is not None
    return np.float32(statistics.mean[0])


class Answers:
    """What a model's output means.

    Args:
        task: of the model.
        fields: its labels among them.
        statistics: of its labels that are numbers.
    """

    def __init__(
        self,
        task: TaskConfig,
        fields: Mapping[str, FieldSpec],
        statistics: Mapping[str, Statistics],
        inputs: Iterable[str],
    ) -> None:
        self.towers = task.towers_of(inputs) if isinstance(task, RetrieveTask) else None
        self._places = task.slices(fields) if isinstance(task, SeveralTask) else {}
        self._shapes = task.shapes(fields) if isinstance(task, SeveralTask) else {}
        self.labels: dict[str, LabelField] = {}
        """Task → its label; of one task alone the name is empty, and of a retrieval there is none."""
        self._labels: dict[str, tuple[LabelField, Statistics | None]] = {}
        for name, each in labelled_tasks(task).items():
            label = fields[each.label]
            assert isinstance(label, LabelField)
            self.labels[name] = label
            self._labels[name] = label, statistics.get(each.label)

    def of_output(self, raw: Floats) -> Floats:
        """Raw output of any leading shape as probabilities [..., C], of a map [..., C, H, W], as values [...] in the label's own
        unit, as embeddings of length 1 [..., K, E], or of several tasks as these of each beside each other [..., N]."""
        if not self._places:
            label, statistics = self._labels.get("", (None, None))
            return answers(label, statistics, raw)
        found = []
        for name, place in self._places.items():
            label, statistics = self._labels[name]
            own = raw[..., place].reshape((*raw.shape[:-1], *self._shapes[name]))
            found.append(answers(label, statistics, own).reshape(*raw.shape[:-1], place.stop - place.start))
        return np.concatenate(found, axis=-1)

    def of_task(self, name: str, answer: Floats) -> Floats:
        """One of several tasks' part of answers [..., N], as of a model of it alone."""
        return answer[..., self._places[name]].reshape((*answer.shape[:-1], *self._shapes[name]))

    def prediction(self, answer: Any, presence: dict[str, bool]) -> Prediction:
        """What the answer for one sample says."""
        if not self._places:
            return prediction(self._labels.get("", (None, None))[0], answer, presence, self.towers)
        parts = {name: prediction(self._labels[name][0], self.of_task(name, answer), presence) for name in self._places}
        return Prediction(None, None, presence, tasks=parts)


def answers(label: LabelField | None, statistics: Statistics | None, raw: Floats) -> Floats:
    """A model's raw output, of any leading shape, as probabilities [..., C], of a map [..., C, H, W], as values [...] in the
    label's own unit, or as embeddings of length 1 [..., K, E].

    Args:
        label: what is predicted. None: of a retrieval.
        statistics: of a number.
        raw: logits [..., C] or [..., C, H, W], standardised values [...], or what a retrieval compares [..., K, E + 2].
    """
    if label is None:
        # Of a model in 8 bits they may be a little longer or shorter.
        vectors = raw[..., :-2]
        return cast(Floats, vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))
    match label.target:
        case "class":
            return _softmax(raw, axis=-1)
        case "classes":
            small = np.exp(-np.abs(raw))
            return cast(Floats, np.where(raw >= 0, 1, small) / (1 + small))
        case "mask":
            return _softmax(raw, axis=-3)
        case "number":
            return raw * _std(statistics) + _mean(statistics)
        case _:
            assert_never(label.target)


def _softmax(logits: Floats, axis: int) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return cast(Floats, exponentials / exponentials.sum(axis=axis, keepdims=True))


def prediction(
    label: LabelField | None, answer: Any, presence: dict[str, bool], towers: Mapping[str, Sequence[str]] | None = None
) -> Prediction:
    """What the answer for one sample says: probabilities [C] or [C, H, W], a value, or of a retrieval with these towers
    embeddings [K, E]."""
    if label is None:
        found = zip((towers or {}).items(), answer, strict=True)
        kept = {tower: vector for (tower, names), vector in found if any(presence[name] for name in names)}
        return Prediction(None, None, presence, kept)
    match label.target:
        case "class":
            assert label.classes is not None
            probabilities = dict(zip(label.classes, answer.tolist(), strict=True))
            return Prediction(label.classes[int(answer.argmax())], probabilities, presence)
        case "classes":
            assert label.classes is not None
            probabilities = dict(zip(label.classes, answer.tolist(), strict=True))
            return Prediction(tuple(name for name, p in probabilities.items() if p > 0.5), probabilities, presence)
        case "mask":
            return Prediction(None, None, presence, mask=answer.argmax(axis=0).astype(np.uint8))
        case "number":
            return Prediction(float(answer), None, presence)
        case _:
            assert_never(label.target)
