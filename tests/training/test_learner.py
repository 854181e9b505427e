"""How a step is done: in parts, in half precision, with less memory, compiled; and the average of the weights."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from ray_mm.checkpoint import load_checkpoint
from ray_mm.data.device import CudaStream
from ray_mm.data.loader import overlapped
from ray_mm.errors import RayMMError, UsageError
from ray_mm.training.average import WeightAverage
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks
from ray_mm.training.state import read_state
from ray_mm.training.tracking import read_metrics
from tests.factories import make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, newest, train

ONE = Ranks(0, 1, torch.device("cpu"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "train", 50, ("series", "vector", "label"), num_shards=2, missing={"series": 0.3})
    make_dataset(tmp_path / "validation", 20, ("series", "vector", "label"), num_shards=1, seed=1)
    return tmp_path


def _training(data: Path, run: str, **overrides: Any) -> Any:
    return make_training(data, run, ("series", "vector"), **overrides)


@pytest.mark.parametrize("micro_batches", [2, 3, 16])
def test_a_batch_in_parts_takes_the_same_step(data: Path, micro_batches: int) -> None:
    still: dict[str, Any] = {
        "model.fields": {"series": {"dropout": 0.0}, "vector": {"dropout": 0.0}},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "train.modality_dropout": 0.3,
    }
    whole = _training(data, "whole", **still)
    parts = _training(data, "parts", **still, **{"train.micro_batches": micro_batches})
    train(whole)
    train(parts)
    assert curve(parts) == pytest.approx(curve(whole), abs=1e-5)


def test_parts_are_smaller_than_the_batch(data: Path) -> None:
    learner = Learner(_training(data, "run", **{"train.micro_batches": 3}), ONE)
    seen: list[int] = []
    learner.model.fusion.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    learner.train(next(batches(_training(data, "run"))))
    assert seen == [6, 6, 4]


def test_more_parts_than_samples_are_refused(data: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.micro_batches 17 is more than the 16 samples"):
        _training(data, "run", **{"train.micro_batches": 17})


def test_half_precision_learns_scales_its_loss_and_goes_on_after_a_kill(data: Path) -> None:
    settings: dict[str, Any] = {"train.precision": "fp16", "train.checkpoints.every_steps": 2}
    plain, calm, killed = (
        _training(data, name, **(settings if name != "plain" else {})) for name in ("plain", "calm", "killed")
    )
    train(plain)
    train(calm)
    with pytest.raises(Killed):
        train(killed, stop_before=3)
    train(killed)
    assert curve(killed) == pytest.approx(curve(calm), abs=1e-6)
    assert curve(calm) == pytest.approx(curve(plain), abs=0.02) and curve(calm) != curve(plain)
    scale = read_state(newest(calm)).loss_scale
    assert scale["scale"] > 1 and scale == read_state(newest(killed)).loss_scale
    assert read_state(newest(plain)).loss_scale == {}


def test_a_scale_that_is_too_large_for_half_precision_is_lowered(data: Path) -> None:
    training = _training(data, "run", **{"train.precision": "fp16"})
    learner = Learner(training, ONE)
    high = learner.loss_scale | {"scale": 2.0**30}
    checkpoint = training.run / "checkpoints" / "step-00000010"
    train(training)
    again = Learner(training, ONE, newest(training), high)
    assert newest(training).parent == checkpoint.parent and again.loss_scale["scale"] == 2.0**30
    before = [parameter.detach().clone() for parameter in again.model.parameters()]
    step = again.train(next(batches(training)))
    assert again.loss_scale["scale"] == 2.0**29 and bool(step.finite)
    assert all(torch.equal(one, other) for one, other in zip(before, again.model.parameters(), strict=True))


def test_computing_again_instead_of_keeping_changes_nothing(data: Path) -> None:
    # Dropout is drawn again, too, and has to be the same.
    plain = _training(data, "plain")
    thrifty = _training(data, "thrifty", **{"train.activation_checkpointing": True})
    train(plain)
    train(thrifty)
    assert curve(thrifty) == pytest.approx(curve(plain), abs=1e-6)
    counts = []
    for training in (plain, thrifty):
        learner, calls = Learner(training, ONE), []
        for module in (*learner.model.encoders, learner.model.fusion):
            inner = next(child for child in module.modules() if isinstance(child, torch.nn.Linear))
            inner.register_forward_hook(lambda *_, calls=calls: calls.append(1))  # type: ignore[misc]
        learner.train(next(batches(training)))
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]


@pytest.mark.parametrize("balance", [None, {"label": "label", "method": "square_root"}])
@pytest.mark.parametrize("task", [{"class_weights": "balanced"}, {"logit_adjustment": 1.0}])
def test_a_step_makes_up_for_how_often_classes_are_drawn(
    tmp_path: Path, task: dict[str, Any], balance: dict[str, str] | None
) -> None:
    make_dataset(tmp_path / "train", 48, ("vector", "label"), missing={"label": 0.3})
    overrides: dict[str, Any] = {
        "data.train": {"path": str(tmp_path / "train"), "where": {"label": ["left", "stop"]}}
        if balance is None
        else None,
        "data.balance": balance,
        # The whole epoch in one step.
        "data.batch_size": 48,
        "model.fields": {"vector": {"dropout": 0.0}},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
        "model.task": {"type": "classify", "label": "label", **task},
        "train.modality_dropout": 0.0,
    }
    training = make_training(tmp_path, **{key: value for key, value in overrides.items() if value is not None})
    batch = next(batches(training))
    there = batch.tensors["label.presence"] & (batch.tensors["weight"] > 0)
    label = batch.tensors["label"][there]
    counts = torch.bincount(label, minlength=3).double()
    assert training.class_counts["label"] == pytest.approx(counts.tolist()), "of what is drawn, not of what there is"
    if balance is None:
        assert counts[1] == 0 and counts[0] != counts[2]
    learner = Learner(training, ONE)
    with torch.no_grad():
        logits = learner.model(batch.tensors)[there]
    if "logit_adjustment" in task:
        share = torch.where(counts > 0, counts, counts[counts > 0].min()) / counts.sum()
        expected = F.cross_entropy(logits + share.log().float(), label)
    else:
        weights = torch.where(counts > 0, 1 / counts, 0.0).float()
        expected = F.cross_entropy(logits, label, weight=weights)
    step = learner.train(batch)
    assert step.weight_sum == len(label)
    torch.testing.assert_close(step.loss_sum / step.weight_sum, expected)


def test_a_training_for_rare_classes_goes_on_after_a_kill(data: Path) -> None:
    task = {"type": "classify", "label": "label", "loss": "focal", "class_weights": "balanced", "label_smoothing": 0.1}
    settings: dict[str, Any] = {"model.task": task, "train.augment.mixup": 0.3, "train.checkpoints.every_steps": 2}
    plain = _training(data, "plain", **{"train.augment.mixup": 0.3})
    calm, killed = (_training(data, name, **settings) for name in ("calm", "killed"))
    train(plain)
    train(calm)
    with pytest.raises(Killed):
        train(killed, stop_before=3)
    train(_training(data, "killed", **settings))
    assert curve(killed) == pytest.approx(curve(calm), abs=1e-6)
    assert curve(calm) != pytest.approx(curve(plain), rel=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("mode", [True, "reduce-overhead"])
def test_a_compiled_model_learns_the_same(tmp_path: Path, mode: bool | str) -> None:
    make_dataset(tmp_path / "train", 40, ("vector", "label"))
    still: dict[str, Any] = {
        "model.fields": {"vector": {"dropout": 0.0}},
        "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
    }
    plain = make_training(tmp_path, "plain", **still)
    compiled = make_training(tmp_path, "compiled", **still, **{"train.compile": mode})
    train(plain)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    train(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before, "something was compiled"
    assert curve(compiled) == pytest.approx(curve(plain), abs=1e-4)
    assert load_checkpoint(compiled.run / "last").build()


def test_only_modes_of_compiling_that_there_are_can_be_asked_for(data: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.compile"):
        _training(data, "run", **{"train.compile": "fastest"})


def test_compiling_without_a_compiler_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(data))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RayMMError, match=r"train\.compile: there is no C\+\+ compiler"):
        Learner(_training(data, "run", **{"train.compile": True}), ONE)


def test_the_average_follows_the_weights(data: Path) -> None:
    learner = Learner(_training(data, "run"), ONE)
    average = WeightAverage(learner.model, 0.5)
    expected = [parameter.detach().clone() for parameter in learner.model.parameters()]
    for step, batch in enumerate(itertools.islice(batches(_training(data, "run")), 3), start=1):
        learner.train(batch)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [
            decay * one + (1 - decay) * other.detach()
            for one, other in zip(expected, learner.model.parameters(), strict=True)
        ]
    weights = [parameter.detach().clone() for parameter in learner.model.parameters()]
    with average.in_place():
        for one, other in zip(expected, learner.model.parameters(), strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(weights, learner.model.parameters(), strict=True))


def test_the_average_is_what_is_validated_published_and_kept(data: Path) -> None:
    settings: dict[str, Any] = {"train.ema": 0.8, "train.checkpoints.every_steps": 3, "train.optimizer.lr": 0.01}
    plain = _training(data, "plain", **(settings | {"train.ema": None}))
    calm, killed = (_training(data, name, **settings) for name in ("calm", "killed"))
    train(plain)
    train(calm)
    with pytest.raises(Killed):
        train(killed, stop_before=5)
    train(killed)
    assert curve(killed) == pytest.approx(curve(calm), abs=1e-6)
    # The steps are the same, the figures are not.
    losses = [
        {step: loss for (kind, step), loss in curve(training).items() if kind == "train"} for training in (plain, calm)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for training in (plain, calm):
        raw, published = load_checkpoint(newest(training)).state, load_checkpoint(training.run / "last").state
        same = [torch.equal(raw[name], published[name]) for name in raw]
        assert all(same) if training is plain else not any(same)
    validated = [[line["loss"] for line in read_metrics(t.run) if line["kind"] == "validation"] for t in (plain, calm)]
    assert validated[0] != pytest.approx(validated[1], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_does_not_wait_for_its_gpu(data: Path) -> None:
    device = torch.device("cuda", 0)
    augment = {"mixup": 0.2, "fields": {"series": {"noise": 0.1, "time_mask": 0.2}}}
    training = _training(data, "run", **{"train.modality_dropout": 0.3, "train.augment": augment})
    learner = Learner(training, Ranks(0, 1, device))
    given = list(itertools.islice(overlapped(batches(training), CudaStream(device)), 4))
    learner.train(given[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [learner.train(batch) for batch in given[1:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack([step.loss_sum for step in steps]).isfinite().all()
