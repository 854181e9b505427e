"""A run's output folder: whose it is, the resolved job, the result.

<output>/job.json      the job with every default filled in: enough to repeat the run
<output>/.lock         held while a process works on the run
<output>/.seconds      what a run that can be continued took so far, over all its commands
<output>/result.json   {"kind", "name", "status", "metrics", "versions", "seconds", ...}, written last
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ray_mm.config.load import Job
from ray_mm.errors import OutputFolderError
from ray_mm.storage import local_path, write_atomic, write_json
from ray_mm.version import __version__

_log = logging.getLogger(__name__)

_COUNT_EVERY_S = 5.0
_VERSIONED = ("ray", "torch", "pyarrow", "numpy", "webdataset", "onnxruntime")


class RunFolder:
    """One run's folder, opened for one job."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path = path
        self.job = job
        self._started = time.monotonic()
        self._earlier_s = 0.0

    @property
    def seconds(self) -> float:
        """What the run took so far, in seconds; with the commands before this one, if it continues them."""
        return self._earlier_s + time.monotonic() - self._started

    @contextlib.contextmanager
    def locked(self, continues: bool = False) -> Iterator[None]:
        """Keeps every other process from working on this run. A process that is killed lets go of it.

        Args:
            continues: whether the run goes on where an earlier command was interrupted, whose time then counts.

        Raises:
            OutputFolderError: another one is at work.
        """
        with (self.path / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                raise OutputFolderError(
                    f"output: another run is at work in {self.path} ({stream.read() or 'not known which'}); wait for its end, "
                    "stop it, or choose another output."
                ) from None
            except OSError:
                # Some network file systems have no locks; training is fenced by its attempts there.
                _log.warning("the file system can't lock path=%s", self.path)
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}")
            stream.flush()
            with self._counted() if continues else contextlib.nullcontext():
                yield

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Writes down the time now and then: a process that is killed can't do so at its end."""
        path, ended = self.path / ".seconds", threading.Event()
        with contextlib.suppress(OSError, ValueError):
            self._earlier_s = float(path.read_text())

        def count() -> None:
            while not ended.wait(_COUNT_EVERY_S):
                with contextlib.suppress(OSError):  # a full disk is told where something is lost by it
                    write_atomic(path, f"{self.seconds:.3f}")

        counting = threading.Thread(target=count, name="seconds", daemon=True)
        counting.start()
        try:
            yield
        finally:
            ended.set()
            counting.join()
            with contextlib.suppress(OSError):
                write_atomic(path, f"{self.seconds:.3f}")

    def write_result(self, status: str, metrics: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Writes ``result.json`` and returns what it holds.

        Args:
            status: ``done``, ``refused`` or ``unchanged``.
            metrics: numbers by name, nested as needed. One that is not finite is written as null, which JSON has.
            more: anything else that belongs to the kind of job.
        """
        result: dict[str, Any] = {
            "kind": self.job.kind,
            "name": self.job.name,
            "status": status,
            "metrics": metrics,
            "versions": versions(),
            "seconds": round(self.seconds, 3),
            **more,
        }
        result = _plain(result)
        write_json(self.path / "result.json", result)
        return result

    def read_result(self) -> dict[str, Any] | None:
        """The result of an earlier run of this job here, or None."""
        return _read_json(self.path / "result.json")


def open_run_folder(job: Job, settled: tuple[str, ...] = ()) -> RunFolder:
    """Claims the job's output folder.

    Args:
        job: the job that is about to run.
        settled: dotted keys that may not differ from an earlier run in the same folder, because what is already there
            was made with them (for a train run, the model and the data).

    Raises:
        OutputFolderError: the folder belongs to another job, or to the same job with other settings.
    """
    earlier = check_output(job, settled)
    path, content = local_path(job.output), job.model_dump(mode="json")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if content != earlier:  # running a job again changes nothing
            write_json(path / "job.json", content)
    except OSError as error:
        raise OutputFolderError(f"output: {path} can't be written ({error.strerror}); choose another output.") from None
    return RunFolder(path, job)


def add_to_result(job: Job, more: dict[str, Any]) -> None:
    """Puts something into the ``result.json`` of a run that is done, in the place of what was there by these names."""
    path = local_path(job.output) / "result.json"
    write_json(path, _plain({**(_read_json(path) or {}), **more}))


def check_output(job: Job, settled: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """Checks that the job's output folder is free or its own; writes nothing.

    Args:
        job: validated.
        settled: as for ``open_run_folder``.

    Returns:
        The job of an earlier run there, with every default filled in, or None.

    Raises:
        OutputFolderError: the folder belongs to another job, or to the same job with other settings.
    """
    path = local_path(job.output)
    content = job.model_dump(mode="json")
    earlier = _read_json(path / "job.json")
    if earlier is not None:
        if (earlier.get("kind"), earlier.get("name")) != (job.kind, job.name):
            raise OutputFolderError(
                f"output: {path} holds a run of the {earlier.get('kind')} job {earlier.get('name')!r}, not of the "
                f"{job.kind} job {job.name!r}; choose another output, or remove that folder."
            )
        changed = changed_settings(earlier, content, settled)
        if changed:
            all_the_same = (
                "go on all the same: ray-mm run JOB --resume force" if job.kind == "train" else "remove that folder"
            )
            raise OutputFolderError(
                f"output: {path} was made with other settings ({', '.join(changed.values())}); choose another output, set them "
                f"back, or {all_the_same}."
            )
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputFolderError(f"output: {path} exists and is not a run's folder; choose another output.")
    return earlier


def changed_settings(earlier: dict[str, Any], now: dict[str, Any], settled: tuple[str, ...]) -> dict[str, str]:
    """Which keys differ between two jobs.

    Args:
        earlier: with every default filled in.
        now: likewise.
        settled: dotted keys to compare.

    Returns:
        Key → what it was and what it is, for people. Of a section only what differs in it.
    """
    found = {}
    for key in settled:
        apart = list(_apart(key, _get(earlier, key), _get(now, key)))
        if apart:
            found[key] = ", ".join(f"{name} was {before!r} and is now {after!r}" for name, before, after in apart)
    return found


def _apart(key: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            yield from _apart(f"{key}.{name}", before.get(name), after.get(name))
    elif before != after:
        yield key, before, after


def wait_until_free(path: Path, timeout_s: float) -> None:
    """Waits for the end of whatever process still works on a run, such as one whose driver was killed; in vain, the run says so.

    Args:
        path: of the run; it need not be there.
        timeout_s: after which it is given up.
    """
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        try:
            with (path / ".lock").open("r+") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.2)
        except OSError:  # nobody was there yet, or the file system has no locks
            return


def versions() -> dict[str, str]:
    """Versions of what decides a run's outcome."""
    found = {"ray_mm": __version__, "python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """What JSON can say: a run of hours must not fail over a NaN or a numpy number in its last line."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, torch's tensors
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _get(content: dict[str, Any], dotted: str) -> Any:
    value: Any = content
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise OutputFolderError(f"{path}: can't be read as JSON ({error}); remove that folder.") from None
    return content if isinstance(content, dict) else None
