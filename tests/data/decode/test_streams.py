"""Members of several sensors → one series: the values are those of the definition, and what is wrong is named."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_mm.config.fields import SeriesField
from ray_mm.data.decode.error import StreamError
from ray_mm.data.decode.streams import read_streams

Floats = npt.NDArray[np.float64]


def _npy(values: npt.ArrayLike) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def _csv(**columns: npt.ArrayLike) -> bytes:
    rows = np.stack([np.asarray(column, np.float64) for column in columns.values()], axis=1)
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows.tolist())]
    return "\n".join(lines).encode()


def _json(**values: npt.ArrayLike) -> bytes:
    return json.dumps({name: np.asarray(value).tolist() for name, value in values.items()}).encode()


def _spec(rate_hz: float, *streams: dict[str, Any]) -> SeriesField:
    return SeriesField.model_validate({"rate_hz": rate_hz, "streams": streams})


IMU = {"member": "imu.npy", "time_member": "imu_t.npy"}
GPS = {"member": "gps.csv", "path": ["lat", "lon"], "time_path": "t"}
CAN = {"member": "can.json", "path": "speed", "time_path": "at"}
HUM = {"member": "hum.npy", "source_rate_hz": 50}


def _expected(times: Floats, values: Floats, grid: Floats, rate: float) -> Floats:
    """Of one channel, by the definition: a stream that is as slow as the grid or slower is read off the line between its
    samples, a faster one is the mean of that line over the period of each step."""
    if len(times) < 3 or (len(times) - 1) / rate <= (times[-1] - times[0]) * 1.001:
        return np.interp(grid, times, values)
    means = []
    for step in grid.tolist():
        low, high = max(step - 0.5 / rate, times[0]), min(step + 0.5 / rate, times[-1])
        knots = np.concatenate([[low], times[(times > low) & (times < high)], [high]])
        line = np.interp(knots, times, values)
        means.append(float(((line[1:] + line[:-1]) / 2 * np.diff(knots)).sum()) / (high - low))
    return np.array(means)


@st.composite
def _clocks(draw: st.DrawFn) -> Floats:
    gaps = draw(st.lists(st.floats(0.004, 0.5), min_size=1, max_size=40))
    return draw(st.floats(-0.5, 0.5)) + np.concatenate([[0.0], np.cumsum(gaps)])


@given(_clocks(), _clocks(), _clocks(), st.integers(2, 60), st.floats(2, 60), st.integers(0, 2**32 - 1))
def test_values_are_those_of_the_definition(
    imu_t: Floats, gps_t: Floats, can_t: Floats, num_hum: int, rate: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    imu, gps, can, hum = (
        rng.normal(size=(n, c)) for n, c in ((len(imu_t), 3), (len(gps_t), 2), (len(can_t), 1), (num_hum, 1))
    )
    hum_t = np.arange(num_hum) / 50
    payloads = {
        "imu.npy": _npy(imu),
        "imu_t.npy": _npy(imu_t),
        "gps.csv": _csv(t=gps_t, lat=gps[:, 0], lon=gps[:, 1]),
        "can.json": _json(at=can_t, speed=can[:, 0]),
        "hum.npy": _npy(hum),
    }
    spec = _spec(rate, IMU, CAN, HUM, GPS)
    clocks = (imu_t, can_t, hum_t, gps_t)
    start, stop = max(times[0] for times in clocks), min(times[-1] for times in clocks)
    if stop < start:
        with pytest.raises(StreamError, match="do not overlap in time") as caught:
            read_streams(payloads, spec)
        assert caught.value.members == spec.members
        return
    found = read_streams(payloads, spec)
    grid = start + np.arange(int((stop - start) * rate + 1e-6) + 1) / rate
    columns = [
        _expected(times, values[:, channel], grid, rate)
        for times, values in zip(clocks, (imu, can, hum, gps), strict=True)
        for channel in range(values.shape[1])
    ]
    assert found is not None and found.dtype == np.float32 and found.shape == (len(grid), 7)
    assert found == pytest.approx(np.stack(columns, axis=1), abs=1e-4, rel=1e-4)
    cut = read_streams(payloads, spec, 3)
    assert cut is not None and np.array_equal(cut, found[:3])


def test_members_that_several_streams_share_are_read_for_each() -> None:
    log = _json(a=[0.0, 1.0], b=[5.0, 6.0], ta=[0.0, 1.0], tb=[0.0, 2.0])
    spec = _spec(
        1,
        {"member": "log.json", "path": "a", "time_path": "ta"},
        {"member": "log.json", "path": "b", "time_path": "tb"},
    )
    assert spec.members == ("log.json",)
    found = read_streams({"log.json": log}, spec)
    assert found is not None and found.tolist() == [[0.0, 5.0], [1.0, 5.5]]


@pytest.mark.parametrize(
    ("changed", "members", "reason"),
    [
        ({"gps.csv": b"\x93NUMPY no array"}, ("gps.csv",), "not a readable NPY"),
        ({"gps.csv": _csv(t=[0, 1], lat=[1, 2])}, ("gps.csv",), "has no part 'lon'"),
        ({"gps.csv": _csv(t=[1, 0], lat=[1, 2], lon=[1, 2])}, ("gps.csv",), "has times that go back"),
        ({"imu.npy": _npy([[1.0, np.nan]] * 3)}, ("imu.npy", "imu_t.npy"), "not finite"),
        ({"imu_t.npy": _npy([0.0, 0.5])}, ("imu.npy", "imu_t.npy"), "has times of shape [2] for 3 steps"),
        ({"imu_t.npy": b"\xff\xd8\xff"}, ("imu_t.npy",), "not a readable NPY"),
        ({"imu_t.npy": _npy([5.0, 6.0, 7.0])}, ("imu.npy", "imu_t.npy", "gps.csv"), "do not overlap in time"),
    ],
)
def test_what_is_wrong_is_told_with_the_members_names_first(
    changed: dict[str, bytes], members: tuple[str, ...], reason: str
) -> None:
    whole = {
        "imu.npy": _npy([[1.0, 2.0]] * 3),
        "imu_t.npy": _npy([0.0, 0.5, 1.0]),
        "gps.csv": _csv(t=[0, 1], lat=[1, 2], lon=[1, 2]),
    }
    assert read_streams(whole, _spec(4, IMU, GPS)) is not None
    with pytest.raises(StreamError) as caught:
        read_streams(whole | changed, _spec(4, IMU, GPS))
    assert caught.value.members == members
    assert str(caught.value).startswith(f"{', '.join(members)}: ") and reason in str(caught.value)


@pytest.mark.parametrize(
    "payload", [None, b"", _json(at=[], speed=[]), _json(at=[0.0]), _json(speed=[1.0])], ids=["none", "empty", *"abc"]
)
def test_without_one_of_its_streams_a_series_is_absent(payload: bytes | None) -> None:
    payloads = {"hum.npy": _npy(np.zeros(9))} | ({} if payload is None else {"can.json": payload})
    assert read_streams(payloads, _spec(4, HUM, CAN)) is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"streams": [GPS]}, "streams need rate_hz"),
        ({"rate_hz": 4, "streams": []}, "at least 1 item"),
        ({"rate_hz": 4, "streams": [GPS], "path": "a", "time_path": "t"}, "move path, time_path there"),
        ({"rate_hz": 4, "streams": [GPS], "source_rate_hz": 4}, "says its own source_rate_hz"),
        ({"rate_hz": 4, "streams": [{"member": "a"}]}, "give one of the two"),
        ({"rate_hz": 4, "streams": [GPS | {"source_rate_hz": 1}]}, "give one of the two"),
        ({"rate_hz": 4, "streams": [{"member": "a", "time_member": "a"}]}, "say with time_path where"),
        ({"rate_hz": 4, "streams": [{"member": ".a.npy", "source_rate_hz": 1}]}, "write 'a.npy', without a dot"),
        ({"rate_hz": 4, "streams": [GPS | {"path": "a", "time_path": ["t", "u"]}]}, "one, or as many as path"),
    ],
)
def test_streams_that_contradict_themselves_are_refused(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SeriesField.model_validate(spec)
