"""Decoded rows on a local disk, so that the next epoch neither reads nor decodes what this one did.

A slot holds the arrays of one sample as the collator fills them, presence included, and its key. What a draw decides stays out
of it: pictures and clips are kept as they are and mirrored when they are read, and of a field with random crops either whole
ones are kept (``whole_side``) or it is decoded every time. A mask is mirrored with its picture, and decoded every time where that
one is cropped at random.
Slots are kept per dataset and everything that decides what a row holds, so a dataset that was made anew, another picture
size or another version of a decoder never meets the rows of before.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ray_mm.config.cache import DecodedCache
from ray_mm.config.fields import ImageField, VideoField, is_mask
from ray_mm.data import decode
from ray_mm.data.decode.crop import cut_from_whole, is_mirrored, mirror
from ray_mm.data.decode.draw import Draw
from ray_mm.data.fields import Arrays, ArraySpec, field_arrays, length_name, presence_name, size_name, whole_arrays
from ray_mm.data.manifest import Dataset
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.figures import size
from ray_mm.storage import local_path
from ray_mm.storage.disk import CacheDisk
from ray_mm.storage.slots import SUM_BYTES, Slots, open_slots

_FORMAT = 1
"""To be raised when a slot's layout changes. Changes of decoders are seen by themselves."""

_KEY_BYTES = 256
_DECODERS = ("av", "numpy", "opencv-python-headless", "pillow", "simplejpeg", "soundfile", "soxr", "tokenizers")

Row = list[npt.NDArray[np.uint8]]
"""The bytes of a sample's kept arrays, in the order of their names."""


class RowLayout:
    """What of a sample is kept, and how it lies in a slot.

    Args:
        preprocessor: of the training.
    """

    def __init__(self, preprocessor: Preprocessor) -> None:
        fields = preprocessor.fields
        cropped = {
            name: spec
            for name, spec in sorted(fields.items())
            if isinstance(spec, ImageField | VideoField) and spec.random_crop is not None
        }
        self.whole = {name: spec for name, spec in cropped.items() if spec.whole_side is not None}
        """Fields whose whole pictures or clips are kept, and their random parts cut when they are read."""
        masks = {name: spec.like for name, spec in sorted(fields.items()) if is_mask(spec) and spec.like is not None}
        self.masks_anew = [name for name, picture in masks.items() if picture in cropped]
        """Masks of pictures with random crops: there is no whole one to cut, for a mask is never scaled twice."""
        self.decoded_anew = [*(name for name in cropped if name not in self.whole), *self.masks_anew]
        """Fields whose random parts are cut while they are decoded; all others are kept."""
        self._flipped = {
            name: spec
            for name, spec in fields.items()
            if isinstance(spec, ImageField | VideoField) and spec.random_flip and name not in cropped
        }
        self._masks = {name: picture for name, picture in masks.items() if picture in self._flipped}
        plain = {name: spec.model_copy(update={"random_flip": 0.0}) for name, spec in self._flipped.items()}
        self.plain = preprocessor.model_copy(update={"fields": fields | plain})
        """The preprocessor without the random flips of what is kept; ``mirror`` makes up for it."""
        kept = {name: spec for name, spec in self.plain.fields.items() if name not in self.decoded_anew}
        arrays: dict[str, ArraySpec] = {}
        for name, spec in kept.items():
            arrays |= whole_arrays(name, self.whole[name]) if name in self.whole else field_arrays(name, spec)
        self._arrays = sorted(arrays)
        self.slot_bytes = _KEY_BYTES + sum(each.dtype.itemsize * math.prod(each.shape) for each in arrays.values())
        self._members = sorted(kept)
        self._described = {
            "format": _FORMAT,
            "arrays": {name: [each.dtype.str, *each.shape] for name, each in arrays.items()},
            "fields": {name: spec.model_dump(mode="json") for name, spec in kept.items()},
            "tokenizers": {name: text for name, text in preprocessor.tokenizers.items() if name in kept},
            "first_ids": {name: preprocessor.first_id(name) for name in preprocessor.tokenizers if name in kept},
        }

    def name(self, dataset: Dataset) -> str:
        """Of the slots of a dataset: a hash of all that decides what they hold."""
        members = {field: dataset.manifest.members.get(field) for field in self._members}
        described = {**self._described, "dataset": dataset.manifest.digest, "members": members, "code": _code()}
        return hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=16).hexdigest()

    def views(self, arrays: Arrays) -> Row:
        """The kept arrays of a batch as bytes, uint8 [B, bytes of a row] each; row b of them all is sample b."""
        return [arrays[name].reshape(len(arrays[name]), -1).view(np.uint8) for name in self._arrays]

    def cut(self, arrays: Arrays, draws: Sequence[Draw] | None) -> None:
        """Puts the parts of pictures and clips that are seen in place of whole ones.

        Args:
            arrays: of a batch.
            draws: of its first samples; None: nothing is left to chance.
        """
        for name, spec in self.whole.items():
            whole, sizes = arrays[name], arrays.pop(size_name(name)).tolist()
            shape = field_arrays(name, spec)[name].shape
            arrays[name] = np.zeros((len(whole), *shape), np.uint8)
            for row in np.flatnonzero(arrays[presence_name(name)]).tolist():
                draw = None if draws is None else draws[row]
                seen, out = whole[row], arrays[name][row]
                if isinstance(spec, VideoField):
                    length = int(arrays[length_name(name)][row])
                    seen, out = seen[:length], out[:length]
                cut_from_whole(seen, sizes[row], spec, out, name, draw)

    def mirror(self, arrays: Arrays, row: int, draw: Draw) -> None:
        """Mirrors the pictures of a row as the sample's draw wants it."""
        for name, spec in self._flipped.items():
            if arrays[presence_name(name)][row] and is_mirrored(name, spec, draw):
                mirror(arrays[name][row])
        for name, picture in self._masks.items():
            if arrays[presence_name(name)][row] and is_mirrored(picture, self._flipped[picture], draw):
                mirror(arrays[name][row][..., None])


class RowCache:
    """The decoded rows of some datasets. Several processes may use one folder.

    Args:
        config: where, and how much.
        datasets: all that share it in this training.
        preprocessor: of the training.
    """

    def __init__(self, config: DecodedCache, datasets: Sequence[Dataset], preprocessor: Preprocessor) -> None:
        self.layout = RowLayout(preprocessor)
        folder = local_path(config.folder)
        self._disk = CacheDisk(folder)
        share = kept_share(config, datasets, self.layout)
        self._slots: dict[str, Slots | None] = {}
        for name, num_samples in _named(datasets, self.layout).items():
            try:
                self._slots[name] = open_slots(
                    folder, name, self.layout.slot_bytes, int(share * num_samples), config.size
                )
            except OSError as error:
                self._disk.give_up(error)
                self._slots[name] = None

    def of(self, dataset: Dataset) -> DatasetRows:
        """The rows of one of the datasets."""
        starts = np.concatenate([[0], np.cumsum(dataset.shard_sizes)])
        return DatasetRows(self, self._slots[self.layout.name(dataset)], starts.tolist())

    def write(self, slots: Slots, number: int, row: Row) -> None:
        """Writes a slot, unless the disk has refused before: one that is full or broken must not stop the run."""
        if not self._disk.is_broken:
            try:
                slots.write(number, row)
            except OSError as error:
                self._disk.give_up(error)


@dataclass(frozen=True)
class DatasetRows:
    """The kept rows of one dataset.

    Attributes:
        cache: that they belong to.
        slots: where they lie; None: nowhere.
        starts: number of the first sample of each shard, then of all samples.
    """

    cache: RowCache
    slots: Slots | None
    starts: list[int]

    def prefetch(self, shard: int, row: int) -> bool:
        """Starts to read a sample and returns at once.

        Returns:
            Whether it was kept; reading it may still find it damaged.
        """
        number = self._number(shard, row)
        if self.slots is None or not self.slots.is_there(number):
            return False
        self.slots.prefetch(number)
        return True

    def read(self, views: Row, place: int, shard: int, row: int) -> str | None:
        """Fills a row of a batch.

        Args:
            views: of the batch, see ``RowLayout.views``.
            place: the row; it holds zeros, and does again if the sample is not there.
            shard: of the sample.
            row: of the shard.

        Returns:
            The sample's key, empty where it is not kept. None: the sample is not there.
        """
        if self.slots is None:
            return None
        key, number = np.empty(_KEY_BYTES, np.uint8), self._number(shard, row)
        if not self.slots.is_there(number):
            return None
        if self.slots.read(number, [*(view[place] for view in views), key]):
            return bytes(key[1 : 1 + int(key[0])]).decode()
        for view in views:
            view[place] = 0
        return None

    def write(self, views: Row, place: int, shard: int, row: int, sample_key: str) -> None:
        """Keeps a row of a batch; arguments as of ``read``."""
        if self.slots is None:
            return
        key, text = np.zeros(_KEY_BYTES, np.uint8), sample_key.encode()
        if len(text) < _KEY_BYTES:
            key[0] = len(text)
            key[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
        self.cache.write(self.slots, self._number(shard, row), [*(view[place] for view in views), key])

    def _number(self, shard: int, row: int) -> int:
        # The first slots are an even part of the samples, so that every batch has its share where not all are kept.
        total = self.starts[-1]
        return (self.starts[shard] + row) * _stride(total) % total


def kept_share(config: DecodedCache, datasets: Sequence[Dataset], layout: RowLayout) -> float:
    """The share of the samples that there is room for, the same for all datasets."""
    return min(1.0, config.size / max(1, _needed_bytes(datasets, layout)))


def cache_notices(config: DecodedCache, datasets: Sequence[Dataset], preprocessor: Preprocessor) -> Iterator[str]:
    """What a training's cache will not do."""
    layout = RowLayout(preprocessor)
    share, needed = kept_share(config, datasets, layout), _needed_bytes(datasets, layout)
    if share < 1:
        yield (
            f"data.cache.decoded.size: {size(config.size)} hold {share:.0%} of the decoded samples, which need {size(needed)}; "
            "the others are decoded in every epoch."
        )
    cropped = [name for name in layout.decoded_anew if name not in layout.masks_anew]
    if cropped:
        yield (
            f"data.cache.decoded: {', '.join(cropped)} with random_crop can't be kept and will be decoded in every "
            "epoch; the other fields are kept. They can be, with random_crop.whole_side."
        )
    if layout.masks_anew:
        yield (
            f"data.cache.decoded: {', '.join(layout.masks_anew)}, of target: mask and like a picture with random_crop, can't be "
            "kept and will be decoded in every epoch."
        )


def _needed_bytes(datasets: Sequence[Dataset], layout: RowLayout) -> int:
    return sum(_named(datasets, layout).values()) * (layout.slot_bytes + SUM_BYTES)


def _named(datasets: Sequence[Dataset], layout: RowLayout) -> dict[str, int]:
    """Name of slots → samples of their dataset; one that is both trained and validated on is there once."""
    return {layout.name(dataset): dataset.manifest.num_samples for dataset in datasets}


@lru_cache(maxsize=64)
def _stride(total: int) -> int:
    """A step that meets every number below ``total`` once, and after n steps has left no gap much wider than others."""
    stride = max(1, int(total * 0.6180339887498949))
    while math.gcd(stride, total) != 1:
        stride += 1
    return stride


@lru_cache(maxsize=1)
def _code() -> str:
    """A hash of the decoders and the versions of what they use."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(str(decode.__file__)).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for name in _DECODERS:
        try:
            digest.update(f"{name} {metadata.version(name)}\n".encode())
        except metadata.PackageNotFoundError:  # av is optional
            digest.update(f"{name} -\n".encode())
    return digest.hexdigest()
