"""The machines of a Ray are shared out so that data can always be read, and no worker waits for what is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.config.base import Resources, TrainResources, WorkerRange
from ray_mm.errors import UsageError
from ray_mm.placement import (
    Node,
    _when_grown,
    bundles,
    crowding,
    divide,
    grows_within_s,
    object_store_bytes,
    place,
    room,
    use_share,
)

counts = st.integers(1, 64)
nodes_of_cpus = st.lists(st.integers(0, 64).map(Node), min_size=1, max_size=6)


@given(workers=counts, cpus=st.integers(2, 512))
def test_workers_always_leave_a_cpu_for_the_data(workers: int, cpus: int) -> None:
    placement = divide(Resources(workers=workers), [Node(cpus)])
    assert placement.data_cpus >= 1
    assert 0 < placement.cpus_per_worker <= 1
    assert placement.workers * placement.cpus_per_worker + placement.data_cpus == pytest.approx(cpus)
    if cpus > workers:
        assert placement.cpus_per_worker == 1


@given(workers=counts, nodes=nodes_of_cpus)
def test_a_number_of_workers_finds_room_wherever_two_cpus_lie_together(workers: int, nodes: list[Node]) -> None:
    if max(node.cpus for node in nodes) < 2:
        return
    placement = divide(Resources(workers=workers), nodes)
    assert placement.workers == workers <= room(nodes, placement.cpus_per_worker, 0)
    assert placement.data_cpus >= 1


@given(nodes=nodes_of_cpus, cpus=st.sampled_from([0.25, 0.5, 1.0, 3.0]))
def test_a_machine_more_is_room_for_as_many_workers_as_it_holds(nodes: list[Node], cpus: float) -> None:
    before = room(nodes, cpus, 0)
    if before:
        # The CPU for the data may move to where it costs less.
        assert before + 8 // cpus <= room([*nodes, Node(8)], cpus, 0) <= before + 8 // cpus + 1
    assert room(nodes, cpus, 1) == 0, "none has a GPU"


def test_on_two_cpus_two_workers_share_one() -> None:
    assert divide(Resources(workers=2), [Node(2)]).cpus_per_worker == 0.5


def test_on_two_machines_of_two_cpus_three_workers_have_one_each() -> None:
    assert divide(Resources(workers=3), [Node(2), Node(2)]).cpus_per_worker == 1
    four = divide(Resources(workers=4), [Node(2), Node(2)])
    # One machine holds three, beside the CPU for data one.
    assert four.cpus_per_worker == 0.666


def test_gpus_are_passed_on() -> None:
    placement = divide(Resources(workers=2, gpus_per_worker=0.5), [Node(8, 1)])
    assert (placement.workers, placement.gpus_per_worker) == (2, 0.5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Resources(workers=2, gpus_per_worker=1), r"2 worker\(s\) with 1 GPU\(s\) each need 2 and Ray has 1"),
        (
            TrainResources(workers=WorkerRange(min=2, max=9), gpus_per_worker=1),
            r"2 worker\(s\) with 1 GPU\(s\) each need 2 and Ray has 1",
        ),
        (
            Resources(workers=2, cpus_per_worker=2),
            r"2 worker\(s\) with 2 CPU\(s\) each leave 0 of Ray's 4 CPUs for reading data",
        ),
        (Resources(workers=1, cpus_per_worker=9), "leave 0 of Ray's 4 CPUs"),
    ],
)
def test_more_than_there_is_is_refused_with_the_numbers(asked: Resources, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        divide(asked, [Node(4, 1)])


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        (
            Resources(cpus_per_worker=3),
            [Node(2), Node(2), Node(2)],
            r"1 worker\(s\) with 3 CPU\(s\) each do not fit on Ray's nodes \(3 × 2 CPUs\): there is room for 0",
        ),
        (
            Resources(workers=2, cpus_per_worker=1, gpus_per_worker=1),
            [Node(8), Node(1, 2)],
            r"2 worker\(s\) with 1 CPU\(s\) and 1 GPU\(s\) each .* \(1 × 8 CPUs, 1 × 1 CPUs and 2 GPUs\): there is room for 1",
        ),
    ],
)
def test_what_does_not_fit_on_any_machine_is_refused_and_does_not_wait(
    asked: Resources, nodes: list[Node], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        divide(asked, nodes)


def test_a_cluster_of_one_cpu_is_refused_because_it_would_hang() -> None:
    with pytest.raises(UsageError, match="which needs one"):
        divide(Resources(), [Node(1)])


@pytest.mark.parametrize(
    ("nodes", "workers"),
    [([Node(2)], 1), ([Node(2), Node(2)], 3), ([Node(2), Node(2), Node(2)], 4), ([Node(64)], 4)],
)
def test_a_range_takes_as_many_workers_as_find_room_beside_the_data(nodes: list[Node], workers: int) -> None:
    placement = divide(TrainResources(workers=WorkerRange(min=1, max=4)), nodes)
    assert (placement.workers, placement.cpus_per_worker) == (workers, 1)
    assert (placement.fewest, placement.most) == (1, 4)
    assert placement.fits([Node(2)]) == 1 and placement.fits([]) == 0


def test_a_range_shares_cpus_where_its_fewest_workers_must() -> None:
    placement = divide(TrainResources(workers=WorkerRange(min=2, max=4)), [Node(2)])
    assert (placement.workers, placement.cpus_per_worker) == (2, 0.5)


def test_an_autoscaler_is_asked_for_the_fewest_workers_and_a_cpu_that_reads() -> None:
    asked = TrainResources(workers=WorkerRange(min=2, max=9), cpus_per_worker=4, gpus_per_worker=1)
    assert bundles(asked) == [{"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 1}]
    assert bundles(Resources()) == [{"CPU": 1}, {"CPU": 1}]


@pytest.mark.ray
def test_a_ray_that_does_not_grow_refuses_at_once_and_one_that_does_when_nothing_came(local_ray: None) -> None:
    asked = Resources(workers=2, cpus_per_worker=9)
    assert grows_within_s() == 0
    with pytest.raises(UsageError, match=r"lower resources\.workers or resources\.cpus_per_worker\.$"):
        place(asked)
    with pytest.raises(UsageError, match="No more machines came within 1 s"):
        _when_grown(asked, UsageError("too little"), 1)


@pytest.mark.ray
def test_the_cluster_that_runs_is_the_one_that_is_divided(local_ray: None) -> None:
    assert place(Resources(workers=2)).cpus_per_worker == 0.5


@pytest.mark.ray
def test_a_training_with_a_share_has_only_that_and_the_block_ends_it(local_ray: None) -> None:
    whole, store = place(Resources()), object_store_bytes()
    with use_share(0.75):
        part = place(Resources())
        assert object_store_bytes() == pytest.approx(0.75 * store)
    assert (part.workers, part.cpus_per_worker, part.share) == (1, 1, 0.75)
    assert place(Resources()) == whole and whole.share == 1


def test_a_share_is_of_what_is_left_for_data_and_the_fewest_workers_are_taken() -> None:
    nodes = [Node(16), Node(16)]
    alone = divide(TrainResources(workers=WorkerRange(min=2, max=8)), nodes)
    part = alone.within(0.25, 32)
    assert (part.workers, part.fewest, part.most, part.data_cpus) == (2, 2, 2, 6.0)
    # Torch's threads would take the whole machine otherwise.
    assert (part.threads, alone.threads) == (4, None)
    assert alone.within(0.01, 32).data_cpus == 1.0


def test_workers_that_crowd_the_cpus_are_told() -> None:
    many = divide(Resources(workers=8), [Node(2)])
    assert "8 workers share the 2 CPUs that Ray has" in (crowding(many, [Node(2)]) or "")
    assert (crowding(many, [Node(2)]) or "").endswith("set it to 1.")
    assert crowding(divide(Resources(workers=2), [Node(8)]), [Node(8)]) is None
