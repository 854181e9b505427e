"""Processes that are killed, disks that are full, and trainings that go on with another number of workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ray_mm.config.cache import DecodedCache, RemoteCache
from ray_mm.data.loader import LoadedBatch
from ray_mm.training.state import attempt_starts
from tests.faults.in_stores import planned
from tests.faults.lab import Fault, Lab, Outcome, num_entries, planned_shards
from tests.faults.samples import key_of, make_samples
from tests.object_store import Fault as Answer
from tests.object_store import Request, upload


def _killed_reader(lab: Lab, decoded: DecodedCache | None = None) -> int:
    """Samples that came from the cache."""
    make_samples(lab.folder / "train", range(48))
    training = lab.plan(**{"train.epochs": 24, "data.batch_size": 4})
    killed: list[int] = []
    kept = []

    def kill(batch: LoadedBatch) -> None:
        kept.append(batch.num_cached)
        # Three of them, at different places, while much is left to read.
        time.sleep(0.02)
        if len(killed) < 3 and num_entries(training) >= 4 + 8 * len(killed):
            for process in _readers():
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    break

    assert lab.feed(training, on_batch=kill, samples_per_task=8, block_bytes=1, decoded=decoded) == {
        key_of(sample): 24 for sample in range(48)
    }
    assert len(killed) == 3
    lab.require_exact(training, set(), {1: 0})
    return sum(kept)


def _without_cache(lab: Lab) -> None:
    assert _killed_reader(lab) == 0


def _with_cache(lab: Lab) -> None:
    cache = DecodedCache(folder=str(lab.folder / "cache"), size=64 << 20)
    from_cache = _killed_reader(lab, cache)
    # The readers are at work on several epochs at once, so that more than the first one may be decoded. What a killed one
    # had kept of its task's eight samples, the task finds there when it runs again.
    assert 48 < from_cache <= 48 * 23 + 3 * 8
    # Nothing of what the killed ones kept is left half-written, nor counted twice.
    assert sorted(path.name for path in (lab.folder / "cache").iterdir() if path.suffix != ".slots") == ["slots.lock"]


def _readers() -> list[psutil.Process]:
    """Ray's processes that run a read task just now."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline() and "ReadPlan" in process.cmdline()[0]:
                found.append(process)
    return found


@contextlib.contextmanager
def full_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own at a folder, of so many bytes."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a disk of {size} can't be mounted ({mounted.stderr.strip()}); as root it can")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _full_cache(lab: Lab) -> None:
    training = planned(lab)
    with full_disk(lab.folder / "cache", "16k"):
        cache = RemoteCache(folder=str(lab.folder / "cache"), size=64 << 20)
        assert lab.feed(training, cache=cache) == {key_of(sample): 2 for sample in range(24)}
    lab.require_exact(training, set(), {1: 0})


def _full_quarantine(lab: Lab) -> None:
    make_samples(lab.folder / "train", instead={(5, "image"): b"\x89PNG no picture" * 10_000})
    training = lab.plan()
    training.run.mkdir()
    with full_disk(training.quarantine, "64k"):
        with lab.stopped(r"000000\.tar\[sample000005\]\.image: .*can't be kept aside .*No space left on device"):
            lab.feed(training)
        assert not list(training.quarantine.glob("*.json"))


def _elastic(lab: Lab) -> None:
    make_samples(lab.folder / "first", range(30), instead={(4, "image"): b"\x89PNG no picture"})
    make_samples(lab.folder / "second", range(100, 120), num_shards=2)
    sources = [{"path": str(lab.folder / "first"), "weight": 2}, {"path": str(lab.folder / "second"), "weight": 1}]
    training = lab.plan(sources, **{"train.epochs": 4})
    # Seven batches an epoch: three ends in mid-epoch, and a batch that does not divide by three ranks.
    starts, sizes = {1: 0, 2: 5, 3: 12, 4: 19}, {1: 2, 2: 1, 3: 3, 4: 2}
    for attempt, first_item in starts.items():
        lab.feed(
            training,
            world_size=sizes[attempt],
            attempt=attempt,
            first_item=first_item,
            # At each start, two batches are read by the ranks themselves.
            head_samples=2 * -(-8 // sizes[attempt]),
            # What was read beyond the last checkpoint is lost and read again.
            stop=starts[attempt + 1] + attempt % 2 if attempt + 1 in starts else None,
        )
    lab.require_exact(training, {key_of(4)}, starts)


def _resumed(lab: Lab) -> None:
    make_samples(lab.folder / "local", range(450), instead={(4, "image"): b"\x89PNG no picture"})
    upload(lab.proxy.endpoint, lab.folder / "local", f"{lab.bucket}/train")
    settings = {
        "data.batch_size": 2,
        # One shard after the other, so that the last one of an epoch is met late.
        "data.shuffle": {"chunk_samples": 150, "window_chunks": 1},
        "data.prefetch_batches": 1,
        "train.epochs": 1,
        "train.checkpoints.every_steps": 25,
    }
    training = lab.plan(f"s3://{lab.bucket}/train", **settings, **{"resources.workers": 2})
    last = int(planned_shards(training)[-1])
    assert last not in planned_shards(training)[:256], "the first two blocks, of 64 batches each, are without it"
    began = time.monotonic()

    def deleted(request: Request) -> Answer | None:
        if f"{last:06d}.tar" not in request.path or request.method != "GET":
            return None
        # Nothing of it comes before some batches were trained on, and a checkpoint was saved.
        while num_entries(training) < 60 and time.monotonic() < began + 60:
            time.sleep(0.5)
        return Answer("status", status=404)

    lab.proxy.faults = deleted
    with lab.stopped("there is no such object"):
        lab.train(training)
    lab.proxy.faults = lambda request: None
    training = lab.plan(f"s3://{lab.bucket}/train", **settings, **{"resources.workers": 1})
    lab.train(training)
    first, second = attempt_starts(training.run).values()
    assert first == 0 < second
    lab.require_exact(training, {key_of(4)})


FAULTS = (
    Fault(
        "reader-killed",
        "a process that runs a read task is killed (SIGKILL), three times",
        (Outcome.UNHARMED,),
        ("feed",),
        _without_cache,
        "Ray runs the task again, and its batches keep their places",
    ),
    Fault(
        "reader-killed-while-keeping",
        "the same, while they keep what they decode (`data.cache.decoded`)",
        (Outcome.UNHARMED,),
        ("feed",),
        _with_cache,
        "what is in the cache is whole, or not there",
    ),
    Fault(
        "full-cache",
        "the disk of the cache is full (a mounted one of 16 kB)",
        (Outcome.UNHARMED,),
        ("feed",),
        _full_cache,
        "told once; reading goes on without the cache",
    ),
    Fault(
        "full-quarantine",
        "the disk of the quarantine is full (a mounted one of 64 kB)",
        (Outcome.STOPPED,),
        ("feed",),
        _full_quarantine,
    ),
    Fault(
        "other-workers",
        "a training on two datasets, with a bad sample, goes on from 2 workers to 1, then 3, then 2",
        (Outcome.QUARANTINED,),
        ("feed",),
        _elastic,
    ),
    Fault(
        "deleted-and-restored",
        "a shard is deleted under a training with 2 workers and a bad sample; it is put back, and the training goes on with 1",
        (Outcome.STOPPED, Outcome.QUARANTINED),
        ("training",),
        _resumed,
    ),
)
