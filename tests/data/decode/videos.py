"""Small videos whose frames tell their own number."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

FRAMES_PER_SECOND = 10


def video_bytes(
    num_frames: int = 30,
    *,
    height: int = 48,
    width: int = 64,
    format: str = "mp4",
    codec: str = "mpeg4",
    keyframe_every: int = 10,
    sound_seconds: float = 0.0,
) -> bytes:
    """A clip at ten frames a second: frame i is grey of level 8 · i, its right half 20 brighter."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=format) as container:
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND, options={"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = keyframe_every
        sound = container.add_stream("aac", rate=16000) if sound_seconds else None
        for number in range(num_frames):
            pixels = np.full((height, width, 3), min(235, 8 * number), np.uint8)
            pixels[:, width // 2 :] += 20
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            time = np.arange(round(16000 * sound_seconds)) / 16000
            wave = (8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            frame.sample_rate = 16000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return sink.getvalue()


def number_of(pixels: np.ndarray) -> float:
    """The number that a decoded frame tells, [height, width, channels]; about a quarter exact."""
    return float(pixels[:, : pixels.shape[1] // 3].mean()) / 8
