"""Checksums of a dataset's small files: a bit that flips in one is noticed when the dataset is opened.

``dataset.json`` carries a CRC32C (RFC 3720) of what it says, under a key of its own, so that it stays one file that is
replaced at once. It is of the values, not of the bytes: a file that was only laid out anew is the same. Of the files beside it,
``dataset.json`` says the CRC32C of their bytes.
"""

from __future__ import annotations

import json
from typing import Any

import google_crc32c

from ray_mm.errors import DatasetError

_KEY = "crc32c"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, with its checksum; one that it has is replaced."""
    plain = {name: value for name, value in content.items() if name != _KEY}
    # In one way for the same values, whatever the order of the keys and the layout of the file.
    return plain | {_KEY: checksum(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())}


def unsealed(content: dict[str, Any], file: str) -> dict[str, Any]:
    """The content of a JSON file, without its checksum.

    Args:
        content: of the file.
        file: its path or URL, for errors.

    Raises:
        DatasetError: it says something else than when it was written.
    """
    found = sealed(content)[_KEY]
    stored = content.get(_KEY)
    if stored != found:
        raise DatasetError(
            f"{file}: has the CRC32C {found}, expected {stored!r}: it is damaged, or was changed by hand. Restore it, or make "
            f'the dataset again; if the change is meant, write "{_KEY}": "{found}" in it.'
        )
    return {name: value for name, value in content.items() if name != _KEY}


def checksum(content: bytes) -> str:
    """CRC32C of some bytes, as eight hex digits."""
    return f"{google_crc32c.value(content):08x}"


def require_checksum(file: str, content: bytes, expected: str | None) -> None:
    """Checks a file beside ``dataset.json``.

    Args:
        file: its path or URL, for errors.
        content: its bytes.
        expected: what ``dataset.json`` says of it; None: nothing.

    Raises:
        DatasetError: it is another one.
    """
    found = checksum(content)
    if found != expected:
        raise DatasetError(
            f"{file}: has the CRC32C {found}, dataset.json says {expected}: it is damaged or of another dataset; restore it, or "
            "make the dataset again."
        )
