"""How much of Ray's object store the batches of a training may take: a share of it → limits for its read tasks.

Ray starts no read task and takes no block once an execution's blocks have reached its limit; they count until the workers have
let go of them. Past the limit goes only what the tasks that run already have left to yield: while a worker waits for a block of
one of them, Ray takes those of the others, too. So one half of the share is Ray's limit, and the tasks that run at once are so
few and so short that all they yield fits into the other half. What is no longer needed is deleted once a second, past any limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ray_mm.errors import UsageError
from ray_mm.figures import size

_BLOCKS_IN_A_TASK = 3
"""Of which Ray knows at first only that they will come: two that it has not taken, and one that is being made."""


@dataclass(frozen=True)
class StoreLimits:
    """What keeps the batches within their share.

    Attributes:
        ray_share: Ray's own limit, as a share of its object store.
        readers: read tasks that may run at once. None: as many as there are CPUs for.
        task_bytes: decoded, of one read task, at the most.
        block_bytes: of a block that carries several batches, at the most.
    """

    ray_share: float
    readers: int | None
    task_bytes: int
    block_bytes: int

    def within(self, share: float, readers: int) -> StoreLimits:
        """The same for a run that has only a share of Ray, and others beside it.

        Args:
            share: of Ray's object store that these limits were made for.
            readers: read tasks that it has CPUs for.
        """
        own = readers if self.readers is None else min(self.readers, readers)
        return replace(self, ray_share=self.ray_share * share, readers=max(1, own))


def limits_for(
    share: float,
    *,
    store_bytes: float,
    batch_bytes: int,
    block_bytes: int,
    world_size: int,
    prefetch_batches: int,
    readers: int,
) -> StoreLimits:
    """Divides a share of the object store between what waits and what is being read: smaller blocks before fewer readers.

    Args:
        share: of the object store, ``data.object_store``.
        store_bytes: of the object store, on all machines together.
        batch_bytes: of a rank's share of a batch, decoded: the smallest block.
        block_bytes: of a block, where there is room.
        world_size: number of ranks.
        prefetch_batches: that each rank fetches ahead, besides the one that it works on.
        readers: read tasks that there are CPUs for.

    Raises:
        UsageError: a block for every rank and one read task do not fit.
    """
    half = share * store_bytes / 2
    least = batch_bytes * (world_size * (1 + prefetch_batches) + _BLOCKS_IN_A_TASK)
    if half < least:
        needed = math.ceil(200 * least / max(1.0, store_bytes)) / 100
        raise UsageError(
            f"data.object_store: {share:g} of Ray's object store of {size(store_bytes)} is {size(share * store_bytes)}, and this "
            f"training needs {size(2 * least)}, a share of {needed:g}: every worker's batches, those of a read task, and as much "
            "again; "
            + ("raise it" if needed <= 1 else "give Ray a larger object store")
            + ", or lower data.batch_size or data.prefetch_batches."
        )
    # A rank works on one block while another comes, besides the batches that it wants ready.
    blocks = 2 * world_size + _BLOCKS_IN_A_TASK * max(1, readers)
    fitting = int((half - world_size * prefetch_batches * batch_bytes) // blocks)
    block = max(batch_bytes, min(block_bytes, fitting))
    fit = int(half // (_BLOCKS_IN_A_TASK * block))
    return StoreLimits(share / 2, fit if fit < readers else None, int(half // min(fit, max(1, readers))), block)
