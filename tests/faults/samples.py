"""Datasets in which every field of a sample tells which sample it is of, and the check that none holds another's.

Sample n has the key ``sample<n>``, a picture in a colour of its own, a vector of its own, and n as its number.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ray_mm.config.fields import ImageField, LabelField, VectorField
from ray_mm.data.fields import WEIGHT, Arrays, presence_name
from ray_mm.data.index import index_shard
from ray_mm.data.manifest import ShardInfo, Statistics, write_dataset
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.storage import sha256_file
from tests.factories import npy_bytes, write_tar

SUFFIXES = {"image": "image.png", "vector": "vector.npy", "number": "number.json"}
_SIZE = 8
_SPECS = {
    "image": ImageField(height=_SIZE, width=_SIZE),
    "vector": VectorField(size=3),
    "number": LabelField(target="number"),
}


def key_of(sample: int) -> str:
    """The key of a sample."""
    return f"sample{sample:06d}"


def members_of(sample: int) -> dict[str, bytes]:
    """Field → the bytes of its member."""
    stream = io.BytesIO()
    Image.fromarray(_picture(sample)).save(stream, "PNG")
    return {"image": stream.getvalue(), "vector": npy_bytes(_vector(sample)), "number": str(sample).encode()}


def make_samples(
    folder: Path,
    samples: Sequence[int] = range(24),
    *,
    num_shards: int = 3,
    checksums: bool = True,
    instead: Mapping[tuple[int, str], bytes] | None = None,
    in_place: bool = False,
    packed: bool = False,
) -> Path:
    """Writes a dataset.

    Args:
        folder: of the dataset.
        samples: their numbers.
        num_shards: number of tars.
        checksums: whether the index has the CRC32C of every member, as in all datasets that ``preprocess`` writes.
        instead: (sample, field) → the bytes that its member has instead.
        in_place: whether the shards are known by the time of their last change, as tars that others wrote, instead of by
            their content.
        packed: whether the shards are gzip files.

    Returns:
        ``folder``.
    """
    shards = []
    for number, rows in enumerate(np.array_split(np.array(samples), num_shards)):
        members = {}
        for sample in rows.tolist():
            for field, payload in members_of(sample).items():
                members[f"{key_of(sample)}.{SUFFIXES[field]}"] = (instead or {}).get((sample, field), payload)
        path = write_tar(folder / "shards" / f"{number:06d}.tar", members)
        if packed:
            path = path.with_suffix(".tgz")
            path.write_bytes(gzip.compress(path.with_suffix(".tar").read_bytes(), mtime=0))
        index = index_shard(path, with_checksums=checksums)
        version = index.version if in_place else f"sha256:{sha256_file(path)}"
        labels = {"number": rows.astype(np.float32)}
        write_index(index_path(path), replace(index, version=version, labels=labels))
        names = f"shards/{path.name}", f"shards/{index_path(path).name}"
        shards.append(ShardInfo(*names, len(rows), path.stat().st_size, version))
    write_dataset(
        folder,
        name=f"faults/{folder.name}",
        shards=shards,
        fields=dict(_SPECS),
        members={field: (suffix,) for field, suffix in SUFFIXES.items()},
        presence=dict.fromkeys(SUFFIXES, len(samples)),
        label_counts={},
        statistics={
            "number": Statistics(mean=(100.0,), std=(100.0,)),
            "vector": Statistics(mean=(100.0, 100.0, -100.0), std=(100.0, 100.0, 100.0)),
        },
    )
    return folder


def require_own(arrays: Arrays, keys: Sequence[str]) -> list[str]:
    """Checks that every value of a batch is of the sample whose key stands there, and nothing is left of those set aside.

    Returns:
        The keys of the samples that were set aside.
    """
    aside = []
    for row, key in enumerate(keys):
        if not arrays[WEIGHT][row]:
            assert not any(arrays[presence_name(field)][row] or arrays[field][row].any() for field in SUFFIXES)
            aside += [key] if key else []
            continue
        sample = int(key.removeprefix("sample"))
        own = {"image": _picture(sample), "vector": _vector(sample), "number": np.float32(sample)}
        for field, value in own.items():
            expected = value if arrays[presence_name(field)][row] else np.zeros_like(value)
            np.testing.assert_array_equal(arrays[field][row], expected, err_msg=f"{key}.{field}")
    return aside


def _picture(sample: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    picture = np.empty((_SIZE, _SIZE, 3), np.uint8)
    picture[:] = sample % 256, sample // 256, 99
    return picture


def _vector(sample: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array([sample, sample + 0.25, -sample - 1], np.float32)
