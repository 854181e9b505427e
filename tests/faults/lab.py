"""What a fault is, and the place where it is tried: a small dataset, a job on it, and three ways to read it.

index      the tar is indexed
open       a dataset is opened, as every stage does first
reader     the planned batches are read in this process, as a read task does
feed       they are read through Ray by the splits of a feed, as train workers do, and written down in a ledger
training   a real training, through Ray Train
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.data.epochs import Epochs
from ray_mm.data.fields import POSITION, WEIGHT
from ray_mm.data.loader import LoadedBatch, Loader
from ray_mm.data.quarantine import list_quarantine
from ray_mm.data.reader import BatchReader
from ray_mm.data.samples import open_planned
from ray_mm.data.source import feed_dataset
from ray_mm.errors import RayMMError
from ray_mm.session import cause_of
from ray_mm.storage.cache import BlockCache
from ray_mm.training.feeding import plan_feed
from ray_mm.training.ledger import Entry, Ledger, audit, read_entries
from ray_mm.training.plan import Training
from ray_mm.training.state import attempt_starts
from ray_mm.training.train import plan_training, run_train
from tests.faults.samples import require_own
from tests.google_store import GoogleStore
from tests.object_store import Proxy

Way = Literal["index", "open", "reader", "feed", "training"]
NAMED = r"shards/\d{6}\.tar\[sample\d{6}\]"
"""A shard and a key, in an error."""


class Outcome(enum.Enum):
    """What may become of a fault; there is nothing else."""

    REFUSED = "refused by name when it is indexed"
    UNOPENED = "refused by name when the dataset is opened (exit 2)"
    STOPPED = "the run stops at once and names shard and key"
    QUARANTINED = "quarantined; planned = trained + quarantined"
    UNHARMED = "every planned sample is trained on"


@dataclass(frozen=True)
class Fault:
    """A fault: a row of the table, and how it is tried.

    Attributes:
        name: of its test.
        happens: what goes wrong, for people.
        outcomes: all that may come of it. What the lab has seen in the end must be these.
        more: what else there is to say; it follows the outcomes.
        ways: how it is tried.
        run: tries it.
    """

    name: str
    happens: str
    outcomes: tuple[Outcome, ...]
    ways: tuple[Way, ...]
    run: Callable[[Lab], None]
    more: str = ""


class Lab:
    """A folder, a bucket, and what was seen of one fault.

    Args:
        folder: an empty one.
        proxy: before an object store. Ray's processes are led to it, too.
        bucket: in the store.
        google: a store of Google's, and a proxy before it. Ray's processes are led to it, too.
    """

    def __init__(self, folder: Path, proxy: Proxy, bucket: str, google: tuple[GoogleStore, Proxy]) -> None:
        self.folder = folder
        self.proxy = proxy
        self.bucket = bucket
        self.google = google
        self.outcomes: set[Outcome] = set()
        self.ways: set[Way] = set()

    def plan(self, train: Any = None, **settings: Any) -> Training:
        """A training on datasets, planned but not begun.

        Args:
            train: as ``data.train`` of a job. None: the folder ``train``.
            settings: dotted keys of the job.
        """
        content: dict[str, Any] = {
            "kind": "train",
            "name": "faults",
            "data": {
                "train": train or str(self.folder / "train"),
                "batch_size": 8,
                "shuffle": {"chunk_samples": 4, "window_chunks": 3},
                "bad_samples": {"max_rate": 1.0},
                # All through Ray, unless a test wants it otherwise.
                "head_samples": 0,
            },
            "model": {
                "fields": {"image": {}, "vector": {}},
                "fusion": {"method": "gated", "dim": 8},
                "task": {"type": "regress", "label": "number"},
            },
            "train": {"epochs": 2, "log_every_steps": 1},
            "output": str(self.folder / "run"),
        }
        job = load_job(content, settings)
        assert isinstance(job, TrainJob)
        return plan_training(job)

    @contextmanager
    def refused(self, match: str) -> Iterator[None]:
        """What is indexed in the block must be refused with these words."""
        with pytest.raises(RayMMError, match=match):
            yield
        self.ways.add("index")
        self.outcomes.add(Outcome.REFUSED)

    @contextmanager
    def unopened(self, match: str) -> Iterator[None]:
        """What is opened in the block must be refused with these words, as a wrong input."""
        with pytest.raises(RayMMError, match=match) as caught:
            yield
        assert caught.value.exit_status == 2 and "\n" not in str(caught.value).strip()
        self.ways.add("open")
        self.outcomes.add(Outcome.UNOPENED)

    @contextmanager
    def stopped(self, match: str = "", named: str = NAMED) -> Iterator[None]:
        """What is read in the block must end with an error that names shard and key, and has these words."""
        with pytest.raises(Exception) as caught:
            yield
        cause = cause_of(caught.value)
        assert isinstance(cause, RayMMError), repr(caught.value)
        assert re.search(named, str(cause)) and re.search(match, str(cause)), str(cause)
        assert "\n" not in str(cause).strip(), "one paragraph"
        self.outcomes.add(Outcome.STOPPED)

    def read(self, training: Training, cache: BlockCache | None = None) -> list[str]:
        """Reads the batches of the first epoch in this process; the keys of the samples that were set aside."""
        self.ways.add("reader")
        feed = plan_feed(training, 1, 0)
        epochs = Epochs(open_planned(feed.train), feed.train, feed.shuffle)
        reader = BatchReader(epochs.datasets, feed.preprocessor, feed.quarantine, cache)
        aside: list[str] = []
        for start in range(0, training.schedule.train_samples, 8):
            stop = min(start + 8, training.schedule.train_samples)
            aside += require_own(*reader.read(epochs.places(start, stop), start, stop - start))
        return aside

    def feed(
        self,
        training: Training,
        *,
        world_size: int = 1,
        attempt: int = 1,
        first_item: int = 0,
        stop: int | None = None,
        on_batch: Callable[[LoadedBatch], None] = lambda batch: None,
        **settings: Any,
    ) -> Counter[str]:
        """Reads a training's batches through Ray, on all ranks at once, and writes the ledger as its workers do.

        Args:
            training: planned.
            world_size: number of ranks.
            attempt: number of this start.
            first_item: where it starts.
            stop: before which item it ends, as if it were killed there. None: it goes on to the end.
            on_batch: called with each batch.
            settings: of the feed.

        Returns:
            Key → how often it was met and not set aside.
        """
        self.ways.add("feed")
        feed = replace(plan_feed(training, world_size, first_item), **settings)
        splits = feed_dataset(feed).streaming_split(world_size, equal=False, locality_hints=None)
        trained: Counter[str] = Counter()

        def consume(rank: int) -> None:
            loader = Loader(splits[rank], feed, rank=rank, device=torch.device("cpu"), prefetch_batches=1)
            with closing(Ledger(training.run / "ledger", attempt, rank)) as ledger:
                for batch in loader:
                    arrays = {name: tensor.numpy() for name, tensor in batch.tensors.items()}
                    aside = set(require_own(arrays, batch.keys))
                    trained.update(key for key in batch.keys if key and key not in aside)
                    bad = arrays[POSITION][(arrays[POSITION] >= 0) & (arrays[WEIGHT] == 0)]
                    ledger.write(Entry(batch.item.number, batch.start, batch.stop, tuple(bad.tolist())))
                    on_batch(batch)
                    if batch.item.number + 1 == stop:
                        return

        with ThreadPoolExecutor(world_size) as ranks:
            list(ranks.map(consume, range(world_size)))
        return trained

    def train(self, training: Training) -> dict[str, Any]:
        """Trains; the result."""
        self.ways.add("training")
        return run_train(training.job)

    def require_exact(self, training: Training, bad: set[str], starts: dict[int, int] | None = None) -> None:
        """Proves from the ledger and the quarantine that planned = trained + quarantined, and that nothing but ``bad`` is.

        Args:
            training: that was read or trained.
            bad: keys of the samples that can't be read.
            starts: attempt → first item. None: as the run says.
        """
        audits = audit(training.run / "ledger", training.schedule, starts or attempt_starts(training.run))
        assert len(audits) == training.schedule.epochs
        assert all(epoch.exact for epoch in audits)
        kept = list_quarantine(training.quarantine)
        assert {one.error.key for one in kept} == bad
        feed = plan_feed(training, 1, 0)
        epochs = Epochs(open_planned(feed.train), feed.train, feed.shuffle)
        for number, epoch in enumerate(audits):
            (positions,) = epoch.quarantined.nonzero()
            for position in positions.tolist():
                places = epochs.places(position, position + 1, number)
                dataset, shard, row = (int(column[0]) for column in places)
                assert epochs.datasets[dataset].open_shard(shard)[0].keys[row] in bad
            assert bool(len(positions)) == bool(bad)
        self.outcomes.add(Outcome.QUARANTINED if bad else Outcome.UNHARMED)


def num_entries(training: Training) -> int:
    """Batches in the ledgers of a run."""
    return sum(1 for path in (training.run / "ledger").glob("*.jsonl") for _ in read_entries(path))


def planned_shards(training: Training) -> list[int]:
    """The shard of each sample of the first epoch, in the order of the plan."""
    feed = plan_feed(training, 1, 0)
    epochs = Epochs(open_planned(feed.train), feed.train, feed.shuffle)
    return epochs.places(0, training.schedule.train_samples).shards.tolist()  # type: ignore[no-any-return]
