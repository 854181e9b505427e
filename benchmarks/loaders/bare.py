"""The limit: two processes that only decode and resize the same pictures, without text, series, order or transport."""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import tarfile
import time
from pathlib import Path

import cv2
from common import WORKERS, decode_jpeg


def _decode(shards: list[str], ready: object, done: object) -> None:
    cv2.setNumThreads(1)
    payloads = []
    for shard in shards:
        with Path(shard).open("rb") as stream, tarfile.open(shard) as tar:
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            payloads += [view[m.offset_data : m.offset_data + m.size] for m in tar if m.name.endswith(".jpg")]
    ready.wait()  # type: ignore[attr-defined]
    started = time.perf_counter()
    for payload in payloads:
        decode_jpeg(payload)  # type: ignore[arg-type]
    done.put((len(payloads), time.perf_counter() - started))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    shards = sorted(str(path) for path in (Path(args.data) / "tars" / "shards").glob("*.tar"))
    context = multiprocessing.get_context("fork")
    ready, done = context.Barrier(WORKERS), context.Queue()
    processes = [
        context.Process(target=_decode, args=(shards[number::WORKERS], ready, done)) for number in range(WORKERS)
    ]
    for process in processes:
        process.start()
    found = [done.get() for _ in processes]
    for process in processes:
        process.join()
    print(json.dumps({"rate": sum(count / seconds for count, seconds in found)}))


if __name__ == "__main__":
    main()
