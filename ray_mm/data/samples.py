"""What the epochs of a job are drawn from: datasets, parts of them, and their classes, each a stream with its quota."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField
from ray_mm.config.source import Balance, Source, TrainSource, train_keys
from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.mixture import Stream, quotas
from ray_mm.data.order import Indices, stable_hash
from ray_mm.data.part import require_balanced
from ray_mm.data.selection import Selection, over_shards, per_shard, select
from ray_mm.errors import DatasetError

_Drawn = tuple[int, tuple[str, int] | None, Indices]
"""Selection, class label and class (None: all classes), samples of it in each shard."""


@dataclass(frozen=True)
class Samples:
    """The samples that a job reads: what each stream of their mixture draws from. Small: it travels to every read task.

    Attributes:
        selections: in the order of the job.
        streams: with their quotas of an epoch; the source of each is the number of a selection.
    """

    selections: tuple[Selection, ...]
    streams: tuple[Stream, ...]

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch."""
        return sum(stream.quota for stream in self.streams)

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample has in its tar, on average; of the dataset where that is the most."""
        return max(selection.sample_bytes for selection in self.selections)

    @property
    def digest(self) -> str:
        """Of all that decides which samples an epoch has."""
        streams = [(stream.source, stream.name, stream.quota) for stream in self.streams]
        return f"{stable_hash(*(selection.name for selection in self.selections), *streams):032x}"

    @property
    def stream_sizes(self) -> list[list[int]]:
        """For each selection, the samples of each stream that is drawn from it."""
        return [
            [int(stream.shard_sizes.sum()) for stream in self.streams if stream.source == number and stream.quota]
            for number in range(len(self.selections))
        ]

    def is_whole(self, stream: int) -> bool:
        """Whether a stream draws from every sample of its dataset."""
        drawn = self.streams[stream]
        return drawn.label is None and self.selections[drawn.source].is_whole

    def rows(self, dataset: Dataset, stream: int, shard: int, index: ShardIndex) -> Indices:
        """The rows of a shard that a stream draws from, int64 [n], ascending."""
        drawn = self.streams[stream]
        rows = self.selections[drawn.source].rows(dataset, shard, index)
        return rows if drawn.label is None else rows[index.labels[drawn.label[0]][rows] == drawn.label[1]]


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
        source = Source(path=str(dataset.root))
        selection = Selection(source, dataset.manifest.digest, {}, dataset.shard_sizes, dataset.sample_bytes)
    return Samples((selection,), (Stream(0, None, selection.shard_sizes, selection.num_samples),))


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
    keys = train_keys(sources)
    datasets = [open_dataset(source.path) for source in sources]
    selections = tuple(select(*each) for each in zip(sources, datasets, keys, strict=True))
    total = epoch_samples or sum(selection.num_samples for selection in selections)
    weights = [source.weight for source in sources]
    if balance is None:
        shares = [_share(weight, selection.num_samples) for weight, selection in zip(weights, selections, strict=True)]
        drawn: list[_Drawn] = [(number, None, selection.shard_sizes) for number, selection in enumerate(selections)]
    else:
        drawn, shares = _by_class(datasets, selections, weights, balance, keys)
    streams = tuple(Stream(*each, quota) for each, quota in zip(drawn, quotas(shares, total), strict=True))
    return datasets, Samples(selections, streams)


def _by_class(
    datasets: Sequence[Dataset],
    selections: Sequence[Selection],
    weights: Sequence[float | None],
    balance: Balance,
    keys: Sequence[str],
) -> tuple[list[_Drawn], list[float]]:
    """What the streams of a balanced training draw from, and their shares."""
    drawn: list[_Drawn] = []
    for number, (dataset, selection, key) in enumerate(zip(datasets, selections, keys, strict=True)):
        spec = require_balanced(balance.label, dataset.root, dataset.manifest.fields, key)
        counts = _class_counts(dataset, selection, balance.label, len(spec.classes or ()))
        for label in np.flatnonzero(counts.sum(axis=0)):
            drawn.append((number, (balance.label, int(label)), np.ascontiguousarray(counts[:, label])))
    if not drawn:
        raise DatasetError(f"data.balance.label: no selected sample has the label {balance.label!r}.")
    found = np.array([sizes.sum() for _, _, sizes in drawn], np.float64)
    source = np.array([number for number, _, _ in drawn])
    classes = np.array([label[1] if label is not None else -1 for _, label, _ in drawn])
    if all(weight is None for weight in weights):
        # The classes of all datasets together, each spread over the datasets as it lies in them.
        of_class = np.array([found[classes == one].sum() for one in classes])
        return drawn, list(of_class**balance.power * found / of_class)
    shares = found**balance.power
    for number, weight in enumerate(weights):
        picked = source == number
        shares[picked] *= _share(weight, selections[number].num_samples) / max(shares[picked].sum(), 1e-300)
    return drawn, list(shares)


def _class_counts(dataset: Dataset, selection: Selection, label: str, num_classes: int) -> Indices:
    """Selected samples of each class in each shard, int64 [num_shards, classes]."""

    def count(shard: int, index: ShardIndex) -> Indices:
        return _bincount(index, label, selection.rows(dataset, shard, index), num_classes)

    return per_shard(dataset, count)


def class_counts(datasets: Sequence[Dataset], samples: Samples, label: str) -> npt.NDArray[np.float64]:
    """How many samples of each class an epoch draws: exactly, or on average where it draws another number than there are.

    Args:
        datasets: of the plan; the label has the same classes in all of them.
        samples: the plan.
        label: a class label.

    Returns:
        float64 [classes]; samples without the label count nowhere.

    Raises:
        DatasetError: no sample of the plan has the label.
    """
    spec = require_balanced(label, datasets[0].root, datasets[0].manifest.fields, "data.train")
    classes = spec.classes or ()
    counts = np.zeros(len(classes), np.float64)
    for number, dataset in enumerate(datasets):
        streams = [place for place, stream in enumerate(samples.streams) if stream.source == number and stream.quota]
        known = dataset.manifest.label_counts.get(label)
        unknown = []
        for place in streams:
            stream = samples.streams[place]
            if stream.label is not None and stream.label[0] == label:
                counts[stream.label[1]] += stream.quota
            elif known is not None and samples.is_whole(place):
                found = np.array([known.get(name, 0) for name in classes], np.float64)
                counts += found * (stream.quota / stream.shard_sizes.sum())
            else:
                unknown.append(place)
        if unknown:
            # [streams, classes]
            drawn_from = over_shards(
                dataset, partial(_counts_of_streams, dataset, samples, unknown, label, len(classes))
            )
            for place, found in zip(unknown, drawn_from, strict=True):
                counts += found * (samples.streams[place].quota / samples.streams[place].shard_sizes.sum())
    if not counts.any():
        raise DatasetError(f"data.train: no selected sample has the label {label!r}.")
    return counts


def class_shares(datasets: Sequence[Dataset], samples: Samples, label: str) -> npt.NDArray[np.float64]:
    """Which share of the labelled samples of an epoch has each class of a label with any number of them: float64 [classes].

    Told by the datasets as a whole: of a part of one (``require``, ``where``, ``balance``) nothing else is known without its
    members.

    Args:
        datasets: of the plan; the label has the same classes in all of them.
        samples: the plan.
        label: of ``target: classes``.

    Raises:
        DatasetError: no sample has one of the classes.
    """
    spec = datasets[0].manifest.fields[label]
    classes = spec.classes or () if isinstance(spec, LabelField) else ()
    having, labelled = np.zeros(len(classes), np.float64), 0.0
    for number, dataset in enumerate(datasets):
        manifest = dataset.manifest
        drawn = sum(stream.quota for stream in samples.streams if stream.source == number) / max(
            manifest.num_samples, 1
        )
        counts = manifest.label_counts.get(label, {})
        having += drawn * np.array([counts.get(name, 0) for name in classes], np.float64)
        labelled += drawn * manifest.presence.get(label, 0)
    if not having.any():
        raise DatasetError(f"data.train: no sample has one of the classes of {label!r}.")
    return having / labelled


def _counts_of_streams(
    dataset: Dataset,
    samples: Samples,
    streams: Sequence[int],
    label: str,
    num_classes: int,
    shard: int,
    index: ShardIndex,
) -> Indices:
    """Samples of each class in a shard that streams draw from, int64 [streams, classes]."""
    rows = (samples.rows(dataset, stream, shard, index) for stream in streams)
    return np.stack([_bincount(index, label, of_stream, num_classes) for of_stream in rows])


def _bincount(index: ShardIndex, label: str, rows: Indices, num_classes: int) -> Indices:
    values = index.labels[label][rows]
    return np.bincount(values[values >= 0].astype(np.int64), minlength=num_classes)


def _share(weight: float | None, num_samples: int) -> float:
    return float(num_samples) if weight is None else weight
