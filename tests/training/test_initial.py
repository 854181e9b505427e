"""A training that begins with what another one has learned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_mm.check import check_inputs, check_job
from ray_mm.checkpoint import load_checkpoint
from ray_mm.config.train import TrainJob
from ray_mm.errors import UsageError
from ray_mm.predictor import load_predictor
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.train import plan_training
from tests.factories import edit_manifest, make_dataset
from tests.training.inprocess import Killed, curve, make_job, make_training, newest, train
from tests.training.together import Start, train_together

ALL = ("image", "series", "text", "vector")
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learned to classify from image, series and text."""
    folder = tmp_path_factory.mktemp("before")
    make_dataset(folder / "train", 32, ("image", "series", "text", "label"), seed=5)
    training = make_training(folder, inputs=("image", "series", "text"), **{"train.epochs": 1, "seed": 7})
    train(training)
    return training.run / "last"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "train", 32, (*ALL, "label", "number"), seed=1)
    # Other statistics than those of the run before.
    other = {"series": {"mean": [9.0, 9.0, 9.0], "std": [2.0, 2.0, 2.0]}}

    def change(manifest: dict[str, Any]) -> None:
        for name, figures in other.items():
            count = len(manifest["statistics"][name]["mean"])
            manifest["statistics"][name] = {key: values[:count] for key, values in figures.items()}

    edit_manifest(tmp_path / "train", change)
    return tmp_path


def job_of(folder: Path, before: Path | dict[str, Any], inputs: tuple[str, ...], **settings: Any) -> TrainJob:
    initial = before if isinstance(before, dict) else str(before)
    return make_job(folder, inputs=inputs, **{"train.init_from": initial, "train.epochs": 1, **settings})


def begun(folder: Path, before: Path | dict[str, Any], inputs: tuple[str, ...], **settings: Any) -> Training:
    return plan_training(job_of(folder, before, inputs, **settings))


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return Learner(training, ALONE).model.state_dict()


def test_encoders_of_the_same_fields_come_along_whatever_is_predicted(data: Path, before: Path) -> None:
    task = {"type": "regress", "label": "number"}
    training = begun(data, before, ("text", "vector", "image"), **{"model.task": task})
    assert f"train.init_from: encoders.image, encoders.text of {before}" in check_job(training.job)
    assert training.initial is not None
    assert list(training.initial.moved) == ["encoders.image", "encoders.text"]
    theirs, ours = load_checkpoint(before).state, weights_of(training)
    fresh = weights_of(make_training(data, "fresh", ("text", "vector", "image"), **{"model.task": task}))
    # There image is the first of image, series, text; here of image, text, vector.
    for new, old in (("encoders.0.", "encoders.0."), ("encoders.1.", "encoders.2.")):
        names = [name for name in ours if name.startswith(new)]
        assert names and all(torch.equal(ours[name], theirs[old + name.removeprefix(new)]) for name in names)
        assert any(not torch.equal(ours[name], fresh[name]) for name in names)
    for part in ("encoders.2.", "fusion.", "head."):
        assert all(torch.equal(ours[name], fresh[name]) for name in ours if name.startswith(part))
    train(training)
    assert load_checkpoint(training.run / "last").config.task.type == "regress"


def test_what_prepares_an_encoders_input_comes_with_it(data: Path, before: Path) -> None:
    saved = load_checkpoint(before).preprocessor
    fresh = make_training(data, "fresh", ("series", "text")).preprocessor
    ours = begun(data, before, ("series", "text")).preprocessor
    assert fresh.statistics["series"] != saved.statistics["series"] == ours.statistics["series"]
    assert ours.tokenizers["text"] == saved.tokenizers["text"]
    # But not that of an encoder that is fresh.
    only_text = begun(data, {"checkpoint": str(before), "parts": ["encoders.text"]}, ("series", "text")).preprocessor
    assert only_text.statistics["series"] == fresh.statistics["series"]


def test_the_whole_model_goes_on_with_other_data(data: Path, before: Path) -> None:
    inputs = ("image", "series", "text")
    same = begun(data, before, inputs)
    assert same.initial is not None and list(same.initial.moved) == [*(f"encoders.{name}" for name in inputs), "fusion"]
    parts = ["encoders", "fusion", "head"]
    whole = begun(data, {"checkpoint": str(before), "parts": parts}, inputs)
    theirs = load_checkpoint(before).state
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights_of(whole).items())


def test_weights_are_shrunk_and_fresh_ones_added_to_all_that_is_trained(data: Path, before: Path) -> None:
    inputs = ("image", "series", "text")
    parts = {"checkpoint": str(before), "parts": ["encoders", "fusion"], "shrink": 0.6, "perturb": 0.1}
    training = begun(data, before=parts, inputs=inputs)
    model = Learner(training, ALONE).model
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    theirs, ours = load_checkpoint(before).state, model.state_dict()
    fresh = weights_of(make_training(data, "fresh", inputs))
    for name, tensor in ours.items():
        if name.startswith("head."):
            assert torch.equal(tensor, fresh[name])
        elif name in trained:
            torch.testing.assert_close(tensor, 0.6 * theirs[name] + 0.1 * fresh[name])
        else:
            assert torch.equal(tensor, theirs[name])
    assert any(not torch.equal(ours[name], theirs[name]) for name in trained)


@pytest.mark.parametrize(
    ("inputs", "parts", "settings", "message"),
    [
        (
            ("vector",),
            None,
            {},
            r"init_from: no part of .* fits this model \(encoders\.vector: it has no input of this name",
        ),
        (
            ("image", "vector"),
            ["encoders"],
            {},
            r"parts: encoders\.vector of .* does not fit: it has no input of this name",
        ),
        (
            ("image",),
            ["fusion"],
            {},
            r"parts: fusion of .* does not fit: its method, its fields or its towers are others",
        ),
        (
            ("image", "series", "text"),
            ["head"],
            {"model.task": {"type": "regress", "label": "number"}},
            r"parts: head of .* does not fit: its task, its label or the label's classes, its towers or its fields are others",
        ),
        (
            ("image",),
            ["encoders.image"],
            {"model.fields": {"image": {"size": "base"}}},
            r"parts: encoders\.image of .* does not fit: its weight .* is \[\d+.*\], here ",
        ),
        (
            ("image",),
            ["encoders.series"],
            {},
            r"train\.init_from\.parts: the model has no part 'encoders\.series'",
        ),
    ],
)
def test_a_part_that_does_not_fit_is_refused_with_what_differs(
    data: Path, before: Path, inputs: tuple[str, ...], parts: list[str] | None, settings: dict[str, Any], message: str
) -> None:
    for look in (check_job, plan_training):
        with pytest.raises(UsageError, match=message):
            look(job_of(data, {"checkpoint": str(before), "parts": parts}, inputs, **settings))


def test_a_checkpoint_that_is_not_there_is_refused_by_its_key(data: Path) -> None:
    for look in (check_job, plan_training):
        with pytest.raises(UsageError, match=r"^train\.init_from: .*nowhere: no such folder"):
            look(job_of(data, data / "nowhere", ("image",)))


def test_a_training_that_was_killed_goes_on_without_that_checkpoint(data: Path, before: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(before, copy)
    inputs, settings = ("series", "text"), {"train.epochs": 3, "train.checkpoints.every_steps": 1}
    straight = begun(data, copy, inputs, **settings)
    train(straight)
    killed = begun(data, copy, inputs, **settings, output=str(data / "killed"))
    with pytest.raises(Killed):
        train(killed, stop_before=4)
    shutil.rmtree(copy)
    again = begun(data, copy, inputs, **settings, output=str(data / "killed"))
    assert again.initial is None and again.preprocessor == straight.preprocessor
    (told,) = (line for line in check_inputs(again.job) if line.startswith("train.init_from"))
    assert told == f"train.init_from: not needed any more, for {again.run} has checkpoints of its own"
    train(again)
    assert curve(again) == curve(straight)
    ours, theirs = (load_checkpoint(run / "last").state for run in (again.run, straight.run))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert load_predictor(again.run / "last").input_fields == ["series", "text"]


def test_every_rank_begins_with_the_same(data: Path, before: Path, tmp_path: Path) -> None:
    still = {"train.modality_dropout": 0, "model.fusion.dropout": 0}
    fields = {name: {"dropout": 0} for name in ("series", "text")}
    ddp, fsdp, one = (
        begun(
            data,
            before,
            ("series", "text"),
            **still,
            **settings,
            **{"model.fields": fields, "output": str(data / name)},
        )
        for name, settings in (("ddp", {}), ("fsdp", {"train.parallel": "fsdp"}), ("one", {}))
    )
    train_together([Start(ddp, workers=2), Start(fsdp, workers=2)], tmp_path / "rendezvous")
    train(one)
    for two in (ddp, fsdp):
        assert curve(two) == pytest.approx(curve(one), abs=1e-4)
        assert newest(two).name == newest(one).name
