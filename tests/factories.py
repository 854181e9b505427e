"""Real datasets for tests: small, deterministic, with a class that can be learned from every field.

``make_dataset`` writes tars with Python's own ``tarfile``, so that what reads them is not tested against our own writer.
Sample ``i`` has key ``sample<i>``; ``class_of(i, seed)`` is its class and ``number_of(i, seed)`` its number.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image
from tokenizers import Tokenizer

from ray_mm.config.fields import (
    AudioField,
    FieldSpec,
    ImageField,
    LabelField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
)
from ray_mm.data.index import Labels, index_shard
from ray_mm.data.manifest import ShardInfo, Statistics, tokenizer_path, write_dataset
from ray_mm.data.seal import sealed
from ray_mm.data.sidecar import index_path, read_index, write_index
from ray_mm.preprocessing.tokenizer import train_tokenizer
from ray_mm.storage import sha256_file

CLASSES = ("left", "right", "stop")
RATE_HZ = 8000
SPECS: dict[str, FieldSpec] = {
    "image": ImageField(height=16, width=16),
    "text": TextField(max_tokens=8),
    "audio": AudioField(rate_hz=RATE_HZ, max_seconds=0.2),
    "series": SeriesField(channels=3, max_length=20, rate_hz=50),
    "points": PointsField(channels=4, max_points=12),
    "vector": VectorField(size=5),
    "label": LabelField(classes=CLASSES),
    "number": LabelField(target="number"),
}
"""Name → the field that ``make_dataset`` writes under it."""

TAGS = ("moves", "odd", "turns")
MORE_SPECS: dict[str, FieldSpec] = {
    "tags": LabelField(target="classes", classes=TAGS),
    "mask": LabelField(target="mask", classes=CLASSES, height=16, width=16, like="image"),
    "grid": LabelField(target="mask", classes=CLASSES, height=6, width=8),
}
"""As ``SPECS``, written where it is asked for."""

MEMBERS: dict[str, tuple[str, ...]] = {
    "image": ("jpg", "png"),
    "text": ("txt",),
    "audio": ("wav",),
    "series": ("npy",),
    "points": ("npy",),
    "vector": ("npy",),
    "label": ("cls",),
    "number": ("json",),
    "tags": ("json",),
    "mask": ("png",),
    "grid": ("npy",),
}
"""Name → the extensions of its member."""

_COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
_SENTENCES = ("please turn left here", "go to the right now", "stop at the line")
_CORRUPT = {
    "image": b"\xff\xd8\xff\xe0 this is no picture",
    "text": bytes(range(128, 192)),
    "audio": b"RIFF this is no recording",
    "label": b"left, perhaps",
    "number": b"much",
    "tags": b"[0, 3]",
    "mask": b"\x89PNG\r\n\x1a\n this is no picture",
}


def make_dataset(
    folder: Path,
    num_samples: int = 12,
    fields: Sequence[str] = tuple(SPECS),
    *,
    num_shards: int = 2,
    seed: int = 0,
    missing: Mapping[str, float] | None = None,
    corrupt: Collection[tuple[int, str]] = (),
    specs: Mapping[str, FieldSpec] | None = None,
    picture_size: tuple[int, int] = (16, 16),
) -> Path:
    """Writes a whole dataset: tars, indexes, tokenizer, ``shards.parquet``, ``dataset.json``.

    Args:
        folder: of the dataset; made if needed.
        num_samples: of all shards together; shards differ by one sample at most.
        fields: names out of ``SPECS``.
        num_shards: number of tars.
        seed: of the content; train and validation sets of one problem differ in it alone.
        missing: field → share of samples that lack it.
        corrupt: (sample, field) pairs whose member can't be decoded.
        specs: other specs than those in ``SPECS``: another picture size, a shorter text.
        picture_size: height and width of the pictures in the tars.

    Returns:
        ``folder``.
    """
    chosen: dict[str, FieldSpec] = {name: {**SPECS, **MORE_SPECS, **(specs or {})}[name] for name in fields}
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 99])
    absent = {name: rng.random(num_samples) < (missing or {}).get(name, 0.0) for name in sorted(chosen)}
    assert not np.logical_and.reduce(list(absent.values())).any(), "a sample without members can't lie in a tar"
    shards = []
    for shard, rows in enumerate(np.array_split(np.arange(num_samples), num_shards)):
        members: dict[str, bytes] = {}
        for i in map(int, rows):
            for name in sorted(chosen):
                if absent[name][i]:
                    continue
                extension, payload = member_of(name, i, seed, picture_size)
                if (i, name) in corrupt:
                    payload = _CORRUPT.get(name, b"\x93NUMPY this is no array")
                members[f"sample{i:06d}.{name}.{extension}"] = payload
        path = write_tar(folder / "shards" / f"{shard:06d}.tar", members)
        index = index_shard(path)
        write_index(index_path(path), replace(index, labels=_labels(rows, chosen, absent, seed)))
        name, size_bytes = f"shards/{shard:06d}", path.stat().st_size
        version = f"sha256:{sha256_file(path)}"
        shards.append(ShardInfo(f"{name}.tar", f"{name}.index.parquet", len(rows), size_bytes, version))
    if "text" in chosen:
        content = train_tokenizer(_SENTENCES)
        tokenizer_path(folder, "text").write_text(content, encoding="utf-8")
        vocabulary = Tokenizer.from_str(content).get_vocab_size()
        chosen["text"] = chosen["text"].model_copy(update={"vocabulary_size": vocabulary})
    counts = {
        name: dict.fromkeys(CLASSES, 0) | _class_counts(num_samples, seed, absent[name])
        for name in chosen
        if name == "label"
    }
    if "tags" in chosen:
        had = [tag for i in range(num_samples) if not absent["tags"][i] for tag in tags_of(i, seed)]
        counts["tags"] = {tag: had.count(number) for number, tag in enumerate(TAGS)}
    for name in {"mask", "grid"} & chosen.keys():
        ids = [np.unique(mask_of(name, i, seed)).tolist() for i in range(num_samples) if not absent[name][i]]
        counts[name] = {each: sum(number in had for had in ids) for number, each in enumerate(CLASSES)}
    write_dataset(
        folder,
        name=f"factory/{folder.name}",
        shards=shards,
        fields=chosen,
        members={name: tuple(f"{name}.{extension}" for extension in MEMBERS[name]) for name in chosen},
        presence={name: int(num_samples - absent[name].sum()) for name in chosen},
        label_counts=counts,
        statistics={name: found for name in chosen if (found := _statistics(name))},
    )
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what ``dataset.json`` says, as its writer would have written it."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(sealed(content)))


def add_checksums(folder: Path) -> None:
    """Puts the CRC32C of every member into the indexes of a dataset."""
    for path in sorted(folder.glob("shards/*.tar")):
        index = read_index(index_path(path), str(path))
        write_index(index_path(path), replace(index, checksums=index_shard(path, with_checksums=True).checksums))


def _labels(
    rows: npt.NDArray[np.int64], fields: Collection[str], absent: Mapping[str, npt.NDArray[np.bool_]], seed: int
) -> dict[str, Labels]:
    """What the index says of the labels."""
    found: dict[str, Labels] = {}
    if "label" in fields:
        found["label"] = np.where(absent["label"][rows], -1, [class_of(int(i), seed) for i in rows]).astype(np.int32)
    if "number" in fields:
        numbers = np.array([number_of(int(i), seed) for i in rows], np.float32)
        found["number"] = np.where(absent["number"][rows], np.float32(np.nan), numbers)
    return found


def class_of(sample: int, seed: int = 0) -> int:
    """The class of a sample: no pattern along the samples, yet every three of them, 0–2, 3–5, …, have all classes."""
    shift = hashlib.sha256(f"{seed}/{sample // 3}".encode()).digest()[0]
    return (sample + shift) % len(CLASSES)


def number_of(sample: int, seed: int = 0) -> float:
    """The number of a sample, which follows from its class and its vector."""
    return 10.0 * class_of(sample, seed) + float(_vector(sample, seed)[0])


def tags_of(sample: int, seed: int = 0) -> list[int]:
    """The tags of a sample, which follow from its class: two, one or none of them; a third one that no sample has."""
    return ([0, 1], [0], [])[class_of(sample, seed)]


def mask_of(field: str, sample: int, seed: int = 0, size: tuple[int, int] = (16, 16)) -> npt.NDArray[np.uint8]:
    """The map of a sample, which follows from its class. ``mask``: its class above, the next one below, the first row without a
    label. ``grid``: 6×8 cells, its class to the right and class 0 to the left, one cell without a label."""
    number = class_of(sample, seed)
    numbers = np.zeros(size if field == "mask" else (6, 8), np.uint8)
    if field == "mask":
        middle = size[0] // 2
        numbers[:middle], numbers[middle:] = number, (number + 1) % len(CLASSES)
        numbers[0] = 255
    else:
        numbers[:, 4:] = number
        numbers[0, 0] = 255
    return numbers


def mask_bytes(numbers: npt.NDArray[np.generic]) -> bytes:
    """A map as a grey PNG."""
    stream = io.BytesIO()
    Image.fromarray(numbers).save(stream, "PNG")
    return stream.getvalue()


def member_of(field: str, sample: int, seed: int = 0, picture_size: tuple[int, int] = (16, 16)) -> tuple[str, bytes]:
    """Extension and bytes of one member. Even samples have a JPEG, odd ones a PNG."""
    match field:
        case "image":
            return ("jpg", "png")[sample % 2], image_bytes(sample, seed, height=picture_size[0], width=picture_size[1])
        case "text":
            return "txt", _SENTENCES[class_of(sample, seed)].encode()
        case "audio":
            return "wav", audio_bytes(sample, seed)
        case "series":
            return "npy", npy_bytes(_series(sample, seed))
        case "points":
            return "npy", npy_bytes(_points(sample, seed))
        case "vector":
            return "npy", npy_bytes(_vector(sample, seed))
        case "label":
            return "cls", str(class_of(sample, seed)).encode()
        case "number":
            return "json", json.dumps(number_of(sample, seed)).encode()
        case "tags":
            return "json", json.dumps(tags_of(sample, seed)).encode()
        case "mask":
            return "png", mask_bytes(mask_of("mask", sample, seed, picture_size))
        case "grid":
            return "npy", npy_bytes(mask_of("grid", sample, seed))
    raise AssertionError(field)


def image_bytes(sample: int, seed: int = 0, *, height: int = 16, width: int = 16) -> bytes:
    """A picture in the colour of the sample's class, with noise."""
    noise = _rng(sample, seed, "image").integers(-30, 31, (height, width, 3))
    pixels = np.clip(np.array(_COLOURS[class_of(sample, seed)]) + noise, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, ("JPEG", "PNG")[sample % 2])
    return stream.getvalue()


def audio_bytes(sample: int, seed: int = 0, *, seconds: float = 0.2) -> bytes:
    """A tone of 500, 1,000 or 1,500 Hz after the sample's class, with noise; 16-bit WAV."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    tone = 0.5 * np.sin(2 * np.pi * 500 * (class_of(sample, seed) + 1) * time)
    noise = 0.05 * _rng(sample, seed, "audio").standard_normal(len(time))
    stream = io.BytesIO()
    soundfile.write(stream, tone + noise, RATE_HZ, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """An array as a NPY file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of plain files, by ``tarfile``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def _series(sample: int, seed: int) -> npt.NDArray[np.float32]:
    steps = 10 + sample % 11
    level = np.eye(3)[class_of(sample, seed)] * 3.0
    values: npt.NDArray[np.float64] = level + 0.3 * _rng(sample, seed, "series").standard_normal((steps, 3))
    return values.astype(np.float32)


def _points(sample: int, seed: int) -> npt.NDArray[np.float32]:
    count = 6 + sample % 7
    centre = np.array([2.0 * class_of(sample, seed), 0.0, 0.0, 1.0])
    values: npt.NDArray[np.float64] = centre + 0.3 * _rng(sample, seed, "points").standard_normal((count, 4))
    return values.astype(np.float32)


def _vector(sample: int, seed: int) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float64] = 0.3 * _rng(sample, seed, "vector").standard_normal(5)
    values[1 + class_of(sample, seed)] += 2.0
    return values.astype(np.float32)


def _rng(sample: int, seed: int, field: str) -> np.random.Generator:
    return np.random.default_rng([seed, sample, *field.encode()])


def _class_counts(num_samples: int, seed: int, absent: npt.NDArray[np.bool_]) -> dict[str, int]:
    present = [CLASSES[class_of(i, seed)] for i in range(num_samples) if not absent[i]]
    return {name: present.count(name) for name in CLASSES}


def _statistics(field: str) -> Statistics | None:
    """Of a fixed set of samples, so that a train and a validation set agree as real splits do."""
    samples = range(60)
    match field:
        case "series":
            values = np.concatenate([_series(i, 0) for i in samples])
        case "points":
            values = np.concatenate([_points(i, 0) for i in samples])
        case "vector":
            values = np.stack([_vector(i, 0) for i in samples])
        case "number":
            values = np.array([[number_of(i, 0)] for i in samples])
        case _:
            return None
    return Statistics(mean=tuple(values.mean(axis=0).tolist()), std=tuple(values.std(axis=0).tolist()))
