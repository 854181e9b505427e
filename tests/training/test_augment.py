"""What a training changes in its samples: as much as it should, where it should, and the same for any number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_mm.config.augment import FieldAugment
from ray_mm.config.fields import AudioField, FieldSpec, ImageField, SeriesField, VectorField, VideoField
from ray_mm.data.manifest import Statistics
from ray_mm.training.augment import changes
from ray_mm.training.draws import Draws

COLOR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
SPECS: dict[str, tuple[FieldSpec, dict[str, Any]]] = {
    "image": (ImageField(height=12, width=9), {"color": COLOR, "erase": 0.5}),
    "grey": (ImageField(height=12, width=9, channels=1), {"color": {"brightness": 0.4, "contrast": 0.4}, "erase": 0.5}),
    "clip": (VideoField(height=12, width=9, num_frames=4), {"color": COLOR, "erase": 0.5}),
    "audio": (AudioField(rate_hz=8000, max_seconds=0.05), {"time_mask": 0.5, "frequency_mask": 0.5}),
    "series": (SeriesField(channels=3, max_length=20), {"noise": 0.5, "scale": 0.5, "time_mask": 0.5}),
    "vector": (VectorField(size=6), {"noise": 0.5}),
}
SHAPES = {
    "image": (12, 9, 3),
    "grey": (12, 9, 1),
    "clip": (4, 12, 9, 3),
    "audio": (400,),
    "series": (20, 3),
    "vector": (6,),
}
STATISTICS = Statistics(mean=(5.0, -1.0, 2.0), std=(1.0, 2.0, 3.0))


def _content(name: str, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Content, presence and length of a field: every fourth sample is absent, others are of different lengths."""
    rng, shape = np.random.default_rng(3), SHAPES[name]
    match name:
        case "audio":
            x = torch.from_numpy(rng.integers(-9000, 9000, (count, *shape)).astype(np.int16))
        case "series" | "vector":
            x = torch.from_numpy(rng.standard_normal((count, *shape)).astype(np.float32))
        case _:
            x = torch.from_numpy(rng.integers(1, 256, (count, *shape)).astype(np.uint8))
    presence = torch.arange(count) % 4 != 3
    x[~presence] = 0
    if name not in ("clip", "audio", "series"):
        return x, presence, None
    length = torch.where(presence, torch.arange(count) % shape[0] + 1, 0).int()
    x[torch.arange(shape[0])[None, :] >= length[:, None]] = 0
    return x, presence, length


def _change(name: str, x: Tensor, presence: Tensor, length: Tensor | None, draws: Draws, **only: Any) -> Tensor:
    spec, augment = SPECS[name]
    statistics = STATISTICS if name == "series" else None
    for change in changes(name, spec, FieldAugment.model_validate(only or augment), statistics):
        x = change(x, presence, length, draws)
    return x


def _draws(count: int, start: int = 0, seed: int = 0, epoch: int = 0) -> Draws:
    return Draws(seed, epoch, np.arange(start, start + count))


@pytest.mark.parametrize("name", SPECS)
def test_what_is_there_changes_and_nothing_else_does(name: str) -> None:
    x, presence, length = _content(name, 40)
    before = x.clone()
    found = _change(name, x, presence, length, _draws(40))
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert torch.equal(x, before), "batches are shared with others and must not be written to"
    assert not found[~presence].any()
    if length is not None:
        assert not found[torch.arange(x.shape[1])[None, :] >= length[:, None]].any()
    changed = (found != x).flatten(1).any(1)
    assert changed.sum() >= 0.8 * presence.sum()


@pytest.mark.parametrize("name", SPECS)
def test_it_depends_on_the_place_in_the_training_and_not_on_the_share(name: str) -> None:
    x, presence, length = _content(name, 40)
    whole = _change(name, x, presence, length, _draws(40))
    shares = [
        _change(name, x[a:b], presence[a:b], None if length is None else length[a:b], _draws(b - a, a))
        for a, b in ((0, 7), (7, 40))
    ]
    assert torch.equal(torch.cat(shares), whole)
    for draws in (_draws(40, seed=1), _draws(40, epoch=1), _draws(40, start=40)):
        assert not torch.equal(_change(name, x, presence, length, draws), whole)


def test_colours_change_as_they_are_said_to() -> None:
    x = torch.full((500, 2, 2, 3), 100, dtype=torch.uint8)
    x[:, 0] = torch.tensor([200, 50, 100], dtype=torch.uint8)
    there = torch.ones(500, dtype=torch.bool)

    def changed(**color: float) -> np.ndarray:
        return _change("image", x, there, None, _draws(500), color=color).numpy().astype(float)

    original = x.numpy().astype(float)
    luma = np.array([0.299, 0.587, 0.114])
    factors = changed(brightness=0.2)[:, 1, 0, 0] / 100
    assert 0.8 <= factors.min() < 0.83 and 1.17 < factors.max() <= 1.2
    contrast, saturation, hue = changed(contrast=0.3), changed(saturation=0.3), changed(hue=0.5)
    # Contrast leaves the mean grey of a picture, saturation and hue that of every pixel; a grey pixel has no colour.
    assert np.abs((contrast @ luma).mean((1, 2)) - (original @ luma).mean((1, 2))).max() < 1
    for found in (saturation, hue):
        assert np.abs(found[:, 1] - 100).max() == 0
    assert np.abs(saturation @ luma - original @ luma).max() < 1
    distance = (saturation[:, 0, 0, 0] - saturation[:, 0, 0, 1]) / 150
    assert 0.68 < distance.min() < 0.75 and 1.25 < distance.max() < 1.32
    # Half a turn makes other colours the strongest.
    assert {0, 1, 2} == set(hue[:, 0, 0].argmax(axis=1))
    assert np.array_equal(changed(hue=0.0), original)


def test_a_clip_changes_as_one_picture() -> None:
    x, presence, _ = _content("clip", 8)
    x[:] = x[:, :1]
    length = torch.full((8,), 4, dtype=torch.int32) * presence
    found = _change("clip", x, presence, length, _draws(8))
    assert torch.equal(found, found[:, :1].expand_as(found))


def test_rectangles_of_the_right_size_are_erased_as_often_as_asked_for() -> None:
    x = torch.full((2000, 40, 40, 3), 7, dtype=torch.uint8)
    found = _change("image", x, torch.ones(2000, dtype=torch.bool), None, _draws(2000), erase=0.25)
    assert set(found.unique().tolist()) == {7, 128}
    shares = (found[..., 0] == 128).float().mean((1, 2))
    assert (shares > 0).float().mean() == pytest.approx(0.25, abs=0.03)
    hit = shares[shares > 0]
    assert hit.min() > 0.01 and hit.max() < 0.36 and hit.mean() == pytest.approx(0.175, abs=0.02)
    # Anywhere in the picture.
    hit_HW = (found[..., 0] == 128).any(0)
    assert hit_HW.any(0).all() and hit_HW.any(1).all()


def test_noise_and_scale_are_in_units_of_the_data() -> None:
    x, there = torch.tensor(STATISTICS.mean).expand(400, 20, 3), torch.ones(400, dtype=torch.bool)
    length = torch.full((400,), 20, dtype=torch.int32)
    noisy = _change("series", x, there, length, _draws(400), noise=0.1) - x
    assert noisy.std((0, 1)).tolist() == pytest.approx([0.1, 0.2, 0.3], rel=0.05)
    assert abs(float(noisy.mean())) < 0.01
    # About the mean of each channel: what lies there stays there.
    torch.testing.assert_close(_change("series", x, there, length, _draws(400), scale=0.3), x)
    apart = _change("series", x + 1, there, length, _draws(400), scale=0.3) - x
    assert 0.7 <= apart.min() < 0.72 and 1.28 < apart.max() <= 1.301
    assert (apart.amax((1, 2)) - apart.amin((1, 2))).max() < 1e-5, "one factor for all of a sample"


def test_a_piece_of_a_series_is_at_its_mean_and_one_of_a_recording_silent() -> None:
    length = torch.arange(1, 401).int() % 20 + 1
    x = torch.full((400, 20, 3), 9.0)
    x[torch.arange(20)[None, :] >= length[:, None]] = 0
    found = _change("series", x, length > 0, length, _draws(400), time_mask=0.4)
    masked = (found != x).all(2)
    assert torch.equal(found[masked], torch.tensor(STATISTICS.mean).expand(int(masked.sum()), 3))
    shares = masked.sum(1) / length
    assert shares.max() <= 0.5 and shares[length > 10].mean() == pytest.approx(0.2, abs=0.03)
    # In one piece.
    edges = (masked[:, 1:] != masked[:, :-1]).sum(1) + masked[:, 0] + masked[:, -1]
    assert edges.max() <= 2
    sound = torch.full((50, 400), 1000, dtype=torch.int16)
    found = _change("audio", sound, torch.ones(50, dtype=torch.bool), torch.full((50,), 400), _draws(50), time_mask=0.4)
    assert set(found.unique().tolist()) == {0, 1000}


def test_a_band_of_a_recording_is_filtered_out() -> None:
    time = torch.arange(4000) / 8000
    tones = sum(torch.sin(2 * torch.pi * hz * time) for hz in range(100, 4000, 100))
    x = (500 * tones).to(torch.int16).expand(60, -1)  # type: ignore[union-attr]
    length = torch.full((60,), 4000)
    found = _change("audio", x, torch.ones(60, dtype=torch.bool), length, _draws(60), frequency_mask=0.3)
    level = torch.fft.rfft(found.float()).abs()[:, 50:2000:50]
    original = torch.fft.rfft(x.float()).abs()[:, 50:2000:50]
    gone = level < 0.05 * original
    assert torch.all(gone | ((level - original).abs() < 0.05 * original))
    assert 0.05 < gone.float().mean() < 0.3 and gone[:, 2:30].any(0).all()
    assert (gone[:, 1:] != gone[:, :-1]).sum(1).max() <= 2
