"""A small world for retraining: tars that come in, a clock that is turned by hand, a job of seconds."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from ray_mm.config.load import load_job
from ray_mm.config.retrain import RetrainJob
from ray_mm.retraining.night import Night, read_nights
from ray_mm.retraining.registry import Registry
from ray_mm.retraining.retrain import registry_root, run_retrain
from ray_mm.retraining.watermark import Watermark
from ray_mm.storage.conditional import Documents
from ray_mm.storage.remote import join
from tests.factories import CLASSES, class_of, make_dataset, npy_bytes

FIELDS = ("vector", "label")
START = datetime(2026, 10, 19, 1, 30, tzinfo=timezone.utc).timestamp()
NIGHT_S = 24 * 3600.0


class FakeClock:
    """Shows the time that it is told; seconds pass as they do.

    Attributes:
        now: what it shows.
        is_patient: whether waiting takes its time; else it is over at once, as for whoever waits for a process that is gone.
    """

    def __init__(self, now: float = START) -> None:
        self.now = now
        self.is_patient = True
        self._skipped_s = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return time.monotonic() + self._skipped_s

    def sleep(self, seconds: float) -> None:
        if self.is_patient:
            time.sleep(seconds)
        else:
            self._skipped_s += seconds


class Crash(BaseException):
    """What stands for the end of a process: nothing in the package catches it."""


class World:
    """Datasets, a folder in which tars arrive, and a retraining of them.

    Args:
        folder: for all of it.
        settings: of the job, by dotted keys.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.settings = folder, settings
        self.clock = FakeClock()
        self.arrivals = folder / "incoming"
        self.arrivals.mkdir()
        self._next = 1000
        make_dataset(folder / "train", 60, FIELDS, num_shards=1, seed=1)
        make_dataset(folder / "validation", 30, FIELDS, num_shards=1, seed=2)
        make_dataset(folder / "test", 45, FIELDS, num_shards=1, seed=3)

    def job(self, **more: Any) -> RetrainJob:
        """The job, with settings of one night."""
        content = {
            "kind": "retrain",
            "name": "small",
            "arrivals": {"shards": str(self.arrivals), "min_samples": 20, "settle_s": 0},
            "base": {
                "kind": "train",
                "name": "small",
                "data": {
                    "train": str(self.folder / "train"),
                    "validation": str(self.folder / "validation"),
                    "batch_size": 32,
                },
                "model": {
                    "fields": {"vector": {}},
                    "fusion": {"method": "gated", "dim": 8},
                    "task": {"type": "classify", "label": "label"},
                },
                "train": {"epochs": 3, "optimizer": {"lr": 0.03}},
                "output": str(self.folder / "unused"),
            },
            "frozen_test": str(self.folder / "test"),
            "evaluate": {"subsets": "full"},
            "lease_s": 60,
            "output": str(self.folder / "retrain"),
        }
        job = load_job(content, {**self.settings, **more})
        assert isinstance(job, RetrainJob)
        return job

    def arrive(
        self,
        name: str,
        num_samples: int = 45,
        label: Callable[[int], int] | None = None,
        corrupt: Iterable[int] = (),
        vectors: Callable[[int, int], Any] | None = None,
    ) -> Path:
        """A tar comes in, with samples that were never there before.

        Args:
            name: of the file.
            num_samples: in it.
            label: sample → the class that it is said to have. None: its own.
            corrupt: places of samples whose vector can't be read.
            vectors: sample and class → its vector. None: one that tells the class.
        """
        bad, members = set(corrupt), {}
        for place in range(num_samples):
            sample = self._next
            self._next += 1
            number = class_of(sample, 7)
            vector = vectors(sample, number) if vectors is not None else vector_of(sample, number)
            members[f"s{sample}.vector.npy"] = b"\x93NUMPY no array" if place in bad else npy_bytes(vector)
            members[f"s{sample}.label.cls"] = str(number if label is None else label(number)).encode()
        path = self.arrivals / name
        with tarfile.open(path.with_suffix(".tmp"), "w") as tar:
            for member, payload in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
        path.with_suffix(".tmp").rename(path)
        os.utime(path, (self.clock.now - 3600, self.clock.now - 3600))
        return path

    def arrive_at(self, name: str, num_samples: int = 45, hours: float = 0.0, **more: Any) -> Path:
        """A tar comes in, with its hour in its name: some hours from now, as clocks in Berlin show it."""
        return self.arrive(f"{self.stamp(hours)}-{name}.tar", num_samples, **more)

    def stamp(self, hours: float = 0.0) -> str:
        """The hour before now, as clocks in Berlin show it."""
        time = datetime.fromtimestamp(self.clock.now + 3600 * (hours - 1), ZoneInfo("Europe/Berlin"))
        return time.strftime("%Y-%m-%dT%H-%M")

    def pass_nights(self, count: float = 1) -> None:
        """Time goes on."""
        self.clock.now += count * NIGHT_S

    def run(self, watch: Callable[[str], None] = lambda point: None, **settings: Any) -> dict[str, Any]:
        """The command of a night."""
        return run_retrain(self.job(**settings), clock=self.clock, watch=watch)

    @property
    def registry(self) -> Registry:
        job = self.job()
        return Registry(registry_root(job), job.name)

    @property
    def watermark(self) -> Watermark:
        job = self.job()
        return Watermark(Documents(join(registry_root(job), job.name)))

    @property
    def nights(self) -> list[Night]:
        return read_nights(self.folder / "retrain")

    def check(self) -> None:
        """What holds after every command: one champion at the most, no sample taken twice, one interval after the other."""
        champions = [version for version in self.registry.versions() if "champion" in version.aliases]
        assert len(champions) <= 1
        mark, nights = self.watermark.read(), self.nights
        committed = [night for night in nights if night.facts.id in mark.runs]
        assert [night.facts.id for night in committed] == list(mark.runs)
        taken = [url for night in committed for url in night.note("02-look")["accepted"]]
        assert len(taken) == len(set(taken)) == mark.num_shards == len(self.watermark.consumed())
        assert mark.num_samples == sum(sum(night.note("02-look")["counts"].values()) for night in committed)
        edges = [(night.facts.since, night.facts.until) for night in committed]
        assert all(until == since for (_, until), (since, _) in itertools.pairwise(edges))
        promoted = [night.facts.promoted for night in nights if night.facts.status == "promoted"]
        assert len(promoted) == len(set(promoted))
        events = [
            event.version for event in self.registry.history() if event.action == "promote" and event.by != "given"
        ]
        assert events == promoted or len(events) == len(promoted) + (nights[-1].facts.status is None)


def vector_of(sample: int, number: int) -> Any:
    """What the factory's vectors look like: one of five values tells the class."""
    values = 0.3 * np.random.default_rng([7, sample]).standard_normal(5)
    values[1 + number] += 2.0
    return values.astype(np.float32)


def noise(sample: int, number: int) -> Any:
    """A vector that tells nothing."""
    return (0.3 * np.random.default_rng([8, sample]).standard_normal(5)).astype(np.float32)


def rotated(number: int) -> int:
    """A class that is wrong, each as often as before."""
    return (number + 1) % len(CLASSES)
