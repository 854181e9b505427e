"""Scenes → raw files and a table, as a user would bring them.

<folder>/camera/000000.jpg  radar/000000.npy  imu/000000.npy
<folder>/table.jsonl        a row per sample: paths, the instruction, the action; null where a field is missing
<folder>/world.json         how it was made; written last
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ray_mm.demo.camera import render
from ray_mm.demo.scenes import Scene, draw_scene
from ray_mm.demo.sensors import imu_series, instruction, radar_points
from ray_mm.progress import progress
from ray_mm.storage import write_atomic, write_json

_GENERATOR = 1
"""Raised when the same seed gives other files than before."""


def write_files(folder: Path, num_samples: int, seed: int = 0) -> Path:
    """Writes the raw files of the demo, unless they are all there.

    Args:
        folder: where to; made if need be.
        num_samples: rows of the table.
        seed: of the scenes. The same seed and number give the same files.

    Returns:
        The table.
    """
    table, world = folder / "table.jsonl", folder / "world.json"
    made = {"generator": _GENERATOR, "num_samples": num_samples, "seed": seed}
    if table.is_file() and world.is_file() and json.loads(world.read_text()) == made:
        return table
    world.unlink(missing_ok=True)
    for name in ("camera", "radar", "imu"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    # Threads: most of a picture's time is spent inside numpy and OpenCV, which let others run meanwhile.
    with progress("generate", num_samples, "samples") as bar, ThreadPoolExecutor(2) as pool:
        for row in pool.map(lambda number: _write_sample(folder, draw_scene(seed, number), number), range(num_samples)):
            rows.append(json.dumps(row))
            bar.advance()
    write_atomic(table, "".join(f"{row}\n" for row in rows).encode())
    write_json(world, made)
    return table


def _write_sample(folder: Path, scene: Scene, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"key": f"{number:06}", "camera": None, "radar": None, "imu": None, "instruction": None}
    if "camera" not in scene.absent:
        row["camera"] = f"camera/{number:06}.jpg"
        ok, jpeg = cv2.imencode(".jpg", cv2.cvtColor(render(scene), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
        assert ok, "a picture of the right shape can be encoded"
        (folder / row["camera"]).write_bytes(jpeg.tobytes())
    if "radar" not in scene.absent:
        row["radar"] = f"radar/{number:06}.npy"
        np.save(folder / row["radar"], radar_points(scene))
    if "imu" not in scene.absent:
        row["imu"] = f"imu/{number:06}.npy"
        np.save(folder / row["imu"], imu_series(scene))
    if "instruction" not in scene.absent:
        row["instruction"] = instruction(scene)
    return row | {"action": scene.action}
