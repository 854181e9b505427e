"""A predictor takes what a user has, and answers the same from a batch, a subset and a graph."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from PIL import Image

import ray_mm
from ray_mm.checkpoint import load_checkpoint, save_checkpoint, save_description
from ray_mm.errors import CheckpointError, UsageError
from ray_mm.model_folder import ARTIFACT_FILE, GRAPH_FILE
from ray_mm.models.multimodal import input_arrays
from ray_mm.predictor import OnnxPredictor, TorchPredictor, load_predictor
from ray_mm.storage import sha256_file
from tests.data.decode.videos import video_bytes
from tests.models.batches import FIELDS, STATISTICS, model_config, noise, preprocessor_of, seeded_model

CONFIG = model_config(FIELDS)
SMALL = model_config(["text", "vector"])
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 20, 3)).astype(np.uint8)
WAVE = RANDOM.normal(0, 3000, 1500).astype(np.int16)
SERIES = RANDOM.normal(size=(8, 3)).astype(np.float32)
POINTS = RANDOM.normal(size=(5, 4)).astype(np.float32)
VECTOR = RANDOM.normal(size=5).astype(np.float32)
CLIP = video_bytes(4, height=32, width=48)
SAMPLE = {
    "image": PIXELS,
    "audio": WAVE,
    "series": SERIES,
    "points": POINTS,
    "vector": VECTOR,
    "text": "one two",
    "video": CLIP,
}


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def wav(wave: npt.NDArray[Any], rate_hz: int = 4000) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, wave, rate_hz, format="WAV", subtype="PCM_16")
    return sink.getvalue()


def npy(array: npt.NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all") / "checkpoint"
    save_checkpoint(folder, seeded_model(CONFIG).state_dict(), CONFIG, preprocessor_of(CONFIG), {})
    return folder


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> TorchPredictor:
    loaded = load_predictor(checkpoint, device="cpu")
    assert isinstance(loaded, TorchPredictor)
    return loaded


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of a small model as a compress job would leave it, without quantisation."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("run") / "artifact"
    folder.mkdir()
    model = seeded_model(SMALL)
    names = input_arrays(model)
    example = {name: noise(SMALL, 3)[name] for name in names}
    free = torch.export.Dim("batch")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (example,), dynamic_shapes=({name: {0: free} for name in names},))
        torch.onnx.export(
            program,
            (),
            folder / GRAPH_FILE,
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=["output"],
            external_data=False,
        )
    save_description(folder, SMALL, preprocessor_of(SMALL), {}, digest=None)
    described = {"format": "ray_mm.artifact", "version": 1, "digest": sha256_file(folder / GRAPH_FILE)}
    (folder / ARTIFACT_FILE).write_text(json.dumps(described))
    (folder.parent / "job.json").write_text('{"kind": "compress"}')
    return folder


def arrays_of(config: Any, size: int) -> dict[str, npt.NDArray[Any]]:
    return {name: values.numpy() for name, values in noise(config, size).items()}


def all_subsets(fields: list[str]) -> list[frozenset[str]]:
    return [frozenset(some) for count in range(len(fields) + 1) for some in combinations(fields, count)]


def test_outputs_are_probabilities_of_the_model(predictor: TorchPredictor) -> None:
    batch = arrays_of(CONFIG, 5)
    outputs = predictor.outputs(batch)
    assert outputs.shape == (1, 5, 4) and outputs.dtype == np.float32
    with torch.no_grad():
        expected = seeded_model(CONFIG)(noise(CONFIG, 5)).softmax(-1)
    np.testing.assert_allclose(outputs[0], expected.numpy(), atol=1e-5)


def test_a_subset_equals_a_batch_in_which_the_rest_is_absent(predictor: TorchPredictor) -> None:
    batch = arrays_of(CONFIG, 3)
    # What is absent already stays so, whatever the subset.
    batch["vector.presence"][1] = False
    subsets = all_subsets(predictor.input_fields)[::9]
    outputs = predictor.outputs(batch, subsets)
    assert outputs.shape == (len(subsets), 3, 4)
    for subset, found in zip(subsets, outputs, strict=True):
        hidden = {f"{name}.presence": np.zeros(3, np.bool_) for name in FIELDS if name not in subset}
        np.testing.assert_allclose(found, predictor.outputs({**batch, **hidden})[0], atol=1e-6)
    assert batch["image.presence"].all(), "the caller's batch was changed"


def test_a_subset_of_unknown_fields_is_refused(predictor: TorchPredictor) -> None:
    with pytest.raises(UsageError, match="'radar' is no input field; they are audio, image"):
        predictor.outputs(arrays_of(CONFIG, 1), [frozenset({"radar"})])


def test_arrays_that_may_not_be_written_to_are_read(predictor: TorchPredictor) -> None:
    batch = arrays_of(CONFIG, 2)
    expected = predictor.outputs(batch)
    for values in batch.values():
        values.flags.writeable = False
    np.testing.assert_array_equal(predictor.outputs(batch), expected)


def test_numbers_come_in_the_unit_of_the_label(tmp_path: Path) -> None:
    config = model_config(["vector"], task="regress")
    save_checkpoint(tmp_path, seeded_model(config).state_dict(), config, preprocessor_of(config), {})
    predictor = load_predictor(tmp_path, device="cpu")
    outputs = predictor.outputs(arrays_of(config, 3))
    with torch.no_grad():
        standardised = seeded_model(config)(noise(config, 3)).numpy()
    (mean,), (std,) = STATISTICS["amount"].mean, STATISTICS["amount"].std
    np.testing.assert_allclose(outputs, [standardised * std + mean], rtol=1e-5)
    prediction = predictor.predict({"vector": VECTOR})
    assert isinstance(prediction.label, float) and prediction.probabilities is None


def test_a_prediction_names_the_class_and_all_probabilities(predictor: TorchPredictor) -> None:
    prediction = predictor.predict(SAMPLE)
    assert prediction.presence == dict.fromkeys(FIELDS, True)
    assert prediction.probabilities is not None and list(prediction.probabilities) == ["a", "b", "c", "d"]
    assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.__getitem__)
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("image", [PIXELS, png(PIXELS), memoryview(png(PIXELS))]),
        ("audio", [WAVE, wav(WAVE), WAVE[:, None].repeat(2, axis=1), WAVE.astype(np.float64) / 32768]),
        ("series", [SERIES, npy(SERIES), SERIES.tolist(), SERIES.astype(np.float64)]),
        ("points", [POINTS, npy(POINTS), POINTS.tolist()]),
        ("vector", [VECTOR, npy(VECTOR), VECTOR.tolist(), tuple(VECTOR.tolist())]),
        ("text", ["one two", b"one two"]),
        ("video", [CLIP, memoryview(CLIP)]),
    ],
)
def test_bytes_arrays_lists_and_paths_give_the_same_answer(
    field: str, values: list[Any], predictor: TorchPredictor, tmp_path: Path
) -> None:
    file = tmp_path / "member"
    file.write_bytes(bytes(values[1]))
    everything = [*values, file] + ([str(file)] if field != "text" else [])
    answers = [predictor.predict({field: value}) for value in everything]
    for answer in answers:
        assert answer.presence == {name: name == field for name in FIELDS}
        assert answer.probabilities == pytest.approx(answers[0].probabilities, abs=1e-4)


def test_what_is_missing_none_or_empty_is_absent(predictor: TorchPredictor) -> None:
    nothing = predictor.predict({})
    assert not any(nothing.presence.values())
    for sample in ({"image": None, "text": None}, {"text": ""}, {"image": b""}, {"kind": "a"}):
        assert predictor.predict(sample) == nothing


def test_a_picture_of_another_size_and_depth_is_made_to_fit(predictor: TorchPredictor) -> None:
    for pixels in (np.zeros((40, 30), np.uint8), np.zeros((40, 30, 1), np.uint8), np.zeros((12, 20, 4), np.uint8)):
        assert predictor.predict({"image": pixels}).presence["image"]


def test_a_recording_at_another_rate_is_resampled(predictor: TorchPredictor) -> None:
    assert predictor.predict({"audio": wav(WAVE, rate_hz=16_000)}).presence["audio"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", b"no picture", "not a readable picture"),
        ("image", PIXELS.astype(np.float32), "a picture must be uint8"),
        ("image", "nowhere.png", "nowhere.png: No such file"),
        ("audio", b"no recording", "not a readable recording"),
        ("audio", [1, 2, 3], "audio must be int16 or floats"),
        ("audio", np.array([np.nan]), "not finite"),
        ("series", [[1.0, 2.0]], "a series of shape"),
        ("series", [[1.0], [2.0, 3.0]], "not an array"),
        ("points", np.zeros((0, 4)), "an empty array"),
        ("points", [["far"] * 4], "not an array of numbers"),
        ("vector", [1.0, 2.0], "has 2 values, the field has 5"),
        ("text", 5, "a text must be a str"),
        ("text", b"\xff\xfe", "not a text in UTF-8"),
    ],
)
def test_what_can_not_be_read_is_refused_by_name(
    field: str, value: Any, message: str, predictor: TorchPredictor
) -> None:
    with pytest.raises(UsageError, match=f"^{field}: .*{message}"):
        predictor.predict({field: value})


def test_a_field_that_the_model_does_not_have_is_refused(predictor: TorchPredictor) -> None:
    with pytest.raises(UsageError, match=r"^radar: the model has no such input field; its fields are audio, image"):
        predictor.predict({"radar": POINTS})


def test_many_samples_are_answered_as_each_alone(predictor: TorchPredictor) -> None:
    samples = [{"text": "one"}, {"points": POINTS}, {}, {"text": "three", "points": POINTS}, {"text": "one"}]
    taken = 0

    def given() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for sample in samples:
            taken += 1
            yield sample

    found = predictor.predict_many(given(), batch_size=2)
    answers = [next(found)]
    assert taken == 2, "no more than a batch is held"
    answers += found
    assert len(answers) == len(samples)
    for answer, sample in zip(answers, samples, strict=True):
        alone = predictor.predict(sample)
        assert (answer.label, answer.presence) == (alone.label, alone.presence)
        assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert not any(answers[2].presence.values()), "nothing was there"


def test_a_bad_one_of_many_samples_is_named_by_its_number(predictor: TorchPredictor) -> None:
    samples: list[Any] = [{"text": "one"}, {"text": "two"}, {"text": 5}]
    found = predictor.predict_many(samples, batch_size=2)
    assert len([next(found), next(found)]) == 2
    with pytest.raises(UsageError, match=r"^sample 2: text: "):
        next(found)
    with pytest.raises(UsageError, match=r"^sample 0: expected a mapping from field to value, found a str"):
        next(predictor.predict_many(["text"]))  # type: ignore[list-item]


def test_several_samples_are_sent_to_predict_many(predictor: TorchPredictor) -> None:
    with pytest.raises(UsageError, match="found a list; for several samples there is predict_many"):
        predictor.predict([{}, {}])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="predict_many takes samples"):
        next(predictor.predict_many({"text": "one"}))  # type: ignore[arg-type]


def test_the_size_is_that_of_the_weights(checkpoint: Path, predictor: TorchPredictor) -> None:
    assert predictor.size_bytes == (checkpoint / "model.safetensors").stat().st_size
    assert predictor.input_fields == sorted(FIELDS) and predictor.config == CONFIG


def test_load_is_the_way_in_from_python(checkpoint: Path) -> None:
    assert ray_mm.load(checkpoint).predict({"text": "one"}).presence["text"]


def test_an_artifact_answers_as_the_checkpoint_does(artifact: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, seeded_model(SMALL).state_dict(), SMALL, preprocessor_of(SMALL), {})
    original, exported = load_predictor(tmp_path, device="cpu"), load_predictor(artifact, threads=1)
    assert isinstance(exported, OnnxPredictor)
    assert exported.size_bytes == (artifact / GRAPH_FILE).stat().st_size
    subsets = all_subsets(exported.input_fields)
    for size in (1, 6):
        batch = arrays_of(SMALL, size)
        np.testing.assert_allclose(exported.outputs(batch, subsets), original.outputs(batch, subsets), atol=1e-5)
    sample = {"text": "one", "vector": VECTOR}
    assert exported.predict(sample).probabilities == pytest.approx(original.predict(sample).probabilities, abs=1e-5)


def test_a_compress_run_means_its_artifact(artifact: Path, tmp_path: Path) -> None:
    assert isinstance(load_predictor(artifact.parent), OnnxPredictor)
    (tmp_path / "job.json").write_text('{"kind": "compress"}')
    with pytest.raises(CheckpointError, match="has published no artifact"):
        load_predictor(tmp_path)


def test_a_damaged_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    for file in artifact.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = bytearray((tmp_path / GRAPH_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / GRAPH_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.onnx: its SHA-256 digest"):
        load_predictor(tmp_path)
    (tmp_path / GRAPH_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"model\.onnx: is missing"):
        load_predictor(tmp_path)
    (tmp_path / ARTIFACT_FILE).write_text('{"format": "ray_mm.artifact", "version": 99}')
    with pytest.raises(CheckpointError, match="version 99"):
        load_predictor(tmp_path)


def test_an_artifact_is_no_checkpoint(artifact: Path) -> None:
    with pytest.raises(CheckpointError, match="is an artifact"):
        load_checkpoint(artifact)


def test_a_folder_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a train run nor a checkpoint"):
        load_predictor(tmp_path)
    with pytest.raises(CheckpointError, match="gs://"):
        load_predictor("gs://bucket/run")
