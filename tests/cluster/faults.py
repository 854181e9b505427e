"""The faults of a training, one function each."""

from __future__ import annotations

import json
import signal
import subprocess

from ray_mm.training.state import attempt_starts, latest_checkpoint, read_state
from ray_mm.training.tracking import read_metrics
from tests.cluster.lab import EVERY_STEPS, Fault, Lab, Outcome, Row
from tests.faults.in_processes import full_disk

_FIRST_EPOCH = 19
"""Steps of one."""
_LONG = {"train.epochs": 1000, "train.schedule": {"name": "constant"}}
"""Longer than any test; it is ended by SIGTERM."""
_SHORT = {"train.epochs": 8}
"""Still far from its end when the fault comes."""


def _worker_killed_and_asked_to_end(lab: Lab) -> None:
    settings = {**_LONG, "data.cache.decoded": {"folder": str(lab.folder / "cache"), "size": "10MB"}}
    lab.start(lab.plan(**settings, **{"train.parallel": "fsdp"}))
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.workers()[-1].send_signal(signal.SIGKILL)
    lab.wait_for_step(2 * _FIRST_EPOCH + 5, attempt=2)
    lab.signal(signal.SIGTERM)
    lab.require_stopped(143, "was asked to end and is saved at step .* Run the same command again to go on")
    newest = latest_checkpoint(lab.run)
    assert newest is not None and len(list(newest.glob("optimizer-*-of-00002.safetensors"))) == 2
    assert read_state(newest).next_item == lab.last_item(2) + 1
    training = lab.plan(**settings, resources={"workers": 1, "cpus_per_worker": 2})
    lab.start(training)
    lab.wait_for_step(4 * _FIRST_EPOCH, attempt=3)
    lab.signal(signal.SIGTERM)
    lab.require_stopped(143, "was asked to end and is saved")
    assert [lab.num_ranks(attempt) for attempt in (1, 2, 3)] == [2, 2, 1]
    lab.require_exact(training, Outcome.AGAIN, Outcome.NOT_AGAIN, until=lab.last_step(3))
    last = [line for line in read_metrics(lab.run) if line["kind"] == "train" and line["epoch"] == 4]
    assert {line["cached"] for line in last} == {1}, "and what is in the cache is whole"


def _machines_go_and_come(lab: Lab) -> None:
    resources = {"workers": {"min": 1, "max": 2}, "cpus_per_worker": 2}
    training = lab.plan(**_LONG, **{"train.parallel": "fsdp"}, resources=resources)
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.machines.lose_second()
    lab.wait_for_step(2 * _FIRST_EPOCH + 5, attempt=2)
    lab.machines.have_second()
    lab.wait(lambda: lab.num_attempts == 3)
    assert attempt_starts(lab.run)[3] == lab.last_item(2) + 1, "they saved before they left"
    lab.wait_for_step(lab.last_step(2) + _FIRST_EPOCH, attempt=3)
    lab.machines.drain_second(grace_s=300)
    lab.wait(lambda: lab.num_attempts == 4)
    lab.wait_for_step(lab.last_step(3) + _FIRST_EPOCH, attempt=4)
    lab.signal(signal.SIGTERM)
    lab.require_stopped(143, "was asked to end and is saved at step")
    # No worker begins on the machine that goes.
    assert [lab.num_ranks(attempt) for attempt in (1, 2, 3, 4)] == [2, 1, 2, 1]
    until = lab.last_step(4)
    lab.require_exact(training, Outcome.AGAIN, Outcome.NOT_AGAIN, Outcome.NOT_AGAIN, until=until)


def _node_lost_and_replaced(lab: Lab) -> None:
    training = lab.plan(**_SHORT)
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.machines.lose_second()
    lab.wait(lambda: "ray-mm: waits for machines: 2 worker(s) with 2 CPU(s) each do not fit on those" in lab.told)
    assert "(1 × 3 CPUs)" in lab.told
    lab.wait(lambda: "still waits for machines" in lab.told)
    lab.machines.have_second()
    assert lab.end() == 0, lab.told
    assert "there is room again (" in lab.told
    lab.require_exact(training, Outcome.AGAIN)
    assert json.loads((lab.run / "result.json").read_text())["metrics"]["starts"] == 2


def _killed_and_restarted(lab: Lab) -> None:
    training = lab.plan()
    lab.start(training)
    lab.wait_for_step(_FIRST_EPOCH + 5)
    lab.workers()[-1].send_signal(signal.SIGKILL)
    lab.wait_for_step(2 * _FIRST_EPOCH + 2 * EVERY_STEPS + 2, attempt=2)
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
    lab.wait_for_step(3 * _FIRST_EPOCH + 5, attempt=3)
    assert "checkpoint passed over" in lab.told
    assert attempt_starts(lab.run)[3] == next_item
    lab.machines.restart()
    assert lab.end() != 0
    lab.start(training)
    assert lab.end() == 0, lab.told
    lab.require_exact(training, Outcome.AGAIN, Outcome.AGAIN_FROM_BEFORE, Outcome.AGAIN)


def _full_disk(lab: Lab) -> None:
    # All are kept, so that it is they that fill it.
    training = lab.plan(**_SHORT, **{"train.checkpoints": {"every_steps": EVERY_STEPS, "keep_last": 100}})
    with full_disk(lab.run, "400k"):
        lab.start(training)
        lab.require_stopped(1, r"No space left on device.*make room")
        assert latest_checkpoint(lab.run) is not None
        subprocess.run(["mount", "-o", "remount,size=100m", str(lab.run)], check=True)
        lab.start(training)
        assert lab.end() == 0, lab.told
        lab.require_exact(training, Outcome.AGAIN)


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
        "worker-killed-and-asked-to-end",
        (
            Row(
                "a train worker of two is killed (SIGKILL) in mid-epoch, of a divided training (`train.parallel: fsdp`)",
                (Outcome.EXACT, Outcome.AGAIN),
                "the workers start again from the last checkpoint, which has the parts of all",
            ),
            Row(
                "SIGTERM in mid-epoch, as schedulers send it before they take a machine back",
                (Outcome.ENDED, Outcome.EXACT, Outcome.NOT_AGAIN),
                "the same command goes on; here with one worker and `ddp`, from the parts of two",
            ),
        ),
        _worker_killed_and_asked_to_end,
    ),
    Fault(
        "machines-go-and-come",
        (
            Row(
                "a machine with a worker of `workers: {min: 1, max: 2}` is lost in mid-epoch; later another one comes",
                (Outcome.EXACT, Outcome.AGAIN),
                "it goes on with one worker, then with two, here divided; before that they save, so that no step is done again",
            ),
            Row(
                "a machine with a worker is told that it will be taken back (Ray drains it); in the end SIGTERM",
                (Outcome.EXACT, Outcome.NOT_AGAIN, Outcome.ENDED),
                "the workers save and go on elsewhere",
            ),
        ),
        _machines_go_and_come,
    ),
    Fault(
        "machine-lost-and-replaced",
        (
            Row(
                "a machine with a worker of `workers: 2` is lost in mid-epoch, and there is no room for two on those that are "
                "left",
                (Outcome.EXACT, Outcome.AGAIN),
                "it says again and again what it waits for, and goes on when another machine comes",
            ),
        ),
        _node_lost_and_replaced,
    ),
    Fault(
        "killed-and-restarted",
        (
            Row(
                "a train worker of two is killed (SIGKILL) in mid-epoch",
                (Outcome.EXACT, Outcome.AGAIN),
                "the workers start again from the last checkpoint",
            ),
            Row(
                "the driver is killed (SIGKILL) in mid-epoch; then the newest checkpoint is damaged, and Ray Train's own notes "
                "are cut",
                (Outcome.EXACT, Outcome.AGAIN_FROM_BEFORE),
                "the same command goes on from the checkpoint before, which it says; Ray's notes are not needed",
            ),
            Row(
                "all of Ray goes, and comes again elsewhere",
                (Outcome.EXACT, Outcome.AGAIN),
                "the command ends with an error; given again, it goes on",
            ),
        ),
        _killed_and_restarted,
    ),
    Fault(
        "full-disk",
        (
            Row(
                "the disk takes no more during a checkpoint (a mounted one); then it has room again",
                (Outcome.STOPPED, Outcome.EXACT, Outcome.AGAIN),
                "the same command goes on",
            ),
        ),
        _full_disk,
    ),
    Fault(
        "not-finite",
        (
            Row(
                "the loss is no longer finite",
                (Outcome.STOPPED,),
                "the step's samples are named in `bad_steps/`",
            ),
        ),
        _diverged,
    ),
    Fault("more-gpus", (Row("a job asks for more GPUs than there are", (Outcome.REFUSED,)),), _more_gpus),
    Fault(
        "no-machine-large-enough",
        (
            Row(
                "a worker needs more CPUs than any machine has, although all have enough together",
                (Outcome.REFUSED,),
            ),
        ),
        _too_large,
    ),
)
