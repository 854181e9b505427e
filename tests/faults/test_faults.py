"""Every fault of the data plane is tried, and comes to what its row in ``docs/reliability.md`` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import shared_ray
from tests.faults.lab import Fault, Lab
from tests.faults.table import FAULTS, PAGE, page
from tests.google_store import GoogleStore, google_store
from tests.object_store import ENVIRONMENT, Proxy, faulty_proxy, make_bucket

# The loader silences this for its process; pytest takes that back for every test.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


@pytest.fixture(scope="module")
def google() -> Iterator[tuple[GoogleStore, Proxy]]:
    """A store of Google's that asks nobody who calls, and a proxy before it."""
    with google_store() as store, faulty_proxy(store.endpoint) as proxy:
        store.is_public = True
        yield store, proxy


@pytest.fixture(scope="module")
def store(s3_endpoint: str, google: tuple[GoogleStore, Proxy]) -> Iterator[Proxy]:
    """A proxy before the S3 server, and a Ray whose processes are led to it: they have the environment of its start."""
    import ray

    with faulty_proxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as environment:
        leads = {"AWS_ENDPOINT_URL": proxy.endpoint, "STORAGE_EMULATOR_HOST": google[1].endpoint}
        for name, value in {**ENVIRONMENT, **leads}.items():
            environment.setenv(name, value)
        had_ray = ray.is_initialized()
        shared_ray.start()
        yield proxy
        shared_ray.stop()
    if had_ray:
        shared_ray.start()  # with the environment of the tests that share it


@pytest.fixture
def lab(
    store: Proxy, google: tuple[GoogleStore, Proxy], s3_endpoint: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    """An empty place for one fault."""
    bucket = request.node.callspec.id
    make_bucket(s3_endpoint, bucket)
    yield Lab(tmp_path, store, bucket, google)
    store.faults = google[1].faults = lambda request: None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_comes_to_what_the_table_says(lab: Lab, fault: Fault) -> None:
    fault.run(lab)
    assert lab.outcomes == set(fault.outcomes)
    assert lab.ways == set(fault.ways)


def test_the_page_has_the_table_of_the_faults() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "write it with: python -m tests.faults.table"
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
