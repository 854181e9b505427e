"""Eight processes race for the lease and for promotion: one winner each time, and a stale holder never promotes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ray_mm.retraining.registry import Registry
from tests.object_store import Proxy
from tests.retraining.models import lineage, write_checkpoint

ROOT = Path(__file__).parents[2]
PROCESSES = 9
"""Eight race for the lease in each round, beside the one that had it in the round before."""


def race(root: str, checkpoint: Path, rounds: int) -> tuple[dict[str, Any], Registry]:
    registry = Registry(root, "driving")
    for number in range(2 * PROCESSES):
        registry.register(checkpoint, lineage(f"night-{number}"))
    command = [sys.executable, "-m", "tests.retraining.race", root, str(PROCESSES), str(rounds)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), registry


def require_one_winner_each(found: dict[str, Any], registry: Registry, rounds: int) -> None:
    assert found["exit_statuses"] == [0]
    # One holder in each round, and each number once.
    assert found["fences"] == list(range(1, rounds + 1))
    assert found["winners_per_round"] == [1] and found["rounds_with_a_winner"] == rounds
    assert set(found["stale"]) == {"refused"} and found["stale"]["refused"] >= rounds - 1
    # What the document remembers is a chain without a gap: everyone expected the champion that was.
    history = registry.history()
    assert len(history) == 2 * rounds and all(event.action == "promote" for event in history)
    assert [event.before for event in history] == [None, *(event.version for event in history[:-1])]
    fences = [event.fence for event in history if event.fence is not None]
    assert fences == list(range(1, rounds + 1))


def test_one_winner_each_time_in_a_folder(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    # Who is first is decided by locks and renaming; flushing to a disk a thousand times would only take long.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        found, registry = race(f"{folder}/registry", checkpoint, 200)
        require_one_winner_each(found, registry, 200)


@pytest.mark.usefixtures("bucket")
def test_one_winner_each_time_in_a_store(tmp_path: Path, bucket: str, proxy: Proxy) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    found, registry = race(f"s3://{bucket}/registry", checkpoint, 5)
    require_one_winner_each(found, registry, 5)
