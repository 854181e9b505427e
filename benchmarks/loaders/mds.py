"""MosaicML Streaming: the same members in MDS shards of 64 MB, shuffled by block, DataLoader."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature  # noqa: F401 - looks for torchvision when it is imported

# Imported by the package for other kinds of data; a CPU build of it does not exist everywhere.
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules.setdefault(name, types.ModuleType(name))
sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]

import streaming  # noqa: E402
from common import BATCH, WORKERS, collate, decode_jpeg, decode_series, pictures_of, run  # noqa: E402


class Samples(streaming.StreamingDataset):  # type: ignore[misc]
    def __getitem__(self, index: Any) -> tuple[Any, Any, Any]:
        found = super().__getitem__(index)
        return decode_jpeg(found["image"]), found["caption"].decode(), decode_series(found["imu"])


def _loader(args: argparse.Namespace) -> Iterable[Any]:
    torch.set_num_threads(1)
    dataset = Samples(local=str(Path(args.data) / "mds"), shuffle=True, shuffle_seed=0, batch_size=BATCH)
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)


def _convert(data: Path) -> None:
    from members import samples

    columns = {"image": "bytes", "caption": "bytes", "imu": "bytes"}
    with streaming.MDSWriter(out=str(data / "mds"), columns=columns, size_limit="64mb") as writer:
        for _, found in samples(data):
            writer.write({"image": found["image.jpg"], "caption": found["caption.txt"], "imu": found["imu.npy"]})


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        _convert(Path(sys.argv[2]))
    else:
        run(_loader, pictures_of)
