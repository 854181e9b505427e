"""Small models that every test of this folder shares: exporting one takes seconds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ray_mm.checkpoint import load_checkpoint, save_checkpoint
from ray_mm.compression.artifact import describe_artifact, publish, start_candidate
from ray_mm.compression.calibrate import read_spread, with_absences
from ray_mm.compression.export import Batch, export_onnx, to_tensors
from ray_mm.compression.quantize import quantize
from ray_mm.config.compress import QuantizeConfig
from ray_mm.config.model import ModelConfig
from ray_mm.data.epochs import sequence
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.preprocessor import Preprocessor, preprocessor_for
from ray_mm.data.reader import read_batches
from ray_mm.model_folder import GRAPH_FILE
from ray_mm.models.losses import loss_per_sample
from ray_mm.models.multimodal import MultimodalModel, build_model
from tests.factories import make_dataset

CASES: dict[str, tuple[dict[str, str | None], str]] = {
    "concat": ({"image": None, "points": None, "text": "recurrent"}, "label"),
    "gated": ({"audio": None, "series": "recurrent", "text": "transformer"}, "label"),
    "latent": ({"series": "cnn", "vector": None}, "number"),
}
"""Fusion → field → encoder, and the label. Graphs of the other fusions and encoders are made in tests/models/test_export.py."""


@dataclass(frozen=True)
class Exported:
    """A model with fresh weights, its float graph, and real samples of its fields."""

    model: MultimodalModel
    config: ModelConfig
    preprocessor: Preprocessor
    graph: Path
    batches: list[Batch]
    said: str
    """What exporting wrote to stdout and stderr."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make small models slow where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Samples with every field, some of them absent."""
    missing = {"image": 0.2, "audio": 0.2, "text": 0.2, "series": 0.2, "points": 0.2, "vector": 0.2}
    return open_dataset(make_dataset(tmp_path_factory.mktemp("data") / "all", 48, missing=missing))


def model_config(fields: dict[str, str | None], fusion: str, label: str, dim: int = 128) -> ModelConfig:
    task = {"type": "regress" if label == "number" else "classify", "label": label}
    encoders = {name: {"encoder": encoder} for name, encoder in fields.items()}
    return ModelConfig.model_validate({"fields": encoders, "fusion": {"method": fusion, "dim": dim}, "task": task})


@pytest.fixture(scope="session", params=sorted(CASES))
def exported(request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of each fusion."""
    fusion = str(request.param)
    fields, label = CASES[fusion]
    config = model_config(fields, fusion, label)
    preprocessor = preprocessor_for(dataset, {}, [*fields, label])
    torch.manual_seed(0)
    model = build_model(config, preprocessor).eval()
    graph = tmp_path_factory.mktemp("graphs") / f"{fusion}.onnx"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        export_onnx(model, preprocessor, graph)
    batches = list(read_batches(sequence(dataset), preprocessor, 16))
    return Exported(model, config, preprocessor, graph, batches, said.getvalue())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a picture-and-sound model that has learned the factory's classes."""
    folder = tmp_path_factory.mktemp("trained")
    data = open_dataset(make_dataset(folder / "train", 96, ("audio", "image", "label"), missing={"audio": 0.2}))
    fields: Sequence[str] = ("audio", "image")
    config = model_config(dict.fromkeys(fields), "gated", "label")
    preprocessor = preprocessor_for(data, {}, [*fields, "label"])
    torch.manual_seed(0)
    model = build_model(config, preprocessor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(6):
        for batch in read_batches(sequence(data), preprocessor, 32):
            tensors = to_tensors(batch)
            loss = loss_per_sample(config.task, model(tensors), tensors, preprocessor).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_checkpoint(folder / "checkpoint", model.eval().state_dict(), config, preprocessor, {"loss": loss.item()})
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def artifact(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compressed form of ``trained``, as the stage publishes it, without an evaluation. Tests copy it to change it."""
    run = tmp_path_factory.mktemp("compressed")
    checkpoint = load_checkpoint(trained)
    folder = start_candidate(run)
    export_onnx(checkpoint.build(), checkpoint.preprocessor, run / "float.onnx")
    data = open_dataset(trained.parent / "train")
    fields = sorted(checkpoint.config.fields)
    batches = list(with_absences(read_spread(sequence(data), checkpoint.preprocessor, 48), fields))
    quantize(run / "float.onnx", folder / GRAPH_FILE, batches, QuantizeConfig())
    describe_artifact(folder, checkpoint, QuantizeConfig(), {"accuracy": 1.0}, {"size_ratio": 0.3}, "passed")
    return publish(run)
