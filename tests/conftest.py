"""What several folders of tests share: one Ray for the whole run, the real archives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A private Ray with two CPUs, started once for all tests that ask for it."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of archives that ``RAY_MM_REAL_DATA`` or ``../shared/data`` names."""
    folder = Path(os.environ.get("RAY_MM_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is not there; name the folder of archives in RAY_MM_REAL_DATA")
    return folder
