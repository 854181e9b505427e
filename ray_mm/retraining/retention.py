"""What is removed of old nights: weights and evaluations. Notes, results, reports and the indexes of their data stay.

The registry has copies of its own of all versions, so no alias can lose its model by this.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

REMOVED = ("train", "evaluate", "compress")
"""Folders of a night that go."""
_TRAINED_ON = ("data", "packed", "window")
"""Folders of a night with what it trains on: indexes, tables as tars."""


def clear_old(nights: Sequence[Path], keep: int, spared: Collection[str]) -> list[str]:
    """Removes what is not kept of old nights.

    Args:
        nights: their folders, the oldest first.
        keep: the newest ones of which everything is kept, of those that have something to be removed.
        spared: names of others of which everything is kept.

    Returns:
        The nights of which something was removed.
    """
    heavy = [night for night in nights if any((night / name).is_dir() for name in REMOVED)]
    removed = []
    for night in heavy[:-keep]:
        if night.name not in spared:
            for name in REMOVED:
                shutil.rmtree(night / name, ignore_errors=True)
            removed.append(night.name)
    return removed


def clear_unused(night: Path) -> None:
    """Removes what nothing was trained on by: the next night looks at the same shards, and packs the same tables, itself.

    Args:
        night: folder of a night that did not move the watermark and won't.
    """
    for name in (*_TRAINED_ON, *REMOVED):
        shutil.rmtree(night / name, ignore_errors=True)
