"""What an evaluation does with each task, from the actors to the report:

base.py       what every task brings
classify.py   one class per sample
multilabel.py any number of classes
regress.py    a number
"""

from __future__ import annotations

from typing_extensions import assert_never

from ray_mm.config.fields import LabelField
from ray_mm.config.tasks import ClassifyTask, MultilabelTask, RegressTask
from ray_mm.evaluation.tasks.base import TaskEvaluation
from ray_mm.evaluation.tasks.classify import ClassEvaluation
from ray_mm.evaluation.tasks.multilabel import MultilabelEvaluation
from ray_mm.evaluation.tasks.regress import NumberEvaluation
from ray_mm.predictor import Predictor


def evaluated_task(predictor: Predictor) -> TaskEvaluation:
    """The evaluation of a model's task."""
    task = predictor.config.task
    label = predictor.preprocessor.fields[task.label]
    assert isinstance(label, LabelField)
    match task:
        case ClassifyTask():
            return ClassEvaluation(label.classes or ())
        case MultilabelTask():
            return MultilabelEvaluation(label.classes or ())
        case RegressTask():
            return NumberEvaluation(predictor.preprocessor.statistics[task.label].mean[0])
        case _:
            assert_never(task)
