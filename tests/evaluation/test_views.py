"""Fields of a sample as pictures: bounded in bytes, inside their frame, true to what the model got."""

from __future__ import annotations

import base64
import io
import itertools
import re

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from ray_mm.config.fields import AudioField, FieldSpec, ImageField, PointsField, SeriesField, TextField, VectorField
from ray_mm.data.manifest import Statistics
from ray_mm.evaluation.report.views import View, view

finite = st.floats(-1e6, 1e6, width=32)


def draw(spec: FieldSpec, content: np.ndarray, length: int | None = None, statistics: Statistics | None = None) -> View:
    batch = {"x": content[None], "x.length": np.array([len(content) if length is None else length], np.int32)}
    return view("x", spec, batch, b"", statistics)


def frame_of(drawn: View) -> tuple[float, float]:
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn.content)[0]
    return float(width), float(height)


def assert_inside(drawn: View) -> None:
    width, height = frame_of(drawn)
    for path in re.findall(r' d="([^"]*)"', drawn.content):
        numbers = re.findall(r"[ML](-?[\d.e+]+) (-?[\d.e+]+)", path)
        assert numbers or not path
        for x, y in numbers:
            assert -0.1 <= float(x) <= width + 0.1
            assert -0.1 <= float(y) <= height + 0.1
    for y, tall in re.findall(r'<rect[^>]* y="([-\d.]+)"[^>]* height="([\d.]+)"', drawn.content):
        assert float(y) >= -0.1
        assert float(y) + float(tall) <= height + 1


def points_of(drawn: View) -> np.ndarray:
    (path,) = re.findall(r'class="dots point"[^>]* d="([^"]*)"', drawn.content)
    return np.array([[float(x), float(y)] for x, y in re.findall(r"M([\d.e-]+) ([\d.e-]+)h0", path)])


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 600), st.integers(1, 9)), elements=finite))
def test_a_series_stays_in_its_frame_and_in_bounds(values: np.ndarray) -> None:
    drawn = draw(SeriesField(channels=values.shape[1], max_length=600, rate_hz=50), values)
    assert_inside(drawn)
    assert len(drawn.content) < 40_000
    assert f"{values.shape[1]} channel" in drawn.caption


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 700), st.integers(2, 5)), elements=finite))
def test_points_stay_in_their_frame_and_in_bounds(values: np.ndarray) -> None:
    drawn = draw(PointsField(channels=values.shape[1], max_points=700), values)
    assert_inside(drawn)
    assert len(points_of(drawn)) == min(len(values), 500)


@given(arrays.arrays(np.float32, st.integers(1, 100), elements=finite))
def test_a_vector_stays_in_its_frame_and_in_bounds(values: np.ndarray) -> None:
    drawn = draw(VectorField(size=len(values)), values)
    assert_inside(drawn)
    assert drawn.content.count("<rect") == min(len(values), 64)


def test_points_are_seen_from_above_with_one_scale_for_both_axes() -> None:
    values = np.array([[0, 0, 5], [4, 0, 5], [0, 2, 5]], np.float32)
    drawn = draw(PointsField(channels=3, max_points=5), values)
    places = points_of(drawn)
    right, up = places[1] - places[0], places[2] - places[0]
    assert right[0] > 0
    assert right[1] == 0
    assert up[0] == 0
    assert up[1] == pytest.approx(-right[0] / 2, abs=0.2)


@pytest.mark.parametrize(
    ("low", "high", "shown"), [((5, -20), (90, 20), True), ((-3, -3), (3, 3), True), ((50, 50), (60, 60), False)]
)
def test_the_sensor_is_shown_where_it_is_near(low: tuple[float, float], high: tuple[float, float], shown: bool) -> None:
    drawn = draw(PointsField(channels=2, max_points=5), np.array([low, high], np.float32))
    assert ("origin" in drawn.content) == shown
    assert_inside(drawn)


def test_many_channels_have_a_lane_each() -> None:
    time = np.linspace(0, 6, 50)
    values = np.stack([np.sin(time + channel) for channel in range(6)], axis=1).astype(np.float32)
    drawn = draw(SeriesField(channels=6, max_length=50), values)
    paths = re.findall(r'class="channel c\d" d="([^"]*)"', drawn.content)
    reaches = [[float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)] for path in paths]
    assert len(reaches) == 6
    for above, below in itertools.pairwise(reaches):
        assert max(above) < min(below)


def test_a_series_says_where_its_values_lie_in_their_own_unit() -> None:
    statistics = Statistics(mean=(5.0,), std=(100.0,))
    drawn = draw(SeriesField(channels=1, max_length=9), np.array([[-2.5], [1000.0]], np.float32), statistics=statistics)
    assert drawn.caption == "2 steps, 1 channel, −2.5 to 1,000"
    pair = draw(SeriesField(channels=2, max_length=9), np.array([[0, 1], [2, 5]], np.float32))
    assert pair.caption.endswith("2 channels, 0 to 2 · 1 to 5")


def test_channels_of_different_units_are_brought_to_one_scale() -> None:
    values = np.stack([np.linspace(9000, 11000, 20), np.linspace(-0.001, 0.001, 20)], axis=1).astype(np.float32)
    statistics = Statistics(mean=(10_000.0, 0.0), std=(1000.0, 0.001))
    drawn = draw(SeriesField(channels=2, max_length=20), values, statistics=statistics)
    first, second = re.findall(r'class="channel c\d" d="([^"]*)"', drawn.content)
    assert first == second


def test_a_waveform_is_high_where_the_sound_is_loud() -> None:
    sound = np.zeros(4000, np.int16)
    sound[2000:] = (3000 * np.sin(np.arange(2000))).astype(np.int16)
    drawn = draw(AudioField(rate_hz=8000, max_seconds=1), np.concatenate([sound, np.full(4000, 99, np.int16)]), 4000)
    _, height = frame_of(drawn)
    strokes = [(float(top), float(bottom)) for top, bottom in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", drawn.content)]
    tall = np.array([bottom - top for top, bottom in strokes])
    assert tall[:95].max() < 1
    assert tall[105:].min() > 0.8 * height
    assert min(top for top, _ in strokes) >= 0
    assert max(bottom for _, bottom in strokes) <= height
    assert drawn.caption == "0.50 s at 8,000 Hz"
    played, rate = soundfile.read(
        io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]+)", drawn.content)[0])), dtype="int16"
    )
    assert rate == 8000
    np.testing.assert_array_equal(played, sound)


def test_a_long_recording_is_drawn_but_not_carried_along() -> None:
    drawn = draw(AudioField(rate_hz=48_000, max_seconds=3), np.ones(144_000, np.int16))
    assert "<audio" not in drawn.content
    assert len(drawn.content) < 10_000


@pytest.mark.parametrize(
    ("side", "channels", "kind"), [(28, 1, "png"), (32, 3, "png"), (224, 3, "jpeg"), (224, 1, "jpeg")]
)
def test_a_picture_is_the_one_that_the_model_got(side: int, channels: int, kind: str) -> None:
    smooth = np.add.outer(np.arange(side), np.arange(side)) * 255 // (2 * side)
    pixels = np.repeat(smooth[..., None], channels, axis=2).astype(np.uint8)
    drawn = draw(ImageField(height=side, width=side, channels=channels), pixels)  # type: ignore[arg-type]
    (format_name, data) = re.findall(r"data:image/(\w+);base64,([^\"]+)", drawn.content)[0]
    assert format_name == kind
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    expected = pixels[..., 0] if channels == 1 else pixels
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() <= (0 if kind == "png" else 12)


def test_a_long_text_is_cut_and_says_so() -> None:
    batch = {"x": np.zeros((1, 4), np.int32)}
    drawn = view("x", TextField(max_tokens=4), batch, ("word " * 400).encode(), None)
    assert drawn.content.endswith("…</blockquote>")
    assert drawn.caption == "1,999 characters"
