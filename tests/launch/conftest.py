"""One real head for all tests of this folder, and how they speak to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launch.cluster import Head, ray_head


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head
