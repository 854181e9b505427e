"""Which way of shrinking a picture is nearest to Lanczos, and what it takes: behind the choice in ``data/decode/crop.py``.

    python benchmarks/resize.py

Pictures with the spectrum of photographs (amplitude falls with frequency) are shrunk to 224×224 from a little more than that
up to twice as much, which is what is left to do after a JPEG has been decoded at a scale. Prints decibels (PSNR) against
Pillow's Lanczos filter and milliseconds, for averaging (``INTER_AREA``) and interpolation (``INTER_LINEAR``).
"""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIDE, PICTURES, REPEATS = 224, 12, 50
METHODS = {"average": cv2.INTER_AREA, "interpolate": cv2.INTER_LINEAR}


def photograph(seed: int, side: int) -> np.ndarray[Any, Any]:
    """Uint8 [side, side, 3] whose amplitudes fall with frequency, as those of photographs do."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = np.inf
    noise = np.fft.fft2(rng.standard_normal((side, side, 3)), axes=(0, 1)) / frequency[..., None]
    pixels = np.fft.ifft2(noise, axes=(0, 1)).real
    return np.clip(128 + 50 * pixels / pixels.std(), 0, 255).astype(np.uint8)


def main() -> None:
    cv2.setNumThreads(1)
    print("| shrunk by | average, dB | interpolate, dB | average, ms | interpolate, ms |\n|---:|---:|---:|---:|---:|")
    for ratio in (1.02, 1.07, 1.1, 1.15, 1.2, 1.25, 1.3, 1.5, 1.75, 2.0):
        decibels: dict[str, list[float]] = {name: [] for name in METHODS}
        seconds = dict.fromkeys(METHODS, float("inf"))
        for seed in range(PICTURES):
            pixels = photograph(seed, round(SIDE * ratio))
            wanted = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)).astype(float)
            for name, method in METHODS.items():
                started = time.perf_counter()
                for _ in range(REPEATS):
                    found = cv2.resize(pixels, (SIDE, SIDE), interpolation=method)
                seconds[name] = min(seconds[name], (time.perf_counter() - started) / REPEATS)
                decibels[name].append(float(10 * np.log10(255**2 / ((found - wanted) ** 2).mean())))
        cells = [f"{np.mean(decibels[name]):.1f}" for name in METHODS] + [
            f"{seconds[name] * 1e3:.2f}" for name in METHODS
        ]
        print(f"| {ratio} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
