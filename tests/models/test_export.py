"""torch.export and ONNX take every encoder and every fusion, with a free batch axis and presence as an input."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_mm.models.multimodal import MultimodalModel, input_arrays
from tests.models.batches import model_config, noise, seeded_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CASES = {
    "concat": {"image": "cnn", "text": "recurrent", "points": "pointnet"},
    "gated": {"audio": "mel_cnn", "series": "cnn", "vector": "mlp"},
    "cross_attention": {"image": "cnn", "series": "recurrent", "text": "transformer"},
}
"""Every fusion once, every encoder once."""


def export(model: MultimodalModel, example: dict[str, Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing a GRU assigns its list of weights again.
        warnings.filterwarnings("ignore", message=r"The tensor attributes .*_flat_weights", category=UserWarning)
        return torch.export.export(model, (example,), dynamic_shapes=({name: {0: batch} for name in example},))


@pytest.mark.filterwarnings(r"ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.parametrize("fusion", CASES)
def test_the_exported_model_answers_as_the_model_does(fusion: str, tmp_path: Path) -> None:
    config = model_config(CASES[fusion], fusion, encoders=CASES[fusion])
    model = seeded_model(config)
    names = input_arrays(model)
    program = export(model, {name: noise(config, 3)[name] for name in names})
    torch.onnx.export(
        program,
        (),
        tmp_path / "model.onnx",
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=["output"],
        external_data=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert sorted(entry.name for entry in session.get_inputs()) == sorted(names)
    for size in (1, 3, 7):
        for pattern in product([False, True], repeat=3):
            batch = {name: values for name, values in noise(config, size, seed=size).items() if name in names}
            for name, there in zip(config.fields, pattern, strict=True):
                batch[f"{name}.presence"] = torch.full((size,), there)
            batch["text.presence" if "text" in config.fields else "audio.presence"][0] = False
            with torch.no_grad():
                expected = model(batch).numpy()
                traced = program.module()({name: batch[name] for name in names}).numpy()
            (found,) = session.run(["output"], {name: values.numpy() for name, values in batch.items()})
            np.testing.assert_allclose(traced, expected, atol=1e-4)
            np.testing.assert_allclose(found, expected, atol=1e-4)
