"""What is removed of old nights: weights and evaluations. Notes, results, reports and the indexes of their data stay.

The registry has copies of its own of all versions, so no alias can lose its model by this.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

REMOVED = ("train", "evaluate", "compress")
"""Folders of a night that go."""


def clear_old(nights: Path, keep: int, spared: Collection[str]) -> list[str]:
    """Removes what is not kept of old nights.

    Args:
        nights: the folder of all of them; their names sort by time.
        keep: the newest ones of which everything is kept, of those that trained.
        spared: names of others of which everything is kept.

    Returns:
        The nights of which something was removed.
    """
    trained = sorted(
        (night for night in nights.iterdir() if any((night / name).is_dir() for name in REMOVED)),
        key=lambda night: (night / "night.json").stat().st_mtime,
    )
    removed = []
    for night in trained[:-keep]:
        if night.name in spared:
            continue
        for name in REMOVED:
            shutil.rmtree(night / name, ignore_errors=True)
        removed.append(night.name)
    return removed
