"""``cache:`` what is kept on a machine's own disk so that it need not be fetched again."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from ray_mm.config.base import Config, Location, Size


def _on_a_disk(folder: str) -> str:
    if "://" in folder and not folder.startswith("file://"):
        raise ValueError(f"expected a folder on a disk of the machine that reads, found {folder!r}")
    return folder


_Folder = Annotated[Location, AfterValidator(_on_a_disk)]


class RemoteCache(Config):
    """Blocks of shards that lie in an object store. All runs and processes of a machine may share one folder."""

    folder: _Folder
    """Folder on a disk of the machine that reads; on a cluster every machine has one of this name."""
    size: Annotated[Size, Field(ge=64 << 20)]
    """Most bytes that are kept. A training wants two windows of its shuffle at least; all of the dataset, if there is room."""


class DecodedCache(Config):
    """Decoded samples. All runs and processes of a machine may share one folder."""

    folder: _Folder
    """Folder on a disk of the machine that reads; on a cluster every machine has one of this name."""
    size: Size
    """Most bytes that are kept. Where the decoded samples need more, always the same part of them is kept."""


class CacheConfig(Config):
    """What is kept on the machine's own disk."""

    remote: RemoteCache | None = None
    """Shards that lie in an object store. Unset: each sample is fetched every time that it is read."""


class TrainCache(CacheConfig):
    """What is kept on the machine's own disk, for a training, which reads every sample more than once."""

    decoded: DecodedCache | None = None
    """Decoded samples. Unset: each is decoded in every epoch."""
