"""A job → the same job as it means the same on every node of a cluster."""

from __future__ import annotations

from collections.abc import Callable

from ray_mm.config.base import Config, Resources, TrainResources, map_locations
from ray_mm.config.cluster import ClusterProfile, ClusterResources
from ray_mm.config.load import Job, load_job
from ray_mm.config.retrain import RetrainJob
from ray_mm.config.train import TrainJob
from ray_mm.config.tune import TuneJob
from ray_mm.errors import UsageError
from ray_mm.registered import PREFIX, is_registered, parse_reference
from ray_mm.storage import is_remote, local_path


def placed(job: Job, cluster: ClusterProfile, seen_from_here: bool = True) -> Job:
    """Paths in full, and the cluster's resources where the job asks for none.

    Args:
        job: with paths as its user wrote them.
        cluster: where it is run.
        seen_from_here: whether a relative path is meant from this folder where the cluster has no storage of its own.

    Raises:
        UsageError: a path means nothing there, or the output lies in a store.
    """
    found = map_locations(job, _placing(cluster.storage, seen_from_here))
    if is_remote(found.output):
        raise UsageError(
            f"output: {found.output}: a run's folder can't be in an object store; give the full path of a folder that every "
            "node of the cluster sees."
        )
    return with_defaults(found, cluster.resources)


def resources_of(job: Job) -> Resources | TrainResources:
    """What a run of the job reserves: of a search one of its trials, of a retraining its training."""
    # A kind that says nothing of workers runs on one node.
    return _asked(job)[1] or Resources()


def with_defaults(job: Job, defaults: ClusterResources) -> Job:
    """The job with what a cluster gives those that do not say it: of a search its trials, of a retraining its training."""
    holder, resources = _asked(job)
    if resources is None:
        return job
    wanted = defaults.model_dump(exclude_none=True)
    more = {key: value for key, value in wanted.items() if key not in resources.model_fields_set}
    if not more:
        return job
    changed = {**holder.model_dump(mode="json"), "resources": {**resources.model_dump(mode="json"), **more}}
    if holder is job:
        return load_job(changed)
    return load_job({**job.model_dump(mode="json"), "job" if isinstance(job, TuneJob) else "base": changed})


def _asked(job: Job) -> tuple[Config, Resources | TrainResources | None]:
    """The job, or the train job within it, and what it says of workers; None: nothing can be said."""
    holder: Config = job
    if isinstance(job, TuneJob):
        holder = job.train
    elif isinstance(job, RetrainJob):
        assert isinstance(job.base, TrainJob)  # its file was read with the job's
        holder = job.base
    found = getattr(holder, "resources", None)
    return holder, found if isinstance(found, (Resources, TrainResources)) else None


def _placing(storage: str | None, seen_from_here: bool) -> Callable[[str], str]:
    def place(path: str) -> str:
        if is_registered(path):
            root, mark, model = path.removeprefix(PREFIX).rpartition("#")
            return str(parse_reference(f"{PREFIX}{place(root)}{mark}{model}"))
        if is_remote(path) or (path.startswith("/") and not seen_from_here):
            return path
        if path.startswith("/") or (storage is None and seen_from_here):
            return str(local_path(path))
        if storage is None:
            raise UsageError(
                f"{path}: is a relative path, and it is not known where all nodes see it; write it in full, or add storage: to "
                "the cluster's profile."
            )
        if path.startswith(("~", "file:")):
            raise UsageError(
                f"{path}: means another folder on the cluster; write it in full, or relative to its storage, {storage}."
            )
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise UsageError(f"{path}: leads out of the cluster's storage, {storage}; write it in full.")
        return "/".join([storage.rstrip("/"), *parts])

    return place
