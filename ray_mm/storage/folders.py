"""Folders of files that never change, kept by the digests of their files: copied to a disk or a store, brought back, verified.

file → {"sha256": hex, "size": bytes}, by its path within the folder, with ``/`` between folders
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_mm.errors import ObjectMissingError, StorageError
from ray_mm.storage.local import local_path, sha256_file
from ray_mm.storage.remote import is_remote, join
from ray_mm.storage.stores import split_url, storage_error, store_of

Files = Mapping[str, Mapping[str, Any]]

_TRANSFER_S = 6 * 3600.0
"""Longest time of one file; a stall of 30 s ends it before."""
_CHUNK = 1 << 20


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What is in a folder, file by file, sorted; hidden files are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            found[name] = {"sha256": sha256_file(path), "size": path.stat().st_size}
    return found


def digest_of(files: Files) -> str:
    """One digest of all files: equal if and only if their names and bytes are."""
    lines = "".join(f"{files[name]['sha256']}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def keep_folder(folder: Path, files: Files, target: str) -> None:
    """Copies a folder to a place of its own. Doing it again, or by two at a time, changes nothing.

    Args:
        folder: where from.
        files: what is in it.
        target: a path or a URL, which depends on the files' digest.

    Raises:
        StorageError: it can't be written.
    """
    if is_remote(target):
        import obstore

        for name in files:
            url = join(target, name)
            try:
                # Overwriting an object by the same bytes harms nobody who reads it.
                obstore.put(store_of(url, timeout_s=_TRANSFER_S), split_url(url)[2], folder / name)
            except Exception as error:
                raise storage_error(url, error) from None
        return
    place = local_path(target)
    if place.exists() and damaged_file(target, files) is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
        try:
            _copy(folder, files, temporary)
            if place.exists():
                if damaged_file(target, files) is None:  # another process was faster
                    return
                place.replace(temporary.with_suffix(".old"))  # a good copy takes its place
            temporary.replace(place)
            shutil.rmtree(temporary.with_suffix(".old"), ignore_errors=True)
        except OSError:
            if damaged_file(target, files) is not None:  # else another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{place}: can't be written ({error.strerror or error}).") from None


def damaged_file(target: str, files: Files) -> str | None:
    """The first file of a folder that is missing or has other bytes; None: all are as they were.

    Raises:
        StorageError: the disk or the store does not give it.
    """
    for name, expected in files.items():
        try:
            found = _digest(join(target, name))
        except ObjectMissingError:
            return name
        if found != expected["sha256"]:
            return name
    return None


def fetch_folder(target: str, files: Files, place: Path) -> str | None:
    """Brings a folder from a store to this machine, whole or not at all; one that is there already is not brought again.

    Returns:
        The first file that is missing or has other bytes than it should; then nothing was brought. None: all is there.

    Raises:
        StorageError: the store does not give it, or the disk does not take it.
    """
    if place.exists() and damaged_file(str(place), files) is None:
        return None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
        temporary.chmod(0o755)
        try:
            for name, expected in files.items():
                file = temporary / name
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    _download(join(target, name), file)
                except ObjectMissingError:
                    return name
                if sha256_file(file) != expected["sha256"]:
                    return name
            if place.exists():
                if damaged_file(str(place), files) is None:  # another process was faster, and may read it
                    return None
                shutil.rmtree(place)
            try:
                temporary.replace(place)
            except OSError:
                if damaged_file(str(place), files) is not None:  # else another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{place}: can't be written ({error.strerror or error}).") from None
    return None


def _copy(folder: Path, files: Files, target: Path) -> None:
    target.chmod(0o755)
    for name in files:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("rb") as source, file.open("wb") as stream:
            shutil.copyfileobj(source, stream, _CHUNK)
            stream.flush()
            os.fsync(stream.fileno())


def _digest(location: str) -> str:
    if not is_remote(location):
        path = local_path(location)
        try:
            return sha256_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissingError(f"{path}: no such file.") from None
        except OSError as error:
            raise StorageError(f"{path}: can't be read ({error.strerror or error}).") from None
    digest = hashlib.sha256()
    for chunk in _chunks(location):
        digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, file: Path) -> None:
    with file.open("wb") as stream:
        for chunk in _chunks(url):
            stream.write(chunk)


def _chunks(url: str) -> Any:
    import obstore

    try:
        yield from obstore.get(store_of(url, timeout_s=_TRANSFER_S), split_url(url)[2]).stream(_CHUNK)
    except Exception as error:
        raise storage_error(url, error) from None
