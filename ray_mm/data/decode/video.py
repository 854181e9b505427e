"""Videos → some of their frames, uint8 [num_frames, height, width, channels], and when each is shown.

The packets are listed first, without decoding any: they tell when frames are shown and where a decoder can start. Then only
the stretches from such a start to a frame that is wanted are decoded.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import VideoField
from ray_mm.data.decode.container import ffmpeg_errors, open_container
from ray_mm.data.decode.crop import cut_from_whole, fit_into, view_of
from ray_mm.data.decode.draw import Draw
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.image import check_pixels

# A seek empties the decoder and looks for its place: about what decoding so many frames costs.
_FRAMES_PER_SEEK = 8


@dataclass(frozen=True)
class _Frames:
    """What the packets tell.

    Attributes:
        pts: presentation times of all frames in units of the stream, ascending.
        keys: those at which decoding can start, ascending.
        seconds: of one unit.
    """

    pts: list[int]
    keys: list[int]
    seconds: float

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """When each frame is shown, in seconds after the first."""
        return (np.array(self.pts, np.float64) - self.pts[0]) * self.seconds

    @property
    def duration(self) -> float:
        """In seconds; the last frame is shown as long as the others are on average."""
        last = float(self.times[-1])
        return last + (last / (len(self.pts) - 1) if len(self.pts) > 1 else 0.0)


def decode_video(
    payload: bytes | memoryview,
    spec: VideoField,
    out: npt.NDArray[np.uint8],
    times: npt.NDArray[np.float32],
    name: str = "",
    draw: Draw | None = None,
) -> int:
    """Decodes some frames of one video.

    Args:
        payload: a file in any format that FFmpeg reads.
        spec: number and size of the frames, and how they are chosen.
        out: uint8 [num_frames, height, width, channels], zeros; filled from the start.
        times: float32 [num_frames], zeros; filled with seconds after the first frame of the video.
        name: of the field, for what is random.
        draw: of the sample; None: nothing is left to chance. All frames show the same part.

    Returns:
        Number of frames written: fewer than ``num_frames`` where the video has fewer.

    Raises:
        DecodeError: not a video, damaged, or with pictures that are too large.
        UsageError: PyAV is not installed.
    """
    if spec.whole_side is not None:
        whole = np.zeros((spec.num_frames, spec.whole_side, spec.whole_side, spec.channels), np.uint8)
        length, size = decode_whole_clip(payload, spec, whole, times)
        cut_from_whole(whole[:length], size, spec, out[:length], name, draw)
        return length
    return _fill(payload, spec, out, times, name, draw)[0]


def decode_whole_clip(
    payload: bytes | memoryview, spec: VideoField, out: npt.NDArray[np.uint8], times: npt.NDArray[np.float32]
) -> tuple[int, tuple[int, int]]:
    """Some whole frames, stretched: what ``crop.cut_from_whole`` cuts the random parts of a field with ``whole_side`` from.

    Args:
        payload: as of ``decode_video``.
        spec: with a random crop and its ``whole_side``.
        out: uint8 [num_frames, whole_side, whole_side, channels], zeros; filled from the start.
        times: as of ``decode_video``.

    Returns:
        Number of frames written; height and width of the first one in pixels, upright.

    Raises:
        DecodeError: as of ``decode_video``.
    """
    whole = {"height": spec.whole_side, "width": spec.whole_side, "fit": "stretch", "random_crop": None}
    return _fill(payload, spec.model_copy(update=whole), out, times, "", None)


def _fill(
    payload: bytes | memoryview,
    spec: VideoField,
    out: npt.NDArray[np.uint8],
    times: npt.NDArray[np.float32],
    name: str,
    draw: Draw | None,
) -> tuple[int, tuple[int, int]]:
    """As ``decode_video``, without a whole side; also returns the height and width of the first frame, upright."""
    frames = _list_frames(payload)
    chosen = _choose(frames, spec)
    wanted = sorted({frames.pts[place] for place in chosen})
    rows: dict[int, list[int]] = {}
    for row, place in enumerate(chosen):
        rows.setdefault(frames.pts[place], []).append(row)
        times[row] = frames.times[place]
    sizes = []
    for pts, frame in _decode(payload, frames, wanted):
        first, *others = rows[pts]
        with ffmpeg_errors("video"):
            sizes.append(_write(frame, spec, out[first], name, draw))
        out[others] = out[first]
    if len(sizes) < len(wanted):
        raise DecodeError(f"not a readable video ({len(sizes)} of {len(wanted)} frames can be decoded)")
    return len(chosen), sizes[0]


def video_shape(payload: bytes | memoryview | Path) -> tuple[int, int, float]:
    """Height and width in pixels, as displayed, and the duration in seconds. Decodes the first frame.

    Raises:
        DecodeError: not a video, damaged, or with pictures that are too large.
        UsageError: PyAV is not installed.
    """
    frames = _list_frames(payload)
    for _, frame in _decode(payload, frames, frames.pts[:1]):
        lying = _quarter_turns(frame) % 2 == 1
        height, width = (frame.width, frame.height) if lying else (frame.height, frame.width)
        return height, width, frames.duration
    raise DecodeError("not a readable video (its first frame can't be decoded)")


def _list_frames(payload: bytes | memoryview | Path) -> _Frames:
    with open_container(payload, "video") as container:
        stream = _video_stream(container)
        pts, keys = set(), set()
        for packet in container.demux(stream):
            shown = packet.pts if packet.pts is not None else packet.dts
            if shown is None or packet.size == 0 or packet.is_discard:
                continue
            pts.add(shown)
            if packet.is_keyframe:
                keys.add(shown)
        seconds = float(stream.time_base) if stream.time_base else 0.0
    if not pts or seconds <= 0:
        raise DecodeError("not a readable video (it has no frames with times)")
    return _Frames(sorted(pts), sorted(keys), seconds)


def _choose(frames: _Frames, spec: VideoField) -> list[int]:
    """Places of the frames that are wanted, ascending; at a rate above the video's own, some stand twice."""
    total, duration = len(frames.pts), frames.duration
    if spec.rate_hz is not None:
        moments = np.arange(spec.num_frames) / spec.rate_hz
        # The first frame is there however short the clip is.
        moments = moments[moments < max(duration - 1e-6, 1e-9)]
    elif total <= spec.num_frames:
        return list(range(total))
    else:
        moments = (np.arange(spec.num_frames) + 0.5) * duration / spec.num_frames
    # Not a hair before: a frame that is shown from 0.04 s on is the one at 0.04 s.
    shown = np.searchsorted(frames.times, moments + 1e-6, side="right") - 1
    places: list[int] = shown.tolist()
    return places if spec.rate_hz is not None else sorted(set(places))


def _decode(payload: bytes | memoryview | Path, frames: _Frames, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Wanted presentation time, ascending → its frame; stops early where the video does."""
    done = 0
    for found in _with_seeks(payload, frames, wanted):
        if found is None:
            break  # a format in which seeking is not exact
        done += 1
        yield found
    if done < len(wanted):
        with open_container(payload, "video") as container:
            stream = _video_stream(container)
            yield from _in_sequence(container.decode(stream), wanted[done:])


def _with_seeks(
    payload: bytes | memoryview | Path, frames: _Frames, wanted: Sequence[int]
) -> Iterator[tuple[int, Any] | None]:
    with open_container(payload, "video") as container:
        stream = _video_stream(container)
        decoded, position, start = container.decode(stream), -1, frames.pts[0]
        for target in wanted:
            place = bisect.bisect_right(frames.keys, target) - 1
            key = frames.keys[place] if place >= 0 else frames.pts[0]
            sought = bisect.bisect_left(frames.pts, key) - position > _FRAMES_PER_SEEK
            if sought:
                container.seek(key, stream=stream)
                decoded, start = container.decode(stream), key
            for frame in decoded:
                pts = _pts(frame)
                if pts is None or (sought and pts > start):
                    yield None
                    return
                sought = False
                if pts >= target:
                    position = bisect.bisect_left(frames.pts, pts)
                    yield target, frame
                    break
            else:
                return


def _in_sequence(decoded: Iterator[Any], wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
    left = list(wanted)
    for frame in decoded:
        pts = _pts(frame)
        while left and pts is not None and pts >= left[0]:
            yield left.pop(0), frame
        if not left:
            return


def _pts(frame: Any) -> int | None:
    found: int | None = frame.pts if frame.pts is not None else frame.dts
    return found


def _video_stream(container: Any) -> Any:
    stream = container.streams.best("video") if container.streams.video else None
    if stream is None or stream.codec_context is None:
        raise DecodeError("has no video track that can be decoded")
    check_pixels(stream.codec_context.height, stream.codec_context.width)
    # The read tasks share the cores already.
    stream.codec_context.thread_count = 1
    return stream


def _write(frame: Any, spec: VideoField, out: npt.NDArray[np.uint8], name: str, draw: Draw | None) -> tuple[int, int]:
    """Writes what is seen of a frame; returns its height and width, upright."""
    check_pixels(frame.height, frame.width)
    turns = _quarter_turns(frame)
    upright = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    view = view_of(name, *upright, spec, draw)
    rows, columns = view.box.pixels(*upright)
    assert spec.height is not None and spec.width is not None
    # FFmpeg converts the colours and shrinks in one pass; what is cut off later is shrunk as well.
    scale = min(1.0, max(spec.height / rows, spec.width / columns))
    pixels = frame.to_ndarray(
        format="gray" if spec.channels == 1 else "rgb24",
        height=max(1, round(frame.height * scale)),
        width=max(1, round(frame.width * scale)),
        interpolation="AREA",
    )
    fit_into(np.rot90(pixels, turns), view, out)
    return upright


def _quarter_turns(frame: Any) -> int:
    """Anticlockwise, from how the camera was held."""
    return round(float(frame.rotation) / 90) % 4
