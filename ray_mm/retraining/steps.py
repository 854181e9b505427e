"""The steps of a night, one after the other. Each can be done again after it was interrupted anywhere; none is done twice after
it was noted.

    arrivals → look → index → (window) → plan → train → four scores → (compress) → gates → (register → promote) → watermark
    → notify → retention
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ray_mm.checkpoint import load_description
from ray_mm.config.load import StageJob
from ray_mm.config.retrain import RetrainJob
from ray_mm.config.source import train_sources
from ray_mm.config.train import TrainJob
from ray_mm.data.manifest import Dataset, open_dataset
from ray_mm.errors import GateRefused, RegistryError, WriteConflictError
from ray_mm.progress import notice
from ray_mm.registered import registered_folder
from ray_mm.retraining import gates, notify
from ray_mm.retraining.arrivals import Incoming, find_arrivals, listed
from ray_mm.retraining.clock import Clock
from ray_mm.retraining.jobs import (
    NEWEST,
    TRAIN,
    compress_job,
    evaluate_job,
    held_out_before,
    incoming_fields,
    index_job,
    old_data,
    train_job,
)
from ray_mm.retraining.lease import Lease
from ray_mm.retraining.looking import look_at
from ray_mm.retraining.night import Night
from ray_mm.retraining.outcome import End, end_after_look, judgement_note
from ray_mm.retraining.registry import Lineage, Registry
from ray_mm.retraining.retention import clear_old
from ray_mm.retraining.validation import judge, reference_of
from ray_mm.retraining.watermark import Watermark
from ray_mm.session import ray_session
from ray_mm.stages import run_stage
from ray_mm.storage import atomic_folder, is_remote
from ray_mm.training.provenance import working_copy
from ray_mm.version import __version__

_MAX_TOLD = 3


@dataclass(frozen=True)
class Shared:
    """What all schedulers of a job share.

    Attributes:
        lease: that this one holds.
        watermark: which shards were seen.
        registry: of the models.
    """

    lease: Lease
    watermark: Watermark
    registry: Registry


class Steps:
    """The steps of one night.

    Args:
        job: of the retraining.
        night: that is under way.
        earlier: the nights before, in order.
        shared: what all schedulers share.
        clock: of the machine.
        address: of a Ray cluster; None: a private Ray.
        stack: closes, in the end, what the steps open.
    """

    def __init__(
        self,
        job: RetrainJob,
        night: Night,
        earlier: list[Night],
        shared: Shared,
        clock: Clock,
        address: str | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self.job, self.night, self.earlier = job, night, earlier
        self._shared, self._clock, self._address, self._stack = shared, clock, address, stack
        self._has_ray = False

    def run(self) -> End:
        """All of them; returns how the night ends, before it is told."""
        arrived = self._step("01-arrivals", self._arrivals)
        shards = [Incoming(**one) for one in arrived["new"]]
        if not shards:
            waiting = arrived["num_settling"]
            more = f"; still settling: {waiting:,} (arrivals.settle_s)" if waiting else ""
            return End("skipped", f"no new shards{more}")
        looked = self._step("02-look", lambda: self._look(shards))
        end = end_after_look(self.job, looked, shards, self.night.facts.until)
        if end is not None:
            return end
        self._step("03-index", lambda: self._index(looked["tars"]))
        if self.job.window > 1:
            self._step("04-window", lambda: self._window(looked["tars"]))
        self._step("05-plan", self._plan)
        self._step("05-train", self._train)
        scored = {}
        for number, (who, where) in enumerate(self._scores(), 6):
            name = f"{number:02d}-{who}_on_{where}"
            scored[who, where] = self._step(name, lambda who=who, where=where: self._score(who, where))["metrics"]  # type: ignore[misc]
        if self.job.compress is not None:
            self._step("10-compress", self._compress)
        verdict = self._step("11-gates", lambda: self._judge(scored))
        missed = [check["criterion"] for check in verdict["checks"] if not check["passed"]]
        more = f", and {len(missed) - _MAX_TOLD} more" if len(missed) > _MAX_TOLD else ""
        end = End("refused", f"the challenger misses {', '.join(missed[:_MAX_TOLD])}{more}")
        if not missed:
            self._step("12-register", self._register)
            promoted = self._step("13-promote", self._promote)
            end = (
                End("promoted", f"version {promoted['version']} is the champion")
                if promoted["reason"] is None
                else End("refused", promoted["reason"])
            )
        self._step("14-watermark", lambda: self._move_watermark(shards, looked))
        return end

    def finish(self, end: End, message: Mapping[str, Any]) -> None:
        """What follows when it is known how the night ended.

        Args:
            end: how.
            message: what is told.
        """
        self._step("15-notify", lambda: self._notify(message))
        if end.status in ("promoted", "refused"):
            self._step("16-retention", self._retain)

    def _step(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self._shared.lease.check()

        def held() -> dict[str, Any]:
            found = work()
            self._shared.lease.check()  # whoever has taken over meanwhile notes what it finds itself
            return found

        return self.night.step(name, held)

    def _arrivals(self) -> dict[str, Any]:
        found = find_arrivals(self.job.incoming, self._shared.watermark, self.night.facts.until)
        return {
            "new": [each.as_json() for each in found.new],
            "refused": [each.as_json() for each in found.refused],
            "num_settling": found.num_settling,
        }

    def _look(self, shards: list[Incoming]) -> dict[str, Any]:
        self._start_ray()
        looks, tars = look_at(self.job, shards, self.night.folder, self._first, self._run)
        known = {
            content: url
            for night in self.earlier
            if night.facts.status in ("promoted", "refused")
            for url, content in night.note("02-look").get("contents", {}).items()
        }
        fields, _ = incoming_fields(self.job, self._first)
        reference = reference_of(
            [open_dataset(source.path).manifest for source in train_sources(self.job.train.data.train)], fields
        )
        found = judge(looks, reference, self.job.validation, fields, known)
        return judgement_note(found, looks, tars)

    def _index(self, tars: list[str]) -> dict[str, Any]:
        self._run(index_job(self.job, tars, self._folder("data"), self._first))
        found = {split: open_dataset(self._folder("data") / split).manifest for split in (TRAIN, NEWEST)}
        return {
            "num_samples": {split: manifest.num_samples for split, manifest in found.items()},
            "digests": {split: manifest.digest for split, manifest in found.items()},
        }

    def _window(self, tars: list[str]) -> dict[str, Any]:
        """The newest window, where it reaches further back than this night."""
        shards = dict.fromkeys(tars)
        there = {info.url: info for info in listed(self.job.incoming)}
        nights = self._committed()[-(self.job.window - 1) :]
        shards |= dict.fromkeys(held_out_before([night.folder for night in nights], there))
        self._run(index_job(self.job, list(shards), self._folder("window"), self._first))
        return {"num_samples": open_dataset(self._folder("window") / NEWEST).manifest.num_samples}

    def _plan(self) -> dict[str, Any]:
        """The training, settled before it begins: what it goes on with after an interruption must be the same."""
        there = {info.url: info for info in listed(self.job.incoming)}
        old, lost = old_data(self.job, [night.folder for night in self._committed()], there)
        if lost:
            notice(
                f"{len(lost)} nights are not replayed, their shards are gone or changed: {', '.join(lost[:_MAX_TOLD])}."
            )
        champion, why = self._begins_with()
        job = train_job(self.job, self._folder("data") / TRAIN, old, champion, self._folder("train"))
        return {"job": job.model_dump(mode="json"), "begins_with": why, "lost": lost}

    def _train(self) -> dict[str, Any]:
        job = TrainJob.model_validate_json(json.dumps(self.night.note("05-plan")["job"]), strict=True)
        result = self._run(job)
        return {key: result[key] for key in ("checkpoint", "data_digest", "metrics")}

    def _begins_with(self) -> tuple[Path | None, str]:
        """Whose weights the training begins with, and why."""
        warm, champion = self.job.warm_start, self._champion
        if warm is None:
            return None, "fresh weights, as warm_start is null"
        if champion is None:
            return None, "fresh weights, as there is no champion"
        if warm.scratch_every is not None and self.night.facts.number % warm.scratch_every == 0:
            return None, f"fresh weights, as in every night number {warm.scratch_every}"
        if load_description(champion).config != self.job.train.model:
            return None, "fresh weights, as the champion is another model than that of the train job"
        told = f"version {self.night.facts.champion}, × {warm.shrink:g} + {warm.perturb:g} × fresh weights"
        return champion, told

    def _scores(self) -> list[tuple[str, str]]:
        who = ["champion", "challenger"] if self.night.facts.champion is not None else ["challenger"]
        return [(each, where) for where in ("frozen", "newest") for each in who]

    def _score(self, who: str, where: str) -> dict[str, Any]:
        champion = self._champion
        model = champion if who == "champion" else Path(self.night.note("05-train")["checkpoint"])
        assert model is not None
        newest = self._folder("window" if self.job.window > 1 else "data") / NEWEST
        data: Any = self.job.frozen_test if where == "frozen" else str(newest)
        result = self._run(evaluate_job(self.job, model, data, self._folder("evaluate") / f"{who}-{where}"))
        return {"metrics": result["metrics"], "report": result.get("report")}

    def _compress(self) -> dict[str, Any]:
        checkpoint = Path(self.night.note("05-train")["checkpoint"])
        try:
            result = self._run(compress_job(self.job, checkpoint, self._folder("compress")))
        except GateRefused as refused:
            return {"passed": False, "artifact": None, "reason": str(refused).splitlines()[0]}
        return {"passed": True, "artifact": result["artifact"], "reason": None}

    def _judge(self, scored: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
        task, compressed = self.job.train.model.task, self.night.note("10-compress").get("passed")
        scores = {
            where: gates.Scores(scored["challenger", where], scored.get(("champion", where)))
            for where in ("frozen", "newest")
        }
        verdict = gates.judge(scores, self.job.gates, task, compressed)
        figures = {
            where: {
                who: gates.figures_of(scored[who, where], self.job.gates, task)
                for who, there in scored
                if there == where
            }
            for where in scores
        }
        return {"checks": [asdict(check) for check in verdict.checks], "figures": figures}

    def _register(self) -> dict[str, Any]:
        note, facts = self.night.note("05-train"), self.night.facts
        folder = Path(note["checkpoint"])
        artifact = self.night.note("10-compress").get("artifact")
        if artifact is not None:
            # One folder, so that both become the champion in the same instant.
            folder = self._folder("compress") / "model"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(note["checkpoint"], folder)
            shutil.copytree(artifact, folder / "artifact")
        copy = working_copy(Path.cwd())
        figures = self.night.note("11-gates")["figures"]
        lineage = Lineage(
            run=facts.id,
            job=self.job.name,
            data_digest=note["data_digest"],
            code=copy.commit if copy is not None else f"ray_mm {__version__}",
            metrics={
                f"{where}{'.' + name if name else ''}": value
                for where, scores in figures.items()
                for name, value in scores["challenger"].items()
                if value is not None and math.isfinite(value)
            },
            parent=facts.champion,
        )
        return {"version": self._shared.registry.register(folder, lineage, self._shared.lease.fence)}

    def _promote(self) -> dict[str, Any]:
        version, expected = self.night.note("12-register")["version"], self.night.facts.champion
        self._shared.lease.renew()
        try:
            self._shared.registry.promote(version, expected, self._shared.lease.fence, by=self.night.facts.id)
        except (WriteConflictError, RegistryError) as error:  # rolled back, denied or replaced meanwhile, by a person
            if isinstance(error, RegistryError):
                self._shared.registry.version(version)  # raises again where it is the registry that is damaged
            return {"version": version, "reason": f"it was not promoted: {error}"}
        return {"version": version, "reason": None}

    def _move_watermark(self, shards: list[Incoming], looked: Mapping[str, Any]) -> dict[str, Any]:
        until = self.night.facts.until
        accepted = set(looked["accepted"])
        counts = looked["counts"]
        consumed = [shard.as_arrival(counts[shard.url], until) for shard in shards if shard.url in accepted]
        aside = [shard.as_arrival(0, until) for shard in shards if shard.url not in accepted]
        for refused in self.night.note("01-arrivals")["refused"]:
            shard = Incoming(**{key: value for key, value in refused.items() if key != "reason"})
            aside.append(shard.as_arrival(0, until))
        self._shared.lease.renew()
        mark = self._shared.watermark.commit(self.night.facts.id, consumed, self._shared.lease.fence, aside, until)
        return {
            "num_samples": sum(counts[url] for url in accepted),
            "num_shards": len(consumed),
            "total": mark.num_samples,
        }

    def _notify(self, message: Mapping[str, Any]) -> dict[str, Any]:
        problems = notify.send(self.job.notify, message, self._clock) if self.job.notify is not None else []
        for problem in problems:
            notice(problem)
        return {"problems": problems}

    def _retain(self) -> dict[str, Any]:
        registry = self._shared.registry
        spared = [version.lineage.run for version in registry.versions() if version.aliases]
        return {
            "removed": clear_old(
                [night.folder for night in (*self.earlier, self.night)], self.job.retention.nights, spared
            )
        }

    @cached_property
    def _champion(self) -> Path | None:
        """The folder of the model that the night began with, on a disk that every node sees; verified once."""
        facts, registry = self.night.facts, self._shared.registry
        if facts.champion is None:
            return None
        folder = registered_folder(f"registry:{registry.root}#{registry.name}@{facts.champion}")
        if not is_remote(registry.root):
            return folder
        copy = self._folder("evaluate") / "champion"
        if not copy.is_dir():
            with atomic_folder(copy) as temporary:
                shutil.copytree(folder, temporary, dirs_exist_ok=True)
        return copy

    @property
    def _first(self) -> Dataset:
        return open_dataset(train_sources(self.job.train.data.train)[0].path)

    def _committed(self) -> list[Night]:
        """Earlier nights whose samples were trained on."""
        runs = set(self._shared.watermark.read().runs)
        return [night for night in self.earlier if night.facts.id in runs]

    def _folder(self, name: str) -> Path:
        return self.night.folder / name

    def _run(self, job: StageJob) -> dict[str, Any]:
        self._start_ray()
        self._shared.lease.check()
        return run_stage(job, self._address)

    def _start_ray(self) -> None:
        """One Ray for all steps, and none where there is nothing to do."""
        if not self._has_ray:
            self._stack.enter_context(ray_session(self._address, announce=True))
            self._has_ray = True
