"""What all contestants share: the same decoding, the same batches, the same clock. Needs numpy, simplejpeg and OpenCV only."""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg

SIZE = 224
BATCH = 64
WORKERS = 2
SERIES = (100, 6)


def decode_jpeg(payload: bytes) -> np.ndarray[Any, Any]:
    """JPEG → uint8 [224, 224, 3]: scaled while it is decoded, cropped in the middle, and brought to its size as ray_mm does."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(payload)
    factor = max((f for f in (1, 2, 4, 8) if min(height, width) / f >= SIZE), default=1)
    pixels = simplejpeg.decode_jpeg(
        payload, min_height=-(-height // factor), min_width=-(-width // factor), min_factor=1
    )
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    method = cv2.INTER_AREA if side > 1.2 * SIZE else cv2.INTER_LINEAR
    return cv2.resize(pixels[top : top + side, left : left + side], (SIZE, SIZE), interpolation=method)


def decode_series(payload: bytes) -> np.ndarray[Any, Any]:
    """NPY → float32 [100, 6]."""
    return np.load(io.BytesIO(payload)).astype(np.float32)


def collate(samples: list[tuple[Any, Any, Any]]) -> dict[str, Any]:
    """(picture, text, series) each → a batch."""
    pictures, texts, series = zip(*samples, strict=True)
    return {"image": np.stack(pictures), "text": list(texts), "imu": np.stack(series)}


def run(batches: Callable[[argparse.Namespace], Iterable[Any]], size_of: Callable[[Any], int]) -> None:
    """Runs one contestant and prints when each batch arrived, as JSON.

    Args:
        batches: makes the loader and gives one epoch; its own making is timed, too.
        size_of: samples of a batch.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    started = time.perf_counter()
    arrivals = [(time.perf_counter() - started, size_of(batch)) for batch in _each(batches(args))]
    print(json.dumps({"arrivals": arrivals}))


def _each(found: Iterable[Any]) -> Iterator[Any]:
    yield from found


def pictures_of(batch: Any) -> int:
    """Samples of a batch, for contestants that use ``collate``."""
    assert batch["image"].shape[1:] == (SIZE, SIZE, 3) and len(batch["text"]) == len(batch["image"])
    assert tuple(batch["imu"].shape[1:]) == SERIES
    return len(batch["image"])
