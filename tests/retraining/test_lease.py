"""A lease has one holder at a time, and none is waited for longer than it lasts."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mm.errors import LeaseHeld, LeaseLost, RegistryError, StorageError
from ray_mm.retraining.lease import Lease
from ray_mm.storage.conditional import Documents
from ray_mm.storage.shared import SharedState
from tests.object_store import Fault, Proxy, Request
from tests.retraining.clocks import FakeClock, World

ROOT = Path(__file__).parents[2]
Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    return Documents(tmp_path)


def take(documents: Documents, holder: str, world: World | None = None, **more: float | bool | None) -> Lease:
    """A lease of a minute that is renewed by hand."""
    clock = FakeClock(world or World())
    return Lease.take(documents, "lease.json", holder, clock=clock, heartbeat=False, **more)  # type: ignore[arg-type]


def holder_of(documents: Documents) -> str | None:
    """Who has the lease, or had it when it fell silent; None: nobody."""
    document = documents.read("lease.json")
    content = {} if document is None else json.loads(document.content)
    return content["holder"] if content.get("held") else None


def beats(documents: Documents) -> int:
    """How often the lease was renewed."""
    document = documents.read("lease.json")
    return 0 if document is None else int(json.loads(document.content)["beats"])


def watching(documents: Documents, wait_for: Wait) -> World:
    """A world in which a contender, between its first look and its second, waits for a renewal, however long that takes."""

    def renewed() -> None:
        seen = beats(documents)
        wait_for(lambda: beats(documents) > seen)

    return World(events=[(0.001, renewed)])


def puts(proxy: Proxy) -> list[Request]:
    """The writes that reached the proxy."""
    return [request for request in proxy.requests if request.method == "PUT"]


def test_the_number_of_a_lease_grows_by_one_at_each_taking(documents: Documents) -> None:
    fences = []
    for _ in range(3):
        with take(documents, "a") as lease:
            fences.append(lease.fence)
            assert holder_of(documents) == "a"
        assert holder_of(documents) is None
    assert fences == [1, 2, 3]


def test_a_lease_that_is_held_is_refused_with_its_holder(documents: Documents) -> None:
    with take(documents, "night-1"):
        with pytest.raises(LeaseHeld, match=r"lease\.json: night-1 has had the lease since 2026-.*waited for 0 s"):
            take(documents, "night-2", wait_s=0)
        world = World()
        with pytest.raises(LeaseHeld, match="waited for 30 s"):
            take(documents, "night-2", world, wait_s=30)
        assert 30 <= world.now < 31


def test_a_holder_that_is_alive_is_known_by_its_next_renewal(documents: Documents) -> None:
    world = World()
    first = take(documents, "night-1", world)
    world.events = [(20.0, first.renew)]
    with pytest.raises(LeaseHeld, match="is alive"):
        take(documents, "night-2", world)
    assert 20 <= world.now <= 22


def test_who_waits_gets_it_as_soon_as_it_is_released(documents: Documents) -> None:
    world = World()
    first = take(documents, "night-1", world)
    world.events = [*((20.0 * beat, first.renew) for beat in range(1, 6)), (110.0, first.release)]
    second = take(documents, "night-2", world, wait_s=600)
    assert second.fence == 2 and 110 <= world.now <= 112


def test_a_holder_that_says_nothing_is_followed_when_its_time_is_over(documents: Documents) -> None:
    world = World()
    first = take(documents, "night-1", world)
    second = take(documents, "night-2", world)
    assert second.fence == 2 and 75 <= world.now <= 78
    with pytest.raises(
        LeaseLost, match=r"night-1 has lost its lease: it was not renewed for 7\d\.\d s, and lasts 60 s"
    ):
        first.check()
    second.check()
    # It can neither be had back, nor taken away from its holder by giving it back.
    with pytest.raises(LeaseLost):
        first.renew()
    first.release()
    second.renew()
    assert holder_of(documents) == "night-2"


def test_a_holder_whose_clock_stood_still_is_told_by_the_store(documents: Documents) -> None:
    asleep = World()
    first = take(documents, "night-1", asleep)
    second = take(documents, "night-2", World())
    first.check()  # it can't know
    with pytest.raises(LeaseLost, match="another run has taken it"):
        first.renew()
    with pytest.raises(LeaseLost, match="another run has taken it"):
        first.check()
    second.renew()


@given(
    holder_rate=st.floats(0.9, 1.1),
    other_rate=st.floats(0.9, 1.1),
    offsets=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)),
    beats=st.lists(st.floats(0.1, 54.0), max_size=5),
    looked=st.floats(0.0, 100.0),
)
def test_two_never_hold_it_whatever_their_clocks_show(
    holder_rate: float,
    other_rate: float,
    offsets: tuple[float, float],
    beats: list[float],
    looked: float,
) -> None:
    # The holder renews in time, a few times, and falls silent; clocks run at rates that differ by up to a fifth.
    memory, world = Path("/dev/shm"), World()  # flushing to a disk a thousand times would only take long
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        documents = Documents(folder)
        first = Lease.take(documents, "x", "a", 60, FakeClock(world, offsets[0], holder_rate), heartbeat=False)
        at = 0.0
        for pause in beats:
            at += pause
            world.events.append((at, first.renew))
        world.pass_by(looked)
        clock = FakeClock(world, offsets[1], other_rate)
        second = Lease.take(documents, "x", "b", 60, clock, wait_s=10_000, heartbeat=False)
        with pytest.raises(LeaseLost):
            first.check()
        second.check()


def test_a_lease_whose_document_was_removed_still_gets_a_larger_number(documents: Documents) -> None:
    with take(documents, "a") as lease:
        seen = lease.fence
    (Path(documents.root) / "lease.json").unlink()
    assert take(documents, "b", above=seen).fence == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "can't be read as JSON"),
        (b'{"format": "ray_mm.lease", "version": 2}', "written by a newer version of ray_mm"),
        (b'{"format": "ray_mm.lease", "version": 0}', "expected a number from 1"),
        (b'{"format": "ray_mm.registry", "version": 1}', "expected 'ray_mm.lease'"),
        (b'{"format": "ray_mm.lease", "version": 1, "fence": 3}', "is damaged"),
    ],
)
def test_a_lease_that_cannot_be_read_is_not_taken(documents: Documents, content: bytes, text: str) -> None:
    documents.create("lease.json", content)
    with pytest.raises(RegistryError, match=text):
        take(documents, "a")
    found = documents.read("lease.json")
    assert found is not None and found.content == content


def test_it_is_renewed_by_itself(documents: Documents, wait_for: Wait) -> None:
    # Its clock stands still: however busy the machine is, it does not run out, and only its thread can renew it.
    with Lease.take(documents, "lease.json", "a", ttl_s=0.3, clock=FakeClock(World())) as lease:
        wait_for(lambda: beats(documents) >= 3)
        with pytest.raises(LeaseHeld, match="is alive"):
            take(documents, "b", watching(documents, wait_for))
        lease.check()
    seen = beats(documents)
    assert take(documents, "b", wait_s=0).fence == 2
    assert beats(documents) == 0 < seen


def test_a_store_that_is_away_for_a_moment_costs_no_lease(
    proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_mm.storage.stores._ATTEMPTS", 1)
    documents = Documents(f"s3://{bucket}/nightly")
    world = World()
    lease = take(documents, "a", world)
    # Written, but the answer got lost and was given up: the next renewal finds its own.
    kinds = iter([Fault("late"), Fault("status")])
    proxy.faults = lambda request: next(kinds, None) if request.method == "PUT" else None
    for _ in range(2):
        world.pass_by(20)
        with pytest.raises(StorageError, match=r"lease\.json"):
            lease.renew()
    lease.renew()
    world.pass_by(59)
    lease.check()
    lease.release()
    assert take(documents, "b", wait_s=0).fence == 2


def test_a_store_that_stays_away_costs_it(
    proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch, wait_for: Wait
) -> None:
    monkeypatch.setattr("ray_mm.storage.stores._ATTEMPTS", 1)

    def away(request: Request) -> Fault | None:
        return Fault("status") if request.method == "PUT" and gone else None

    gone, world = False, World()
    proxy.faults = away
    with Lease.take(Documents(f"s3://{bucket}/nightly"), "lease.json", "a", ttl_s=0.3, clock=FakeClock(world)) as lease:
        gone = True
        tried = len(puts(proxy))
        wait_for(lambda: len(puts(proxy)) >= tried + 2)  # in vain, and that alone ends nothing
        lease.check()
        world.pass_by(0.4)
        with pytest.raises(LeaseLost, match=r"was not renewed for 0\.4 s, and lasts 0\.3 s"):
            lease.check()


_HOLDER = """
import json, sys
from ray_mm.errors import RayMMError
from ray_mm.retraining.lease import Lease
from ray_mm.storage.conditional import Documents
from ray_mm.storage.shared import SharedState
documents = Documents(sys.argv[1])
lease = Lease.take(documents, "lease.json", "held up", ttl_s=float(sys.argv[2]))
shared = SharedState(documents, "state.json", "test", 1)
shared.admit(lease.fence)
print("taken", flush=True)
sys.stdin.readline()
for attempt in (lease.check, lease.renew, lambda: shared.update(lambda content: {"by": "held up"}, lease.fence)):
    try:
        attempt()
        print("done", flush=True)
    except RayMMError as error:
        print(type(error).__name__, flush=True)
"""


@contextmanager
def holder(documents: Documents, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lease and renews it, until it is told to write."""
    command = [sys.executable, "-c", _HOLDER, documents.root, str(ttl_s)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "taken\n"
            yield process
        finally:
            process.kill()


def test_a_holder_that_is_killed_is_followed(documents: Documents, wait_for: Wait) -> None:
    with holder(documents, ttl_s=6.0) as process:
        with pytest.raises(LeaseHeld, match="is alive"):
            take(documents, "next", watching(documents, wait_for))
        process.kill()
        process.wait(30)
        world = World()
        assert take(documents, "next", world).fence == 2
        assert 7.5 <= world.now < 9


def test_a_holder_that_was_stopped_in_its_sleep_writes_nothing_when_it_wakes(documents: Documents) -> None:
    shared = SharedState(documents, "state.json", "test", 1)
    with holder(documents, ttl_s=1.0) as process:
        with (Path(documents.root) / ".lock").open("a") as lock:
            # It sleeps between two writes: within one it would keep all others from writing.
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.kill(process.pid, signal.SIGSTOP)
        with Lease.take(documents, "lease.json", "next") as lease:
            shared.admit(lease.fence)
            os.kill(process.pid, signal.SIGCONT)
            said, _ = process.communicate("\n", timeout=60)
            assert said.split() == ["LeaseLost"] * 3
            assert shared.update(lambda content: {"by": "next"}, lease.fence).content == {"by": "next"}


def test_a_shared_document_refuses_older_numbers_and_persons_need_none(documents: Documents) -> None:
    shared = SharedState(documents, "state.json", "test", 1)
    assert shared.read().fence == 0
    shared.update(lambda content: {"x": 1}, 3)
    shared.admit(5)
    for attempt in (lambda: shared.update(lambda content: {"x": 2}, 4), lambda: shared.admit(4)):
        with pytest.raises(LeaseLost, match="took the lease with the number 4, and a later one has been here with 5"):
            attempt()
    assert shared.read().content == {"x": 1}
    shared.update(lambda content: {"x": 3})
    state = shared.update(lambda content: {**content, "y": 1}, 5)
    assert (state.content, state.revision, state.fence) == ({"x": 3, "y": 1}, 4, 5)
    assert shared.update(lambda content: None, 5) == state == shared.read()
    assert json.loads((Path(documents.root) / "state.json").read_text())["revision"] == 4


def test_a_change_is_made_again_on_what_another_writer_was_faster_with(documents: Documents) -> None:
    shared = SharedState(documents, "state.json", "test", 1)
    other = iter([lambda: shared.update(lambda content: {"others": 1})])

    def change(content: dict[str, int]) -> dict[str, int]:
        next(other, lambda: None)()
        return {**content, "mine": 1}

    assert shared.update(change).content == {"others": 1, "mine": 1}
