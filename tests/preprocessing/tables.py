"""Tables with real files beside them, for the tests of preprocessing."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.manifest import Dataset
from tests.factories import CLASSES, audio_bytes, class_of, image_bytes, member_of, number_of

FIELDS: dict[str, dict[str, Any]] = {
    "image": {"type": "image"},
    "text": {"type": "text"},
    "audio": {"type": "audio"},
    "series": {"type": "series"},
    "points": {"type": "points"},
    "vector": {"type": "vector"},
    "label": {"type": "label"},
    "number": {"type": "label", "target": "number"},
}
SENTENCES = {"left": "please turn left here", "right": "go to the right now", "stop": "stop at the line"}


def make_rows(folder: Path, num_rows: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Writes the files and returns the rows; file names tell nothing about what is in them."""
    rows = []
    for i in range(num_rows):
        label = CLASSES[class_of(i, seed)]
        row: dict[str, Any] = {"key": f"k{i:03d}", "speaker": f"s{i % 5}", "text": SENTENCES[label], "label": label}
        row["number"] = number_of(i, seed)
        for field, payload in (("image", image_bytes(i, seed)), ("audio", audio_bytes(i, seed))):
            row[field] = f"files/{field}{i}.bin"
            write_file(folder / row[field], payload)
        for field in ("series", "points", "vector"):
            row[field] = f"files/{field}{i}.npy"
            write_file(folder / row[field], member_of(field, i, seed)[1])
        rows.append(row)
    return rows


def write_file(path: Path, payload: bytes) -> None:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A CSV with the columns of the first row; None is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_job(
    table: Path, fields: Sequence[str] | Mapping[str, dict[str, Any]] = tuple(FIELDS), **more: Any
) -> PreprocessJob:
    """A preprocess job for a table, with fields by name or in full; the output is beside it."""
    return PreprocessJob.model_validate(
        {
            "kind": "preprocess",
            "name": "made",
            "table": str(table),
            "fields": dict(fields) if isinstance(fields, Mapping) else {name: FIELDS[name] for name in fields},
            "splits": {"by": "hash", "fractions": {"train": 1.0}},
            "output": str(table.parent / "out"),
        }
        | more
    )


def members_by_key(dataset: Dataset) -> dict[str, dict[str, bytes]]:
    """Key → field → the bytes of its member."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in range(dataset.manifest.num_shards):
        index, content = dataset.read_index(shard), dataset.shard_path(shard).read_bytes()
        for row, key in enumerate(index.keys):
            found[key] = {}
            for field, suffixes in dataset.manifest.members.items():
                for suffix in suffixes:
                    if suffix in index.offsets and index.offsets[suffix][row] >= 0:
                        start = int(index.offsets[suffix][row])
                        found[key][field] = content[start : start + int(index.sizes[suffix][row])]
    return found
