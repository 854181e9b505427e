"""Ranged reads of members from an S3 server on loopback: which library, how long a request, how large a gap.

    pip install s3fs
    python benchmarks/storage.py

A server in a process of its own answers every request after a set time (first byte: 0 ms, as on loopback; 20 ms, as in a
data centre) and knows just what reading needs: HEAD, GET, Range, If-Match, ETag. Each way reads the same batches of 64
samples (a picture of 180 kB and a label) from four shards. All ways take turns in one run; the figures are medians of the
rounds: samples per second, and CPU seconds of this process per 1,000 samples. A way whose library is missing is left out.
First comes a file on this machine, mapped and read.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ray_mm.storage.ranges import CONCURRENCY, REMOTE_POLICY, RangeReader, read_many
from ray_mm.storage.remote import stat

SHARDS, SAMPLES, PICTURE, LABEL, HEADER = 4, 256, 180_000, 1_000, 512
SAMPLE_BYTES = PICTURE + LABEL + 2 * HEADER
BATCH, BATCHES = 64, 8
Batch = list[tuple[int, int]]
"""(shard, sample) of each."""
Way = Callable[[Batch], int]
"""Reads a batch and returns the number of bytes."""


def members(sample: int) -> list[tuple[int, int]]:
    """Offset and size of a sample's members."""
    start = sample * SAMPLE_BYTES + HEADER
    return [(start, PICTURE), (start + PICTURE + HEADER, LABEL)]


def ranges_by_shard(batch: Batch) -> dict[int, list[tuple[int, int]]]:
    """Shard → the ranges that a batch wants of it."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    for shard, sample in batch:
        wanted.setdefault(shard, []).extend(members(sample))
    return wanted


def ours(gap_bytes: int) -> Way:
    """``ray_mm.storage.ranges``: obstore for single requests; joining, threads, retries and checks are ours."""
    policy = replace(REMOTE_POLICY, gap_bytes=gap_bytes)
    readers = [RangeReader(stat(f"s3://bench/{shard}.tar"), policy) for shard in range(SHARDS)]

    def read(batch: Batch) -> int:
        found = read_many([(readers[shard], ranges) for shard, ranges in ranges_by_shard(batch).items()])
        return sum(len(view) for views in found for view in views)

    return read


def obstore_ranges() -> Way:
    """obstore's own joining of ranges: no If-Match, nothing is retried where it broke off."""
    import obstore
    from obstore.store import S3Store

    store = S3Store("bench", client_options={"allow_http": True})
    pool = ThreadPoolExecutor(CONCURRENCY)

    def one(item: tuple[int, list[tuple[int, int]]]) -> int:
        shard, ranges = item
        starts, lengths = zip(*ranges, strict=True)
        return sum(
            map(len, obstore.get_ranges(store, f"{shard}.tar", starts=starts, lengths=lengths, coalesce=1 << 18))
        )

    return lambda batch: sum(pool.map(one, ranges_by_shard(batch).items()))


def arrow() -> Way:
    """``pyarrow.fs``: an open file per shard, a thread per sample."""
    from pyarrow.fs import S3FileSystem

    files = S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], scheme="http")
    opened = [files.open_input_file(f"bench/{shard}.tar") for shard in range(SHARDS)]
    pool = ThreadPoolExecutor(CONCURRENCY)

    def one(place: tuple[int, int]) -> int:
        (start, _), (last, size) = members(place[1])
        found = memoryview(opened[place[0]].read_at(last + size - start, start))
        return len(found) - HEADER

    return lambda batch: sum(pool.map(one, batch))


def s3fs_ranges() -> Way:
    """``s3fs``: asyncio, a request per sample."""
    import s3fs

    files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], skip_instance_cache=True)

    def read(batch: Batch) -> int:
        paths = [f"bench/{shard}.tar" for shard, _ in batch]
        starts = [members(sample)[0][0] for _, sample in batch]
        found = files.cat_ranges(paths, starts, [start + SAMPLE_BYTES - HEADER for start in starts], on_error="raise")
        return sum(len(each) - HEADER for each in found)

    return read


WAYS: dict[str, Callable[[], Way]] = {
    "ray_mm (obstore, gap 256 KiB)": lambda: ours(1 << 18),
    "ray_mm (obstore, no gap)": lambda: ours(0),
    "obstore get_ranges": obstore_ranges,
    "pyarrow.fs": arrow,
    "s3fs": s3fs_ranges,
}


def library_table(rounds: int) -> list[tuple[str, float, float]]:
    """(way, samples per second, CPU seconds per 1,000 samples) of every way."""
    ways: dict[str, Way] = {}
    for name, make in WAYS.items():
        try:
            ways[name] = make()
        except ImportError as error:
            print(f"left out: {name} ({error})")
    draw = random.Random(0)
    every = list(itertools.product(range(SHARDS), range(SAMPLES)))
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        batches = [draw.sample(every, BATCH) for _ in range(BATCHES)]
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                assert way(batch) == BATCH * (PICTURE + LABEL), name
            if round_number:  # the first one opens the connections
                took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    count = BATCH * BATCHES
    return [
        (
            name,
            count / statistics.median(wall for wall, _ in each),
            statistics.median(cpu for _, cpu in each) / count * 1e3,
        )
        for name, each in took.items()
    ]


def part_table(rounds: int) -> list[tuple[int, float, float]]:
    """(bytes per request, MB/s, CPU seconds per GB) of reading a whole shard, as the cache does."""
    sizes = [1 << 20, 4 << 20, 8 << 20, 16 << 20]
    took: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            reader = RangeReader(stat("s3://bench/0.tar"), replace(REMOTE_POLICY, part_bytes=size))
            wall, cpu = time.perf_counter(), time.process_time()
            reader.read([(0, reader.info.size)])
            took[size].append((time.perf_counter() - wall, time.process_time() - cpu))
    total = SAMPLES * SAMPLE_BYTES
    return [
        (size, total / 1e6 / statistics.median(w for w, _ in each), statistics.median(c for _, c in each) / total * 1e9)
        for size, each in took.items()
    ]


def local_table(rounds: int) -> list[tuple[str, float]]:
    """(way, CPU µs per member) of reading every byte of pictures in a local file, in any order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        path.write_bytes(random.Random(1).randbytes(SAMPLES * SAMPLE_BYTES))
        places = [members(sample)[0] for sample in random.Random(2).sample(range(SAMPLES), SAMPLES)]
        reader = RangeReader(stat(str(path)))
        took: dict[str, list[float]] = {"mmap": [], "pread (ray_mm)": []}
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for _ in range(rounds + 1):
                begun = time.process_time()
                with memoryview(mapped) as view:
                    for offset, size in places:
                        zlib.adler32(view[offset : offset + size])
                took["mmap"].append(time.process_time() - begun)
                begun = time.process_time()
                for place in places:
                    zlib.adler32(reader.read([place])[0])
                took["pread (ray_mm)"].append(time.process_time() - begun)
    # The first round brings the file into memory.
    return [(name, statistics.median(each[1:]) / SAMPLES * 1e6) for name, each in took.items()]


class Server:
    """Objects in memory, by path; ``delay_s`` passes before the first byte of every answer."""

    def __init__(self, delay_s: float) -> None:
        body = random.Random(1).randbytes(SAMPLES * SAMPLE_BYTES)
        self._body = memoryview(body)
        self._etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        self._delay_s = delay_s

    async def serve(self) -> None:
        """Prints its port and answers until it is killed."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, limit=1 << 20)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                await asyncio.sleep(self._delay_s)
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                first, last = 0, len(self._body) - 1
                status = "200 OK"
                extra = ""
                if "range" in headers:
                    first, last = map(int, headers["range"].removeprefix("bytes=").split("-"))
                    status, extra = "206 Partial Content", f"Content-Range: bytes {first}-{last}/{len(self._body)}\r\n"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Length: {last + 1 - first}\r\nETag: {self._etag}\r\nAccept-Ranges: bytes\r\n"
                    f"Content-Type: application/x-tar\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n{extra}\r\n".encode()
                )
                if lines[0].startswith("GET"):
                    writer.write(self._body[first : last + 1])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the first one")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        asyncio.run(Server(options.serve).serve())
        return
    print("local file\n\n| way | CPU µs per picture, every byte looked at |\n|---|---|")
    for name, microseconds in local_table(options.rounds):
        print(f"| {name} | {microseconds:.0f} |")
    os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_REGION="us-east-1")
    for delay_s in (0.0, 0.02):
        command = [sys.executable, str(Path(__file__)), "--serve", str(delay_s)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{int(server.stdout.readline())}"
                print(
                    f"\nfirst byte after {delay_s * 1e3:.0f} ms\n\n| way | samples/s | CPU s per 1,000 |\n|---|---|---|"
                )
                for name, rate, cpu in library_table(options.rounds):
                    print(f"| {name} | {rate:,.0f} | {cpu:.2f} |")
                print("\n| bytes per request | MB/s | CPU s per GB |\n|---|---|---|")
                for size, rate, cpu in part_table(options.rounds):
                    print(f"| {size >> 20} MiB | {rate:,.0f} | {cpu:.2f} |")
            finally:
                server.kill()


if __name__ == "__main__":
    main()
