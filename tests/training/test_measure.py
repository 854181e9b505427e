"""All stages of a training, measured where it would run, on a real Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mm.config.base import Resources
from ray_mm.errors import DatasetError
from ray_mm.placement import Node, divide
from ray_mm.session import cause_of
from ray_mm.training.diagnosis import Diagnosis, diagnose
from ray_mm.training.explain import sentence
from ray_mm.training.measure import measure
from ray_mm.training.plan import Training
from tests.factories import make_dataset
from tests.training.inprocess import make_training

pytestmark = pytest.mark.ray


def measured(training: Training) -> tuple[Diagnosis, str]:
    found = measure(training, divide(Resources(), [Node(2)]), 0.4)
    diagnosis = diagnose(found, training.schedule)
    return diagnosis, sentence(found, diagnosis)


def test_dear_pictures_and_a_tiny_model_are_limited_by_decoding(local_ray: None, tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 12, ("image", "vector", "label"), picture_size=(960, 1280))
    small = {"type": "image", "height": 8, "width": 8}
    training = make_training(tmp_path, inputs=("image", "vector"), **{"data.fields.image": small})
    diagnosis, said = measured(training)
    assert diagnosis.limit == "decode" and diagnosis.predicted < diagnosis.workers_take
    assert said.startswith("decoding limits this job: ")
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_small_vectors_and_a_large_model_are_limited_by_the_step(local_ray: None, tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 200, ("vector", "label"))
    diagnosis, said = measured(make_training(tmp_path, **{"model.fusion.dim": 2048, "data.batch_size": 64}))
    assert diagnosis.limit == "train step" and said.startswith("the train step limits this job: ")
    assert diagnosis.predicted < diagnosis.readers_deliver


def test_a_shard_that_is_gone_is_the_usual_error(local_ray: None, tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 12, ("vector", "label"))
    training = make_training(tmp_path)
    for shard in (tmp_path / "train" / "shards").glob("*.tar"):
        shard.unlink()
    with pytest.raises(Exception, match=r"\.tar") as raised:
        measured(training)
    assert isinstance(cause_of(raised.value), DatasetError)
