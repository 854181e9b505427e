"""What a fault of a training is, and the place where it is tried: two machines, a small job, and commands that run it."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ray_mm.training.ledger import audit, read_entries
from ray_mm.training.plan import Training
from ray_mm.training.state import attempt_starts
from ray_mm.training.tracking import read_metrics
from tests.cluster.machines import ROOT, Machines
from tests.factories import make_dataset
from tests.training.inprocess import Killed, curve, make_training, train

EVERY_STEPS = 5
_PATIENCE_S = 420.0
"""Ray's processes take their time on a busy machine."""
_FIELDS = ("vector", "label")
_COMMAND = """
import sys, ray
from ray_mm.training import scaling
scaling._LOOK_EVERY_S = 3.0
scaling._LOOK_FOR_ROOM_EVERY_S = 1.0
scaling._TELL_AGAIN_EVERY_S = 2.0
# Not by --address: ray_mm need not travel to where it is already, and where two of Ray's machines are one, the second unpacks it
# anew while processes of the first read it.
ray.init(address=sys.argv.pop(1), log_to_driver=False, configure_logging=False)
from ray_mm.cli import main
main()
"""


class Outcome(enum.Enum):
    """What may become of a fault; there is nothing else."""

    EXACT = "every planned sample counts once per epoch; the loss curve goes on within 1e-4"
    AGAIN = "the steps since the last checkpoint are done again"
    AGAIN_FROM_BEFORE = "the steps since the checkpoint before it are done again"
    NOT_AGAIN = "no step is done again"
    ENDED = "it is saved and ends with 143"
    STOPPED = "the run stops and says why; what was saved before is whole"
    REFUSED = "refused at once with what there is (exit 2)"


_MOST_AGAIN = {
    Outcome.NOT_AGAIN: 0,
    # A checkpoint that is still being written is none; the next one waits for it.
    Outcome.AGAIN: 2 * EVERY_STEPS,
    Outcome.AGAIN_FROM_BEFORE: 3 * EVERY_STEPS,
}
"""Steps."""


@dataclass(frozen=True)
class Row:
    """Something that goes wrong: a row of the table.

    Attributes:
        happens: what goes wrong, for people.
        outcomes: all that comes of it.
        more: what else there is to say; it follows the outcomes.
    """

    happens: str
    outcomes: tuple[Outcome, ...]
    more: str = ""


@dataclass(frozen=True)
class Fault:
    """One fault or several, one after the other in one run: to start anew for each would take most of the time.

    Attributes:
        name: of its test.
        rows: in the order in which they happen. What the lab has seen in the end must be their outcomes.
        run: tries them.
    """

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Lab], None]

    @property
    def outcomes(self) -> set[Outcome]:
        """Of all of it."""
        return {outcome for row in self.rows for outcome in row.outcomes}


@dataclass
class Calm:
    """Trainings that nothing happened to, in this process and without Ray: kept, for they are the same for all faults."""

    folder: Path
    curves: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_dataset(self.folder / "train", 300, _FIELDS, num_shards=3)
        make_dataset(self.folder / "validation", 40, _FIELDS, num_shards=1, seed=1)

    def curve(self, settings: dict[str, Any], steps: int) -> dict[tuple[str, int], float]:
        """(kind, step) → loss of a training with one worker, up to a step at the least."""
        key = json.dumps(settings, sort_keys=True)
        known = self.curves.get(key, {})
        if ("train", steps) not in known:
            # A folder of its own: in one that is there, another training would go on.
            training = make_training(self.folder, f"calm-{len(list(self.folder.glob('calm-*')))}", **settings)
            items = training.schedule.items_per_epoch
            with contextlib.suppress(Killed):
                train(training, stop_before=(steps // training.schedule.train_batches + 1) * items)
            known = self.curves[key] = curve(training)
        return known


class Lab:
    """A run's folder on two machines, and what was seen of one fault.

    Args:
        folder: an empty one.
        machines: that run.
        calm: the data, and what learning from it looks like.
    """

    def __init__(self, folder: Path, machines: Machines, calm: Calm) -> None:
        self.folder = folder
        self.machines = machines
        self.calm = calm
        self.outcomes: set[Outcome] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._settings: dict[str, Any] = {}
        self._training: Training | None = None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    def plan(self, **settings: Any) -> Training:
        """The training that ``start`` runs, with other settings of the job if need be.

        Workers find room for one on each machine. There is no dropout: it is drawn per rank, so that trainings with other numbers
        of workers would not learn the same.
        """
        model = {
            "train.epochs": 12,
            "train.ema": 0.9,
            "train.schedule": {"name": "cosine", "warmup": 0.05},
            "model.fields": {"vector": {"dropout": 0}},
            "model.fusion.dropout": 0,
        }
        other = {
            "train.checkpoints.every_steps": EVERY_STEPS,
            "data.head_samples": 48,
            "resources": {"workers": 2, "cpus_per_worker": 2},
            "output": str(self.run),
        }
        learns = {name: settings.pop(name) for name in list(settings) if name in model or name == "train.optimizer.lr"}
        self._settings = model | learns
        return make_training(self.calm.folder, **{**self._settings, **other, **settings})

    def start(self, training: Training, *arguments: str) -> None:
        """Begins ``ray-mm run`` on the machines, in a process of its own."""
        self._training = training
        job = self.folder / "job.json"  # JSON is YAML
        job.write_text(training.job.model_dump_json())
        with (self.folder / "told").open("wb") as told:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, self.machines.address, "run", str(job), *arguments],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                stderr=told,
            )

    @property
    def told(self) -> str:
        """What the command wrote on stderr so far, as one line."""
        return " ".join((self.folder / "told").read_text().split())

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until something is so, while the command runs."""
        deadline = time.monotonic() + _PATIENCE_S
        while not ready():
            assert self._process is not None and self._process.poll() is None, f"it ended too early: {self.told}"
            assert time.monotonic() < deadline, self.told
            time.sleep(0.05)

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Until a step is done and written down by a start of the workers."""
        self.wait(lambda: self.num_attempts >= attempt and self.last_step(attempt) >= step)

    def end(self) -> int:
        """The exit status of the command, when it has ended."""
        assert self._process is not None
        return self._process.wait(_PATIENCE_S)

    def signal(self, number: signal.Signals) -> None:
        """Sends the command a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill_command(self) -> None:
        """Kills the command with SIGKILL; its workers end when Ray notices."""
        self.signal(signal.SIGKILL)
        self.end()
        self.no_workers()

    def no_workers(self) -> None:
        """Until no worker is left of an earlier command."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.workers():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def workers(self) -> list[psutil.Process]:
        """The processes of the train workers."""
        found = []
        for process in psutil.Process(os.getpid()).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @property
    def num_attempts(self) -> int:
        """Starts of the workers so far."""
        return len(attempt_starts(self.run)) if (self.run / "attempts").is_dir() else 0

    def num_ranks(self, attempt: int) -> int:
        """How many workers a start had."""
        return len(list((self.run / "ledger").glob(f"attempt-{attempt:04d}-rank-*.jsonl")))

    def last_item(self, attempt: int) -> int:
        """The last item that a start trained on; −1 if there is none."""
        path = self.run / "ledger" / f"attempt-{attempt:04d}-rank-0000.jsonl"
        return max((entry.item for entry in read_entries(path)), default=-1) if path.exists() else -1

    def last_step(self, attempt: int) -> int:
        """The last step that a start did."""
        item = self.last_item(attempt)
        assert self._training is not None
        return -1 if item < 0 else self._training.schedule.item(item).step

    def require_exact(self, training: Training, *ended: Outcome, until: int | None = None) -> None:
        """Proves from the ledger and the metrics that nothing was lost, repeated or learned otherwise.

        Args:
            training: that was run.
            ended: what came of the steps of each start but the last: whether any was done again, and from where on.
            until: of a training that was ended before: steps that it did.
        """
        starts, schedule = attempt_starts(self.run), training.schedule
        assert len(starts) == len(ended) + 1, (starts, self.told)
        audits = audit(self.run / "ledger", schedule, starts)
        whole = schedule.epochs if until is None else until // schedule.train_batches
        assert whole > 0 and all(epoch.exact for epoch in audits[:whole])
        for number, how in zip(sorted(starts), ended, strict=False):
            again = sum(entry.item >= starts[number + 1] for entry in _entries(self.run, number))
            assert again <= _MOST_AGAIN[how], (number, how, again)
        self.outcomes |= {Outcome.EXACT, *ended}
        found = {(line["kind"], line["step"]): line["loss"] for line in read_metrics(self.run)}
        calm = self.calm.curve(self._settings, until or schedule.num_steps)
        common = [key for key in calm if until is None or key[1] <= until]
        assert {key for key in common if key[0] == "train"} <= found.keys()
        apart = {key: (found[key], calm[key]) for key in common if key in found and abs(found[key] - calm[key]) >= 1e-4}
        assert not apart

    def require_stopped(self, status: int, match: str) -> None:
        """The command has ended with a status and these words, as one paragraph without a traceback."""
        assert self.end() == status, self.told
        assert re.search(match, self.told), self.told
        assert "Traceback" not in self.told
        self.outcomes.add(Outcome.REFUSED if status == 2 else Outcome.ENDED if status == 143 else Outcome.STOPPED)

    def close(self) -> None:
        """Whatever still runs of it ends."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _entries(run: Path, attempt: int) -> list[Any]:
    path = run / "ledger" / f"attempt-{attempt:04d}-rank-0000.jsonl"
    return list(read_entries(path)) if path.exists() else []
