"""Ranges of objects: exactly the bytes that were asked for, whatever the network does, or an error that says why not."""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.errors import ObjectChangedError, ObjectMissingError, StorageError
from ray_mm.storage.ranges import Arena, Range, RangeReader, ReadPolicy, read_many
from ray_mm.storage.remote import ObjectInfo, put_if_match, stat
from tests.object_store import Fault, Proxy, Request, delete_object, first_times, put_object

CONTENT = os.urandom(300_000)
QUICK = ReadPolicy(gap_bytes=1000, part_bytes=1 << 20, attempt_s=5.0, stall_s=0.3, give_up_s=30.0, backoff_s=0.01)
IMPATIENT = dataclasses.replace(QUICK, give_up_s=1.0)


@pytest.fixture
def shard(proxy: Proxy, bucket: str) -> str:
    """An object behind the proxy, which has seen no request yet."""
    put_object(proxy.endpoint, f"{bucket}/x.tar", CONTENT)
    proxy.requests.clear()
    return f"s3://{bucket}/x.tar"


def read(url: str, ranges: list[Range], policy: ReadPolicy = QUICK) -> list[bytes]:
    return [bytes(view) for view in RangeReader(stat(url), policy).read(ranges)]


def expected(ranges: list[Range]) -> list[bytes]:
    return [CONTENT[offset : offset + size] for offset, size in ranges]


RANGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 700)), max_size=12)


@given(ranges=RANGES, gap=st.sampled_from([0, 1, 64, 10_000]), part=st.sampled_from([1, 100, 4096]))
def test_any_ranges_of_a_file_are_its_bytes(ranges: list[Range], gap: int, part: int) -> None:
    source = Path(__file__)
    content = source.read_bytes()
    inside = [(min(offset, len(content) - 700), size) for offset, size in ranges]
    reader = RangeReader(stat(str(source)), ReadPolicy(gap_bytes=gap, part_bytes=part))
    assert [bytes(view) for view in reader.read(inside)] == [content[o : o + size] for o, size in inside]


def test_near_ranges_are_one_request_and_far_ones_are_not(proxy: Proxy, shard: str) -> None:
    ranges = [(5000, 10), (100, 50), (900, 200), (0, 0), (120, 10), (2000, 100)]
    assert read(shard, ranges) == expected(ranges)
    assert sorted(request.range for request in proxy.gets("x.tar") if request.range) == [(100, 2100), (5000, 5010)]


def test_a_long_range_is_read_in_parts_at_once(proxy: Proxy, shard: str) -> None:
    assert read(shard, [(7, 250_000)], dataclasses.replace(QUICK, part_bytes=100_000)) == expected([(7, 250_000)])
    assert sorted(request.range for request in proxy.gets("x.tar") if request.range) == [
        (7, 100_007),
        (100_007, 200_007),
        (200_007, 250_007),
    ]


def test_several_objects_are_read_at_once(proxy: Proxy, shard: str, bucket: str) -> None:
    put_object(proxy.endpoint, f"{bucket}/y.tar", CONTENT[::-1])
    readers = [RangeReader(stat(url), QUICK) for url in (shard, f"s3://{bucket}/y.tar")]
    found = read_many([(reader, [(10, 20), (250_000, 30)]) for reader in readers])
    assert [[bytes(view) for view in views] for views in found] == [
        [CONTENT[10:30], CONTENT[250_000:250_030]],
        [CONTENT[::-1][10:30], CONTENT[::-1][250_000:250_030]],
    ]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503),
        Fault("status", status=500),
        Fault("status", status=429),
        Fault("cut", at=0),
        Fault("cut", at=70_000),
        Fault("hang", at=0),
        Fault("hang", at=70_000),
        Fault("short", at=70_000),
        Fault("shifted"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status if fault.kind == 'status' else fault.at}",
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_fault_that_passes_costs_time_and_no_byte(proxy: Proxy, shard: str, fault: Fault, times: int) -> None:
    proxy.faults = first_times(times, fault)
    assert read(shard, [(1000, 280_000)]) == expected([(1000, 280_000)])
    assert len(proxy.gets("x.tar")) == times + 1


def test_a_body_that_is_cut_goes_on_at_the_byte_where_it_broke(proxy: Proxy, shard: str) -> None:
    proxy.faults = first_times(2, Fault("cut", at=65_536))
    assert read(shard, [(1000, 200_000)]) == expected([(1000, 200_000)])
    starts = [request.range[0] for request in proxy.gets("x.tar") if request.range]
    assert starts == [1000, 1000 + 65_536, 1000 + 2 * 65_536]


def test_a_request_that_takes_too_long_is_given_up_for_another(proxy: Proxy, shard: str) -> None:
    proxy.faults = first_times(1, Fault("hang", at=100))
    started = time.monotonic()
    assert read(shard, [(0, 1000)], dataclasses.replace(QUICK, attempt_s=0.4, stall_s=30)) == expected([(0, 1000)])
    assert 0.3 < time.monotonic() - started < 20


@pytest.mark.parametrize("fault", [Fault("status"), Fault("cut"), Fault("hang"), Fault("short"), Fault("shifted")])
def test_a_fault_that_stays_is_an_error_that_names_object_and_bytes(proxy: Proxy, shard: str, fault: Fault) -> None:
    reader = RangeReader(stat(shard), IMPATIENT)
    proxy.faults = lambda request: fault
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"x\.tar: bytes 1000 to 3000 could not be read in 1 s") as caught:
        reader.read([(1000, 2000)])
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_what_will_not_pass_is_not_tried_again(proxy: Proxy, shard: str) -> None:
    reader = RangeReader(stat(shard), QUICK)
    proxy.faults = lambda request: Fault("status", status=403)
    with pytest.raises(StorageError, match="refuses access"):
        reader.read([(1000, 2000)])
    assert len(proxy.gets("x.tar")) == 1


def test_an_object_that_was_replaced_is_not_mixed_with_the_one_before(proxy: Proxy, shard: str) -> None:
    info = stat(shard)
    reader = RangeReader(info, QUICK)
    reader.read([(0, 100)])
    put_if_match(shard, bytes(len(CONTENT)), info)
    with pytest.raises(ObjectChangedError, match=r"x\.tar: was replaced"):
        reader.read([(0, 100)])


def test_an_object_that_is_replaced_between_two_attempts_is_not_mixed_either(
    s3_endpoint: str, proxy: Proxy, shard: str
) -> None:
    info = stat(shard)
    cut = first_times(1, Fault("cut", at=70_000))

    def replace_after_the_cut(request: Request) -> Fault | None:
        if len(proxy.gets("x.tar")) == 2:
            put_object(s3_endpoint, shard.removeprefix("s3://"), bytes(len(CONTENT)))
        return cut(request)

    proxy.faults = replace_after_the_cut
    with pytest.raises(ObjectChangedError):
        RangeReader(info, QUICK).read([(0, 200_000)])


def test_an_object_that_is_gone_is_missing(proxy: Proxy, shard: str) -> None:
    reader = RangeReader(stat(shard), QUICK)
    delete_object(proxy.endpoint, shard.removeprefix("s3://"))
    with pytest.raises(ObjectMissingError, match=r"x\.tar"):
        reader.read([(0, 100)])


def test_without_a_version_the_size_is_still_checked(shard: str) -> None:
    assert bytes(RangeReader(ObjectInfo(shard, len(CONTENT), ""), QUICK).read([(5, 10)])[0]) == CONTENT[5:15]
    with pytest.raises(ObjectChangedError, match="299999 bytes"):
        RangeReader(ObjectInfo(shard, len(CONTENT) - 1, ""), QUICK).read([(5, 10)])


def test_a_web_server_is_read_as_well(proxy: Proxy, shard: str, bucket: str) -> None:
    url = f"{proxy.endpoint}/{bucket}/x.tar"
    proxy.faults = first_times(1, Fault("cut", at=70_000))
    assert read(url, [(1000, 200_000)]) == expected([(1000, 200_000)])


def test_a_file_that_was_changed_or_cut_in_its_place_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(CONTENT)
    reader = RangeReader(stat(str(path)))
    assert bytes(reader.read([(5, 10)])[0]) == CONTENT[5:15]
    os.utime(path, ns=(1, 1))
    with pytest.raises(ObjectChangedError, match="was replaced"):
        reader.read([(0, 10)])
    path.write_bytes(CONTENT[:100])
    with pytest.raises(ObjectChangedError, match="now has 100 bytes"):
        reader.read([(200, 10)])


def test_a_file_that_is_removed_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(CONTENT)
    info = stat(str(path))
    reader = RangeReader(info)
    path.unlink()
    assert bytes(reader.read([(5, 10)])[0]) == CONTENT[5:15]
    with pytest.raises(ObjectMissingError, match=r"x\.tar"):
        RangeReader(info)


def test_no_file_stays_open_for_longer_than_its_reader(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(CONTENT)
    before = len([*Path("/proc/self/fd").iterdir()])
    readers = [RangeReader(stat(str(tmp_path / "x.tar"))) for _ in range(10)]
    assert len([*Path("/proc/self/fd").iterdir()]) == before + 10
    readers.clear()
    gc.collect()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_an_arena_gives_memory_that_does_not_overlap_until_it_is_reset() -> None:
    arena = Arena(100)
    first, second, large = arena.take(60), arena.take(40), arena.take(1)
    first[:], second[:], large[:] = b"a" * 60, b"b" * 40, b"c"
    assert (bytes(first), bytes(second), bytes(large)) == (b"a" * 60, b"b" * 40, b"c")
    assert len(arena.take(1000)) == 1000
    arena.reset()
    arena.take(100)[:] = b"d" * 100
    assert bytes(first) == b"d" * 60 and bytes(large) == b"c"
