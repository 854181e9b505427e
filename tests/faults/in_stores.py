"""An object store that misbehaves (``tests.object_store``)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from ray_mm.data.manifest import open_dataset
from ray_mm.storage.ranges import REMOTE_POLICY
from ray_mm.training.plan import Training
from tests.faults.lab import Fault, Lab, Outcome
from tests.faults.samples import key_of, make_samples
from tests.object_store import Fault as Answer
from tests.object_store import Request, delete_object, first_times, put_object, upload


def planned(lab: Lab, packed: bool = False) -> Training:
    """A training on a dataset of 24 samples in the store, planned; in gzip files, if asked for."""
    make_samples(lab.folder / "local", range(24), packed=packed)
    upload(lab.proxy.endpoint, lab.folder / "local", f"{lab.bucket}/train")
    return lab.plan(f"s3://{lab.bucket}/train")


def _passing(lab: Lab, answer: Answer, times: int) -> None:
    training = planned(lab)
    lab.proxy.requests.clear()
    lab.proxy.faults = first_times(times, answer)
    assert lab.feed(training) == {key_of(sample): 2 for sample in range(24)}
    assert len(lab.proxy.gets(".tar")) > times
    lab.require_exact(training, set(), {1: 0})


def _packed(lab: Lab) -> None:
    training = planned(lab, packed=True)
    dataset = open_dataset(f"s3://{lab.bucket}/train")
    # One flipped bit for each shard, so that what is fetched once more is whole. The first is where it is said how the rest
    # is packed.
    left = {
        "000000.tgz": iter([Answer("status"), Answer("cut", at=100), Answer("flip", at=10)]),
        "000001.tgz": iter([Answer("short", at=100), Answer("flip", at=200)]),
        "000002.tgz": iter([Answer("shifted"), Answer("flip", at=500)]),
    }
    lab.proxy.faults = lambda request: (
        next(left.get(request.path.rpartition("/")[2], iter(())), None) if request.method == "GET" else None
    )
    assert lab.feed(training) == {key_of(sample): 2 for sample in range(24)}
    assert not [answer for answers in left.values() for answer in answers]
    lab.require_exact(training, set(), {1: 0})
    lab.proxy.faults = lambda request: None
    put_object(lab.proxy.endpoint, f"{lab.bucket}/train/shards/000001.tgz", bytes(dataset.shards[1].size_bytes))
    with lab.stopped("the gzip stream is damaged", named=r"shards/000001\.tgz\[sample\d{6}\]"):
        lab.feed(training)


def _away(lab: Lab) -> None:
    training = planned(lab)
    impatient = replace(REMOTE_POLICY, give_up_s=1.0, stall_s=0.3, backoff_s=0.01)
    for method, answer in (("GET", "hang"), ("GET", "status"), ("GET", "cut"), ("HEAD", "status")):
        faulty = Answer(answer)  # type: ignore[arg-type]
        lab.proxy.faults = lambda request, method=method, faulty=faulty: (
            faulty if request.method == method and ".tar" in request.path else None
        )
        with pytest.MonkeyPatch.context() as patched, lab.stopped("could not be read in 1 s|503"):
            patched.setattr("ray_mm.storage.ranges.REMOTE_POLICY", impatient)
            lab.read(training)


def _opened_late(lab: Lab) -> None:
    training = planned(lab)
    left = iter(range(60))
    lab.proxy.faults = lambda request: (
        Answer("status") if request.method == "HEAD" and next(left, None) is not None else None
    )
    assert lab.feed(training) == {key_of(sample): 2 for sample in range(24)}
    assert next(left, None) is None
    lab.require_exact(training, set(), {1: 0})


def _replaced(lab: Lab) -> None:
    training = planned(lab)
    dataset = open_dataset(f"s3://{lab.bucket}/train")
    put_object(lab.proxy.endpoint, f"{lab.bucket}/train/shards/000001.tar", bytes(dataset.shards[1].size_bytes + 1))
    with lab.stopped(r"000001\.tar\[sample\d{6}\]: has \d+ bytes and had \d+"):
        lab.feed(training)
    delete_object(lab.proxy.endpoint, f"{lab.bucket}/train/shards/000001.tar")
    with lab.stopped(r"000001\.tar\[sample\d{6}\]: the shard is missing"):
        lab.feed(training)


def _replaced_while_read(lab: Lab) -> None:
    for status, told in ((412, "was replaced while it was read"), (404, "there is no such object")):
        lab.proxy.faults = lambda request: None
        training = planned(lab)
        met = 0

        def later(request: Request, status: int = status) -> Answer | None:
            nonlocal met
            if request.method != "GET" or "000002.tar" not in request.path:
                return None
            met += 1
            return Answer("status", status=status) if met > 1 else None

        lab.proxy.faults = later
        with lab.stopped(rf"000002\.tar\[sample\d{{6}}\]: {told}"):
            lab.feed(training, samples_per_task=8)


def _google(lab: Lab) -> None:
    make_samples(lab.folder / "local", range(24))
    store, proxy = lab.google
    store.upload(lab.folder / "local", "team/train")
    training = lab.plan("gs://team/train")
    # In the address of a request a dot has percent signs.
    left = {
        "000000%2Etar": iter([Answer("status"), Answer("cut", at=700), Answer("flip", at=40)]),
        "000001%2Etar": iter([Answer("short", at=500), Answer("cut", at=10)]),
        "000002%2Etar": iter([Answer("shifted"), Answer("hang", at=300)]),
    }
    proxy.faults = lambda request: (
        next(left.get(request.path.rpartition("%2F")[2], iter(())), None) if request.method == "GET" else None
    )
    assert lab.feed(training) == {key_of(sample): 2 for sample in range(24)}
    assert not [answer for answers in left.values() for answer in answers]
    lab.require_exact(training, set(), {1: 0})
    store.put("team/train/shards/000001.tar", bytes(open_dataset("gs://team/train").shards[1].size_bytes + 1))
    with lab.stopped(r"000001\.tar\[sample\d{6}\]: has \d+ bytes and had \d+"):
        lab.feed(training)


FAULTS = (
    *(
        Fault(
            f"store-{name}",
            f"S3 {does}",
            (Outcome.UNHARMED,),
            ("feed",),
            partial(_passing, answer=answer, times=times),
            more,
        )
        for name, does, answer, times, more in (
            ("503", "answers 503", Answer("status", status=503), 6, ""),
            ("cut", "resets the connection in mid-body", Answer("cut", at=700), 6, "the rest is asked for"),
            ("hang", "sends a part of an answer, then nothing more", Answer("hang", at=300), 1, "after 10 s"),
            ("short", "sends less than it was asked for", Answer("short", at=500), 6, ""),
            ("shifted", "sends another range than it was asked for", Answer("shifted"), 4, ""),
            ("flip", "sends a flipped bit", Answer("flip", at=40), 1, "read again, by the checksums in the index"),
        )
    ),
    Fault(
        "store-503-at-opening",
        "S3 answers 503 to 60 requests in a row while shards are opened",
        (Outcome.UNHARMED,),
        ("feed",),
        _opened_late,
    ),
    Fault(
        "store-gzip",
        "S3 does any of these while a dataset is read whose shards are `.tgz`; then zeros stand in one of them",
        (Outcome.UNHARMED, Outcome.STOPPED),
        ("feed",),
        _packed,
        "what can't be unpacked is fetched once more",
    ),
    Fault(
        "store-google",
        "Google Cloud Storage (`gs://`) does any of these; then an object is replaced",
        (Outcome.UNHARMED, Outcome.STOPPED),
        ("feed",),
        _google,
    ),
    Fault(
        "store-away",
        "S3 does not answer, or answers 503, for longer than 300 s",
        (Outcome.STOPPED,),
        ("reader",),
        _away,
        "tried with a limit of 1 s",
    ),
    Fault(
        "object-replaced-or-deleted",
        "an object is replaced or deleted between index and read",
        (Outcome.STOPPED,),
        ("feed",),
        _replaced,
    ),
    Fault(
        "object-replaced-while-read",
        "an object is replaced or deleted while it is read",
        (Outcome.STOPPED,),
        ("feed",),
        _replaced_while_read,
    ),
)
