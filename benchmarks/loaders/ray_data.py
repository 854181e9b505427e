"""``ray.data.read_webdataset`` with the common decoder in ``map_batches``, two CPUs, Ray already running."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
import ray.data
from common import BATCH, WORKERS, collate, decode_jpeg, decode_series, pictures_of, run


def _decode(batch: dict[str, Any]) -> dict[str, Any]:
    members = zip(batch["image.jpg"], batch["caption.txt"], batch["imu.npy"], strict=True)
    return collate([(decode_jpeg(picture), text.decode(), decode_series(imu)) for picture, text, imu in members])


def _loader(args: argparse.Namespace) -> Iterable[Any]:
    shards = sorted(str(path) for path in (Path(args.data) / "tars" / "shards").glob("*.tar"))
    dataset = ray.data.read_webdataset(shards, decoder=None, shuffle="files").map_batches(_decode, batch_size=BATCH)
    return dataset.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=None)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        run(_loader, pictures_of)
    finally:
        ray.shutdown()
