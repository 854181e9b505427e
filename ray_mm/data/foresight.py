"""Block of a remote shard → when the plan reads it next: what a cache should keep.

The order of a training is known to its end, so the cache can do what no rule of thumb can: let go of what is wanted last.
With half of the data in the cache a third of the bytes is not fetched again, where the least-recently-used rule spares
a tenth (``benchmarks/remote_cache.py``).
"""

from __future__ import annotations

from functools import cached_property, lru_cache

from ray_mm.data.epochs import Epochs
from ray_mm.storage.cache import BLOCK_BYTES, url_hash


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
        size = self._train.datasets[dataset].shards[shard].size_bytes
        share = start / size, (start + BLOCK_BYTES) / size
        return self._train.next_use(dataset, shard, share, self._drawn(*self.now))

    @cached_property
    def _trained(self) -> dict[str, tuple[int, int]]:
        return _by_url(self._train)

    @cached_property
    def _validated(self) -> dict[str, tuple[int, int]]:
        return {} if self._validation is None else _by_url(self._validation)


def _by_url(epochs: Epochs) -> dict[str, tuple[int, int]]:
    """Hash of a shard's URL → number of its dataset, and of the shard."""
    return {
        url_hash(dataset.location(shard)): (number, shard)
        for number, dataset in enumerate(epochs.datasets)
        for shard in range(len(dataset.shards))
    }
