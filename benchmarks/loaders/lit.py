"""LitData: the same members in chunks of 64 MB, StreamingDataLoader."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import litdata
import torch
from common import BATCH, WORKERS, collate, decode_jpeg, decode_series, pictures_of, run


class Samples(litdata.StreamingDataset):  # type: ignore[misc]
    def __getitem__(self, index: Any) -> tuple[Any, Any, Any]:
        found = super().__getitem__(index)
        return decode_jpeg(found["image"]), bytes(found["caption"]).decode(), decode_series(found["imu"])


def _loader(args: argparse.Namespace) -> Iterable[Any]:
    torch.set_num_threads(1)
    dataset = Samples(str(Path(args.data) / "litdata"), shuffle=True, seed=0)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)


def _convert(data: Path) -> None:
    from litdata.streaming.writer import BinaryWriter
    from members import samples

    (data / "litdata").mkdir(exist_ok=True)
    writer = BinaryWriter(str(data / "litdata"), chunk_bytes="64MB")
    for number, (_, found) in enumerate(samples(data)):
        writer[number] = {"image": found["image.jpg"], "caption": found["caption.txt"], "imu": found["imu.npy"]}
    writer.done()
    writer.merge()


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        _convert(Path(sys.argv[2]))
    else:
        run(_loader, pictures_of)
