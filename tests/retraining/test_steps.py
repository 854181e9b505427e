"""What a night's steps need is whole, wherever the command before was killed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from ray_mm.retraining.night import Facts, Night
from ray_mm.retraining.registry import Registry
from ray_mm.retraining.steps import Shared, Steps
from tests.retraining.lab import START, Crash, FakeClock, World
from tests.retraining.models import lineage, write_checkpoint


def test_the_champion_of_a_registry_in_a_store_lies_whole_beside_the_night(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_MM_REGISTRY_CACHE", str(tmp_path / "cache"))
    registry = Registry(f"s3://{bucket}/registry", "small")
    registry.promote(registry.register(write_checkpoint(tmp_path / "checkpoint"), lineage("first")), None)
    world = World(tmp_path)
    facts = Facts("small-1", None, START, 1, 1, 0, START)

    def champion() -> Any:
        night = Night(tmp_path / "night", facts, lambda point: None)
        shared = Shared(cast(Any, None), cast(Any, None), registry)
        return Steps(world.job(), night, [], shared, FakeClock(), None, contextlib.ExitStack())._champion

    def killed(source: Path, target: Path, **more: Any) -> None:
        shutil.copy(source / "model.json", target)
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("ray_mm.retraining.steps.shutil.copytree", killed)
        champion()
    copy = champion()
    assert copy == tmp_path / "night" / "evaluate" / "champion" and champion() == copy
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert {path.name for path in copy.iterdir()} == names and len(names) > 2
    assert list(copy.parent.iterdir()) == [copy] and copy.stat().st_mode & 0o777 == 0o755
