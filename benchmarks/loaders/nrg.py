"""Energon: the same tars, indexed by its own tool, its own loader, a shuffle buffer of 1,000."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import BATCH, WORKERS, collate, decode_jpeg, decode_series, pictures_of, run
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    stateless,
)


@dataclass
class Decoded(Sample):  # type: ignore[misc]
    """One sample."""

    image: Any
    caption: str
    imu: Any


@stateless  # type: ignore[untyped-decorator]
def _cook(found: dict[str, Any]) -> Decoded:
    return Decoded(
        **basic_sample_keys(found),
        image=decode_jpeg(found["image.jpg"]),
        caption=found["caption.txt"].decode(),
        imu=decode_series(found["imu.npy"]),
    )


class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
    """Decodes as everybody here does."""

    decoder = None
    cookers = (Cooker(_cook),)

    @stateless  # type: ignore[untyped-decorator]
    def encode_sample(self, sample: Decoded) -> Decoded:
        return sample

    def batch(self, samples: list[Decoded]) -> dict[str, Any]:
        return collate([(one.image, one.caption, one.imu) for one in samples])

    def encode_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def _loader(args: argparse.Namespace) -> Iterable[Any]:
    torch.set_num_threads(1)
    workers = WorkerConfig(rank=0, world_size=1, num_workers=WORKERS)
    dataset = get_train_dataset(
        Path(args.data) / "energon",
        worker_config=workers,
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        repeat=False,
    )
    return get_loader(dataset)  # type: ignore[no-any-return]


def _convert(data: Path) -> None:
    folder = data / "energon"
    (folder / "shards").mkdir(parents=True)
    for shard in sorted((data / "tars" / "shards").glob("*.tar")):
        (folder / "shards" / shard.name).hardlink_to(shard)
    tool = Path(sys.executable).with_name("energon")
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--no-progress"]
    subprocess.run([str(tool), "prepare", str(folder), *options], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        _convert(Path(sys.argv[2]))
    else:
        run(_loader, pictures_of)
