"""A validation over several ranks gives the figures of one pass over all samples, however unevenly they are shared."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_mm.data.fields import POSITION, WEIGHT, presence_name
from ray_mm.evaluation.metrics import classification_metrics, classification_sums
from ray_mm.evaluation.tasks.multilabel import MultilabelEvaluation
from ray_mm.models.multimodal import build_model
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.validation import ValidationSums, of_fields
from tests.factories import make_dataset
from tests.training.inprocess import batches, make_training
from tests.training.together import run_ranks

SHARES = ((7, 7, 3), (7, 6, 0))
"""Samples of each rank in each batch; rows beyond them are padding."""
ROWS = 7
TASKS: dict[str, dict[str, str]] = {
    "label": {"type": "classify", "label": "label"},
    "number": {"type": "regress", "label": "number"},
    "tags": {"type": "multilabel", "label": "tags"},
}


class _Known(nn.Module):
    """Answers with what lies in a batch: the figures then follow from numbers that the test has drawn."""

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors["output"]


def test_figures_over_uneven_ranks_are_sums_over_all_samples(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 24, ("vector", "label", "number", "tags"))
    trainings = [make_training(tmp_path, name, **{"model.task": task}) for name, task in TASKS.items()]
    run_ranks(_rank, (trainings, tmp_path), 2)

    for training in trainings:
        label = training.job.model.task.label
        found = [json.loads((tmp_path / f"{label}-{rank}.json").read_text()) for rank in range(2)]
        assert found[0] == found[1], "every rank is told the same"
        batches = [_batch(label, rank, number) for rank in range(2) for number in range(3)]
        counted = [((batch[WEIGHT] > 0) & batch[presence_name(label)]).numpy() for batch in batches]
        output = np.concatenate(
            [batch["output"].double().numpy()[rows] for batch, rows in zip(batches, counted, strict=True)]
        )
        true = np.concatenate([batch[label].numpy()[rows] for batch, rows in zip(batches, counted, strict=True)])
        assert len(true) == found[0]["num_samples"] == 30 - 4 - 5, (
            "neither padding, nor the unreadable, nor the unlabelled"
        )
        if label == "label":
            chance = np.exp(output) / np.exp(output).sum(1, keepdims=True)
            wanted = {
                "loss": -np.log(chance[np.arange(len(true)), true]).mean(),
                "accuracy": (output.argmax(1) == true).mean(),
                "macro_f1": _macro_f1_of_an_evaluation(true, output.argmax(1)),
            }
        elif label == "tags":
            wanted = _of_an_evaluation(true, output)
        else:
            statistics = training.preprocessor.statistics[label]
            error = output * statistics.std[0] + statistics.mean[0] - true
            wanted = {
                "loss": np.square(error / statistics.std[0]).mean(),
                "mae": np.abs(error).mean(),
                "rmse": np.sqrt(np.square(error).mean()),
            }
        assert {name: found[0][name] for name in wanted} == pytest.approx(wanted, rel=1e-6)


def _of_an_evaluation(true: np.ndarray, output: np.ndarray) -> dict[str, float]:
    """Of any number of classes: an evaluation has the same definitions."""
    evaluation = MultilabelEvaluation("tags", ("a", "b", "c"))
    tally, chance = evaluation.tally(1), (1 / (1 + np.exp(-output))).astype(np.float32)
    rows = {"tags": true}
    tally.add(rows | evaluation.scored(chance[None], rows))
    (metrics,) = tally.metrics()
    loss = -np.log(np.where(true > 0.5, chance, 1 - chance)).mean()
    return {"loss": loss, **{name: float(metrics[name] or 0) for name in ("micro_f1", "macro_f1", "map")}}


def _macro_f1_of_an_evaluation(true: np.ndarray, predicted: np.ndarray) -> float:
    certain = np.ones((1, len(true)))
    (metrics,) = classification_metrics(classification_sums(true, predicted[None], certain, certain, 3))
    assert metrics["macro_f1"] is not None
    return metrics["macro_f1"]


def test_macro_f1_counts_a_rare_class_as_much_as_a_common_one(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 24, ("vector", "label"))
    sums = ValidationSums(make_training(tmp_path), Ranks(0, 1, torch.device("cpu")))
    for _ in range(2):  # the second validation starts anew
        for label, answer in ((0, 0),) * 8 + ((1, 0), (1, 1)):
            batch = {
                "output": torch.nn.functional.one_hot(torch.tensor([answer]), 3).float(),
                "label": torch.tensor([label]),
                presence_name("label"): torch.tensor([True]),
                WEIGHT: torch.ones(1),
                POSITION: torch.zeros(1, dtype=torch.int64),
            }
            sums.add(_Known(), batch, "fp32")
        found = sums.read(1)
        # Of the third class there is nothing, and nothing is taken for it.
        assert (found["accuracy"], found["macro_f1"]) == (0.9, pytest.approx((16 / 17 + 2 / 3) / 2))


def _batch(label: str, rank: int, number: int) -> dict[str, Tensor]:
    """The second sample of each full share can't be read; the third has no label, on rank 1 the fourth neither."""
    drawn = np.random.default_rng([rank, number])
    samples = SHARES[rank][number]
    place = np.arange(ROWS)
    weight = (place < samples) & ~((place == 1) & (samples > 3))
    present = ~((place == 2) & (samples > 3)) & ~((place == 3) & (samples == 6))
    size: Any = ROWS if label == "number" else (ROWS, 3)
    known = {
        "label": lambda: drawn.integers(0, 3, ROWS),
        "number": lambda: drawn.normal(10, 8, ROWS).astype(np.float32),
        "tags": lambda: (drawn.random((ROWS, 3)) < 0.5).astype(np.float32),
    }
    values: dict[str, Any] = {
        "output": drawn.normal(size=size).astype(np.float32),
        label: known[label](),
        presence_name(label): present,
        WEIGHT: weight.astype(np.float32),
        POSITION: np.where(place < samples, place, -1),
    }
    return {name: torch.from_numpy(array) for name, array in values.items()}


def _rank(rank: int, trainings: list[Training], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    for training in trainings:
        label = training.job.model.task.label
        sums = ValidationSums(training, Ranks(rank, 2, torch.device("cpu")))
        for number in range(3):
            sums.add(_Known(), _batch(label, rank, number), "fp32")
        (folder / f"{label}-{rank}.json").write_text(json.dumps(sums.read(1)))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("inputs", [("image", "vector"), ("image", "series", "vector")])
def test_each_field_is_scored_alone_and_by_what_it_adds(tmp_path: Path, name: str, inputs: tuple[str, ...]) -> None:
    make_dataset(tmp_path / "train", 40, (*inputs, name), missing={"image": 0.3})
    training = make_training(tmp_path, inputs=inputs, **{"model.task": TASKS[name]})
    torch.manual_seed(0)
    model = build_model(training.job.model, training.preprocessor).eval()
    sums = ValidationSums(training, Ranks(0, 1, torch.device("cpu")))
    figures: dict[frozenset[str], list[float]] = {}
    wanted = [frozenset(inputs), *(frozenset({field}) for field in inputs)]
    wanted += [frozenset(inputs) - {field} for field in inputs]
    for batch in islice(batches(training), training.schedule.train_batches):
        sums.add(model, batch.tensors, "fp32")
        for subset in wanted:
            seen = dict(batch.tensors)
            for field in set(inputs) - subset:
                seen[presence_name(field)] = torch.zeros_like(seen[presence_name(field)])
            with torch.no_grad():
                output = model(seen)
            counted = (seen[WEIGHT] > 0) & seen[presence_name(name)]
            if name == "label":
                found = (output.argmax(1) == seen[name]).double()
            elif name == "tags":
                found = torch.stack(
                    [((output > 0) & (seen[name] > 0)).sum(1), (output > 0).sum(1) + seen[name].sum(1)], 1
                )
            else:
                statistics = training.preprocessor.statistics[name]
                found = (output * statistics.std[0] + statistics.mean[0] - seen[name]).abs().double()
            figures.setdefault(subset, []).extend(found[counted].tolist())
    metrics = sums.read(1)
    means = {subset: float(np.mean(values)) for subset, values in figures.items()}
    if name == "tags":
        added = {subset: np.sum(values, axis=0) for subset, values in figures.items()}
        means = {subset: float(2 * hits / both) for subset, (hits, both) in added.items()}
    whole, sign = means[frozenset(inputs)], -1 if name == "number" else 1
    figure = {"label": "accuracy", "number": "mae", "tags": "micro_f1"}[name]
    assert metrics[figure] == pytest.approx(whole)
    told = of_fields(metrics, figure)
    assert set(told) == set(inputs)
    for field in inputs:
        assert told[field][f"{figure}_alone"] == metrics[f"alone/{field}"] == pytest.approx(means[frozenset({field})])
        without = means[frozenset(inputs) - {field}]
        assert told[field][f"{figure}_added"] == metrics[f"adds/{field}"] == pytest.approx(sign * (whole - without))
