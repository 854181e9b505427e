"""Files on local disk: whole or not there, never half.

Everything that ray_mm writes for another run to read goes through here: to a temporary name beside the target,
flushed to disk, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ray_mm.errors import UsageError


def local_path(path: str | Path) -> Path:
    """An absolute path on this machine.

    Raises:
        UsageError: a URL of a store.
    """
    text = str(path)
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme != "file":
            raise UsageError(f"{text}: {scheme}:// can't be used here; give a path on a disk that every node sees.")
        text = unquote(rest)
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~name of a user who does not exist
        raise UsageError(f"{text}: there is no such home folder; write the path in full.") from None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file under a temporary name and renames it; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only the owner may read; a dataset is shared.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, readable by people."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(target: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of ``target`` if the block ends without an error.

    Args:
        target: the folder.
        temporary: beside it, with what others have written already; None: a new one of a name of its own.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if temporary is None:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        temporary.chmod(0o755)
    try:
        yield temporary
        previous = temporary.with_suffix(".old")
        if target.exists():
            target.replace(previous)
        try:
            temporary.replace(target)
        except OSError:
            if previous.exists():
                previous.replace(target)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def _sha256(stream: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
