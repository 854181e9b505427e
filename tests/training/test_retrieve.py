"""A training of towers: any number of workers takes the steps of one, and what is found is found among all samples."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_mm.checkpoint import load_checkpoint
from ray_mm.config.train import InitConfig
from ray_mm.models.multimodal import build_model
from ray_mm.retrieval_scores import mean_figures, ways
from ray_mm.training.initial import find_initial
from ray_mm.training.parallel import Ranks
from ray_mm.training.scores import RetrieveScores
from ray_mm.training.tracking import read_metrics
from tests.factories import make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, newest, train
from tests.training.together import Start, train_together

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = ("series", "text", "vector")


def settings(loss: str) -> dict[str, Any]:
    return {
        "data.batch_size": 15,
        "model.fields": {name: {"dropout": 0.0} for name in SIDES},
        "model.fusion": {"method": "concat", "dim": 16, "dropout": 0.0},
        "model.task": {
            "type": "retrieve",
            "loss": loss,
            "dim": 8,
            "towers": {"moved": ["series", "vector"], "told": ["text"]},
        },
        "train.modality_dropout": 0.3,
        "train.precision": "fp32",
        "train.optimizer.lr": 0.003,
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loss", ["info_nce", "siglip"])
def test_negatives_come_from_all_workers(tmp_path: Path, loss: str) -> None:
    missing = {"series": 0.2, "text": 0.1, "vector": 0.2}
    make_dataset(tmp_path / "train", 85, SIDES, num_shards=2, missing=missing)
    make_dataset(tmp_path / "validation", 20, SIDES, num_shards=1, seed=1, missing=missing)
    ways_to_share = [(1, "ddp"), *itertools.product((2, 3), ("ddp", "fsdp"))]
    starts = [
        Start(
            make_training(tmp_path, f"{parallel}-{workers}", SIDES, **settings(loss), **{"train.parallel": parallel}),
            workers,
            min_unit=0,
        )
        for workers, parallel in ways_to_share
    ]
    train_together(starts, tmp_path / "rendezvous")
    first = curve(starts[0].training)
    told = [line for line in read_metrics(starts[0].training.run) if line["kind"] == "validation"]
    assert all(0 < line["mrr"] <= 1 and line["recall_at_1"] <= line["recall_at_10"] for line in told)
    assert not any("/" in name for line in told for name in line), "a retrieval has no subsets"
    for start in starts[1:]:
        assert curve(start.training) == pytest.approx(first, abs=1e-4), start.training.run.name
        again = [line for line in read_metrics(start.training.run) if line["kind"] == "validation"]
        for name in ("mrr", "recall_at_1", "recall_at_5", "recall_at_10", "num_samples"):
            assert [line[name] for line in again] == pytest.approx([line[name] for line in told], abs=0.02)


def test_a_validation_ranks_all_of_its_samples_and_not_those_of_a_batch(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, SIDES, missing={"text": 0.3})
    training = make_training(tmp_path, "run", SIDES, **settings("info_nce"))
    torch.manual_seed(0)
    model = build_model(training.job.model, training.preprocessor).eval()
    scores = RetrieveScores({"moved": ("series", "vector"), "told": ("text",)}, Ranks(0, 1, torch.device("cpu")))
    embeddings, there = [], []
    for batch in itertools.islice(batches(training), 3):
        with torch.no_grad():
            output = model(batch.tensors)
        text = batch.tensors["text.presence"]
        scores.more(output, batch.tensors, text)
        embeddings.append(output[..., :-2].numpy())
        there.append(text.numpy())
    found = scores.figures([], [], 1.0)
    both = np.concatenate(there)
    wanted = mean_figures(
        {way: ranks for way, (ranks, _) in ways(np.concatenate(embeddings), np.stack([both, both], 1)).items()}
    )
    assert found == pytest.approx({name: value for name, value in wanted.items() if name != "median_rank"})


def test_a_resumed_training_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 60, SIDES)
    make_dataset(tmp_path / "validation", 20, SIDES, seed=1)
    whole, cut = (make_training(tmp_path, name, SIDES, **settings("siglip")) for name in ("whole", "cut"))
    train(whole)
    with pytest.raises(Killed):
        train(cut, stop_before=7)
    train(cut)
    assert curve(cut) == pytest.approx(curve(whole), abs=1e-6)


def test_its_encoders_begin_another_task(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, (*SIDES, "label"))
    towers = make_training(tmp_path, "towers", SIDES, **settings("info_nce"))
    train(towers)
    checkpoint = load_checkpoint(newest(towers))
    fields = {"model.fields": {name: {"dropout": 0.0} for name in SIDES}}
    labelled = make_training(tmp_path, "labelled", SIDES, **fields)
    _, initial = find_initial(
        InitConfig(checkpoint=str(newest(towers))), checkpoint, labelled.job.model, labelled.preprocessor
    )
    assert sorted(initial.moved) == [f"encoders.{name}" for name in SIDES]
    again = make_training(tmp_path, "again", SIDES, **settings("info_nce"))
    _, initial = find_initial(
        InitConfig(checkpoint=str(newest(towers)), parts=("encoders", "fusion", "head")),
        checkpoint,
        again.job.model,
        again.preprocessor,
    )
    assert {"fusion", "head"} <= set(initial.moved)
