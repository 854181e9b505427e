"""What the epochs of a job are drawn from: datasets, parts of them, and their classes, each a stream with its quota."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_mm.config.fields import LabelField
from ray_mm.config.source import Balance, Source, TrainSource
from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.mixture import Stream, quotas
from ray_mm.data.order import Indices, stable_hash
from ray_mm.data.selection import Selection, per_shard, select
from ray_mm.errors import DatasetError


@dataclass(frozen=True)
class Part:
    """What one stream draws from: a selection, or its samples of one class.

    Attributes:
        selection: number of it.
        label: class label and class; None: all of the selection.
    """

    selection: int
    label: tuple[str, int] | None


@dataclass(frozen=True)
class Samples:
    """The samples that a job reads: what each stream of their mixture draws from. Small: it travels to every read task.

    Attributes:
        selections: in the order of the job.
        parts: of each stream.
        streams: with their quotas of an epoch.
    """

    selections: tuple[Selection, ...]
    parts: tuple[Part, ...]
    streams: tuple[Stream, ...]

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch."""
        return sum(stream.quota for stream in self.streams)

    @property
    def digest(self) -> str:
        """Of all that decides which samples an epoch has."""
        streams = [(stream.source, stream.name, stream.quota) for stream in self.streams]
        return f"{stable_hash(*(selection.name for selection in self.selections), *streams):032x}"

    def is_whole(self, stream: int) -> bool:
        """Whether a stream draws from every sample of its dataset."""
        part = self.parts[stream]
        return part.label is None and self.selections[part.selection].is_whole

    def rows(self, dataset: Dataset, stream: int, shard: int, index: ShardIndex) -> Indices:
        """The rows of a shard that a stream draws from, int64 [n], ascending."""
        part = self.parts[stream]
        rows = self.selections[part.selection].rows(dataset, shard, index)
        return rows if part.label is None else rows[index.labels[part.label[0]][rows] == part.label[1]]


def select_all(source: Source, key: str) -> tuple[Dataset, Samples]:
    """Opens a dataset whose samples are read once, one after the other.

    Args:
        source: the dataset, or the part of it that is wanted.
        key: of the job file, for messages.

    Raises:
        DatasetError: it is missing or damaged, or does not have what is asked of it.
    """
    dataset = open_dataset(source.path)
    return dataset, all_of(dataset, select(source, dataset, key))


def all_of(dataset: Dataset, selection: Selection | None = None) -> Samples:
    """Every sample of a selection once. None: of the whole dataset."""
    if selection is None:
        selection = Selection(Source(path=str(dataset.root)), dataset.manifest.digest, {}, dataset.shard_sizes)
    stream = Stream(0, "", selection.shard_sizes, selection.num_samples)
    return Samples((selection,), (Part(0, None),), (stream,))


def open_planned(samples: Samples) -> list[Dataset]:
    """The datasets of a plan, opened again where they are read.

    Raises:
        DatasetError: one is gone, or was made anew since it was planned.
    """
    datasets = []
    for selection in samples.selections:
        dataset = open_dataset(selection.source.path)
        if dataset.manifest.digest != selection.digest:
            raise DatasetError(
                f"{dataset.root}: was made anew while it was being read. Start again with another output; and make new "
                "datasets in folders of their own."
            )
        datasets.append(dataset)
    return datasets


def plan_samples(
    sources: Sequence[TrainSource], balance: Balance | None, epoch_samples: int | None
) -> tuple[list[Dataset], Samples]:
    """Opens the datasets of a training and decides how much of each an epoch has.

    Raises:
        DatasetError: a dataset is missing or damaged, or does not have what is asked of it.
    """
    keys = ["data.train" if len(sources) == 1 else f"data.train.{number}" for number in range(len(sources))]
    datasets = [open_dataset(source.path) for source in sources]
    selections = tuple(select(*each) for each in zip(sources, datasets, keys, strict=True))
    total = epoch_samples or sum(selection.num_samples for selection in selections)
    weights = [source.weight for source in sources]
    if balance is None:
        shares = [_share(weight, selection.num_samples) for weight, selection in zip(weights, selections, strict=True)]
        parts = tuple(Part(number, None) for number in range(len(sources)))
        sizes = [selection.shard_sizes for selection in selections]
    else:
        parts, sizes, shares = _by_class(datasets, selections, weights, balance, keys)
    streams = tuple(
        Stream(part.selection, "" if part.label is None else f"{part.label[0]}={part.label[1]}", of_shard, quota)
        for part, of_shard, quota in zip(parts, sizes, quotas(shares, total), strict=True)
    )
    return datasets, Samples(selections, parts, streams)


def _by_class(
    datasets: Sequence[Dataset],
    selections: Sequence[Selection],
    weights: Sequence[float | None],
    balance: Balance,
    keys: Sequence[str],
) -> tuple[tuple[Part, ...], list[Indices], list[float]]:
    """The streams of a balanced training: parts, samples per shard, and shares."""
    parts, sizes = [], []
    for number, (dataset, selection, key) in enumerate(zip(datasets, selections, keys, strict=True)):
        spec = dataset.manifest.fields.get(balance.label)
        if not isinstance(spec, LabelField) or spec.classes is None:
            raise DatasetError(
                f"data.balance.label: {balance.label!r} is not a class label of {key} ({dataset.root}); give one that all "
                "training datasets have."
            )
        counts = _class_counts(dataset, selection, balance.label, len(spec.classes))
        for label in np.flatnonzero(counts.sum(axis=0)):
            parts.append(Part(number, (balance.label, int(label))))
            sizes.append(np.ascontiguousarray(counts[:, label]))
    if not parts:
        raise DatasetError(f"data.balance.label: no selected sample has the label {balance.label!r}.")
    found = np.array([size.sum() for size in sizes], np.float64)
    source = np.array([part.selection for part in parts])
    classes = np.array([part.label[1] if part.label is not None else -1 for part in parts])
    if all(weight is None for weight in weights):
        # The classes of all datasets together, each spread over the datasets as it lies in them.
        of_class = np.array([found[classes == one].sum() for one in classes])
        return tuple(parts), sizes, list(of_class**balance.power * found / of_class)
    shares = found**balance.power
    for number, weight in enumerate(weights):
        picked = source == number
        shares[picked] *= _share(weight, selections[number].num_samples) / max(shares[picked].sum(), 1e-300)
    return tuple(parts), sizes, list(shares)


def _class_counts(dataset: Dataset, selection: Selection, label: str, num_classes: int) -> Indices:
    """Selected samples of each class in each shard, int64 [num_shards, classes]."""

    def count(shard: int, index: ShardIndex) -> Indices:
        values = index.labels[label][selection.rows(dataset, shard, index)]
        return np.bincount(values[values >= 0].astype(np.int64), minlength=num_classes)

    return per_shard(dataset, count)


def _share(weight: float | None, num_samples: int) -> float:
    return float(num_samples) if weight is None else weight
