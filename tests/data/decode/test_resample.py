"""Streams with times → one series: what is exact, what must not alias, what makes no sense."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.fields import SeriesField
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.numeric import read_series
from ray_mm.data.decode.resample import Stream, align


def _stream(times: npt.ArrayLike, values: npt.ArrayLike) -> Stream:
    array = np.asarray(values, np.float64)
    return Stream(np.asarray(times, np.float64), array[:, None] if array.ndim == 1 else array)


@given(
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=60),
    st.floats(0.5, 200),
    st.floats(-5, 5),
    st.floats(-1e9, 1e9),
)
def test_a_straight_line_stays_one_at_every_rate(gaps: list[float], rate: float, slope: float, origin: float) -> None:
    times = origin + np.concatenate([[0.0], np.cumsum(gaps)])
    line = slope * (times - times[0])
    found = align([_stream(times, line)], rate)[:, 0]
    assert len(found) == int((times[-1] - times[0]) * rate + 1e-6) + 1
    expected = slope * np.arange(len(found)) / rate
    # The first and the last step see half of their period only.
    inside = slice(1, -2)
    assert found[inside] == pytest.approx(expected[inside], abs=1e-4, rel=1e-4)
    assert np.abs(found - expected).max() <= abs(slope) * max(0.26 / rate, 1e-6) + 1e-4


def test_streams_of_different_rates_meet_where_all_of_them_are_there() -> None:
    fast = _stream(np.arange(0, 10, 0.01), np.arange(0, 10, 0.01))
    slow = _stream(np.arange(2, 12, 0.5), 100 * np.arange(2, 12, 0.5))
    found = align([fast, slow], 10)
    assert found.shape == (80, 2)
    assert found[1:-1, 0] == pytest.approx(2 + np.arange(1, 79) / 10)
    assert found[:, 1] == pytest.approx(100 * (2 + np.arange(80) / 10))


def test_what_the_new_rate_can_not_show_does_not_alias_into_it() -> None:
    times = np.arange(0, 10, 0.001)
    hum = np.sin(2 * np.pi * 50 * times)
    slow = 3 * np.sin(2 * np.pi * 0.5 * times)
    found = align([_stream(times, hum + slow)], 20)[1:-1, 0]
    expected = 3 * np.sin(2 * np.pi * 0.5 * np.arange(1, len(found) + 1) / 20)
    assert np.abs(found - expected).max() < 0.15
    # Reading single values off would keep all of it.
    assert np.abs((hum + slow)[17::50][1 : len(found) + 1] - expected).max() > 0.7


def test_repeated_times_and_single_samples_are_no_trouble() -> None:
    assert align([_stream([0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1])], 1).tolist() == [[1], [1], [1]]
    assert align([_stream([0, 0.1, 0.2, 0.2], [1, 1, 1, 1])], 2)[:, 0] == pytest.approx([1])
    assert align([_stream([5], [3])], 10).tolist() == [[3]]
    assert align([_stream([5, 5, 5], [3, 3, 3])], 10).tolist() == [[3]]


@pytest.mark.parametrize(
    ("streams", "reason"),
    [
        ([_stream([0, 1], [1, 2]), _stream([3, 4], [1, 2])], "do not overlap in time: one ends 2 s before"),
        ([_stream([0, 2, 1], [1, 2, 3])], "times that go back"),
        ([_stream([0, np.nan], [1, 2])], "not finite"),
        ([_stream([], [])], "empty"),
        ([_stream([0, 1e12], [1, 2])], "times must be in seconds"),
    ],
)
def test_times_that_make_no_sense_are_refused(streams: list[Stream], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        align(streams, 100)


def test_times_in_nanoseconds_take_no_memory_where_the_field_is_short() -> None:
    assert align([_stream([0, 1e18], [0, 1e18])], 100, max_steps=50).shape == (50, 1)


@pytest.mark.real_data
def test_the_sensors_of_a_real_drive_become_one_series(real_data: Path) -> None:
    parts = {}
    with tarfile.open(real_data / "comma2k19.tar.gz") as archive:
        for stream in ("IMU/accelerometer", "IMU/gyro", "CAN/speed", "CAN/steering_angle"):
            for part in ("value", "t"):
                (name,) = [name for name in archive.getnames() if name.endswith(f"processed_log/{stream}/{part}")]
                file = archive.extractfile(name)
                assert file is not None
                parts[f"{stream.split('/')[1]}.{part}"] = np.load(io.BytesIO(file.read()))
    payload = io.BytesIO()
    np.savez(payload, **parts)
    names = ("accelerometer", "gyro", "speed", "steering_angle")
    spec = SeriesField(
        rate_hz=20, path=tuple(f"{name}.value" for name in names), time_path=tuple(f"{name}.t" for name in names)
    )
    found = read_series(payload.getvalue(), spec)
    assert found is not None and found.shape[1] == 3 + 3 + 1 + 1
    seconds = min(parts[f"{name}.t"][-1] for name in names) - max(parts[f"{name}.t"][0] for name in names)
    assert len(found) == int(seconds * 20) + 1 and 55 < seconds < 61
    grid = max(parts[f"{name}.t"][0] for name in names) + np.arange(len(found)) / 20
    for channel, name in ((6, "speed"), (7, "steering_angle")):
        expected = np.interp(grid, parts[f"{name}.t"], parts[f"{name}.value"].reshape(-1))
        assert np.corrcoef(expected, found[:, channel])[0, 1] > 0.999
    # Standing or driving, gravity is there.
    assert 9 < np.linalg.norm(found[:, :3], axis=1).mean() < 11
