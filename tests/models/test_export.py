"""torch.export and ONNX take every encoder and every fusion, with a free batch axis and presence as an input."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_mm.models.multimodal import MultimodalModel, input_arrays
from tests.models.batches import model_config, noise, seeded_model
from tests.models.test_targets import says

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CASES = {
    "concat": {"image": "cnn", "text": "recurrent", "points": "pointnet"},
    "gated": {"audio": "mel_cnn", "series": "cnn", "vector": "mlp"},
    "latent": {"image": "cnn", "series": "recurrent", "text": "transformer"},
    "late": {"image": "vit", "series": "transformer", "text": "recurrent"},
    "low_rank": {"audio": "mel_transformer", "series": "cnn", "vector": "mlp"},
    "film": {"video": "transformer", "text": "recurrent", "vector": "mlp"},
    "experts": {"points": "pillars", "text": "recurrent", "vector": "mlp"},
    "cross_attention": {"video": "recurrent", "text": "recurrent", "vector": "mlp"},
    "bottleneck": {"series": "lstm", "text": "lstm", "vector": "mlp"},
}
"""Every fusion once, every encoder at least once."""

IN_COMPRESSION = ("concat", "gated", "latent")
"""Fusions whose graphs, with these encoders, tests/compression makes and compares: to make one takes half a minute."""


def export(model: MultimodalModel, example: dict[str, Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing a GRU assigns its list of weights again.
        warnings.filterwarnings("ignore", message=r"The tensor attributes .*_flat_weights", category=UserWarning)
        return torch.export.export(model, (example,), dynamic_shapes=({name: {0: batch} for name in example},))


def onnx_session(program: torch.export.ExportedProgram, names: list[str], path: Path) -> Any:
    torch.onnx.export(
        program,
        (),
        path,
        dynamo=True,
        verbose=False,
        # What is compressed is simplified in another way.
        optimize=False,
        input_names=names,
        output_names=["output"],
        external_data=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert sorted(entry.name for entry in session.get_inputs()) == sorted(names)
    return session


@pytest.mark.filterwarnings(r"ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.parametrize("fusion", CASES)
def test_the_exported_model_answers_as_the_model_does(fusion: str, tmp_path: Path) -> None:
    config = model_config(CASES[fusion], fusion, encoders=CASES[fusion])
    model = seeded_model(config)
    names = input_arrays(model)
    program = export(model, {name: noise(config, 3)[name] for name in names})
    session = None if fusion in IN_COMPRESSION else onnx_session(program, names, tmp_path / "model.onnx")
    traced_model = program.module()
    for size in (1, 3, 7):
        for pattern in product([False, True], repeat=3):
            batch = {name: values for name, values in noise(config, size, seed=size).items() if name in names}
            for name, there in zip(config.fields, pattern, strict=True):
                batch[f"{name}.presence"] = torch.full((size,), there)
            batch["text.presence" if "text" in config.fields else "audio.presence"][0] = False
            with torch.no_grad():
                expected = model(batch).numpy()
                traced = traced_model({name: batch[name] for name in names}).numpy()
            np.testing.assert_allclose(traced, expected, atol=1e-4)
            if session is not None:
                (found,) = session.run(["output"], {name: values.numpy() for name, values in batch.items()})
                np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings(r"ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_an_exported_reconstruction_says_what_the_model_does(tmp_path: Path) -> None:
    config = says(["audio", "image", "points", "vector", "video"])
    model = seeded_model(config)
    names = input_arrays(model)
    session = onnx_session(export(model, {name: noise(config, 3)[name] for name in names}), names, tmp_path / "m.onnx")
    for size in (1, 3):
        batch = {name: values for name, values in noise(config, size, seed=size).items() if name in names}
        batch["image.presence"][0] = False
        with torch.no_grad():
            expected = model(batch).numpy()
        (found,) = session.run(["output"], {name: values.numpy() for name, values in batch.items()})
        np.testing.assert_allclose(found, expected, atol=1e-4)
