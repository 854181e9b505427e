"""Every fault of a training is tried on two machines, and comes to what its row in ``docs/reliability.md`` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import FAULTS
from tests.cluster.lab import Calm, Fault, Lab
from tests.cluster.machines import Machines, machines
from tests.cluster.table import page
from tests.faults.table import PAGE

_TRIED = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def two_machines() -> Iterator[Machines]:
    with machines() as started:
        yield started


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    return Calm(tmp_path_factory.mktemp("calm"))


@pytest.fixture
def lab(two_machines: Machines, calm: Calm, tmp_path: Path) -> Iterator[Lab]:
    """An empty place for one fault."""
    two_machines.have_second()
    found = Lab(tmp_path, two_machines, calm)
    yield found
    found.close()


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name, marks=_TRIED) for fault in FAULTS])
def test_a_fault_comes_to_what_the_table_says(lab: Lab, fault: Fault) -> None:
    fault.run(lab)
    assert lab.outcomes == fault.outcomes


def test_the_page_has_the_table_of_the_faults() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "write it with: python -m tests.cluster.table"
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
