"""What an autoencoder is to say again of each field: against what it is defined as, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_mm.config.fields import FieldSpec, ImageField, PointsField, SeriesField, TextField, VideoField
from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import ReconstructTask
from ray_mm.data.fields import length_name, presence_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.targets import TARGET, in_own_unit, target_shape, target_sizes
from ray_mm.models.encoders.mel import LogMel
from ray_mm.models.losses import loss_per_sample, sample_weights
from ray_mm.models.multimodal import build_model
from ray_mm.models.targets import Targets, reconstruction_losses
from tests.models.batches import FIELDS, STATISTICS, noise, preprocessor_of

ALL = sorted(FIELDS)


def says(inputs: list[str], fusion: str = "gated", **task: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "fields": {name: {"dropout": 0.0} for name in inputs},
            "fusion": {"method": fusion, "dim": 16, "dropout": 0.0},
            "task": {"type": "reconstruct", **task},
        }
    )


def of_field(name: str, batch: dict[str, Tensor], spec: FieldSpec | None = None) -> Tensor:
    """The target of one field, in its own shape: [B, …]."""
    spec = spec or FIELDS[name]
    preprocessor = Preprocessor(fields={name: spec}, statistics={name: STATISTICS[name]} if name in STATISTICS else {})
    return Targets([name], preprocessor)(batch).unflatten(1, target_shape(spec))


def test_the_targets_of_all_fields_stand_side_by_side_with_nothing_of_what_is_absent() -> None:
    config = says(ALL)
    preprocessor = preprocessor_of(config)
    batch = noise(config, 4)
    batch[presence_name("image")][1] = False
    found = Targets(ALL, preprocessor)(batch)
    sizes = target_sizes(ALL, FIELDS)
    assert found.shape == (4, sum(sizes)) and found.dtype == torch.float32
    parts = dict(zip(ALL, found.split(sizes, 1), strict=True))
    assert parts["image"][1].isnan().all() and parts["image"][0].isfinite().all()
    batch["image"][1] = 77
    torch.testing.assert_close(Targets(ALL, preprocessor)(batch), found, equal_nan=True)


@pytest.mark.parametrize("name", ["audio", "points", "series", "video"])
def test_what_lies_beyond_a_length_has_no_influence(name: str) -> None:
    batch = noise(says([name]), 5)
    batch[length_name(name)][0] = 1
    found = of_field(name, batch)
    for row, length in enumerate(batch[length_name(name)].tolist()):
        batch[name][row, length:] = 99
    torch.testing.assert_close(of_field(name, batch), found, equal_nan=True)
    batch[length_name(name)][0] = 0
    assert not of_field(name, batch)[0].isfinite().any() or name == "points"


def test_a_large_picture_is_averaged_and_a_small_one_stays_as_it_is() -> None:
    small = noise(says(["image"]), 2)
    torch.testing.assert_close(of_field("image", small), (small["image"].float() - 128) / 64)
    spec = ImageField(height=64, width=128, channels=1)
    assert target_shape(spec) == (16, 32, 1)
    pixels = torch.randint(0, 256, (2, 64, 128, 1), dtype=torch.uint8)
    found = of_field("image", {"image": pixels, "image.presence": torch.ones(2, dtype=torch.bool)}, spec)
    blocks = pixels.float().unflatten(2, (32, 4)).unflatten(1, (16, 4)).mean((2, 4))
    torch.testing.assert_close(found, (blocks - 128) / 64)
    torch.testing.assert_close(torch.from_numpy(in_own_unit(found.numpy(), spec, None)), blocks, atol=1e-4, rtol=0)


def test_of_a_clip_frames_are_taken_from_all_of_its_length() -> None:
    spec = VideoField(num_frames=10, height=4, width=4, channels=1)
    frames = torch.arange(10, dtype=torch.uint8)[None, :, None, None, None].expand(2, -1, 4, 4, 1).contiguous()
    batch = {
        "video": frames,
        "video.time": torch.zeros(2, 10),
        "video.length": torch.tensor([10, 4]),
        "video.presence": torch.ones(2, dtype=torch.bool),
    }
    found = in_own_unit(of_field("video", batch, spec).numpy(), spec, None)
    assert found.shape == (2, 4, 4, 4, 1)
    assert found[:, :, 0, 0, 0].round().tolist() == [[1, 3, 6, 8], [0, 1, 2, 3]]


def test_a_long_series_is_averaged_over_the_steps_that_it_has() -> None:
    spec = SeriesField(channels=3, max_length=150)
    assert target_shape(spec) == (50, 3)
    values = torch.randn(2, 150, 3)
    batch = {"series": values, "series.length": torch.tensor([150, 4]), "series.presence": torch.ones(2).bool()}
    found = of_field("series", batch, spec)
    mean, std = (torch.tensor(each) for each in (STATISTICS["series"].mean, STATISTICS["series"].std))
    standardised = (values - mean) / std
    torch.testing.assert_close(found[0], standardised[0].unflatten(0, (50, 3)).mean(1))
    torch.testing.assert_close(found[1, 0], standardised[1, :3].mean(0))
    torch.testing.assert_close(found[1, 1], standardised[1, 3])
    assert found[1, 2:].isnan().all()
    back = in_own_unit(found[1, :1].numpy(), spec, STATISTICS["series"])
    np.testing.assert_allclose(back, values[1, :3].mean(0, keepdim=True), atol=1e-5)


def test_a_recording_is_its_spectrogram_averaged() -> None:
    batch = noise(says(["audio"]), 3)
    batch["audio.length"][:] = 2000
    found = of_field("audio", batch)
    whole, _ = LogMel(4000, 2000)(batch["audio"], batch["audio.length"])
    torch.testing.assert_close(found, torch.nn.functional.adaptive_avg_pool2d(whole, (32, 16)))


def test_a_text_is_the_words_that_occur() -> None:
    batch = {"text": torch.tensor([[3, 5, 3, 0, 0, 0, 0]]), "text.presence": torch.tensor([True])}
    found = in_own_unit(of_field("text", batch).numpy(), FIELDS["text"], None)[0]
    assert found.nonzero()[0].tolist() == [3, 5] and found[[3, 5]] == pytest.approx([1, 1])
    many = TextField(max_tokens=7, vocabulary_size=5000)
    batch["text"][0, 0] = 3 + 1024
    assert of_field("text", batch, many)[0].nonzero()[:, 0].tolist() == [3, 5]


def test_a_cloud_is_seen_from_above() -> None:
    spec = PointsField(channels=4, max_points=5)
    mean = torch.tensor(STATISTICS["points"].mean)
    points = mean.repeat(1, 5, 1)
    points[0, 1, 2] += 1.0  # a standard deviation is 0.5
    points[0, 2, 0] += 100.0
    batch = {"points": points, "points.length": torch.tensor([3]), "points.presence": torch.tensor([True])}
    found = of_field("points", batch, spec)[0]
    assert found.shape == (16, 16, 3)
    ((row, column),) = found[..., 0].nonzero().tolist()
    assert (row, column) == (8, 8), "the mean of the training data lies in the middle"
    assert found[8, 8].tolist() == pytest.approx([np.log(3), 1.0, 0.0], abs=1e-5)
    assert found[0, 0, 0] == 0 and found[0, 0, 1:].isnan().all(), "of no point there is no height"


def test_the_loss_is_the_mean_over_the_fields_that_are_there() -> None:
    target = torch.tensor([[1.0, 1.0, 0.0, torch.nan], [torch.nan, torch.nan, 3.0, 4.0], [torch.nan] * 4])
    output = torch.zeros(3, 4, requires_grad=True)
    losses = reconstruction_losses(output, target, [2, 2])
    assert losses.tolist() == [(1 + 0) / 2, 12.5, 0]
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert output.grad is not None and output.grad.isfinite().all() and not output.grad[2].any()


def test_a_sample_counts_where_one_of_the_fields_is_there_that_are_said_again() -> None:
    batch = noise(says(["image", "vector"]), 3)
    batch[presence_name("vector")][1] = False
    assert sample_weights(ReconstructTask(), batch, ["image", "vector"]).tolist() == [1, 1, 1]
    assert sample_weights(ReconstructTask(fields=("vector",)), batch, ["image", "vector"]).tolist() == [1, 0, 1]


@pytest.mark.parametrize("fusion", ["gated", "latent", "late"])
def test_every_weight_gets_a_gradient_and_nothing_at_all_gives_something_finite(fusion: str) -> None:
    config = says(ALL, fusion)
    preprocessor = preprocessor_of(config)
    torch.manual_seed(0)
    model = build_model(config, preprocessor)
    batch = Targets(ALL, preprocessor).added_to(noise(config, 4))
    for name in ALL[:3]:
        batch[presence_name(name)][:] = False
    output = model(batch)
    assert output.shape == batch[TARGET].shape
    loss_per_sample(config.task, output, batch, preprocessor).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        for name in ALL:
            batch[presence_name(name)][:] = False
        nothing = model.eval()(batch)
        other = noise(config, 4, seed=1)
        for name in ALL:
            other[presence_name(name)][:] = False
        assert nothing.isfinite().all()
        torch.testing.assert_close(model(other), nothing)
        subsets = [frozenset({"image"}), frozenset(ALL)]
        assert model(noise(config, 4), subsets).shape == (2, *output.shape)


def test_only_the_fields_that_are_named_are_said_again() -> None:
    config = says(["image", "series", "vector"], fields=["series"])
    model = build_model(config, preprocessor_of(config))
    assert model(noise(config, 2)).shape == (2, 33)
