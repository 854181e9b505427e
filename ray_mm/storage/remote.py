"""Objects behind a URL (``s3://``, ``gs://``, ``http(s)://``), and plain files by the same names: list, stat, read, write.

A whole object only is read or written here, with ``obstore`` (Rust) retrying what is safe to retry; ``ranges.py`` reads
parts. Endpoint, region and credentials come from the environment, as the stores' own tools name them
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``GOOGLE_APPLICATION_CREDENTIALS``, …), or from the role of the machine;
they are never written anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ray_mm.errors import ObjectMissingError, StorageError, UsageError
from ray_mm.storage.local import local_path
from ray_mm.storage.stores import split_url, storage_error, store_of

_MARK = "ray-mm-write"
"""Name of the object's metadata that tells one conditional write from all others."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object as it was at one moment.

    Attributes:
        url: where it lies.
        size: bytes.
        version: ``etag:<the store's ETag, as it was given>``; ``mtime:<ns since 1970>`` for files and where there is
            no ETag; empty where the server tells neither. Equal versions mean equal bytes.
        generation: Google's number of the version, which its conditional writes need; else None.
        modified_s: when it was written last, in seconds since 1970; None where that is not known.
    """

    url: str
    size: int
    version: str
    generation: str | None = None
    modified_s: float | None = field(default=None, compare=False)

    @property
    def etag(self) -> str | None:
        """The ETag, where the version is one."""
        return self.version.removeprefix("etag:") if self.version.startswith("etag:") else None


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL of a store, rather than a path (or ``file://``) on this machine."""
    scheme, separator, _ = str(location).partition("://")
    return bool(separator) and scheme != "file"


def located(location: str | Path) -> str:
    """A URL as it is, without a slash at its end; a path made absolute.

    Raises:
        UsageError: a URL that can't be read.
    """
    if not is_remote(location):
        return str(local_path(location))
    split_url(str(location))
    return str(location).rstrip("/")


def join(location: str | Path, *parts: str) -> str:
    """A location within a folder or a prefix; parts are relative, with ``/`` between folders."""
    return "/".join([str(location).rstrip("/"), *parts])


def list_objects(prefix: str) -> Iterator[ObjectInfo]:
    """All objects (or files) under a folder at any depth, in one listing; not in any promised order.

    Args:
        prefix: the folder. Only whole names count: ``s3://b/data`` has ``s3://b/data/x`` and not ``s3://b/data2``.

    Raises:
        UsageError: a scheme that can't be listed (http) or isn't known.
        StorageError: the store does not answer, or refuses.
    """
    if not is_remote(prefix):
        yield from _list_files(local_path(prefix))
        return
    scheme, bucket, path = split_url(prefix)
    if scheme in ("http", "https"):
        raise UsageError(
            f"{prefix}: a web server can't list its files; name each one (braces help: {{000..127}}), or use s3:// or gs://."
        )
    import obstore

    try:
        for page in obstore.list(store_of(prefix), path or None):
            for entry in page:
                yield _info(f"{scheme}://{bucket}/{entry['path']}", entry)
    except Exception as error:
        raise storage_error(prefix, error) from None


def stat(url: str) -> ObjectInfo:
    """Size and version of an object or a file.

    Raises:
        ObjectMissingError: there is none.
        StorageError: the store does not answer, or refuses.
    """
    if not is_remote(url):
        return _stat_file(local_path(url))
    import obstore

    try:
        return _info(url, obstore.head(store_of(url), split_url(url)[2]))
    except Exception as error:
        raise storage_error(url, error) from None


def read_object(url: str) -> bytes:
    """A whole object or file; for small ones: manifests, indexes, tokenizers.

    Raises:
        ObjectMissingError: there is none.
        StorageError: the store does not answer, or refuses.
    """
    if not is_remote(url):
        try:
            return local_path(url).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ObjectMissingError(f"{url}: no such file.") from None
        except OSError as error:
            raise StorageError(f"{url}: can't be read ({error.strerror or error}).") from None
    import obstore

    try:
        return obstore.get(store_of(url), split_url(url)[2]).bytes().to_bytes()
    except Exception as error:
        raise storage_error(url, error) from None


def read_marked(url: str) -> tuple[bytes, ObjectInfo, str | None]:
    """A whole object of a store, its version at that moment, and the mark of the conditional write that made it.

    Raises:
        ObjectMissingError: there is none.
        StorageError: the store does not answer, or refuses.
    """
    import obstore

    try:
        found = obstore.get(store_of(url), split_url(url)[2])
        mark = {str(name).lower(): str(value) for name, value in found.attributes.items()}.get(_MARK)
        info = _info(url, found.meta)
        return found.bytes().to_bytes(), info, mark
    except Exception as error:
        raise storage_error(url, error) from None


def put_if_absent(url: str, content: bytes, mark: str | None = None) -> ObjectInfo:
    """Writes an object whole, unless there is one already; of several writers one wins.

    Args:
        url: of the object.
        content: its bytes.
        mark: kept with them: by it a writer whose answer got lost knows its own write (see ``read_marked``).

    Raises:
        WriteConflictError: there is one. After an answer that got lost it may be one's own: read it before giving up.
        StorageError: the store does not answer, or can't write on a condition.
    """
    return _put(url, content, "create", mark)


def put_if_match(url: str, content: bytes, expected: ObjectInfo, mark: str | None = None) -> ObjectInfo:
    """Replaces an object whole, if it is still the one that was seen; of several writers one wins.

    Args:
        url: of the object.
        content: its new bytes.
        expected: what ``stat`` or an earlier write returned.
        mark: see ``put_if_absent``.

    Raises:
        WriteConflictError: it has been replaced or deleted. After an answer that got lost the new one may be one's own.
        StorageError: the store does not answer, or can't write on a condition.
    """
    known = {"e_tag": expected.etag, "version": expected.generation}
    return _put(url, content, {name: value for name, value in known.items() if value is not None}, mark)


def _put(url: str, content: bytes, mode: Any, mark: str | None) -> ObjectInfo:
    scheme, _, path = split_url(url) if is_remote(url) else ("file", "", "")
    if scheme not in ("s3", "gs"):
        raise StorageError(f"{url}: can't be written on a condition; only objects of s3:// and gs:// can.")
    import obstore

    try:
        # In one piece: the parts of a multipart upload can't carry a condition.
        attributes = {_MARK: mark} if mark is not None else None
        result = obstore.put(store_of(url), path, content, attributes=attributes, mode=mode, use_multipart=False)
    except Exception as error:
        raise storage_error(url, error) from None
    return ObjectInfo(url, len(content), f"etag:{result['e_tag']}" if result["e_tag"] else "", result["version"])


def version_of(meta: Any) -> str:
    """The version that the metadata of an object tells (see ``ObjectInfo``)."""
    if meta["e_tag"]:
        return f"etag:{meta['e_tag']}"
    modified: datetime | None = meta["last_modified"]
    # The epoch stands for "the server did not say".
    # To the second: that is all that HTTP's headers tell.
    return f"mtime:{int(modified.timestamp()) * 10**9}" if modified is not None and modified.timestamp() > 0 else ""


def _info(url: str, meta: Any) -> ObjectInfo:
    modified: datetime | None = meta["last_modified"]
    seconds = modified.timestamp() if modified is not None and modified.timestamp() > 0 else None
    generation = meta["version"] if url.startswith("gs://") else None
    return ObjectInfo(url, meta["size"], version_of(meta), generation, seconds)


def _list_files(folder: Path) -> Iterator[ObjectInfo]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{folder}: can't be listed ({error.strerror or error}).") from None
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):  # a link may lead back up
            yield from _list_files(Path(entry.path))
        elif entry.is_file():
            yield _stat_file(Path(entry.path))


def _stat_file(path: Path) -> ObjectInfo:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ObjectMissingError(f"{path}: no such file.") from None
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror or error}).") from None
    return ObjectInfo(str(path), found.st_size, f"mtime:{found.st_mtime_ns}", modified_s=found.st_mtime)
