"""Ray, started or joined for one command and left as it was found."""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import pickle
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ray_mm.auth import protect_token
from ray_mm.errors import RayMMError, UsageError
from ray_mm.forking.start import forked_workers, in_place_of_python
from ray_mm.progress import notice
from ray_mm.quiet import quiet_core, quiet_data, quiet_raylet, without_token_notice
from ray_mm.seen_by_all import require_seen_by_all
from ray_mm.travel import cluster_has_this_code, with_the_job

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_TIMEOUT_S = 10.0
"""How long a cluster may take to accept a connection. Ray itself would try for minutes."""

_WARM_PROCESSES_PER_CPU = 4
"""That a private Ray keeps while they have nothing to do: readers, and those that hand out what they read."""

_MODEL_MODULES = ("torch",)
_RAY_MODEL_MODULES = ("ray.train.torch", "ray_mm.training.worker", "ray_mm.data.feed_reader")
"""That the processes of a stage with a model import, besides what all do."""

_STARTS = 2
"""Of a private Ray, until one is in time."""
_END_TIMEOUT_S = 10.0

_address: contextvars.ContextVar[str | None] = contextvars.ContextVar("ray_mm_address", default=None)
_output: contextvars.ContextVar[Path | None] = contextvars.ContextVar("ray_mm_output", default=None)
_ahead: contextvars.ContextVar[list[Path | None] | None] = contextvars.ContextVar("ray_mm_ahead", default=None)


@contextlib.contextmanager
def use_address(address: str | None, output: Path | None = None) -> Iterator[None]:
    """Makes every ``ray_session`` in the block use a cluster, without starting anything yet.

    A stage checks its job before it starts Ray; so the address has to reach the session inside the stage.

    Args:
        address: of the cluster; None: as ``ray_session`` says.
        output: folder that all nodes of a cluster have to see.
    """
    tokens = _address.set(address), _output.set(output)
    try:
        yield
    finally:
        _address.reset(tokens[0])
        _output.reset(tokens[1])


@contextlib.contextmanager
def private_ray_ahead(with_models: bool = True) -> Iterator[None]:
    """Begins what a private Ray of the block will need, beside what is done before it is started; see ``ray_session``."""
    is_running = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if is_running or _wanted_address() != "local":
        yield
        return
    _prepare_private()
    with _forked(with_models) as executable:
        token = _ahead.set([executable])
        try:
            yield
        finally:
            _ahead.reset(token)


def _prepare_private() -> None:
    """Sets what the processes of a private Ray find in their environment; some is read when a library is loaded."""
    protect_token()
    # Data and training share the cores: a thread that spins while it waits for another, as OpenMP's do by default,
    # holds up the one that it waits for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A private Ray reports nothing to anybody, and one process less starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray ends processes that idle for a second, but for one per CPU; a run's next stage would start its readers anew.
    os.environ.setdefault("RAY_num_workers_soft_limit", str(_WARM_PROCESSES_PER_CPU * local_cpus()))
    # Ray gives its first process half a minute, which a busy machine may need to load it from the disk.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")


def _forked(with_models: bool) -> contextlib.AbstractContextManager[Path | None]:
    modules = (_MODEL_MODULES, _RAY_MODEL_MODULES) if with_models else ((), ())
    return forked_workers(*modules)


def _wanted_address() -> str:
    return _address.get() or os.environ.get("RAY_ADDRESS") or "local"


@contextlib.contextmanager
def ray_session(address: str | None = None, announce: bool = False, with_models: bool = True) -> Iterator[None]:
    """Joins the Ray that is already there, or starts a private one and stops it at the end.

    Args:
        address: of a cluster. None: what ``use_address`` says, else the cluster of the Ray job that this process
            belongs to (``RAY_ADDRESS``), else a private Ray on this machine.
        announce: whether to say on stderr that Ray is started or joined, which takes some seconds.
        with_models: whether its processes will need PyTorch; a private Ray then has them forked from one that has imported it.

    Raises:
        UsageError: nothing answers at the address, or not every node there sees the run's folder.
        RayMMError: a private Ray does not start.
    """
    import ray

    if ray.is_initialized():
        with quiet_data(), _own_interrupt():
            yield
        return
    address = address or _wanted_address()
    options: dict[str, Any] = {}
    if announce:
        notice("starting Ray" if address == "local" else f"joining Ray at {address}")
    if address == "local":
        _prepare_private()
        options = {"include_dashboard": False, "num_cpus": local_cpus()}
    else:
        _require_reachable(address)
    with contextlib.ExitStack() as stack:
        try:
            with without_token_notice(), quiet_core():
                if address == "local":
                    ahead = _ahead.get()  # it serves one Ray
                    with in_place_of_python(ahead.pop() if ahead else stack.enter_context(_forked(with_models))):
                        _start_private(options)
                else:
                    ray.init(address=address, log_to_driver=False, configure_logging=False)
                # A submitted job has brought its ray_mm already; elsewhere it must be this very version, too.
                if (
                    address != "local"
                    and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ
                    and not cluster_has_this_code()
                ):
                    ray.shutdown()
                    ray.init(address=address, log_to_driver=False, configure_logging=False, runtime_env=with_the_job())
        except ConnectionError as error:
            raise UsageError(
                f"--address {address}: no Ray cluster there ({error}); start one, or leave the address out to run on this "
                "machine alone."
            ) from error
        try:
            output = _output.get()
            if address != "local" and output is not None and (unheard := require_seen_by_all(output)):
                notice(unheard)
            with quiet_data(), quiet_raylet(), _own_interrupt():
                yield
        finally:
            ray.shutdown()


def _start_private(options: dict[str, Any]) -> None:
    """Starts a Ray on this machine, once more where its processes do not answer in time.

    Raises:
        RayMMError: they don't again.
    """
    import ray

    for start in range(1, _STARTS + 1):
        try:
            with ended_on_error():
                ray.init(address="local", log_to_driver=False, configure_logging=False, **options)
            return
        except ValueError:  # nothing that time would mend
            raise
        except Exception as error:  # Ray has no class of its own for it
            ray.shutdown()
            said = " ".join(str(error).split())
            if start < _STARTS:
                notice(f"Ray did not start in time ({said}); once more.")
                continue
            raise RayMMError(
                f"Ray did not start on this machine in {_STARTS} tries ({said}). Its processes have to answer within a time that "
                "Ray sets, half a minute for the most part, which is too little where the machine is busy with other work, or "
                "short of memory or disk: make room, and run the same command again; or join a Ray that runs already, with "
                "--address. What its processes wrote is in session_latest/logs of Ray's folder, which is /tmp/ray unless "
                "RAY_TMPDIR says otherwise."
            ) from error


@contextlib.contextmanager
def ended_on_error() -> Iterator[None]:
    """Ends the processes that were started in the block if it fails: a Ray whose start fails leaves what it has started."""
    this = psutil.Process()
    before = set(this.children(recursive=True))
    try:
        yield
    except BaseException:
        left = [process for process in this.children(recursive=True) if process not in before]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_END_TIMEOUT_S)
        raise


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Keeps Ctrl-C a ``KeyboardInterrupt``.

    Ray Train takes the signal over for good: it stops its workers and then ends the process, without an error if it is
    asked later, when there are no workers any more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if ended.code == signal.SIGTERM or signal.getsignal(signal.SIGINT) is handler:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


def local_cpus() -> int:
    """CPUs that a private Ray offers: what this process may use, and at least two, so that data and training both run."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _container_cpus()
    if quota is not None:
        available = min(available, max(1, math.floor(quota)))
    return max(2, available)


def _container_cpus(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU quota of the container that this process runs in; None where there is none."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        micros = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return None if micros <= 0 else micros / int((root / "cpu/cpu.cfs_period_us").read_text())
    return None


def _require_reachable(address: str) -> None:
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UsageError(
            f"--address {address}: expected auto or HOST:PORT of a Ray head (its port is 6379 unless it was changed). "
            "With a dashboard's address (http://HOST:8265), use: ray-mm submit."
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--address {address}: nothing answers there ({error}); check that the Ray head runs and can be reached."
        ) from None


def map_on_ray(work: Callable[[Item], Result], items: Sequence[Item], tasks: int, **options: Any) -> Iterator[Result]:
    """Results of a call for each item, made by Ray Data in the Ray that is running; in any order, as they are done.

    Args:
        work: the call.
        items: at least one.
        tasks: into which they are divided.
        options: of ``map_batches``, such as ``num_cpus``.
    """
    import ray.data

    # As bytes, for Ray Data warns of every column of objects that Arrow does not know.
    def run(batch: dict[str, Sequence[bytes]]) -> dict[str, list[bytes]]:
        return {"done": [pickle.dumps(work(pickle.loads(item))) for item in batch["item"]]}

    dataset = ray.data.from_items([pickle.dumps(item) for item in items], override_num_blocks=tasks)
    for row in dataset.map_batches(run, batch_size=None, batch_format="numpy", **options).iter_rows():
        yield pickle.loads(row["done"])


def cause_of(error: BaseException) -> BaseException:
    """The error of ours inside what Ray wrapped around it, or the innermost cause."""
    seen: set[int] = set()
    current: BaseException | None = error
    innermost = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        innermost = current
        inner = _wrapped_by_ray(current)
        # What Ray raises for a task is an instance of our class, too, but its text is the whole remote traceback.
        if inner is None and isinstance(current, RayMMError):
            return _without_retries(current)
        current = inner or current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return _without_retries(innermost)


@contextlib.contextmanager
def own_errors(failed: str | None = None) -> Iterator[None]:
    """Raises an error of ours that came out of a Ray task as itself, without what Ray wrapped around it.

    Args:
        failed: such as ``the evaluation``: any other error is raised as one of ours, too, that says that this failed, and why.
            None: it is raised as it is.
    """
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if isinstance(cause, RayMMError):
            raise cause from None
        if failed is None:
            raise
        told = cause if str(cause) else error
        raise RayMMError(f"{failed} failed: {type(told).__name__}: {told}") from error


def _without_retries(error: BaseException) -> BaseException:
    """Ray Data appends to an exception's text how often it tried."""
    if error.args and isinstance(error.args[0], str):
        error.args = (re.split(r"\nFailed to .+ after \d+/\d+ attempts", error.args[0], maxsplit=1)[0], *error.args[1:])
    return error


def _wrapped_by_ray(error: BaseException) -> BaseException | None:
    worker_failures = getattr(error, "worker_failures", None)
    if worker_failures:
        first: BaseException = next(iter(worker_failures.values()))
        return first
    for name in ("controller_failure", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return None
