"""``ray-mm run tune.yaml``: a train job and what to search over → many trainings → the best of them, ready to be run.

<run>/trials.json      what was drawn, and how each trial stands
<run>/trials/0003/     trial 3: a run of kind train
<run>/best.yaml        the train job with the best trial's settings
<run>/report.html      all trials, compared
<run>/ray_tune/        Ray's own notes; nothing is read from there
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray import tune
from ray.tune.search import Searcher

from ray_mm.config.base import map_locations
from ray_mm.config.explain import first_reason
from ray_mm.config.read import first_line
from ray_mm.config.search import num_trials, trial_job
from ray_mm.config.train import TrainJob
from ray_mm.config.tune import TUNE_SETTLED, TuneJob
from ray_mm.errors import RayMMError, StopRequested, UsageError
from ray_mm.placement import describe, divide, ray_nodes, room
from ray_mm.progress import notice, progress
from ray_mm.quiet import quiet_tune
from ray_mm.registered import absolute
from ray_mm.run_folder import RunFolder, open_run_folder
from ray_mm.session import cause_of, ray_session
from ray_mm.training.stopping import StopSign
from ray_mm.training.train import plan_training
from ray_mm.tuning.draw import require_method
from ray_mm.tuning.outcome import write_outcome
from ray_mm.tuning.search import Search
from ray_mm.tuning.table import State, Table, Trial
from ray_mm.tuning.trial import run_trial

_RAY_NOTES = "ray_tune"


def run_tune(job: TuneJob) -> dict[str, Any]:
    """Searches, or goes on with a search that was interrupted.

    Returns:
        The content of ``result.json``; its status is ``unchanged`` when the search was done before.

    Raises:
        UsageError: something that the job names does not fit; nothing was started.
        StopRequested: it was asked to end; the trials that ran are saved.
        RayMMError: too many trials failed.
    """
    require_method(job)
    plan_training(job.train)
    folder = open_run_folder(job, settled=TUNE_SETTLED)
    table = Table(job, folder.path)
    earlier = folder.read_result()
    if earlier is not None and earlier.get("status") == "done" and _is_over(job, table):
        return earlier | {"status": "unchanged"}
    _check_diverged(job, table)
    with folder.locked(continues=True):
        begun = table.count(State.BEGUN, State.FAILED)
        if table.trials:
            notice(
                f"goes on after {len(table.trials) - begun:,} of {num_trials(job):,} trials"
                + (f"; {begun:,} were interrupted or failed and go on from their checkpoints." if begun else ".")
            )
        _search(job, folder, table)
        return write_outcome(folder, table)


def _search(job: TuneJob, folder: RunFolder, table: Table) -> None:
    sign = StopSign(folder.path)
    with ray_session(announce=True), sign.on_sigterm():
        done = len(table.trials) - table.count(State.BEGUN, State.FAILED)
        with progress("tune", num_trials(job), "trials", done=done, waiting="starting the first trials") as bar:
            search = Search(job, table, sign, bar)
            at_once = trials_at_once(job, search.num_left)
            try:
                with quiet_tune():
                    _run_trials(job, folder.path, search, at_once)
            except Exception as error:
                cause = cause_of(error)
                if isinstance(cause, RayMMError):
                    raise cause from error
                raise RayMMError(
                    f"the search in {folder.path} failed: {type(cause).__name__}: {cause}. Run the same command again to go on."
                ) from error
    if search.has_failed:
        raise RayMMError(_failed_text(job, table))
    if search.was_asked_to_end and not _is_over(job, table):
        ended = len(table.trials) - table.count(State.BEGUN)
        raise StopRequested(
            f"the search in {folder.path} was asked to end after {ended:,} of {num_trials(job):,} trials, and those that ran are "
            "saved. Run the same command again to go on."
        )
    if not _is_over(job, table):
        raise RayMMError(f"Ray Tune ended before the search did; run the same command again to go on ({folder.path}).")


def trials_at_once(job: TuneJob, wanted: int) -> int:
    """How many trials run side by side in the Ray that is running.

    Args:
        job: the search.
        wanted: trials that there are.

    Raises:
        UsageError: there is no room for so many, or for one.
    """
    nodes = ray_nodes()
    alone = divide(job.train.resources, nodes)
    cpus = sum(node.cpus for node in nodes)
    workers = room(nodes, alone.cpus_per_worker, alone.gpus_per_worker)

    def fit(count: int) -> bool:
        # Each has a CPU to read data with, as a training alone has.
        enough = cpus / count - alone.fewest * alone.cpus_per_worker >= 1 - 1e-6
        return count == 1 or (count * alone.fewest <= workers and enough)

    at_once = job.resources.trials_at_once
    most = next(count for count in range(min(wanted, at_once or wanted), 0, -1) if fit(count))
    if at_once is not None and most < min(at_once, wanted):
        raise UsageError(
            f"resources.trials_at_once: {at_once} trials of {alone.describe()}, and a CPU each to read data, do not fit on Ray's "
            f"nodes ({describe(nodes)}), on which there is room for {most}; lower it, or job.resources."
        )
    return most


def _run_trials(job: TuneJob, folder: Path, search: Search, at_once: int) -> None:
    # What lies there is of an interrupted command: a search goes on from its own table.
    shutil.rmtree(folder / _RAY_NOTES, ignore_errors=True)
    tuner = tune.Tuner(
        # A trial's process takes no CPU: it waits for workers that reserve theirs. Ray Tune wants it to take something.
        tune.with_resources(run_trial, {"memory": 1 << 20}),
        tune_config=tune.TuneConfig(
            num_samples=search.num_left,
            search_alg=_Draw(job, search, 1 / at_once),
            max_concurrent_trials=at_once,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(name=_RAY_NOTES, storage_path=str(folder), verbose=0, callbacks=[_Listen(search)]),
    )
    tuner.fit()


def _name(trial: Any) -> str:
    return f"{trial.config['number']:04d}"


class _Unsaved:
    """Ray Tune writes down its parts, which we never read: what can't be written is left out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Draw(_Unsaved, Searcher):  # type: ignore[misc]  # Ray is not typed
    """Gives Ray Tune the next trial of a search."""

    def __init__(self, job: TuneJob, search: Search, share: float) -> None:
        super().__init__()
        self._job = job
        self._search = search
        self._share = share

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """What ``run_trial`` takes."""
        while (trial := self._search.next_trial()) is not None:
            try:
                content = _job_of(self._job, trial)
            except ValidationError as error:  # Optuna has put together what does not go together
                path, reason = first_reason(error, TrainJob)
                self._search.ended(trial.number, State.FAILED, f"{'.'.join(map(str, path)) or 'job'}: {reason}")
                continue
            return {
                "number": trial.number,
                "job": content,
                "share": self._share,
                "epochs": len(trial.validations),
            }
        return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the search hears it from ``_Listen``."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Listen(_Unsaved, tune.Callback):  # type: ignore[misc]  # Ray is not typed
    """Tells a search what becomes of its trials."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._ended: set[int] = set()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A validation, or how the trial ended."""
        number = trial.config["number"]
        if "validation" in result:
            self._search.validated(number, result["validation"])
        elif "outcome" in result:
            state = result["outcome"]["state"]
            self._end(number, None if state is None else State(state), result["outcome"].get("reason", ""))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Its process is done; it should have said how it ended."""
        self._end(trial.config["number"], State.FAILED, "its process ended without a word.")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Its process is gone."""
        error = cause_of(trial.get_error()) if trial.get_error() is not None else None
        told = "" if error is None else f" ({type(error).__name__}: {first_line(error)})"
        self._end(trial.config["number"], State.FAILED, f"its process was killed, or its machine was lost{told}.")

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Some times a second."""
        self._search.keep_signs()

    def _end(self, number: int, state: State | None, reason: str) -> None:
        if number not in self._ended:
            self._ended.add(number)
            self._search.ended(number, state, reason)


def _job_of(job: TuneJob, trial: Trial) -> str:
    """The training of a trial as JSON. It may run on another machine and in another folder, so all its paths are whole."""
    train = trial_job(job, trial.settings, f"{job.output}/{trial.folder}")
    return map_locations(train, absolute).model_dump_json()


def _is_over(job: TuneJob, table: Table) -> bool:
    return len(table.trials) >= num_trials(job) and not table.count(State.BEGUN)


def _check_diverged(job: TuneJob, table: Table) -> None:
    if table.count(State.DIVERGED) > job.max_failed_trials:
        raise RayMMError(_failed_text(job, table))


def _failed_text(job: TuneJob, table: Table) -> str:
    failed = [trial for trial in table.trials if trial.state in (State.FAILED, State.DIVERGED)]
    return (
        f"{len(failed)} trials failed, and max_failed_trials is {job.max_failed_trials}; the last one, trial "
        f"{failed[-1].number}: {failed[-1].reason} Mend what it says and run the same command again: failed trials are tried "
        "again, but for those that diverged. Or raise max_failed_trials."
    )
