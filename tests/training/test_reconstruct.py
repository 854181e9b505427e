"""A training of an autoencoder: any number of workers takes the steps of one; what is hidden is still to be said."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_mm.checkpoint import load_checkpoint
from ray_mm.config.train import InitConfig
from ray_mm.data.fields import presence_name
from ray_mm.data.targets import TARGET
from ray_mm.training import learner as learner_module
from ray_mm.training.initial import find_initial
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks
from ray_mm.training.tracking import read_metrics
from tests.factories import SPECS, make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, newest, train
from tests.training.together import Start, train_together

pytestmark = pytest.mark.usefixtures("one_thread")

INPUTS = tuple(name for name in SPECS if name not in ("label", "number"))
ALONE = Ranks(0, 1, torch.device("cpu"))


def settings(fields: tuple[str, ...] = INPUTS, **task: Any) -> dict[str, Any]:
    return {
        "data.batch_size": 15,
        "model.fields": {name: {"dropout": 0.0} for name in fields},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "model.task": {"type": "reconstruct", "mask": 0.4, "noise": 0.05, **task},
        "train.modality_dropout": 0.3,
        "train.precision": "fp32",
        "train.optimizer.lr": 0.003,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_steps_are_the_same_however_the_work_is_shared(tmp_path: Path) -> None:
    missing = {"series": 0.3, "text": 0.2, "image": 0.2}
    make_dataset(tmp_path / "train", 50, INPUTS, num_shards=2, missing=missing)
    make_dataset(tmp_path / "validation", 14, INPUTS, num_shards=1, seed=1, missing=missing)
    ways = [(1, "ddp", 1), (1, "ddp", 4), *itertools.product((2,), ("ddp", "fsdp"), (1, 3))]
    starts = [
        Start(
            make_training(
                tmp_path,
                f"{parallel}-{workers}-{parts}",
                INPUTS,
                **settings(),
                **{"train.parallel": parallel, "train.micro_batches": parts},
            ),
            workers,
            min_unit=0,
        )
        for workers, parallel, parts in ways
    ]
    train_together(starts, tmp_path / "rendezvous")
    first = curve(starts[0].training)
    told = [line for line in read_metrics(starts[0].training.run) if line["kind"] == "validation"]
    names = ["r2", *(f"{kind}/{name}" for kind in ("r2", "alone", "adds") for name in INPUTS)]
    assert all(name in line for line in told for name in names)
    for start in starts[1:]:
        assert curve(start.training) == pytest.approx(first, abs=1e-4), start.training.run.name
        again = [line for line in read_metrics(start.training.run) if line["kind"] == "validation"]
        for name in names:
            assert [line[name] for line in again] == pytest.approx([line[name] for line in told], abs=1e-3), name


def test_a_resumed_training_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    fields = ("image", "vector")
    make_dataset(tmp_path / "train", 60, fields)
    make_dataset(tmp_path / "validation", 20, fields, seed=1)
    whole, cut = (make_training(tmp_path, name, fields, **settings(fields)) for name in ("whole", "cut"))
    train(whole)
    with pytest.raises(Killed):
        train(cut, stop_before=7)
    train(cut)
    assert curve(cut) == pytest.approx(curve(whole), abs=1e-6)


def test_what_is_hidden_from_the_model_is_still_to_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ("series", "vector")
    make_dataset(tmp_path / "train", 32, fields, missing={"series": 0.2})
    training = make_training(tmp_path, "run", fields, **settings(fields) | {"train.modality_dropout": 0.5})
    learner = Learner(training, ALONE)
    shown, judged = [], []
    forward, judge = learner.model.forward, learner_module.loss_per_sample
    monkeypatch.setattr(learner.model, "forward", lambda batch: shown.append(batch) or forward(batch))
    monkeypatch.setattr(
        learner_module, "loss_per_sample", lambda *args, **more: judged.append(args[2]) or judge(*args, **more)
    )
    batch = next(batches(training))
    learner.train(batch)
    (seen,), (whole,) = shown, judged
    hidden = batch.tensors[presence_name("vector")] & ~seen[presence_name("vector")]
    assert hidden.any() and whole[presence_name("vector")][hidden].all()
    assert whole[TARGET][hidden, -5:].isfinite().all()
    assert whole["vector"].equal(batch.tensors["vector"]) and not seen["vector"].equal(batch.tensors["vector"])
    absent = ~batch.tensors[presence_name("series")]
    assert absent.any() and whole[TARGET][absent, :-5].isnan().all()


def test_a_few_samples_are_learned_by_heart(tmp_path: Path) -> None:
    fields = ("image", "series", "text", "vector")
    make_dataset(tmp_path / "train", 12, fields, num_shards=1)
    make_dataset(tmp_path / "validation", 12, fields, num_shards=1)
    training = make_training(
        tmp_path,
        "run",
        fields,
        **settings(fields, mask=0, noise=0)
        | {
            "train.modality_dropout": 0.0,
            "train.epochs": 150,
            "data.batch_size": 12,
            "train.optimizer.lr": 0.01,
            "model.fusion": {"method": "concat", "dim": 32, "dropout": 0.0},
        },
    )
    train(training)
    last = [line for line in read_metrics(training.run) if line["kind"] == "validation"][-1]
    assert last["r2"] > 0.8
    assert last["r2"] == pytest.approx(sum(last[f"r2/{name}"] for name in fields) / 4)
    assert last["alone/image"] < last["r2"]


def test_its_encoders_begin_another_task(tmp_path: Path) -> None:
    fields = ("image", "series", "vector")
    make_dataset(tmp_path / "train", 40, (*fields, "label"))
    before = make_training(tmp_path, "before", fields, **settings(fields))
    train(before)
    checkpoint = load_checkpoint(newest(before))
    # The same fusion, and no label before.
    common = {"model.fields": {name: {"dropout": 0.0} for name in fields}}
    changes = common | {"train.init_from": str(newest(before))}
    labelled = make_training(tmp_path, "labelled", fields, **changes)
    assert labelled.initial is not None
    assert sorted(labelled.initial.moved) == [*(f"encoders.{name}" for name in fields), "fusion"]
    model = Learner(labelled, ALONE).model
    for name, tensor in model.state_dict().items():
        if not name.startswith("head"):
            assert tensor.equal(checkpoint.state[name]), name
    again = make_training(tmp_path, "again", fields, **settings(fields))
    config = InitConfig(checkpoint=str(newest(before)), parts=("encoders", "fusion", "head"))
    _, initial = find_initial(config, checkpoint, again.job.model, again.preprocessor)
    assert {"fusion", "head"} <= set(initial.moved)
