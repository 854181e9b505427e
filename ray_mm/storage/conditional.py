"""Small documents that several processes share, each write on a condition: on a disk, in S3, in Google's store.

    documents = Documents("s3://bucket/registry")
    seen = documents.read("model.json")
    documents.replace("model.json", content, seen.version)    # raises WriteConflictError if another writer was faster

On a disk a lock of the operating system (``flock``) makes compare and write one step for all processes of all machines that see
the folder; the file is written beside its place, flushed and renamed, so that a process may be killed at any moment. A file
system that has no locks is refused. In a store the store itself compares: ``If-None-Match`` and ``If-Match`` with the ETag in
S3 and what speaks its language, the generation in Google's. No clock is compared anywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_mm.errors import ObjectMissingError, StorageError, UsageError, WriteConflictError
from ray_mm.storage.local import local_path, write_atomic
from ray_mm.storage.remote import ObjectInfo, is_remote, join, list_objects, put_if_absent, put_if_match, read_marked
from ray_mm.storage.stores import split_url

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")
_LOCK = ".lock"
_LOCKED_S = 60.0
"""Longest time that another process is waited for."""


@dataclass(frozen=True)
class Document:
    """A document as it was when it was read.

    Attributes:
        content: its bytes, at least one.
        version: what a write names that shall replace these bytes and no others. Equal versions mean equal bytes; a writer to
            whom A, then B, then A again makes a difference counts in the content.
    """

    content: bytes
    version: str


class Documents:
    """The documents below a folder or a prefix of a bucket.

    Args:
        root: a path, ``s3://…`` or ``gs://…``. It is made by the first write.

    Names are relative, of letters, digits, ``_``, ``-``, ``.`` and ``=``, with ``/`` between folders.

    Raises:
        UsageError: http(s), which can't be written, or a URL that can't be read.
    """

    def __init__(self, root: str | Path) -> None:
        if is_remote(root):
            scheme, _, _ = split_url(str(root))
            if scheme not in ("s3", "gs"):
                raise UsageError(f"{root}: can't be written; give a path, s3:// or gs://.")
            self.root = str(root).rstrip("/")
            self._folder: Path | None = None
        else:
            self._folder = local_path(root)
            self.root = str(self._folder)

    def read(self, name: str) -> Document | None:
        """A document, or None where there is none.

        Raises:
            StorageError: the disk or the store does not give it.
        """
        _check(name)
        if self._folder is not None:
            return _read_file(self._folder / name)
        try:
            content, info, _ = read_marked(join(self.root, name))
        except ObjectMissingError:
            return None
        return Document(content, _version(info)) if content else None

    def create(self, name: str, content: bytes) -> str:
        """Writes a document that is not there yet. Of several writers one wins.

        Returns:
            Its version.

        Raises:
            WriteConflictError: there is one.
            StorageError: it can't be written.
        """
        _check(name, content)
        if self._folder is not None:
            return self._write_file(name, content, None)
        url, mark = join(self.root, name), uuid.uuid4().hex

        def write() -> ObjectInfo:
            try:
                return put_if_absent(url, content, mark)
            except WriteConflictError:
                # What was deleted is an empty object.
                found, info, _ = read_marked(url)
                if found:
                    raise
                return put_if_match(url, content, info, mark)

        return _version(_own(url, mark, write))

    def replace(self, name: str, content: bytes, version: str) -> str:
        """Writes a document in the place of one that was seen. Of several writers one wins.

        Args:
            name: of the document.
            content: its new bytes.
            version: of the one that was read or written before.

        Returns:
            The new version.

        Raises:
            WriteConflictError: it has been replaced or deleted since.
            StorageError: it can't be written.
        """
        _check(name, content)
        return self._replace(name, content, version)

    def delete(self, name: str, version: str) -> None:
        """Deletes a document that was seen. In a store, which can't delete on a condition, an empty object stays.

        Raises:
            WriteConflictError: it has been replaced or deleted since.
            StorageError: it can't be deleted.
        """
        _check(name)
        if self._folder is None:
            self._replace(name, b"", version)
            return
        with self._locked(name):
            self._compare(name, version)
            try:
                (self._folder / name).unlink()
                _flush(self._folder / name)
            except OSError as error:
                raise _failed(self._folder / name, "deleted", error) from None

    def list(self, prefix: str = "") -> list[str]:
        """The names of all documents that begin with ``prefix``, sorted.

        Args:
            prefix: a folder with ``/`` at its end, or the beginning of a name.

        Raises:
            StorageError: the disk or the store does not list them.
        """
        folder = prefix.rpartition("/")[0]
        start = len(self.root) + 1
        names = (
            info.url[start:] for info in list_objects(join(self.root, folder) if folder else self.root) if info.size > 0
        )
        return sorted(name for name in names if name.startswith(prefix) and _NAME.fullmatch(name))

    def _replace(self, name: str, content: bytes, version: str) -> str:
        if self._folder is not None:
            return self._write_file(name, content, version)
        url, mark = join(self.root, name), uuid.uuid4().hex
        if version.startswith("generation:"):
            seen = ObjectInfo(url, 0, "", version.removeprefix("generation:"))
        else:
            seen = ObjectInfo(url, 0, version)
        try:
            return _version(_own(url, mark, lambda: put_if_match(url, content, seen, mark)))
        except ObjectMissingError:
            raise WriteConflictError(f"{url}: was not written, it is not there any more.") from None

    def _write_file(self, name: str, content: bytes, expected: str | None) -> str:
        assert self._folder is not None
        path = self._folder / name
        with self._locked(name):
            self._compare(name, expected)
            try:
                write_atomic(path, content)
                _flush(path)
            except OSError as error:
                raise _failed(path, "written", error) from None
        return _digest(content)

    def _compare(self, name: str, expected: str | None) -> None:
        assert self._folder is not None
        found = _read_file(self._folder / name)
        if (found.version if found is not None else None) != expected:
            raise WriteConflictError(f"{self._folder / name}: was not written, another writer was faster.")

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        assert self._folder is not None
        lock = self._folder / _LOCK
        try:
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            stream = lock.open("a")
        except OSError as error:
            raise _failed(self._folder, "written", error) from None
        with stream:
            try:
                _lock(stream.fileno(), lock)
            except OSError as error:
                raise StorageError(
                    f"{self._folder}: the file system can't lock ({error.strerror}), so two writers could not be told "
                    "apart; choose a folder on another one, or s3:// or gs://."
                ) from None
            yield


def _lock(handle: int, lock: Path) -> None:
    """Waits for the lock, but not for ever: a process that was stopped in the middle of a write must not stop all others."""
    give_up, pause_s = time.monotonic() + _LOCKED_S, 0.0005
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise StorageError(
                    f"{lock}: another process has held this lock for {_LOCKED_S:g} s, which a write never takes; it may be "
                    "stopped. End it (fuser or lsof tell which it is), and run this again."
                ) from None
        time.sleep(random.uniform(0, pause_s))
        pause_s = min(2 * pause_s, 0.02)


def _own(url: str, mark: str, write: Callable[[], ObjectInfo]) -> ObjectInfo:
    """A conditional write; one whose answer got lost, and which was then tried again, is known by its mark."""
    try:
        return write()
    except WriteConflictError:
        with contextlib.suppress(ObjectMissingError):
            _, info, found = read_marked(url)
            if found == mark:
                return info
        raise


def _version(info: ObjectInfo) -> str:
    version = f"generation:{info.generation}" if info.url.startswith("gs://") and info.generation else info.version
    if not version.startswith(("generation:", "etag:")):
        raise StorageError(
            f"{info.url}: the store gives no version of what it holds, so that nothing can be written on a condition."
        )
    return version


def _check(name: str, content: bytes | None = None) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r}: is no name of a document; expected letters, digits, _, -, . and =, with / between folders."
        )
    assert content != b"", "an empty document is one that was deleted"


def _read_file(path: Path) -> Document | None:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _failed(path, "read", error) from None
    return Document(content, _digest(content)) if content else None


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _flush(path: Path) -> None:
    """Makes a name that was added, moved or removed outlast a power failure."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _failed(path: Path, verb: str, error: OSError) -> StorageError:
    return StorageError(f"{path}: can't be {verb} ({error.strerror or error}).")
