"""What an evaluation does with each task, from the actors to the report:

base.py       what every task brings
classify.py   one class per sample
multilabel.py any number of classes
regress.py    a number
maps.py       a class for every cell of a map
retrieve.py   one side of a sample, found by another
several.py    several of them at once
reconstruct.py   inputs, said again
"""

from __future__ import annotations

from collections.abc import Mapping

from typing_extensions import assert_never

from ray_mm.config.fields import LabelField
from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import (
    ClassifyTask,
    GridTask,
    MultilabelTask,
    ReconstructTask,
    RegressTask,
    RetrieveTask,
    SegmentTask,
    SeveralTask,
    TaskConfig,
    labels_of,
)
from ray_mm.evaluation.tasks.base import TaskEvaluation
from ray_mm.evaluation.tasks.classify import ClassEvaluation
from ray_mm.evaluation.tasks.maps import MapEvaluation
from ray_mm.evaluation.tasks.multilabel import MultilabelEvaluation
from ray_mm.evaluation.tasks.reconstruct import ReconstructEvaluation
from ray_mm.evaluation.tasks.regress import NumberEvaluation
from ray_mm.evaluation.tasks.retrieve import RetrieveEvaluation
from ray_mm.evaluation.tasks.several import SeveralEvaluation
from ray_mm.predictor import Predictor


def unscorable(config: ModelConfig, presence: Mapping[str, int]) -> str | None:
    """Why no sample of a dataset can be scored; None: it can.

    Args:
        config: of the model.
        presence: field → samples of the dataset that have it.
    """
    task = config.task
    if isinstance(task, RetrieveTask):
        towers = task.towers_of(config.fields)
        there = [tower for tower, names in towers.items() if any(presence.get(name) for name in names)]
        if len(there) > 1:
            return None
        return f"no sample has more than one of {', '.join(towers)}"
    if isinstance(task, ReconstructTask):
        names = task.fields_of(config.fields)
        return None if any(presence.get(name) for name in names) else f"no sample has any of {', '.join(names)}"
    # Of several tasks those are scored whose label is there.
    if any(presence.get(label) for label in labels_of(task)):
        return None
    return f"no sample has the label {' or '.join(map(repr, labels_of(task)))}"


def evaluated_task(predictor: Predictor) -> TaskEvaluation:
    """The evaluation of a model's task."""
    return _evaluation_of(predictor.config.task, predictor)


def _evaluation_of(task: TaskConfig, predictor: Predictor) -> TaskEvaluation:
    match task:
        case ClassifyTask():
            return ClassEvaluation(task.label, _classes(predictor, task.label))
        case MultilabelTask():
            return MultilabelEvaluation(task.label, _classes(predictor, task.label))
        case RegressTask():
            return NumberEvaluation(task.label, predictor.preprocessor.statistics[task.label].mean[0])
        case SeveralTask():
            parts = {name: _evaluation_of(each, predictor) for name, each in sorted(task.tasks.items())}
            return SeveralEvaluation(parts, predictor.answers)
        case SegmentTask() | GridTask():
            return MapEvaluation(task.label, _classes(predictor, task.label))
        case RetrieveTask():
            return RetrieveEvaluation(task.towers_of(predictor.input_fields))
        case ReconstructTask():
            return ReconstructEvaluation(task.fields_of(predictor.input_fields), predictor.preprocessor)
        case _:
            assert_never(task)


def _classes(predictor: Predictor, label: str) -> tuple[str, ...]:
    spec = predictor.preprocessor.fields[label]
    assert isinstance(spec, LabelField)
    return spec.classes or ()
