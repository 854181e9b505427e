"""What is told of a training's throughput and of what it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ray_mm.config.model import ModelConfig
from ray_mm.models.multimodal import build_model
from ray_mm.training.flops import forward_flops, peak_flops, training_flops
from ray_mm.training.tracking import read_metrics
from tests.factories import make_dataset
from tests.training.inprocess import batches, make_training, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tokens_and_pixels_are_those_that_are_there(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, ("image", "text", "label"), missing={"image": 0.5, "text": 0.3})
    training = make_training(tmp_path, inputs=("image", "text"), **{"train.epochs": 1})
    train(training)
    lines = read_metrics(training.run)
    seconds = [line["samples_per_s"] for line in lines]
    found = {
        name: sum(
            line[f"{name}_per_s"] / rate * size for line, rate, size in zip(lines, seconds, (16, 16, 8), strict=True)
        )
        for name in ("tokens", "pixels")
    }
    given = list(batches(training))
    pixels = sum(16 * 16 * int(batch.tensors["image.presence"].sum()) for batch in given)
    tokens = sum(int((batch.tensors["text"] > 0).sum()) for batch in given)
    assert 0 < pixels < 40 * 256 and tokens > 40
    # The two clocks are read one after the other.
    assert found == {"tokens": pytest.approx(tokens, rel=0.2), "pixels": pytest.approx(pixels, rel=0.2)}
    assert all(0 <= line[name] <= 1 for line in lines for name in ("machine_cpu", "machine_memory"))
    assert not any("mfu" in line or "device_memory" in line for line in lines), "there is no GPU"


def test_a_model_without_texts_or_pictures_has_neither(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 20, ("vector", "label"))
    training = make_training(tmp_path, **{"train.epochs": 1})
    train(training)
    assert not any("tokens_per_s" in line or "pixels_per_s" in line for line in read_metrics(training.run))


@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")  # torch's compiler uses it
@pytest.mark.parametrize("compiled", [False, True])
def test_operations_are_those_of_the_products(tmp_path: Path, compiled: bool) -> None:
    make_dataset(tmp_path / "train", 20, ("vector", "label"))
    training = make_training(tmp_path)
    model = build_model(training.job.model, training.preprocessor)
    if compiled:
        model.compile()
    batch = next(batches(training))
    forward = forward_flops(model, batch.tensors)
    assert forward.keys() == {"encoders.vector", "fusion", "head"}
    linear = {
        name: sum(2 * layer.weight.numel() for layer in part.modules() if isinstance(layer, nn.Linear))
        for name, part in (("encoders.vector", model.encoders[0]), ("head", model.head))
    }
    assert {name: forward[name] for name in linear} == linear
    assert training_flops(forward, ()) == 3 * sum(forward.values())
    assert training_flops(forward, {"head"}) == 3 * sum(forward.values()) - 2 * forward["head"]
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training


def test_attention_and_convolutions_are_counted(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 20, ("image", "text", "label"))
    training = make_training(
        tmp_path, inputs=("image", "text"), **{"model.fusion": {"method": "cross_attention", "dim": 16}}
    )
    assert isinstance(training.job.model, ModelConfig)
    model = build_model(training.job.model, training.preprocessor)
    forward = forward_flops(model, next(batches(training)).tensors)
    assert all(forward[part] > 0 for part in ("encoders.image", "encoders.text", "fusion"))


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H200", "fp16", 989e12),
        ("NVIDIA H200 NVL", "bf16", None),
        ("NVIDIA H100 PCIe", "tf32", 378e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("Tesla T4", "fp16", 65e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA Something 9000", "bf16", None),
    ],
)
def test_only_the_peaks_of_known_gpus_are_told(name: str, precision: str, peak: float | None) -> None:
    assert peak_flops(name, precision) == peak


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_gauged(tmp_path: Path) -> None:
    from ray_mm.training.gauges import Gauges
    from ray_mm.training.parallel import Ranks

    make_dataset(tmp_path / "train", 20, ("vector", "label"))
    training, device = make_training(tmp_path), torch.device("cuda")
    model = build_model(training.job.model, training.preprocessor).to(device)
    gauges = Gauges(training, Ranks(0, 1, device))
    batch = next(batches(training))
    on_device = {name: tensor.to(device) for name, tensor in batch.tensors.items()}
    gauges.add(replace(batch, tensors=on_device, host=batch.tensors), model)
    found = gauges.read(1)
    assert found["flops_per_s"] > 0 and 0 < found["device_memory"] < 1 and found["device_memory_bytes"] > 0
