"""Fourteen nights of one retraining, each of which something happens in. The clock is turned by hand; all else is real."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ray_mm.errors import GateRefused, LeaseHeld, LeaseLost, StorageError
from ray_mm.registered import registered_folder
from tests.object_store import Fault, Proxy, Request
from tests.retraining.lab import Crash, World, noise

ENDS = {
    "promoted": "the challenger is the champion, the one before is `previous`",
    "refused": "the champion stays, exit 3; the watermark moves all the same",
    "stopped": "nothing is trained, exit 3; the shards wait",
    "skipped": "nothing is trained, exit 0; the shards wait",
}
"""How a night ends → what that means, as the table says it."""

SECRET = "of the tests alone"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Story:
    """Where it all happens.

    Attributes:
        world: datasets, arrivals, the job.
        store: a proxy before the S3 server that has lease, watermark and registry.
    """

    world: World
    store: Proxy


@dataclass(frozen=True)
class Case:
    """A night.

    Attributes:
        name: of what happens.
        happens: for the table.
        ends: a key of ``ENDS``.
        more: what else is so, for the table.
        run: makes it happen, to the end of the night.
    """

    name: str
    happens: str
    ends: str
    more: str
    run: Callable[[Story], Any]


def _first(story: Story) -> None:
    story.world.arrive_at("a")
    # Too few steps to learn much, so that the second night has something to win.
    result = story.world.run(**{"base.train.optimizer.lr": 1e-4})
    assert result["champion"] == 1 and story.world.nights[-1].facts.champion is None


def _better(story: Story) -> None:
    story.world.arrive_at("a")
    result = story.world.run()
    scores = story.world.nights[-1].note("11-gates")["figures"]
    assert scores["frozen"]["challenger"][""] > scores["frozen"]["champion"][""] + 0.1
    assert "× fresh weights" in story.world.nights[-1].note("05-plan")["begins_with"]
    assert result["champion"] == 2 and story.world.registry.previous() == 1


def _too_little(story: Story) -> None:
    story.world.arrive_at("few", num_samples=9)
    result = story.world.run()
    assert "9 new samples, 20 are wanted" in result["reason"]


def _bad_shard(story: Story) -> None:
    world = story.world
    for name in "abcde":
        world.arrive_at(name, num_samples=15)
    world.arrive_at("z", num_samples=15)
    _cut(world.arrivals / f"{world.stamp()}-z.tar")
    late = world.arrive_at("late", hours=-24 * 5)
    world.run()
    looked = world.nights[-1].note("02-look")
    assert [Path(url).name[-5:] for url in looked["rejected"]] == ["z.tar"]
    assert looked["num_samples"] == 9 + 5 * 15  # what waited, too
    (refused,) = world.nights[-1].note("01-arrivals")["refused"]
    assert refused["url"] == str(late) and "late_hours" in refused["reason"]
    # Both are known now, and not looked at again.
    assert set(world.watermark.consumed()).isdisjoint(looked["rejected"])


def _bad_shards(story: Story) -> None:
    world = story.world
    good = world.arrive_at("good")
    bad = [world.arrive_at(name, num_samples=20, corrupt=range(0, 20, 2)) for name in ("x", "y")]
    with pytest.raises(GateRefused, match=r"2 of 3 new shards are bad \(validation.max_bad_shards\)"):
        world.run()
    looked = world.nights[-1].note("02-look")
    assert all("10 of 20 members of vector can't be read" in reason for reason in looked["rejected"].values())
    for path in (good, *bad):  # somebody takes them away
        path.unlink()


def _drift(story: Story) -> None:
    path = story.world.arrive_at("one-class", label=lambda number: 0)
    with pytest.raises(GateRefused, match=r"label: drift of the classes is 0\.\d+, at most 0.1; nothing was trained"):
        story.world.run()
    path.unlink()


def _dst(story: Story) -> None:
    # Clocks are put back from 3:00 to 2:00: two shards have 2:30 in their names, an hour apart, and the night has 25 hours.
    world = story.world
    local = "2026-10-25T02-30"
    world.arrive(f"{local}-first.tar", 25)
    world.arrive(f"{local}-second.tar", 25)
    world.run()
    night = world.nights[-1]
    assert len(night.note("02-look")["accepted"]) == 2
    skipped = world.nights[-4:-1]
    assert (night.facts.until - skipped[-1].facts.until) / 3600 == 25


def _worse(story: Story) -> None:
    path = story.world.arrive_at("noise", 60, vectors=noise)
    before = story.world.registry.champion()
    # Fresh weights, and noise alone: nothing can be learned.
    with pytest.raises(GateRefused, match=r"the challenger misses frozen: accuracy, gain.*; the champion stays"):
        story.world.run(warm_start=None, **{"base.train.optimizer.lr": 1e-6})
    assert story.world.registry.champion() == before
    path.unlink()


def _missed(story: Story) -> None:
    world = story.world
    for back in (72, 48, 24, 0):
        world.arrive_at("a", num_samples=20, hours=-back)
    world.run()
    night = world.nights[-1]
    assert len(night.note("02-look")["accepted"]) == 4
    assert night.note("05-plan")["lost"] == [world.nights[-2].facts.id]  # whose shard was taken away
    assert night.facts.since is not None and night.facts.until - night.facts.since == 4 * 24 * 3600


def _two_schedulers(story: Story) -> None:
    world = story.world
    world.arrive_at("a")
    seen: list[str] = []

    def second(point: str) -> None:
        if point == "done 02-look":
            with pytest.raises(LeaseHeld, match="it is alive"):
                world.run()
            seen.append(point)
        if point == "begin 13-promote" and len(seen) == 1:
            # A later holder has been here: what this one was about to do is too late.
            world.registry.admit(world.registry.read().fence + 1)
            seen.append(point)

    before = world.registry.champion()
    with pytest.raises(LeaseLost, match="a later one has been here"):
        world.run(second, lease_s=30)  # it is known to be alive by its next renewal, a third of this later
    assert world.registry.champion() == before and world.nights[-1].facts.status is None
    world.check()
    world.run()
    assert len(seen) == 2 and world.nights[-1].facts.starts == 2


def _crashes(story: Story) -> None:
    world = story.world
    world.arrive_at("a")
    _killed_process(world)
    world.check()
    seen: list[str] = []
    world.clock.is_patient = False  # who has the lease is gone, and is waited for in vain

    def crash(point: str) -> None:
        world.clock.is_patient = True
        if point.startswith(("done", "noted")) and point not in seen:
            seen.append(point)
            raise Crash(point)

    while True:
        try:
            world.run(crash)
            break
        except Crash:
            world.check()
            assert world.nights[-1].facts.status is None
    assert len(seen) == 2 * 14  # the first of fifteen steps was noted by the process that was killed
    assert world.nights[-1].facts.starts == len(seen) + 2
    assert sum(event.by == world.nights[-1].facts.id for event in world.registry.history()) == 1


def _killed_process(world: World) -> None:
    """A process of its own ends without a word, and with the lease, when it has noted the first step."""
    code = (
        "import json, os, sys\n"
        "from ray_mm.config.load import load_job\n"
        "from ray_mm.retraining.retrain import run_retrain\n"
        "from tests.retraining.lab import FakeClock\n"
        "job, now = json.load(sys.stdin)\n"
        "run_retrain(load_job(job), clock=FakeClock(now), watch=lambda point: point == 'noted 01-arrivals' and os._exit(9))\n"
    )
    given = json.dumps([world.job().model_dump(mode="json"), world.clock.now])
    done = subprocess.run(
        [sys.executable, "-c", code], input=given, text=True, cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 9, done.stderr


def _storage(story: Story) -> None:
    world, store = story.world, story.store
    world.arrive_at("a")
    refused = Fault("status", status=403)

    def at_promotion(point: str) -> None:
        if point == "begin 13-promote":
            store.faults = _writes_of("/registry.json", refused)

    before = world.registry.champion()
    with pytest.raises(StorageError, match="refuses access"):
        world.run(at_promotion)
    store.faults = lambda request: None
    assert world.registry.champion() == before and "refuses access" in str(world.nights[-1].facts.failed)
    world.check()

    def later(point: str) -> None:
        if point == "begin 13-promote":  # it is written, and the answer is lost
            store.faults = _writes_of("/registry.json", Fault("late", status=500), times=1)
        if point == "begin 14-watermark":
            store.faults = _writes_of("/watermark.json", refused)

    with pytest.raises(StorageError, match=r"watermark\.json"):
        world.run(later)
    store.faults = lambda request: None
    assert world.registry.champion() != before
    world.check()
    world.run()
    assert sum(event.by == world.nights[-1].facts.id for event in world.registry.history()) == 1


def _rollback(story: Story) -> None:
    world = story.world
    world.arrive_at("a")
    champion, previous = world.registry.champion(), world.registry.previous()

    def person(point: str) -> None:
        if point == "begin 13-promote":
            world.registry.rollback("does badly outside", by="a person")

    with pytest.raises(GateRefused, match=r"it was not promoted: .*compare it with that one"):
        world.run(person)
    assert champion is not None and world.registry.champion() == previous
    assert world.registry.version(champion).denied == "does badly outside"


def _after_it(story: Story) -> None:
    world = story.world
    world.arrive_at("a")
    before = world.registry.champion()
    gate = {"max_metric_drop": 1, "max_size_ratio": 1000, "min_speedup": 0}
    settings = {"retention.nights": 2, "window": 2, "compress": {"gate": gate, "latency": {"rounds": 3}}}
    world.run(**settings)
    night = world.nights[-1]
    newest = [each.note("03-index")["num_samples"]["newest"] for each in world.nights[-2:]]
    assert night.note("04-window")["num_samples"] == sum(newest)
    version = world.registry.version("champion")
    folder = registered_folder(f"registry:{world.registry.root}#small@{version.number}")
    assert (folder / "model.safetensors").is_file() and (folder / "artifact" / "model.onnx").is_file()
    assert night.facts.champion == before == world.registry.previous()
    assert "× fresh weights" in night.note("05-plan")["begins_with"]
    kept = [each for each in world.nights if (each.folder / "train").is_dir()]
    spared = {version.lineage.run for version in world.registry.versions() if version.aliases}
    assert {each.facts.id for each in kept} - spared <= {each.facts.id for each in world.nights[-2:]}
    assert all((each.folder / "report.html").is_file() for each in world.nights)
    _check_messages(story)


def _check_messages(story: Story) -> None:
    """Every end was told, signed, and by the night's id once."""
    lines = [json.loads(line) for line in (story.world.folder / "told").read_text().splitlines()]
    ends: dict[str, str] = {}
    for line in lines:
        message = json.loads(line["body"])
        signed = hmac.new(SECRET.encode(), f"{line['time']}.{line['body']}".encode(), hashlib.sha256).hexdigest()
        assert line["signature"] == f"sha256={signed}"
        ends[message["night"]] = message["status"]
    expected = {night.facts.id: night.facts.status for night in story.world.nights if night.facts.status != "skipped"}
    assert ends == expected


def _writes_of(part: str, fault: Fault, times: int | None = None) -> Callable[[Request], Fault | None]:
    left = [times]

    def choose(request: Request) -> Fault | None:
        if request.method != "PUT" or part not in request.path or left[0] == 0:
            return None
        left[0] = None if left[0] is None else left[0] - 1
        return fault

    return choose


def _cut(path: Path) -> None:
    """Takes the second half of a tar away, and keeps its time."""
    found = path.stat()
    path.write_bytes(path.read_bytes()[: found.st_size // 2 - 100])
    os.utime(path, (found.st_mtime, found.st_mtime))


CASES: tuple[Case, ...] = (
    Case("first", "the first night, and no champion yet", "promoted", "judged by itself", _first),
    Case("better", "a better challenger", "promoted", "it began with the champion's weights", _better),
    Case("too-little", "too little data", "skipped", "", _too_little),
    Case(
        "bad-shard",
        "one shard of seven is cut, another came five days late; those of the night before have waited",
        "promoted",
        "the two are set aside by name, the others trained on",
        _bad_shard,
    ),
    Case("bad-shards", "two new shards of three hold members that can't be read", "stopped", "", _bad_shards),
    Case("drift", "all new samples are of one class", "stopped", "", _drift),
    Case("clocks-back", "clocks are put back, and two shards have the same hour in their names", "promoted", "", _dst),
    Case("worse", "a worse challenger", "refused", "its samples are not taken again", _worse),
    Case(
        "missed",
        "three nights were missed; the shard of the night before is gone",
        "promoted",
        "one night takes all that has come, and replays what is still there",
        _missed,
    ),
    Case(
        "two-schedulers",
        "a second command while one is at work; then a later holder of the lease, before the promotion",
        "promoted",
        "the second is refused at once; the first promotes nothing any more; the next command goes on with the night",
        _two_schedulers,
    ),
    Case(
        "crashes",
        "the command dies after every step, before and after it is noted, 28 times; once its process is gone, and its lease held",
        "promoted",
        "each command goes on after the last whole step; one promotion",
        _crashes,
    ),
    Case(
        "storage",
        "the store refuses the promotion; the answer to it is lost; the store refuses the watermark",
        "promoted",
        "the command ends with 1 and is told; the next one goes on; one promotion",
        _storage,
    ),
    Case(
        "rollback",
        "a person rolls back while a night is under way",
        "refused",
        "`previous` is the champion, and the version that was rolled back is denied",
        _rollback,
    ),
    Case(
        "after-it",
        "the night after; two nights are kept, the newest window is of two, and the challenger is compressed",
        "promoted",
        "compared with what was rolled back to; weights of old nights are removed but for those in use",
        _after_it,
    ),
)
