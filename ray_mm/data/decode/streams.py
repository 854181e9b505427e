"""Members of several sensors → one series: every stream is read by itself, and all are aligned by their times."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import SeriesField, SeriesStream
from ray_mm.data.decode.arrays import Parts, as_finite, parts_of
from ray_mm.data.decode.error import DecodeError, StreamError
from ray_mm.data.decode.numeric import timed_streams
from ray_mm.data.decode.resample import Stream, align, require_sound

Payloads = Mapping[str, bytes | memoryview]
"""Member, as the streams of a field name it → its bytes; a missing or empty one is absent."""


def read_streams(payloads: Payloads, spec: SeriesField, max_steps: int | None = None) -> npt.NDArray[np.float32] | None:
    """A series as float32 [T, sum of the channels], at the field's rate.

    Args:
        payloads: NPY, NPZ, JSON or CSV each.
        spec: a field with streams.
        max_steps: what is beyond may be left out.

    Returns:
        The series, from the moment when all streams have started to the moment when the first one ends; None where a member
        is absent, has nothing at a path, or has no steps.

    Raises:
        StreamError: a member can't be read, its times make no sense, or the streams do not overlap in time.
    """
    assert spec.streams is not None and spec.rate_hz is not None, "SeriesField asks for both"
    if any(not len(payloads.get(member, b"")) for member in spec.members):
        return None
    opened = {member: _opened(member, payloads[member]) for member in spec.members}
    found: list[Stream] = []
    for stream in spec.streams:
        read = _read(opened, stream)
        if read is None:
            return None
        found += read
    try:
        return as_finite(align(found, spec.rate_hz, max_steps))
    except DecodeError as error:
        raise StreamError(spec.members, str(error)) from None


def _opened(member: str, payload: bytes | memoryview) -> Parts:
    try:
        return parts_of(payload)
    except DecodeError as error:
        raise StreamError((member,), str(error)) from None


def _read(opened: Mapping[str, Parts], stream: SeriesStream) -> list[Stream] | None:
    clock = stream.time_member if stream.time_member is not None else stream.member
    try:
        found = timed_streams(opened[stream.member], opened[clock], stream)
        if found is None or any(not len(each.values) for each in found):
            return None
        for each in found:
            require_sound(each)
    except DecodeError as error:
        # Which of two members is wrong, where their lengths differ, nobody knows.
        raise StreamError(tuple(dict.fromkeys((stream.member, clock))), str(error)) from None
    return found
