"""Samples that a training can learn from, made here: a picture, a text, a sensor series and one of ten classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import ingest
import numpy as np

from ray_mm.config.fields import ImageField, LabelField, SeriesField, TextField
from ray_mm.data.manifest import ShardInfo, Statistics, tokenizer_path, write_dataset
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.preprocessing.tokenizer import train_tokenizer
from ray_mm.preprocessing.writer import write_tar

CLASSES = 10
SHARDS = 8


def make_labelled(folder: Path, count: int, side: int) -> Path:
    """Writes a dataset, once.

    Args:
        folder: of the dataset.
        count: samples.
        side: rows and columns of a picture, in its JPEG and in the batch.
    """
    if (folder / "dataset.json").is_file():
        return folder
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shards, texts, counts = [], [], np.zeros(CLASSES, np.int64)
    for shard, rows in enumerate(np.array_split(np.arange(count), SHARDS)):
        labels = rng.integers(CLASSES, size=len(rows)).astype(np.int32)
        counts += np.bincount(labels, minlength=CLASSES)
        samples = []
        for row, label in zip(rows, labels, strict=True):
            texts.append(" ".join(rng.choice(ingest.WORDS, 12)))
            made = {
                "image.jpg": _picture(rng, side, int(label)),
                "caption.txt": texts[-1].encode(),
                "imu.npy": ingest.series(rng),
                "label.cls": str(label).encode(),
            }
            samples.append((f"{row:06d}", made))
        path = folder / "shards" / f"{shard:06d}.tar"
        index = write_tar(path, samples)
        write_index(index_path(path), replace(index, labels={"label": labels}))
        name = f"shards/{shard:06d}"
        shards.append(ShardInfo(f"{name}.tar", f"{name}.index.parquet", len(rows), path.stat().st_size, index.version))
    tokenizer = train_tokenizer(texts)
    tokenizer_path(folder, "caption").write_text(tokenizer)
    write_dataset(
        folder,
        name="labelled",
        shards=shards,
        fields={
            "image": ImageField(height=side, width=side),
            "caption": TextField(max_tokens=16, vocabulary_size=len(json.loads(tokenizer)["model"]["vocab"])),
            "imu": SeriesField(channels=6, max_length=100),
            "label": LabelField(classes=tuple(map(str, range(CLASSES)))),
        },
        members={
            "image": ("image.jpg",),
            "caption": ("caption.txt",),
            "imu": ("imu.npy",),
            "label": ("label.cls",),
        },
        presence=dict.fromkeys(("image", "caption", "imu", "label"), count),
        label_counts={"label": {str(label): int(number) for label, number in enumerate(counts)}},
        statistics={"imu": Statistics(mean=(0.0,) * 6, std=(1.0,) * 6)},
    )
    return folder


def _picture(rng: np.random.Generator, side: int, label: int) -> bytes:
    """A JPEG with texture, and the class in its brightness."""
    pixels = np.full((side, side, 3), 60.0 + 12.0 * label, np.float32)
    coarse = rng.standard_normal((8, 8, 3), np.float32) * 40.0
    pixels += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    pixels += rng.standard_normal((side, side, 1), np.float32) * 12.0
    encoded = cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return bytes(encoded)
