"""A profile of some steps: what each rank did in them, as a trace and in figures.

<run>/profile/steps-10-14/rank-0.trace.json.gz    for https://ui.perfetto.dev or chrome://tracing
<run>/profile/steps-10-14/rank-0.json             the figures, see ``profile_parts``; written last
<run>/profile/steps-10-14/summary.html            a page, made by the driver when every rank's are there

A training that goes on does not profile again what it has profiled.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ray_mm.config.train import ProfileConfig
from ray_mm.data.loader import LoadedBatch
from ray_mm.storage import write_json
from ray_mm.training.parallel import Ranks, resolve_precision
from ray_mm.training.plan import Training
from ray_mm.training.profile_parts import RankProfile, measured
from ray_mm.training.spans import span, use_spans

_log = logging.getLogger(__name__)

DrawProfile = Callable[[Path, str, "list[RankProfile]"], None]
"""Writes a page: its path, the job's name, the figures of all ranks."""


def profile_folder(run: Path, config: ProfileConfig) -> Path:
    """Where the profile of a run's steps lies."""
    return run / "profile" / f"steps-{config.start}-{config.start + config.steps - 1}"


class StepProfiler:
    """Profiles the steps that the job names, on every rank. A context: at its end nothing is profiled any more.

    Args:
        training: whose steps they are.
        ranks: this worker's place.
        next_item: that comes first.
        step: optimizer steps that are done.
    """

    def __init__(self, training: Training, ranks: Ranks, next_item: int, step: int) -> None:
        self._training, self._ranks = training, ranks
        self._next_item, self._step = next_item, step
        self._profile: profile | None = None
        self._batches: list[LoadedBatch] = []
        config = training.job.train.profile
        self._folder = profile_folder(training.run, config) if config is not None else None
        if self._folder is not None and self._file(".json").exists():
            self._folder = None
        self._steps = range(config.start, config.start + config.steps) if config is not None else range(0)

    def watch(self, batches: Iterable[LoadedBatch]) -> Iterator[LoadedBatch]:
        """The same batches; what is done with one ends when the next is asked for."""
        if self._folder is None:
            yield from batches
            return
        remaining = iter(batches)
        while True:
            if self._profile is None and self._is_due():
                self._begin()
            with span("data"):
                batch = next(remaining, None)
            if batch is None:
                break
            yield batch
            self._next_item = batch.item.number + 1
            if batch.item.phase == "train":
                self._step = batch.item.step
                if self._profile is not None:
                    # Its tensors would be kept in memory with it.
                    self._batches.append(_times_of(batch))
                    if self._step + 1 not in self._steps or batch.item.ends_phase:
                        self._finish()

    def _is_due(self) -> bool:
        schedule = self._training.schedule
        return (
            self._folder is not None
            and self._step + 1 in self._steps
            and self._next_item < schedule.num_items
            and schedule.item(self._next_item).phase == "train"
        )

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._ranks.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, profile_memory=True)
        self._profile.start()
        use_spans(True)

    def _finish(self) -> None:
        """Writes what was profiled. A training does not end because its profile can't be written."""
        profiled, self._profile = self._profile, None
        folder, self._folder = self._folder, None
        assert profiled is not None and folder is not None
        use_spans(False)
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)
        profiled.stop()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trace = self._file(".trace.json.gz", folder)
            # Torch packs what it writes if the name says so; half a trace is never seen.
            begun = trace.with_name(f".{trace.name}")
            profiled.export_chrome_trace(str(begun))
            begun.replace(trace)
            found = measured(
                profiled,
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
                device=_device_name(self._ranks.device),
                precision=resolve_precision(self._training.job.train.precision, self._ranks.device),
                first_step=self._batches[0].item.step,
                num_steps=len(self._batches),
                wait_s=sum(batch.wait_s for batch in self._batches),
                copy_s=sum(batch.transfer_s for batch in self._batches),
            )
            write_json(self._file(".json", folder), asdict(found))
        except OSError as error:
            _log.warning("the profile can't be written path=%s reason=%s", folder, error.strerror)
        self._batches.clear()

    def _file(self, suffix: str, folder: Path | None = None) -> Path:
        folder = folder or self._folder
        assert folder is not None
        return folder / f"rank-{self._ranks.rank}{suffix}"

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        use_spans(False)
        if self._profile is not None:
            self._profile.stop()


def _times_of(batch: LoadedBatch) -> LoadedBatch:
    return LoadedBatch(batch.item, {}, [], batch.start, batch.stop, batch.wait_s, batch.transfer_s)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class ProfileWatch:
    """Draws the page once the figures of all ranks are there, on the driver.

    Args:
        training: that may be profiled.
        draw: writes a page; None: none is wanted.
    """

    def __init__(self, training: Training, draw: DrawProfile | None) -> None:
        config = training.job.train.profile
        self._training, self._draw = training, draw
        self._folder = profile_folder(training.run, config) if config is not None and draw is not None else None
        if self._folder is not None and (self._folder / "summary.html").exists():
            self._folder = None

    def look(self) -> Path | None:
        """The page, once: when it is made."""
        if self._folder is None or self._draw is None:
            return None
        found = read_profiles(self._folder)
        if not found or len(found) < found[0].world_size:
            return None
        page, self._folder = self._folder / "summary.html", None
        with contextlib.suppress(OSError):
            self._draw(page, self._training.job.name, found)
            return page
        return None


def read_profiles(folder: Path) -> list[RankProfile]:
    """The figures of the ranks that have written theirs, by rank."""
    found: list[RankProfile] = []
    for path in folder.glob("rank-*.json"):
        content: dict[str, Any] = json.loads(path.read_text())
        found.append(RankProfile.from_json(content))
    return sorted(found, key=lambda profiled: profiled.rank)


def behind_the_end(config: ProfileConfig, num_steps: int) -> str | None:
    """What is wrong with the steps that a job wants profiled, or None."""
    if config.start <= num_steps:
        return None
    return f"train.profile.start: step {config.start:,} lies behind the end, the training has {num_steps:,} steps; lower it."
