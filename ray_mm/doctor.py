"""``ray-mm doctor [JOB]``: this machine, Ray, the GPU, access tokens → findings, each with what to do about it.

Of a train job also: each of its stages, measured alone on its own data, and which of them will limit it.
"""

from __future__ import annotations

import contextlib
import enum
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from ray_mm.auth import token_path
from ray_mm.check import check_inputs
from ray_mm.config.base import TrainResources
from ray_mm.config.train import SETTLED, TrainJob
from ray_mm.errors import OutputFolderError, UsageError
from ray_mm.placement import Node, Placement, crowding, divide, ray_nodes
from ray_mm.progress import notice
from ray_mm.run_folder import check_output
from ray_mm.session import cause_of, local_cpus, ray_session
from ray_mm.storage import local_path
from ray_mm.training import explain
from ray_mm.training.explain import Examined
from ray_mm.training.plan import Training

_GIB = 2**30
_LOW_MEMORY = 4 * _GIB
_LOW_DISK = 10 * _GIB
_NO_DISK = _GIB
_LOW_SHARED_MEMORY = 2 * _GIB
_SLOW_START_S = 30.0


class Level(enum.IntEnum):
    """How bad it is."""

    OK = 0
    WARN = 1
    FAIL = 2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    name: str
    found: str
    advice: str = ""
    """What to do; empty where all is well."""

    def line(self) -> str:
        """Such as ``warn  disk: 3.1 GiB free → make room``."""
        return f"{self.level.name.lower():4}  {self.name}: {self.found}{f' → {self.advice}' if self.advice else ''}"


def examine(
    job: TrainJob | None = None, seconds: float = 3.0, address: str | None = None
) -> Iterator[Finding | Examined]:
    """Looks at everything, the quick things first; a job's stages are measured last, if Ray starts and has room for it.

    Args:
        job: a training, to see whether it would run here, and how fast.
        seconds: for measuring each of its stages, about.
        address: of a Ray cluster. None: a private Ray on this machine.

    Raises:
        UsageError: the job, or what it names, is wrong; or nothing answers at the address.
        RayMMError: a stage could not be measured.
    """
    training = None
    if job is not None:
        lines = check_inputs(job)
        yield Finding(Level.OK, "job", f"a valid {job.kind} job, {job.name!r}")
        for line in lines:
            found, _, advice = line.removeprefix("warning: ").rpartition("; ")
            is_warning = line.startswith("warning: ")
            yield Finding(Level.WARN, "job", found, advice) if is_warning else Finding(Level.OK, "job", line)
        yield from _output(job)
        from ray_mm.training.train import plan_training

        training = plan_training(job)
    yield _cpus()
    yield _memory()
    yield _disk(local_path(job.output) if job is not None else Path.cwd())
    yield _shared_memory()
    yield from versions()
    yield token()
    yield _gpu()
    yield from _ray(training, seconds, address)


def as_json(parts: Iterable[Finding | Examined]) -> dict[str, Any]:
    """What ``ray-mm doctor --json`` prints."""
    findings: list[dict[str, str]] = []
    training = None
    for part in parts:
        if isinstance(part, Finding):
            findings.append({**vars(part), "level": part.level.name.lower()})
        else:
            training = explain.as_json(part)
    return {"format": "ray_mm.doctor", "version": 1, "findings": findings, "training": training}


def _output(job: TrainJob) -> Iterator[Finding]:
    """Measuring writes nothing there: what would be refused to a run is only told, so that settings can be tried."""
    try:
        check_output(job, SETTLED)
    except OutputFolderError as error:
        found, _, advice = str(error).rpartition("; ")
        yield Finding(Level.WARN, "output", found, advice)


def _cpus() -> Finding:
    cpus = local_cpus()
    found = f"Ray gets {cpus} of {os.cpu_count()} on {platform.machine()}"
    if cpus <= 2:
        return Finding(Level.WARN, "CPUs", found, "enough to try things out; reading data and training will share them")
    return Finding(Level.OK, "CPUs", found)


def _memory() -> Finding:
    free = available_memory()
    if free is None:
        return Finding(Level.WARN, "memory", "can't be told on this system", f"see that {_size(_LOW_MEMORY)} are free")
    if free < _LOW_MEMORY:
        return Finding(Level.WARN, "memory", f"{_size(free)} available", "close other programs, or expect Ray to spill")
    return Finding(Level.OK, "memory", f"{_size(free)} available")


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still take, its container's limit included; None where that can't be told."""
    limits: list[int] = []
    # Neither file is there on every system.
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
        limits += [int(found[1]) * 1024] if found else []
    with contextlib.suppress(OSError, ValueError):
        limit, used = (cgroup / "memory.max").read_text().strip(), (cgroup / "memory.current").read_text()
        limits += [int(limit) - int(used)] if limit != "max" else []
    return min(limits, default=None)


def _disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    found = f"{_size(usage.free)} free at {folder}"
    if usage.free < _NO_DISK:
        return Finding(Level.FAIL, "disk", found, "make room: checkpoints and Ray's own files need some")
    if usage.free < _LOW_DISK or usage.free < 0.05 * usage.total:
        return Finding(Level.WARN, "disk", found, "make room: Ray stops spilling to a disk that is 95% full")
    return Finding(Level.OK, "disk", found)


def _shared_memory(mount: Path = Path("/dev/shm")) -> Finding:
    if not mount.is_dir():
        return Finding(Level.OK, "shared memory", f"no {mount} on this system; Ray uses files")
    free = shutil.disk_usage(mount).free
    if free < _LOW_SHARED_MEMORY:
        advice = f"batches travel through it: give the container --shm-size={_size(2 * _LOW_SHARED_MEMORY, short=True)}"
        return Finding(Level.WARN, "shared memory", f"{_size(free)} free at {mount}", advice)
    return Finding(Level.OK, "shared memory", f"{_size(free)} free at {mount}")


def versions(distribution: str = "ray_mm") -> Iterator[Finding]:
    """Compares what is installed with what the package says it needs."""
    try:
        needed = [Requirement(text) for text in metadata.requires(distribution) or []]
        python = metadata.metadata(distribution)["Requires-Python"]
    except metadata.PackageNotFoundError:
        found = f"{distribution} runs from its source, so the versions of what it needs could not be compared"
        yield Finding(Level.WARN, "versions", found, "install it: pip install -c constraints.txt -e .")
        return
    yield Finding(Level.OK, "Python", f"{platform.python_version()} (needs {python})")
    compared = wrong = 0
    for requirement in needed:
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "onnx"}):
            continue
        compared += 1
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            have = "not installed"
        if have == "not installed" and optional:
            wrong += 1
            advice = f"compressing needs it: pip install {distribution}[onnx]"
            yield Finding(Level.WARN, requirement.name, have, advice)
        elif have == "not installed" or not requirement.specifier.contains(have, prereleases=True):
            wrong += 1
            advice = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(Level.FAIL, requirement.name, have, advice)
    if not wrong:
        yield Finding(Level.OK, "versions", f"all {compared} requirements are met")


def token() -> Finding:
    """Whether Ray's access token is in use, and who can read it."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    path = token_path()
    if mode == "disabled":
        advice = "whoever can reach its ports can run code here; unset RAY_AUTH_MODE unless nobody else can"
        return Finding(Level.WARN, "access token", "off (RAY_AUTH_MODE=disabled)", advice)
    if path is None:
        return Finding(Level.OK, "access token", "in RAY_AUTH_TOKEN")
    if not path.exists():
        return Finding(Level.OK, "access token", f"none yet; {path} is made when Ray first starts")
    permissions = path.stat().st_mode & 0o777
    if permissions & 0o077:
        found = f"others can read {path} (mode {permissions:o})"
        return Finding(Level.WARN, "access token", found, f"chmod 600 {path}")
    return Finding(Level.OK, "access token", f"{path}, readable for its owner alone")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} ({_size(device.total_memory)})" for device in devices)
        return Finding(Level.OK, "GPU", f"{names}; bf16: {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    if shutil.which("nvidia-smi"):
        found = f"a driver is installed, but torch {torch.__version__} can't use it"
        return Finding(Level.WARN, "GPU", found, "install a CUDA build of torch that fits the driver")
    return Finding(Level.OK, "GPU", f"none; torch {torch.__version__} trains on the CPU")


def _ray(training: Training | None, seconds: float, address: str | None) -> Iterator[Finding | Examined]:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(ray_session(address or "local"))
        except UsageError:
            raise
        except Exception as error:  # whatever keeps Ray from starting is a finding, not a failure of this command
            cause = cause_of(error)
            found = f"a private one does not start ({type(cause).__name__}: {str(cause).strip().splitlines()[:1]})"
            yield Finding(Level.FAIL, "Ray", found, "look into /tmp/ray/session_latest/logs")
            return
        import ray

        resources = ray.cluster_resources()
        yield _ray_started(time.monotonic() - started, resources, address)
        if training is not None:
            yield from _training(training, seconds, ray_nodes())


def _ray_started(seconds: float, resources: Mapping[str, float], address: str | None) -> Finding:
    import ray

    store = _size(int(resources.get("object_store_memory", 0)))
    begun = f"starts in {seconds:.1f} s" if address is None else f"at {address} answers in {seconds:.1f} s"
    found = (
        f"{ray.__version__} {begun} with {resources.get('CPU', 0.0):g} CPUs, {resources.get('GPU', 0.0):g} GPUs and {store} of "
        "shared memory"
    )
    if seconds > _SLOW_START_S:
        return Finding(Level.WARN, "Ray", found, "the machine is busy or its disk slow; every job waits for this")
    return Finding(Level.OK, "Ray", found)


def _training(training: Training, seconds: float, nodes: Sequence[Node]) -> Iterator[Finding | Examined]:
    from ray_mm.training.measure import measure

    job = training.job
    placed = placement(job.resources, nodes)
    yield placed
    if placed.level is not Level.FAIL:
        notice(f"measuring each stage of {job.name!r} for about {seconds:g} s")
        measured = measure(training, divide(job.resources, nodes), seconds)
        yield explain.examined(job.name, seconds, measured, training.schedule)


def placement(resources: TrainResources, nodes: Sequence[Node]) -> Finding:
    """Whether a job's workers and its data find room on a Ray of these machines."""
    try:
        plan = divide(resources, nodes)
    except UsageError as error:
        return Finding(Level.FAIL, "resources", str(error), "or measure and run it on a larger cluster: --address")
    found = (
        f"{plan.workers} worker(s){_of_range(plan)} with {plan.cpus_per_worker:g} CPUs and {plan.gpus_per_worker:g} GPUs each; "
        f"{plan.data_cpus:g} CPUs read data"
    )
    if crowded := crowding(plan, nodes):
        return Finding(Level.WARN, "resources", found, crowded)
    if any(node.gpus for node in nodes) and not plan.gpus_per_worker:
        return Finding(Level.WARN, "resources", found, "this machine has a GPU: set resources.gpus_per_worker to 1")
    return Finding(Level.OK, "resources", found)


def _of_range(plan: Placement) -> str:
    return "" if plan.fewest == plan.most else f" (of {plan.fewest} to {plan.most})"


def _size(size_bytes: int, short: bool = False) -> str:
    return f"{size_bytes // _GIB}g" if short else f"{size_bytes / _GIB:.1f} GiB"
