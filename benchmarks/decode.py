"""Members → a batch: what the collator adds to bare decoding, and threads against processes.

    python benchmarks/decode.py

640×480 JPEGs of about 180 kB become uint8 [64, 224, 224, 3], in ways that take turns in every round:

    JPEG alone    a loop of simplejpeg at half scale
    bare          the same, and cv2.resize (INTER_LINEAR) into a row
    collator      Collator.fill for the same bytes, and a label
    two threads   one process, two threads that fill half of the rows each
    two processes each fills every other batch

It prints samples per second and milliseconds of CPU per sample, the best of the rounds: on a machine that others use as well,
the second is the one to compare.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from ray_mm.config.fields import ImageField, LabelField
from ray_mm.data.collate import Collator
from ray_mm.data.preprocessor import Preprocessor

BATCH = 64
SIDE = 224
QUALITY = 89
_FIELDS = {"image": ImageField(height=SIDE, width=SIDE), "label": LabelField(classes=("no", "yes"))}


def photographs(count: int) -> list[bytes]:
    """JPEGs of 640×480 pixels with coarse shapes and noise, so that they have the size of a photograph."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        shapes = cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(shapes + rng.normal(0, 18, shapes.shape), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
        found.append(stream.getvalue())
    return found


PICTURES = photographs(16)
SAMPLES = [{"image": PICTURES[row % len(PICTURES)], "label": b"1"} for row in range(BATCH)]
COLLATOR = Collator(Preprocessor(fields=dict(_FIELDS)))


def jpeg_alone(batches: int) -> None:
    """Decoding, and nothing done with it."""
    for row in range(batches * BATCH):
        simplejpeg.decode_jpeg(PICTURES[row % len(PICTURES)], colorspace="RGB", min_height=240, min_width=320)


def bare(batches: int) -> None:
    """What nothing can be faster than that decodes the same way."""
    for _ in range(batches):
        out = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
        for row in range(BATCH):
            pixels = simplejpeg.decode_jpeg(
                PICTURES[row % len(PICTURES)], colorspace="RGB", min_height=240, min_width=320
            )
            cv2.resize(pixels[:, 40:280], (SIDE, SIDE), dst=out[row], interpolation=cv2.INTER_LINEAR)


def collator(batches: int) -> None:
    """One process, one thread."""
    for _ in range(batches):
        COLLATOR.fill(COLLATOR.empty(BATCH), 0, SAMPLES)


def two_threads(batches: int) -> None:
    """One process; each thread fills half of a batch."""
    half = BATCH // 2
    with ThreadPoolExecutor(2) as threads:
        for _ in range(batches):
            arrays = COLLATOR.empty(BATCH)
            list(threads.map(COLLATOR.fill, [arrays] * 2, [0, half], [SAMPLES[:half], SAMPLES[half:]]))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measured(run: Callable[[int], None], batches: int) -> tuple[float, float]:
    """Wall and CPU seconds per sample."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    run(batches)
    samples = batches * BATCH
    return (time.perf_counter() - wall) / samples, (cpu_seconds() - cpu) / samples


def _in_a_process(batches: int) -> tuple[float, float, float]:
    wall, cpu = time.time(), cpu_seconds()
    collator(batches)
    return wall, time.time(), cpu_seconds() - cpu


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=12, help="per way and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = sum(map(len, PICTURES)) / len(PICTURES)
    print(f"{len(PICTURES)} pictures of {size / 1000:.0f} kB, batches of {BATCH}, {os.cpu_count()} CPUs")
    found: dict[str, list[tuple[float, float]]] = {}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        list(processes.map(_in_a_process, [1, 1]))
        for _ in range(options.rounds):
            for run in (jpeg_alone, bare, collator, two_threads):
                found.setdefault(run.__name__, []).append(measured(run, options.batches))
            parts = list(processes.map(_in_a_process, [options.batches // 2] * 2))
            samples = options.batches // 2 * 2 * BATCH
            wall = max(part[1] for part in parts) - min(part[0] for part in parts)
            found.setdefault("two_processes", []).append((wall / samples, sum(part[2] for part in parts) / samples))
    print(f"{'':14}{'samples/s':>10}{'CPU ms':>8}{'of bare (CPU)':>15}")
    least = min(cpu for _, cpu in found["bare"])
    for name, times in found.items():
        wall, cpu = min(time[0] for time in times), min(time[1] for time in times)
        print(f"{name.replace('_', ' '):14}{1 / wall:10.0f}{1000 * cpu:8.2f}{least / cpu:15.2f}")


if __name__ == "__main__":
    main()
