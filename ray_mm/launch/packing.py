"""A run's folder → the small files of it that people read, in one archive, and back; the archive is not trusted."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ray_mm.errors import RayMMError, UsageError
from ray_mm.storage import atomic_folder, write_json

_READ = (".json", ".jsonl", ".html", ".css", ".js", ".md", ".png", ".svg", ".csv", ".txt", ".yaml")
"""What the small files of a run are called."""
_MODELS = ("artifact", "best", "last")
"""Folders that hold a model; the first that is there is the one that a user wants, ``last`` only where there is no other."""
_WORKING = (
    "checkpoints",
    "ray_train",
    "attempts",
    "ledger",
    "quarantine",
    "tensorboard",
    "shards",
    "decoded",
    *_MODELS,
)
"""Folders that a run needs and nobody reads."""
_MOST_SMALL = 8 << 20
_MOST_BYTES = 256 << 20
_MOST_FILES = 10_000
_ORIGIN = ".fetched.json"


def pack(run: Path, with_model: bool) -> bytes:
    """The files of a run, as a gzip'ed tar.

    Args:
        run: its folder.
        with_model: also its best checkpoint, or of a compress run its artifact.

    Raises:
        UsageError: there is no such run, or no model in it, or it is too large for this way.
    """
    if not (run / "job.json").is_file():
        raise UsageError(f"{run}: no run is there, as far as this machine sees; it may not have begun.")
    paths = list(_small(run))
    if with_model:
        model = next((run / name for name in _MODELS if (run / name).is_dir()), None)
        if model is None:
            raise UsageError(f"{run}: has no checkpoint and no artifact yet; leave out --checkpoint.")
        paths += [path for path in sorted(model.rglob("*")) if path.is_file() and not path.is_symlink()]
    total = sum(path.stat().st_size for path in paths)
    if total > _MOST_BYTES:
        raise UsageError(
            f"{run}: {total / 2**20:,.0f} MiB are too much to be sent through the cluster's head, which may send "
            f"{_MOST_BYTES >> 20} MiB; copy them from there by other means."
        )
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz", compresslevel=6) as archive:
        for path in paths:
            archive.add(path, arcname=path.relative_to(run).as_posix(), recursive=False)
    return written.getvalue()


def _small(run: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(run):
        names[:] = sorted(name for name in names if name not in _WORKING and not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            is_read = path.suffix in _READ and not name.startswith(".") and not path.is_symlink()
            if is_read and path.stat().st_size <= _MOST_SMALL:
                yield path


def unpack(archive: bytes, target: Path, submission: str) -> list[str]:
    """Writes what ``pack`` has made into a folder, whole or not at all; what an earlier call wrote there is replaced.

    Args:
        archive: as it came from the cluster.
        target: a folder that is not there, or that an earlier call for the same submission wrote.
        submission: id of the job.

    Returns:
        The files' names.

    Raises:
        UsageError: the folder holds something else.
        RayMMError: the archive is no such one.
    """
    require_free(target, submission)
    names: list[str] = []
    total = 0
    try:
        with (
            atomic_folder(target) as folder,
            tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members,
        ):
            for member in members:
                total += member.size
                place = PurePosixPath(member.name)
                is_inside = (
                    not place.is_absolute() and ".." not in place.parts and place.parts and "\\" not in member.name
                )
                if not member.isreg() or not is_inside or not member.name.isprintable() or member.name == _ORIGIN:
                    raise RayMMError(f"{submission}: the cluster sent {member.name[:80]!r}, which is no file of a run.")
                if total > 2 * _MOST_BYTES or len(names) >= _MOST_FILES:
                    raise RayMMError(f"{submission}: the cluster sent more than a run's files can be.")
                content = members.extractfile(member)
                assert content is not None
                file = folder.joinpath(*place.parts)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())
                names.append(member.name)
            write_json(folder / _ORIGIN, {"submission": submission})
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RayMMError(f"{target}: can't be written ({error.strerror}).") from None
        raise RayMMError(f"{submission}: what the cluster sent is damaged ({error}); try again.") from None
    return names


def require_free(target: Path, submission: str) -> None:
    """Refuses a folder that holds something else than what was fetched of the same job.

    Raises:
        UsageError: it does.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        origin = json.loads((target / _ORIGIN).read_text())
    except (OSError, ValueError):
        origin = None
    if not isinstance(origin, dict) or origin.get("submission") != submission:
        raise UsageError(f"--into {target}: holds something else; name a folder that is not there yet.")
