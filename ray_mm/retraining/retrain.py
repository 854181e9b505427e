"""``ray-mm run retrain.yaml``: new shards, champion → challenger, and the better of the two is the champion.

<output>/nights/<id>/    a night, see ``night.py``
<output>/history.html    all nights; report.html in each night's folder
<output>/result.json     how the last one ended
<output>/registry/       lease, watermark, models; or wherever ``registry`` says

Safe to run at any moment, any number of times: the lease lets one at a time work, a night that was interrupted goes on after its
last whole step, the alias is moved by compare-and-swap, and the watermark last of all that counts.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_mm.check import check_inputs
from ray_mm.compression.compress import require_packages
from ray_mm.config.retrain import RETRAIN_SETTLED, RetrainJob
from ray_mm.errors import GateRefused, LeaseLost, RayMMError, StopRequested
from ray_mm.progress import notice
from ray_mm.retraining import notify
from ray_mm.retraining.clock import SYSTEM_CLOCK, Clock
from ray_mm.retraining.jobs import is_gone, lost_source
from ray_mm.retraining.lease import Lease
from ray_mm.retraining.mlflow_mirror import mlflow_mirror
from ray_mm.retraining.night import Facts, Night, Watch, night_id, read_nights
from ray_mm.retraining.outcome import End, figures_of, message_of
from ray_mm.retraining.registry import Lineage, Registry
from ray_mm.retraining.report.render import write_history, write_night
from ray_mm.retraining.retention import clear_unused
from ray_mm.retraining.steps import Shared, Steps
from ray_mm.retraining.watermark import Watermark
from ray_mm.run_folder import RunFolder, check_output, open_run_folder
from ray_mm.session import use_address
from ray_mm.storage import local_path
from ray_mm.storage.conditional import Documents
from ray_mm.storage.remote import join, located
from ray_mm.version import __version__

HISTORY = "history.html"
REPORT = "report.html"
_LEASE = "lease.json"
_GIVEN = "given"
"""The run that the job's ``champion`` comes from."""


def run_retrain(
    job: RetrainJob, address: str | None = None, clock: Clock = SYSTEM_CLOCK, watch: Watch = lambda point: None
) -> dict[str, Any]:
    """Does what is due: goes on with a night that was interrupted, or begins one with what has come.

    Args:
        job: validated.
        address: of a Ray cluster. None: a private Ray on this machine.
        clock: of the machine.
        watch: told of every step; see ``night.Watch``.

    Returns:
        The content of ``result.json``; its status is ``promoted`` or ``skipped``.

    Raises:
        UsageError: something that the job names is missing or does not fit; nothing was started.
        GateRefused: the challenger lost (``refused``), or the new samples are not what they should be (``stopped``).
        LeaseHeld: another command of this job is at work.
        LeaseLost: another one has taken over.
        RayMMError: a step failed; the same command goes on with it.
    """
    check_inputs(job)
    if job.compress is not None:
        require_packages()
    root = registry_root(job)
    documents = Documents(join(root, job.name))
    mirror = None if job.mlflow is None else mlflow_mirror(root, job.mlflow.uri)
    registry, watermark = Registry(root, job.name, mirror, clock), Watermark(documents)
    above = max(watermark.read().fence, registry.read().fence)
    if check_output(job, RETRAIN_SETTLED) is None:
        open_run_folder(job)  # the lease may lie in it; what others work with is not written before it is held
    holder = f"process {os.getpid()} on {platform.node()}"
    with (
        Lease.take(documents, _LEASE, holder, ttl_s=job.lease_s, clock=clock, above=above) as lease,
        _orderly_end(),
        use_address(address, local_path(job.output)),
        contextlib.ExitStack() as stack,
    ):
        registry.admit(lease.fence)
        watermark.admit(lease.fence)
        folder = open_run_folder(job, RETRAIN_SETTLED)
        shared = Shared(lease, watermark, registry)
        _seed_champion(job, shared)
        earlier, night = _open_night(job, folder.path, shared, clock, watch)
        steps = Steps(job, night, earlier, shared, clock, address, stack)
        try:
            end = steps.run()
            message = message_of(job, night, end, registry.champion(), str(night.folder / REPORT))
            steps.finish(end, message)
        except (StopRequested, LeaseLost):
            raise
        except Exception as error:
            _failed(job, night, shared, error, clock)
            raise
        result = _end(job, folder, night, end, shared)
    if end.status in ("refused", "stopped"):
        kept = "the champion stays" if end.status == "refused" else "nothing was trained, and the shards wait"
        raise GateRefused(f"{job.name}: {end.reason}; {kept}. {night.folder / REPORT} has the figures.")
    return result


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Within the block SIGTERM unwinds the stack, so that the lease is given back, as it does anyway while Ray runs."""
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not is_free or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def registry_root(job: RetrainJob) -> str:
    """Where lease, watermark and models of a job lie."""
    return located(job.registry) if job.registry is not None else str(local_path(job.output) / "registry")


def _seed_champion(job: RetrainJob, shared: Shared) -> None:
    """Makes the job's ``champion`` the first version, where there is none yet; also where that was interrupted."""
    registry = shared.registry
    if job.champion is None or any(version.lineage.run != _GIVEN for version in registry.versions()):
        return
    if registry.champion() is not None:
        return
    lineage = Lineage(run=_GIVEN, job=job.name, data_digest="", code=f"ray_mm {__version__}")
    version = registry.register(job.champion, lineage, shared.lease.fence)
    registry.promote(version, None, shared.lease.fence, by=_GIVEN)


def _open_night(job: RetrainJob, output: Path, shared: Shared, clock: Clock, watch: Watch) -> tuple[list[Night], Night]:
    """The night that was interrupted, or a new one; and those before it."""
    nights = read_nights(output, watch)
    mark = shared.watermark.read()
    # Not simply the last one: a clock that was far ahead once has left a night of later days.
    last = next((night for night in reversed(nights) if night.facts.status is None), None)
    if last is not None:
        reason = _abandoned(last, mark.runs)
        if reason is None:
            notice(f"goes on with {last.facts.id}.")
            last.save(starts=last.facts.starts + 1, failed=None)
            return [night for night in nights if night is not last], last
        notice(f"{last.facts.id} is given up: {reason}.")
        last.save(status="abandoned", reason=reason)
        clear_unused(last.folder)
    until = max(float(int(clock.time())), mark.event_time or 0.0)  # a clock that was put back gives an empty interval
    facts = Facts(
        id=night_id(job.name, mark.event_time, until),
        since=mark.event_time,
        until=until,
        number=len(mark.runs) + 1,
        champion=shared.registry.champion(),
        num_runs=len(mark.runs),
        opened=until,
        starts=1,
    )
    night = Night(output / "nights" / facts.id, facts, watch)
    ended = next((each for each in nights if each.facts.id == facts.id), None)
    if ended is not None:  # within the same second: all is done again, but it is the same interval
        return [each for each in nights if each is not ended], _anew(night)
    night.save()
    return nights, night


def _anew(night: Night) -> Night:
    for marker in (night.folder / "steps").glob("*.json"):
        marker.unlink()
    night.save()
    return night


def _abandoned(night: Night, runs: tuple[str, ...]) -> str | None:
    """Why a night that was interrupted can't be gone on with; None: it can."""
    if night.facts.id in runs:
        return None
    if len(runs) != night.facts.num_runs:
        return "another command has moved the watermark meanwhile"
    looked = night.note("02-look")
    trained = night.note("11-gates")
    if looked and not trained:
        arrived = {shard["url"]: shard["version"] for shard in night.note("01-arrivals")["new"]}
        for url in looked["accepted"]:
            if is_gone(url, arrived[url]):
                return f"its shard {url} was changed or removed"
    planned = night.note("05-plan")
    if (
        planned
        and not night.note("05-train")
        and (lost := lost_source(planned["job"], night.folder.parent)) is not None
    ):
        return f"shards of {lost} were changed or removed, and it was planned with them"
    return None


def _failed(job: RetrainJob, night: Night, shared: Shared, error: Exception, clock: Clock) -> None:
    """Notes and tells that a step failed. The night stays open."""
    text = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {text[0] if text else 'no message'}"
    with contextlib.suppress(OSError):  # a disk that is full may be why
        night.save(failed=reason)
    if job.notify is None:
        return
    with contextlib.suppress(RayMMError, OSError):
        champion = shared.registry.champion()
        message = message_of(job, night, End("failed", reason), champion, None)
        for problem in notify.send(job.notify, message, clock):
            notice(problem)


def _end(job: RetrainJob, folder: RunFolder, night: Night, end: End, shared: Shared) -> dict[str, Any]:
    figures = figures_of(job, night)
    champion = shared.registry.champion()
    promoted = night.note("13-promote").get("version") if end.status == "promoted" else None
    write_night(night.folder / REPORT, job, night, end, figures)
    night.save(status=end.status, reason=end.reason, promoted=promoted, figures=figures)
    if end.status in ("stopped", "skipped"):
        clear_unused(night.folder)
    write_history(folder.path / HISTORY, job, read_nights(folder.path), shared.registry)
    counts = {
        "num_new_samples": figures["num_samples"],
        "num_new_shards": figures["num_shards"],
        "num_set_aside": figures["num_quarantined"] + figures["num_refused"],
    }
    return folder.write_result(
        end.status,
        {**counts, "metric": figures["metric"], "scores": figures["scores"]},
        reason=end.reason,
        night=night.facts.id,
        champion=champion,
        report=str(night.folder / REPORT),
        history=str(folder.path / HISTORY),
    )
