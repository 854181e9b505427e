"""The faults of a training, one function each."""

from __future__ import annotations

import json
import signal
import subprocess

from ray_mm.training.state import attempt_starts, latest_checkpoint, read_state
from ray_mm.training.tracking import read_metrics
from tests.cluster.lab import EVERY_STEPS, Fault, Lab, Outcome
from tests.faults.in_processes import full_disk

_FIRST_EPOCH = 19
"""Steps of one."""
_ELASTIC = {"resources": {"workers": {"min": 1, "max": 2}, "cpus_per_worker": 2}}
_LONG = {"train.epochs": 1000, "train.schedule": {"name": "constant"}}
"""Longer than any test; it is ended by SIGTERM."""


def _worker_killed(lab: Lab) -> None:
    cache = {"data.cache.decoded": {"folder": str(lab.folder / "cache"), "size": "10MB"}}
    training = lab.plan(**cache)
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.workers()[-1].send_signal(signal.SIGKILL)
    assert lab.end() == 0, lab.told
    lab.require_exact(training, attempts=2)
    assert json.loads((lab.run / "result.json").read_text())["metrics"]["starts"] == 2
    last = [line for line in read_metrics(lab.run) if line["kind"] == "train" and line["epoch"] == 12]
    assert {line["cached"] for line in last} == {1}, "and what is in the cache is whole"


def _node_lost(lab: Lab) -> None:
    training = lab.plan(**_ELASTIC, **_LONG)
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    assert lab.num_ranks(1) == 2
    lab.machines.lose_second()
    lab.wait_for_step(2 * _FIRST_EPOCH + 5, attempt=2)
    assert lab.num_ranks(2) == 1
    lab.machines.have_second()
    lab.wait(lambda: lab.num_attempts == 3)
    before = lab.last_item(2)
    third = attempt_starts(lab.run)[3]
    assert third == before + 1, "they saved before they left"
    lab.wait_for_step(training.schedule.item(third).step + _FIRST_EPOCH, attempt=3)
    assert lab.num_ranks(3) == 2
    lab.signal(signal.SIGTERM)
    lab.require_stopped(143, "was asked to end and is saved at step")
    assert 0 < attempt_starts(lab.run)[2] < third
    lab.require_exact(training, attempts=3, until=lab.last_step(3))


def _node_lost_and_replaced(lab: Lab) -> None:
    training = lab.plan()
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.machines.lose_second()
    lab.wait(lambda: "waits for machines: 2 worker(s) with 2 CPU(s) each do not fit on those" in lab.told)
    assert "(1 × 3 CPUs)" in lab.told
    lab.machines.have_second()
    assert lab.end() == 0, lab.told
    assert "there is room again (" in lab.told
    lab.require_exact(training, attempts=2)


def _node_drained(lab: Lab) -> None:
    training = lab.plan(**_ELASTIC)
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    assert lab.num_ranks(1) == 2
    lab.machines.drain_second(grace_s=300)
    assert lab.end() == 0, lab.told
    assert lab.num_ranks(2) == 1, "no worker begins on the machine that goes"
    lab.require_exact(training, attempts=2, saved=True)
    lab.machines.lose_second()


def _driver_killed(lab: Lab) -> None:
    training = lab.plan()
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 2 * EVERY_STEPS + 2)
    lab.wait(lambda: len(list((lab.run / "checkpoints").glob("step-*"))) == 2)
    lab.kill_command()
    newest = latest_checkpoint(lab.run)
    assert newest is not None
    (newest / "model.safetensors").write_bytes(b"damaged")
    older = latest_checkpoint(lab.run)
    assert older is not None and older < newest
    next_item = read_state(older).next_item
    notes = lab.run / "ray_train"
    assert notes.is_dir()
    (notes / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_res')
    lab.start(training)
    assert lab.end() == 0, lab.told
    assert "checkpoint passed over" in lab.told
    assert attempt_starts(lab.run)[2] == next_item
    lab.require_exact(training, attempts=2, checkpoints_lost=1)


def _ray_restarted(lab: Lab) -> None:
    training = lab.plan()
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.machines.restart()
    assert lab.end() != 0
    lab.start(training)
    assert lab.end() == 0, lab.told
    lab.require_exact(training, attempts=2)


def _full_disk(lab: Lab) -> None:
    # All are kept, so that it is they that fill it.
    training = lab.plan(**{"train.checkpoints": {"every_steps": EVERY_STEPS, "keep_last": 100}})
    with full_disk(lab.run, "400k"):
        lab.start(training)
        lab.require_stopped(1, r"No space left on device.*make room")
        assert latest_checkpoint(lab.run) is not None
        subprocess.run(["mount", "-o", "remount,size=100m", str(lab.run)], check=True)
        lab.start(training)
        assert lab.end() == 0, lab.told
        lab.require_exact(training, attempts=2)


def _asked_to_end(lab: Lab) -> None:
    training = lab.plan(**{"train.checkpoints.every_steps": 1000})
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.signal(signal.SIGTERM)
    lab.require_stopped(143, "was asked to end and is saved at step .* Run the same command again to go on")
    lab.start(training)
    assert lab.end() == 0, lab.told
    lab.require_exact(training, attempts=2, saved=True)


def _diverged(lab: Lab) -> None:
    lab.start(lab.plan(**{"train.optimizer.lr": 1e30, "train.clip_norm": None}))
    lab.require_stopped(1, r"not finite .*(named in|weights)")


def _more_gpus(lab: Lab) -> None:
    lab.start(lab.plan(resources={"workers": 2, "gpus_per_worker": 1}))
    lab.require_stopped(2, r"2 worker\(s\) with 1 GPU\(s\) each need 2 and Ray has 0")
    assert lab.num_attempts == 0


def _too_large(lab: Lab) -> None:
    lab.start(lab.plan(resources={"workers": 1, "cpus_per_worker": 4}))
    lab.require_stopped(2, r"1 worker\(s\) with 4 CPU\(s\) each do not fit on Ray's nodes \(.*\): there is room for 0")
    assert lab.num_attempts == 0


FAULTS = (
    Fault(
        "worker-killed",
        "a train worker of two is killed (SIGKILL) in mid-epoch",
        (Outcome.EXACT, Outcome.AGAIN),
        _worker_killed,
        "the workers start again from the last checkpoint",
    ),
    Fault(
        "machine-lost",
        "a machine with a worker of `workers: {min: 1, max: 2}` is lost in mid-epoch; later another one comes",
        (Outcome.EXACT, Outcome.AGAIN, Outcome.ENDED),
        _node_lost,
        "it goes on with one worker, then with two; before that they save, so that no step is done again; in the end SIGTERM",
    ),
    Fault(
        "machine-lost-and-replaced",
        "a machine with a worker of `workers: 2` is lost in mid-epoch, and there is no room for two on those that are left",
        (Outcome.EXACT, Outcome.AGAIN),
        _node_lost_and_replaced,
        "it says what it waits for, and goes on when another machine comes",
    ),
    Fault(
        "machine-taken-back",
        "a machine with a worker is told that it will be taken back (Ray drains it)",
        (Outcome.EXACT, Outcome.NOT_AGAIN),
        _node_drained,
        "the workers save and go on elsewhere",
    ),
    Fault(
        "driver-killed",
        "the driver is killed (SIGKILL) in mid-epoch; then the newest checkpoint is damaged, and Ray Train's own notes are cut",
        (Outcome.EXACT, Outcome.AGAIN_FROM_BEFORE),
        _driver_killed,
        "the same command goes on from the checkpoint before, which it says; Ray's notes are not needed",
    ),
    Fault(
        "ray-restarted",
        "all of Ray goes, and comes again elsewhere",
        (Outcome.EXACT, Outcome.AGAIN),
        _ray_restarted,
        "the command ends with an error; given again, it goes on",
    ),
    Fault(
        "full-disk",
        "the disk takes no more during a checkpoint (a mounted one); then it has room again",
        (Outcome.STOPPED, Outcome.EXACT, Outcome.AGAIN),
        _full_disk,
        "the same command goes on",
    ),
    Fault(
        "asked-to-end",
        "SIGTERM in mid-epoch, as schedulers send it before they take a machine back",
        (Outcome.ENDED, Outcome.EXACT, Outcome.NOT_AGAIN),
        _asked_to_end,
        "the same command goes on",
    ),
    Fault(
        "not-finite",
        "the loss is no longer finite",
        (Outcome.STOPPED,),
        _diverged,
        "the step's samples are named in `bad_steps/`",
    ),
    Fault(
        "more-gpus",
        "a job asks for more GPUs than there are",
        (Outcome.REFUSED,),
        _more_gpus,
    ),
    Fault(
        "no-machine-large-enough",
        "a worker needs more CPUs than any machine has, although all have enough together",
        (Outcome.REFUSED,),
        _too_large,
    ),
)
