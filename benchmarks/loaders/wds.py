"""WebDataset 1.0 in a DataLoader, shards shuffled, a buffer of 1,000; with the common decoder, or with Pillow."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from common import BATCH, SIZE, WORKERS, collate, decode_jpeg, decode_series, pictures_of, run
from PIL import Image


def _with_pillow(payload: bytes) -> np.ndarray[Any, Any]:
    picture = Image.open(io.BytesIO(payload)).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(
        picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    )


def make_loader(args: argparse.Namespace, decode: Any) -> Iterable[Any]:
    """One epoch."""
    torch.set_num_threads(1)
    shards = sorted(str(path) for path in (Path(args.data) / "tars" / "shards").glob("*.tar"))

    def sample(found: dict[str, Any]) -> tuple[Any, Any, Any]:
        return decode(found["image.jpg"]), found["caption.txt"].decode(), decode_series(found["imu.npy"])

    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=webdataset.split_by_node, seed=0)
        .shuffle(1000)
        .map(sample)
        .batched(BATCH, collation_fn=collate)
    )
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS)


if __name__ == "__main__":
    pillow = "--pillow" in sys.argv
    if pillow:
        sys.argv.remove("--pillow")
    run(lambda args: make_loader(args, _with_pillow if pillow else decode_jpeg), pictures_of)
