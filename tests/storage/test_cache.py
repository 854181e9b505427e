"""Blocks of remote objects on a local disk: fetched once, shared, whole, within a quota, and never in the way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.storage import cache as cache_module
from ray_mm.storage.cache import BlockCache, url_hash
from ray_mm.storage.ranges import Range, RangeReader
from ray_mm.storage.remote import ObjectInfo, stat
from tests.object_store import Fault, Proxy, first_times, put_object

BLOCK = 10_000
CONTENT = os.urandom(10 * BLOCK + 123)
LAST = len(CONTENT) // BLOCK


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_mm.storage.cache.BLOCK_BYTES", BLOCK)


@pytest.fixture
def url(proxy: Proxy, bucket: str) -> str:
    """An object of ten blocks and a bit, behind the proxy."""
    put_object(proxy.endpoint, f"{bucket}/x.tar", CONTENT)
    proxy.requests.clear()
    return f"s3://{bucket}/x.tar"


def read(cache: BlockCache, url: str, *ranges: Range) -> list[bytes]:
    (found,) = cache.read_many([(RangeReader(stat(url)), ranges)])
    return [bytes(view) for view in found]


def expected(*ranges: Range) -> list[bytes]:
    return [CONTENT[offset : offset + size] for offset, size in ranges]


def blocks(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.rglob("*.block"))


def test_a_block_is_fetched_once(proxy: Proxy, url: str, tmp_path: Path) -> None:
    ranges = [
        (5, 10),
        (BLOCK - 5, 10),
        (3 * BLOCK, BLOCK),
        (0, 0),
        (len(CONTENT) - 3, 3),
        (2 * BLOCK - 1, 2 * BLOCK + 2),
    ]
    for _ in range(2):
        cache = BlockCache(tmp_path, 10**6)
        assert read(cache, url, *ranges) == expected(*ranges)
        assert blocks(tmp_path) == [0, 1, 2, 3, 4, LAST]
        assert len(proxy.gets("x.tar")) == 6
    assert read(cache, url, (7, 1)) == expected((7, 1))
    assert len(proxy.gets("x.tar")) == 6
    assert not list(tmp_path.rglob("*.part"))


def test_any_ranges_are_their_bytes_whatever_is_kept(url: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    cache = BlockCache(tmp_path, 4 * BLOCK)
    for _ in range(15):
        starts = draw.integers(0, len(CONTENT), 6).tolist()
        ranges = [(start, int(draw.integers(0, min(3 * BLOCK, len(CONTENT) - start) + 1))) for start in starts]
        assert read(cache, url, *ranges) == expected(*ranges)


def test_an_object_that_was_replaced_is_another_one(url: str, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10**6)
    read(cache, url, (0, 10))
    put_object(proxy.endpoint, f"{bucket}/x.tar", CONTENT[::-1])
    assert read(cache, url, (0, 10)) == [CONTENT[::-1][:10]]


def test_what_has_no_version_is_not_kept(url: str, tmp_path: Path) -> None:
    reader = RangeReader(ObjectInfo(url, len(CONTENT), ""))
    assert bytes(BlockCache(tmp_path, 10**6).read_many([(reader, [(5, 10)])])[0][0]) == CONTENT[5:15]
    assert blocks(tmp_path) == []


def test_a_damaged_block_is_fetched_again(url: str, proxy: Proxy, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10**6)
    read(cache, url, (0, 10))
    (block,) = tmp_path.rglob("*.block")
    os.truncate(block, 100)
    assert read(cache, url, (500, 10)) == expected((500, 10))
    assert block.stat().st_size == BLOCK and len(proxy.gets("x.tar")) == 2


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.block"))


def test_the_quota_holds_and_the_least_recently_used_goes(url: str, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 5 * BLOCK)
    for number in range(5):
        read(cache, url, (number * BLOCK, 1))
        age(tmp_path, number, 300 - number)
    read(cache, url, (0, 1))  # the oldest, which is used again
    read(cache, url, (7 * BLOCK, 1))
    assert size_of(tmp_path) <= 5 * BLOCK
    assert blocks(tmp_path) == [0, 3, 4, 7]


def age(folder: Path, number: int, seconds: float) -> None:
    (block,) = folder.rglob(f"{number}.block")
    os.utime(block, (time.time() - seconds,) * 2)


def test_what_the_plan_wants_last_goes_first(url: str, tmp_path: Path) -> None:
    wanted = {0: 10, 1: 900, 2: 20, 3: 30, 4: 800, 5: 40}

    def next_use(of_url: str, start: int) -> float | None:
        return wanted[start // BLOCK] if of_url == url_hash(url) else None

    cache = BlockCache(tmp_path, 5 * BLOCK, next_use)
    for number in range(6):
        read(cache, url, (number * BLOCK, 1))
    assert blocks(tmp_path) == [0, 2, 3, 5]


def test_what_another_run_left_long_ago_goes_before_anything_that_is_planned(
    url: str, bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    put_object(proxy.endpoint, f"{bucket}/old.tar", CONTENT)
    cache = BlockCache(tmp_path, 3 * BLOCK, lambda of_url, start: 1.0 if of_url == url_hash(url) else None)
    read(cache, f"s3://{bucket}/old.tar", (9 * BLOCK, 1))
    age(tmp_path, 9, 7200)
    for number in range(3):
        read(cache, url, (number * BLOCK, 1))
    assert 9 not in blocks(tmp_path)


READER = """
import sys
from pathlib import Path
from ray_mm.storage import cache
from ray_mm.storage.ranges import RangeReader
from ray_mm.storage.remote import stat
cache.BLOCK_BYTES = {block}
reader = RangeReader(stat(sys.argv[1]))
ranges = [(number * {block} + 7, 100) for number in range(11)]
found = cache.BlockCache(Path(sys.argv[2]), 10**6).read_many([(reader, ranges)])[0]
sys.stdout.buffer.write(b"".join(found))
"""


def start_reader(url: str, folder: Path, before: str = "") -> subprocess.Popen[bytes]:
    code = before + READER.format(block=BLOCK)
    return subprocess.Popen(
        [sys.executable, "-c", code, url, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


PATIENT = """
from dataclasses import replace
from ray_mm.storage import cache, ranges
ranges.REMOTE_POLICY = replace(ranges.REMOTE_POLICY, attempt_s=300.0, stall_s=300.0)
cache._WAIT_S = 300.0
"""
"""However slow the machine is, nothing is asked for twice because it took long."""


def test_processes_share_what_they_fetch(url: str, proxy: Proxy, tmp_path: Path) -> None:
    readers = [start_reader(url, tmp_path, PATIENT) for _ in range(3)]
    outputs = [reader.communicate(timeout=300) for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0, 0], outputs
    assert {output for output, _ in outputs} == {b"".join(expected(*((n * BLOCK + 7, 100) for n in range(11))))}
    assert len(proxy.gets("x.tar")) == 11
    assert int((tmp_path / "lock").read_text()) == size_of(tmp_path) == len(CONTENT)


def test_a_block_that_is_finished_while_another_process_counts_is_counted_once(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    fetch, remove, counting = RangeReader.fetch, cache_module._remove, threading.Event()

    def fetch_late(*arguments: Any) -> None:
        fetch(*arguments)
        assert counting.wait(60)

    def remove_late(path: Path) -> bool:
        counting.set()
        # It is finished now, unless it waits for whoever counts.
        fetching.join(0.5)
        return remove(path)

    monkeypatch.setattr(RangeReader, "fetch", fetch_late)
    monkeypatch.setattr(cache_module, "_remove", remove_late)
    cache = BlockCache(tmp_path, 10**6)
    fetching = threading.Thread(target=read, args=(cache, url, (5, 10)))
    fetching.start()
    wait_for(lambda: int((tmp_path / "lock").read_text()) == BLOCK)
    BlockCache(tmp_path, 10**6)
    fetching.join()
    assert blocks(tmp_path) == [0] and int((tmp_path / "lock").read_text()) == BLOCK


def test_a_block_that_is_begun_while_another_process_counts_is_counted_once(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, cache = cache_module._Part.allocate, BlockCache(tmp_path, 10**6)
    counting = threading.Thread(target=BlockCache, args=(tmp_path, 10**6))

    def allocate_and_wait(part: Any, size: int) -> None:
        allocate(part, size)
        counting.start()
        counting.join(0.5)

    monkeypatch.setattr(cache_module._Part, "allocate", allocate_and_wait)
    read(cache, url, (5, 10))
    counting.join()
    assert int((tmp_path / "lock").read_text()) == BLOCK


def test_a_process_that_is_killed_while_it_fetches_leaves_no_broken_block(
    url: str, proxy: Proxy, tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    proxy.faults = lambda request: Fault("hang", at=50) if request.method == "GET" else None
    with start_reader(url, tmp_path) as killed:
        wait_for(lambda: len(proxy.gets("x.tar")) == 11)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert len(list(tmp_path.rglob("*.part"))) == 11 and blocks(tmp_path) == []
    proxy.faults = lambda request: None
    ranges = [(number * BLOCK, 10) for number in range(11)]
    assert read(BlockCache(tmp_path, 10**6), url, *ranges) == expected(*ranges)
    assert len(blocks(tmp_path)) == 11 and not list(tmp_path.rglob("*.part"))
    assert int((tmp_path / "lock").read_text()) == len(CONTENT)


def test_a_process_that_does_not_finish_is_not_waited_for_long(
    url: str,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    monkeypatch.setattr("ray_mm.storage.cache._WAIT_S", 0.3)
    proxy.faults = first_times(11, Fault("hang"))
    with start_reader(url, tmp_path) as stuck:
        wait_for(lambda: len(proxy.gets("x.tar")) == 11)
        stuck.send_signal(signal.SIGSTOP)
        try:
            assert read(BlockCache(tmp_path, 10**6), url, (5, 10)) == expected((5, 10))
        finally:
            stuck.kill()
            stuck.communicate()


def test_a_full_disk_is_told_once_and_reading_goes_on(url: str, tmp_path: Path) -> None:
    # A limit on the size of a file is what a process can do to itself that a full disk does to it.
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({BLOCK // 2}, {BLOCK // 2}))\n"
    with start_reader(url, tmp_path, limit) as reader:
        output, errors = reader.communicate(timeout=300)
    assert output == b"".join(expected(*((n * BLOCK + 7, 100) for n in range(11))))
    assert reader.returncode == 0 and errors.decode().count("reading goes on without it") == 1
    # The last block is short enough for this disk, if it came first.
    assert not list(tmp_path.rglob("*.part")) and set(blocks(tmp_path)) <= {LAST}


def test_a_folder_that_cannot_be_made_is_told_and_reading_goes_on(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        cache = BlockCache(tmp_path / "file" / "cache", 10**6)
        assert read(cache, url, (5, 10)) == expected((5, 10))
        assert read(cache, url, (50, 10)) == expected((50, 10))
    assert [record.name for record in caplog.records if "without it" in record.message] == ["ray_mm.storage.disk"]


def test_an_error_of_the_store_leaves_nothing_behind(url: str, proxy: Proxy, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10**6)
    reader = RangeReader(replace(stat(url), version='etag:"another"'))
    with pytest.raises(Exception, match="was replaced"):
        cache.read_many([(reader, [(0, 10)])])
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".block")]
    assert int((tmp_path / "lock").read_text()) == 0
