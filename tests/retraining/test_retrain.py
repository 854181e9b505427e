"""The driver: what it refuses, what it goes on with, what it gives up; nights without a training, so that they take no time."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ray_mm import session
from ray_mm.check import check_job
from ray_mm.cli import app
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.manifest import open_dataset
from ray_mm.errors import (
    GateRefused,
    LeaseHeld,
    LeaseLost,
    OutputFolderError,
    RegistryError,
    StorageError,
    UsageError,
)
from ray_mm.retraining.arrivals import Incoming
from ray_mm.retraining.lease import Lease
from ray_mm.retraining.looking import look_at
from ray_mm.retraining.night import night_id, read_nights
from ray_mm.retraining.registry import Registry
from ray_mm.retraining.retention import clear_old
from ray_mm.retraining.retrain import run_retrain
from ray_mm.running import run_loaded
from ray_mm.storage.conditional import Documents
from ray_mm.storage.remote import stat
from ray_mm.summary import result_parts
from ray_mm.training.mlflow_store import open_client
from tests.factories import CLASSES, class_of
from tests.retraining.lab import NIGHT_S, Crash, FakeClock, World, vector_of
from tests.training.inprocess import make_training, train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def crash_at(point: str) -> Any:
    def watch(found: str) -> None:
        if found == point:
            raise Crash(point)

    return watch


def test_check_looks_at_all_that_a_night_will_need(world: World) -> None:
    lines = check_job(world.job())
    assert any(line.startswith("frozen_test: ") and "45 samples" in line for line in lines)
    assert any(line.startswith("arrivals: ") and line.endswith("by listing") for line in lines)
    with pytest.raises(UsageError, match=r"frozen_test: .*/train is also trained on"):
        check_job(world.job(frozen_test=str(world.folder / "train")))
    with pytest.raises(UsageError, match="no such dataset folder"):
        world.run(frozen_test=str(world.folder / "nowhere"))
    with pytest.raises(UsageError, match=r"arrivals: .*/elsewhere: no such file or folder; make it"):
        world.run(arrivals=str(world.folder / "elsewhere"))
    assert check_job(world.job(arrivals=str(world.folder / "later-*.tar")))[-1].endswith("by listing")
    assert not (world.folder / "retrain").exists()


def test_a_night_without_anything_new_is_told_and_takes_nothing(world: World) -> None:
    result = world.run()
    assert (result["status"], result["reason"], result["champion"]) == ("skipped", "no new shards", None)
    world.pass_nights()
    world.run()
    assert [night.facts.status for night in world.nights] == ["skipped", "skipped"]
    # Nothing was taken, so the interval still begins at the start.
    assert world.nights[-1].facts.since is None and world.watermark.read().runs == ()
    world.arrive("a.tar", 1)
    waits = world.run(**{"arrivals.settle_s": 7200})
    assert waits["reason"] == "no new shards; still settling: 1 (arrivals.settle_s)"
    text = _printed(result, world)
    assert "no new shards; in use: no version yet" in text and "history.html" in text


def test_the_given_champion_is_the_first_version_and_mlflow_shows_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder / "validation").rename(world.folder / "elsewhere")  # no validation: no time
    training = make_training(world.folder, "before", **{"train.epochs": 1, "model.fusion.dim": 8})
    train(training)
    (world.folder / "elsewhere").rename(world.folder / "validation")
    given = {"champion": str(training.run / "last"), "mlflow": {}}
    assert any("the train job's model" in line for line in check_job(world.job(**given)))
    with monkeypatch.context() as patch, pytest.raises(Crash):  # between the two writes that it takes
        patch.setattr(Registry, "promote", lambda *_, **__: crash_at("promote")("promote"))
        world.run(**given)
    assert len(world.registry.versions()) == 1 and world.registry.champion() is None
    assert world.run(**given)["champion"] == 1
    version = world.registry.version("champion")
    assert (version.lineage.run, version.aliases) == ("given", ("champion",))
    client = open_client(f"sqlite:///{world.folder / 'retrain' / 'registry' / 'mlflow.db'}")
    assert client.get_model_version_by_alias("small", "champion").tags["ray_mm.version"] == "1"
    world.pass_nights()
    world.run(**given)
    assert len(world.registry.versions()) == 1 and len(world.registry.history()) == 1


def test_a_night_that_lost_its_shard_is_given_up_and_the_next_one_begins(world: World, local_ray: None) -> None:
    path = world.arrive("a.tar", 10)
    with pytest.raises(Crash):
        world.run(crash_at("noted 02-look"))
    path.unlink()
    world.pass_nights()
    result = world.run()
    first, second = world.nights
    assert first.facts.status == "abandoned" and "was changed or removed" in first.facts.reason
    assert not (first.folder / "data").exists() and (first.folder / "steps").is_dir()
    assert result["night"] == second.facts.id and second.facts.status == "skipped"
    world.check()


def test_a_night_is_given_up_where_the_watermark_was_moved_by_another_folder(world: World) -> None:
    world.arrive("a.tar")
    with pytest.raises(Crash):
        world.run(crash_at("noted 01-arrivals"))
    mark = world.watermark.read()
    world.watermark.commit("elsewhere", [], mark.fence, (), world.clock.now)
    (world.arrivals / "a.tar").unlink()
    world.pass_nights()
    world.run()
    assert world.nights[0].facts.reason == "another command has moved the watermark meanwhile"
    assert world.nights[1].facts.since == world.nights[0].facts.until


def test_a_step_that_fails_is_told_and_tried_again_in_the_same_night(world: World) -> None:
    told = world.folder / "told"
    tell = {"command": ["/bin/sh", "-c", 'cat >> "$0"; echo >> "$0"', str(told)], "on": ["failed", "skipped"]}
    world.arrive("without-a-time.tar", 5)
    with pytest.raises(UsageError, match="time_pattern"):
        world.run(**{"arrivals.by": "event_time"}, notify=tell)
    (night,) = world.nights
    assert night.facts.status is None and str(night.facts.failed).startswith("UsageError: arrivals.time_pattern")
    (world.arrivals / "without-a-time.tar").unlink()
    world.pass_nights()
    result = world.run(notify=tell)
    assert [each.facts.id for each in world.nights] == [night.facts.id] and result["night"] == night.facts.id
    assert world.nights[0].facts.starts == 2 and world.nights[0].facts.failed is None
    messages = [json.loads(line) for line in told.read_text().splitlines()]
    assert [(each["status"], each["night"]) for each in messages] == [
        ("failed", night.facts.id),
        ("skipped", night.facts.id),
    ]


def test_nodes_of_a_cluster_will_be_asked_whether_they_see_the_folder_of_all_nights(world: World) -> None:
    seen: list[Path | None] = []
    world.run(lambda point: seen.append(session._output.get()))
    assert set(seen) == {world.folder / "retrain"}


def test_a_step_during_which_another_command_took_over_is_not_noted(world: World) -> None:
    class Later(FakeClock):
        """Stands still until a listing is made, which takes two hours."""

        late_s = 0.0

        def monotonic(self) -> float:
            return self.late_s

    clock = Later()

    def watch(point: str) -> None:
        if point == "begin 01-arrivals":
            clock.late_s = 7200.0

    world.arrive("a.tar")
    with pytest.raises(LeaseLost, match="was not renewed for 7200"):
        run_retrain(world.job(), clock=clock, watch=watch)
    (night,) = world.nights
    assert night.facts.status is None and night.note("01-arrivals") == {}


def test_a_lease_that_is_lost_says_nothing_of_a_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    table = world.arrivals / "a.jsonl"
    table.write_text(json.dumps({"vector": [0.0] * 5, "label": CLASSES[0]}) + "\n")
    job = world.job(arrivals={"tables": str(table), "settle_s": 0})
    found = stat(str(table))
    arrived = [Incoming(found.url, found.size, found.version)]
    for error in (LeaseLost("gone"), OutputFolderError("full"), StorageError("away")):

        def run(job: PreprocessJob, error: Exception = error) -> dict[str, Any]:
            raise error

        with pytest.raises(type(error)):
            look_at(job, arrived, world.folder / "night", open_dataset(world.folder / "train"), run)

    def wrong(job: PreprocessJob) -> dict[str, Any]:
        raise UsageError("table: is empty")

    looks, tars = look_at(job, arrived, world.folder / "night", open_dataset(world.folder / "train"), wrong)
    assert [look.reason for look in looks] == ["table: is empty"] and tars == {}
    promised = [replace(arrived[0], sha256="0" * 64)]
    looks, tars = look_at(job, promised, world.folder / "night", open_dataset(world.folder / "train"), wrong)
    assert "the manifest says 0000" in str(looks[0].reason) and tars == {}


def test_a_night_that_was_interrupted_goes_on_although_the_clock_was_ahead_before(world: World) -> None:
    world.clock.now += 365 * NIGHT_S
    world.run()
    world.clock.now -= 365 * NIGHT_S
    with pytest.raises(Crash):
        world.run(crash_at("noted 01-arrivals"))
    world.pass_nights()
    assert world.run()["night"] == world.nights[0].facts.id
    assert [night.facts.status for night in world.nights] == ["skipped", "skipped"]


def test_a_command_that_is_asked_to_end_gives_its_lease_back(world: World) -> None:
    code = (
        "import json, sys, time\n"
        "from ray_mm.config.load import load_job\n"
        "from ray_mm.retraining.retrain import run_retrain\n"
        "def watch(point):\n"
        "    print(point, flush=True)\n"
        "    time.sleep(600)\n"
        "run_retrain(load_job(json.loads(sys.argv[1])), watch=watch)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(world.job().model_dump(mode="json"))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begin 01-arrivals\n"
            process.terminate()
            assert process.wait(60) == signal.SIGTERM
        finally:
            process.kill()
    lease = json.loads((world.folder / "retrain" / "registry" / "small" / "lease.json").read_text())
    assert lease["held"] is False
    assert world.run()["night"] == world.nights[0].facts.id and world.nights[0].facts.starts == 2


def test_who_comes_second_writes_nothing(world: World) -> None:
    world.run()
    before = (world.folder / "retrain" / "job.json").read_bytes()
    documents = Documents(world.folder / "retrain" / "registry" / "small")
    with (
        Lease.take(documents, "lease.json", "the first", ttl_s=6.0) as lease,
        pytest.raises(LeaseHeld, match="the first has had the lease"),
    ):
        world.run(**{"base.seed": 9})
    assert lease.fence == 2 and (world.folder / "retrain" / "job.json").read_bytes() == before


def test_what_was_held_out_once_can_not_be_held_out_otherwise(world: World) -> None:
    world.run()
    with pytest.raises(OutputFolderError, match=r"holdout was 0\.2 and is now 0\.4"):
        world.run(holdout=0.4)


def test_a_registry_of_a_newer_version_is_left_alone(world: World) -> None:
    world.run()
    documents = Documents(world.folder / "retrain" / "registry" / "small")
    document = documents.read("registry.json")
    assert document is not None
    newer = document.content.replace(b'"version": 1', b'"version": 99')
    documents.replace("registry.json", newer, document.version)
    world.pass_nights()
    with pytest.raises(RegistryError, match="newer version of ray_mm"):
        world.run()
    assert len(world.nights) == 1 and documents.read("registry.json").content == newer  # type: ignore[union-attr]


def test_old_enough_a_few_samples_are_enough_but_not_to_hold_some_out(world: World, local_ray: None) -> None:
    world.arrive("a.tar", 1)
    result = world.run(**{"arrivals.max_age_hours": 0.5, "validation.max_drift": 1})
    assert result["status"] == "skipped" and "too few to hold some of them out" in result["reason"]
    (night,) = world.nights
    assert night.note("02-look")["num_samples"] == 1
    assert sorted(path.name for path in night.folder.iterdir()) == ["night.json", "report.html", "steps"]


def test_samples_of_the_frozen_test_set_are_set_aside(world: World, local_ray: None) -> None:
    (world.arrivals / "leak.tar").write_bytes((world.folder / "test" / "shards" / "000000.tar").read_bytes())
    world.clock.now += 10**9
    with pytest.raises(GateRefused, match="1 of 1 new shards are bad"):
        world.run()
    (reason,) = world.nights[-1].note("02-look")["rejected"].values()
    assert reason.startswith("45 of 45 samples are in the frozen test set")


def test_the_command_ends_with_what_became_of_the_night(world: World, local_ray: None) -> None:
    job = world.folder / "retrain.yaml"
    job.write_text(json.dumps(world.job().model_dump(mode="json")))
    runner = CliRunner()
    nothing = runner.invoke(app, ["run", str(job)])
    assert (nothing.exit_code, "no new shards" in nothing.output) == (0, True), nothing.output
    path = world.arrive("one-class.tar", label=lambda number: 1)
    os.utime(path, (0, 0))  # the command has the machine's own clock
    stopped = runner.invoke(app, ["run", str(job)])
    assert stopped.exit_code == 3 and "drift of the classes" in stopped.output
    assert "nothing was trained, and the shards wait" in stopped.output
    wrong = runner.invoke(app, ["run", str(job), "--set", "gates.newest.min_gian=0"])
    assert wrong.exit_code == 2 and "min_gain" in wrong.output


def test_tables_are_written_into_tars_and_taken_each_as_a_whole(world: World, local_ray: None) -> None:
    def table(name: str, samples: range, **changes: Any) -> Path:
        rows = [
            {"id": f"t{i}", "vec": vector_of(i, class_of(i)).tolist(), "label": CLASSES[class_of(i)], **changes}
            for i in samples
        ]
        path = world.arrivals / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(path, (world.clock.now - 3600,) * 2)
        return path

    good = [table("a.jsonl", range(30)), table("b.jsonl", range(30, 45))]
    table("other-class.jsonl", range(45, 50), label="backwards")
    (world.arrivals / "empty.jsonl").write_text("")
    os.utime(world.arrivals / "empty.jsonl", (world.clock.now - 3600,) * 2)
    arrivals = {
        "tables": str(world.arrivals / "*.jsonl"),
        "columns": {"vector": "vec"},
        "key": "id",
        "min_samples": 20,
        "settle_s": 0,
    }
    with pytest.raises(Crash):
        world.run(crash_at("noted 03-index"), arrivals=arrivals, **{"validation.max_bad_shards": 0.5})
    (night,) = world.nights
    looked = night.note("02-look")
    assert looked["accepted"] == [str(path) for path in good] and looked["num_samples"] == 45
    assert looked["counts"] == {str(good[0]): 30, str(good[1]): 15}
    reasons = {Path(url).name: reason for url, reason in looked["rejected"].items()}
    assert "backwards" in reasons["other-class.jsonl"] and "the table is empty" in reasons["empty.jsonl"]
    assert all(tar.startswith(str(night.folder / "packed")) for tar in looked["tars"])
    datasets = [open_dataset(night.folder / "data" / split) for split in ("train", "newest")]
    keys = [key for each in datasets for shard in range(len(each.shards)) for key in each.read_index(shard).keys]
    assert sorted(keys) == sorted(f"t{i}" for i in range(45))


def test_damaged_notes_are_told(world: World) -> None:
    world.run()
    (night,) = world.nights
    (night.folder / "night.json").write_text("{")
    with pytest.raises(OutputFolderError, match=r"night\.json: can't be read"):
        world.run()
    (night.folder / "night.json").write_text(json.dumps({"format": "ray_mm.night", "version": 99}))
    with pytest.raises(OutputFolderError, match="upgrade ray_mm"):
        read_nights(world.folder / "retrain")


def test_only_a_training_is_forced(world: World) -> None:
    with pytest.raises(UsageError, match="goes on with its night by itself"):
        run_loaded(world.job(), resume="force")


def test_the_id_of_a_night_is_its_job_and_its_interval() -> None:
    assert night_id("driving", None, 1_800_000_000) == "driving-start-20270115T080000Z"
    assert night_id("driving", 1_800_000_000, 1_800_003_600) == "driving-20270115T080000Z-20270115T090000Z"


def test_old_nights_lose_their_weights_and_nothing_else(tmp_path: Path) -> None:
    for number in range(5):
        for name in ("train", "evaluate", "data", "steps"):
            (tmp_path / f"n{number}" / name).mkdir(parents=True)
        (tmp_path / f"n{number}" / "night.json").write_text("{}")
    (tmp_path / "skipped").mkdir()
    nights = [tmp_path / name for name in ("n0", "n1", "n2", "n3", "n4", "skipped")]
    assert clear_old(nights, 2, ["n1"]) == ["n0", "n2"]
    assert sorted(path.name for path in (tmp_path / "n0").iterdir()) == ["data", "night.json", "steps"]
    for kept in ("n1", "n3", "n4"):
        assert (tmp_path / kept / "train").is_dir()
    assert clear_old(nights, 2, ["n1"]) == []


def _printed(result: dict[str, Any], world: World) -> str:
    sink = io.StringIO()
    console = Console(file=sink, width=200)
    for part in result_parts(result, str(world.folder / "retrain")):
        console.print(part)
    return sink.getvalue()
