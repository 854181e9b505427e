"""Block of a remote shard → when the plan reads it next: what a cache should keep.

The order of a training is known to its end, so the cache can do what no rule of thumb can: let go of what is wanted last.
With half of the data in the cache it spares a third of the bytes over three epochs, where the least-recently-used rule
spares a fourteenth (``benchmarks/remote_cache.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from ray_mm.config.cache import RemoteCache
from ray_mm.data.epochs import Epochs
from ray_mm.data.manifest import Dataset
from ray_mm.errors import UsageError
from ray_mm.storage import is_remote
from ray_mm.storage.cache import BLOCK_BYTES, url_hash

if TYPE_CHECKING:
    from ray_mm.config.train import ShuffleConfig


class Foresight:
    """Answers a cache's question when it has to make room; see ``storage.cache.NextUse``.

    Args:
        train: shuffled.
        validation: read after every epoch; None: none.
    """

    def __init__(self, train: Epochs, validation: Epochs | None) -> None:
        self._train = train
        self._validation = validation
        self._drawn = lru_cache(maxsize=1)(train.drawn)
        self.now = 0, 0
        """Epoch, and position in its training, of what is read now."""

    def __call__(self, of_url: str, start: int) -> float | None:
        """Epochs from the start of the training until a block is read next. None: the plan does not know the object."""
        if of_url in self._validated:
            return self.now[0] + 1.0
        if of_url not in self._trained:
            return None
        dataset, shard = self._trained[of_url]
        size = self._train.datasets[dataset].shards[shard].tar_bytes
        share = start / size, (start + BLOCK_BYTES) / size
        return self._train.next_use(dataset, shard, share, self._drawn(*self.now))

    @cached_property
    def _trained(self) -> dict[str, tuple[int, int]]:
        return _by_url(self._train)

    @cached_property
    def _validated(self) -> dict[str, tuple[int, int]]:
        return {} if self._validation is None else _by_url(self._validation)


def check_cache(
    cache: RemoteCache, datasets: Sequence[Dataset], drawn: Sequence[Sequence[int]], shuffle: ShuffleConfig
) -> None:
    """Checks that a cache can hold what a training reads at random: of gzip files it keeps what they unpack to.

    Every stream that an epoch is mixed from, a dataset or its samples of one class, is read in a window of its own, and all of
    them at the same time.

    Args:
        cache: of the job.
        datasets: that are trained on.
        drawn: for each of them, the samples of each stream that is drawn from it.
        shuffle: of the job.

    Raises:
        UsageError: it is so small that blocks would go before they are read to their end.
    """
    window = shuffle.chunk_samples * shuffle.window_chunks
    wanted: dict[str, float] = defaultdict(float)
    total: dict[str, int] = {}
    for dataset, streams in zip(datasets, drawn, strict=True):
        remote = [shard for shard, place in zip(dataset.shards, _locations(dataset), strict=True) if is_remote(place)]
        # Two parts of a dataset are read from the same blocks.
        place, size = str(dataset.root), sum(shard.tar_bytes for shard in remote)
        total[place] = size
        # A stream's samples lie all over their dataset. Of one that lies here in part, only the rest goes into the cache.
        wanted[place] += size * sum(min(1.0, window / num_samples) for num_samples in streams if num_samples)
    needed = sum(min(size, wanted[place]) for place, size in total.items())
    if cache.size < needed:
        num_windows = sum(
            len(streams) for dataset, streams in zip(datasets, drawn, strict=True) if total[str(dataset.root)]
        )
        raise UsageError(
            f"data.cache.remote.size: {cache.size:,} bytes are less than what is read at the same time needs ({needed:,.0f} "
            f"bytes: {'a window' if num_windows == 1 else f'{num_windows} windows'} of the shuffle, "
            f"{shuffle.window_chunks} chunks of {shuffle.chunk_samples} samples{'' if num_windows == 1 else ' each'}), so blocks "
            "would be fetched again and again; give it twice that, or lower data.shuffle.window_chunks."
        )


def _locations(dataset: Dataset) -> Iterator[str]:
    return (dataset.location(shard) for shard in range(len(dataset.shards)))


def _by_url(epochs: Epochs) -> dict[str, tuple[int, int]]:
    """Hash of a shard's URL → number of its dataset, and of the shard."""
    return {
        url_hash(location): (number, shard)
        for number, dataset in enumerate(epochs.datasets)
        for shard, location in enumerate(_locations(dataset))
    }
