"""Which samples of a dataset take part: decided from its index alone, without opening a shard.

    all samples of a shard → those with the required fields and classes → a fixed part of them → (those of one class)

What a training holds of a selection is a number per shard. Which rows these are is found again from the shard's index when
the shard is read, so a selection of a billion samples is no larger than one of a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ray_mm.config.fields import LabelField
from ray_mm.config.source import Balance, Source, TrainSource
from ray_mm.data.index import ShardIndex
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.data.mixture import Stream, quotas
from ray_mm.data.order import Indices, permutation, stable_hash
from ray_mm.errors import DatasetError

_THREADS = 8


@dataclass(frozen=True)
class Selection:
    """Some samples of one dataset.

    Attributes:
        source: as the job says it.
        digest: of the dataset.
        classes: class label → the numbers of the classes that are read.
        shard_sizes: samples of each shard that take part, int64 [num_shards].
    """

    source: Source
    digest: str
    classes: dict[str, tuple[int, ...]]
    shard_sizes: Indices = field(repr=False)

    @property
    def num_samples(self) -> int:
        """Samples that take part."""
        return int(self.shard_sizes.sum())

    @property
    def is_whole(self) -> bool:
        """Whether every sample takes part."""
        return not self._filters and self.source.fraction is None and self.source.limit is None

    @property
    def name(self) -> str:
        """The dataset's digest and what is selected, for a digest of it all."""
        if self.is_whole:
            return self.digest
        told = [*sorted(self.source.require), *sorted(self.classes.items()), self.source.fraction, self.source.limit]
        return f"{self.digest}/{stable_hash(*told):032x}"

    def rows(self, dataset: Dataset, shard: int, index: ShardIndex) -> Indices:
        """The rows of a shard that take part, int64 [shard_sizes[shard]], ascending."""
        found = matching_rows(dataset, index, self.source.require, self.classes)
        kept = int(self.shard_sizes[shard])
        if kept == len(found):
            return found
        return np.sort(found[permutation(len(found), self.digest, "part", shard)[:kept]])

    @property
    def description(self) -> str:
        """What is selected, for people; empty: everything."""
        told = [f"with {' and '.join(self.source.require)}"] if self.source.require else []
        told += [f"{label} is {' or '.join(names)}" for label, names in self.source.where.items()]
        if self.source.fraction is not None:
            told.append(f"{self.source.fraction:.3g} of the samples")
        if self.source.limit is not None:
            told.append(f"at most {self.source.limit:,} samples")
        return ", ".join(told)

    @property
    def _filters(self) -> bool:
        return bool(self.source.require or self.classes)


def select(source: Source, dataset: Dataset, key: str) -> Selection:
    """Counts what a job wants of a dataset.

    Args:
        source: what it wants.
        dataset: opened.
        key: of the job file, for messages.

    Raises:
        DatasetError: a field or a class that the dataset does not have, or nothing is left.
    """
    fields = dataset.manifest.fields
    for name in source.require:
        if name not in fields:
            raise DatasetError(
                f"{key}.require: {dataset.root} has no field {name!r}; it has {', '.join(sorted(fields))}."
            )
    classes = {name: _class_numbers(name, names, dataset, key) for name, names in source.where.items()}
    sizes = dataset.shard_sizes
    if source.require or classes:
        sizes = _per_shard(dataset, lambda _, index: len(matching_rows(dataset, index, source.require, classes)))
    sizes = _part(sizes, source)
    if not sizes.sum():
        raise DatasetError(f"{key}: nothing of {dataset.root} is left by require, where, fraction and limit.")
    return Selection(source, dataset.manifest.digest, classes, sizes)


def matching_rows(
    dataset: Dataset, index: ShardIndex, require: Sequence[str], classes: dict[str, tuple[int, ...]]
) -> Indices:
    """Rows of a shard with all of the fields and one of the classes of every label, int64 [rows], ascending."""
    wanted: npt.NDArray[np.bool_] = np.ones(len(index), np.bool_)
    for name in require:
        wanted &= present(dataset, index, name)
    for name, numbers in classes.items():
        wanted &= np.isin(index.labels[name], numbers)
    return np.flatnonzero(wanted)


def present(dataset: Dataset, index: ShardIndex, name: str) -> npt.NDArray[np.bool_]:
    """Which samples of a shard have a field, bool [num_samples]; an empty member is none."""
    there: npt.NDArray[np.bool_] = np.zeros(len(index), np.bool_)
    for suffix in dataset.manifest.members[name]:
        if suffix in index.sizes:
            there |= index.sizes[suffix] > 0
    return there


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

    return _per_shard(dataset, count)


def _per_shard(dataset: Dataset, found: Callable[[int, ShardIndex], Indices | int]) -> Indices:
    """A figure of every shard, from its index; int64 [num_shards, …]. Reading Parquet lets go of the interpreter."""
    with ThreadPoolExecutor(_THREADS) as threads:
        numbers = range(len(dataset.shards))
        return np.array(list(threads.map(lambda shard: found(shard, dataset.read_index(shard)), numbers)), np.int64)


def _part(sizes: Indices, source: Source) -> Indices:
    """What fraction or limit leave of each shard: as evenly as whole numbers can, and exactly so many in all."""
    total = int(sizes.sum())
    if source.fraction is not None:
        kept = max(1, round(total * source.fraction)) if total else 0
    elif source.limit is not None:
        kept = min(source.limit, total)
    else:
        return sizes
    ends = np.array([int(end) * kept // max(total, 1) for end in np.cumsum(sizes)], np.int64)
    return np.diff(ends, prepend=0)


def _class_numbers(name: str, names: Sequence[str], dataset: Dataset, key: str) -> tuple[int, ...]:
    spec = dataset.manifest.fields.get(name)
    if not isinstance(spec, LabelField) or spec.classes is None:
        labels = [
            one for one, found in dataset.manifest.fields.items() if isinstance(found, LabelField) and found.classes
        ]
        raise DatasetError(
            f"{key}.where: {name!r} is not a class label of {dataset.root}; its class labels are {', '.join(labels) or 'none'}."
        )
    unknown = [one for one in names if one not in spec.classes]
    if unknown or not names:
        found = f"has no class {unknown[0]!r}" if unknown else "is given no class"
        raise DatasetError(f"{key}.where.{name}: {found}; the classes of {dataset.root} are {', '.join(spec.classes)}.")
    return tuple(sorted(spec.classes.index(one) for one in names))


def _share(weight: float | None, num_samples: int) -> float:
    return float(num_samples) if weight is None else weight
