"""How many inputs the fuzz tests damage, and how many they did: a run says it at its end.

``RAY_MM_FUZZ_CASES`` says how many each of them damages; ``make fuzz`` sets it.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from functools import lru_cache
from pathlib import Path

REAL_DATA = Path(os.environ.get("RAY_MM_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
DAMAGED: Counter[str] = Counter()
"""What was damaged → how many of it so far."""


def num_cases(default: int) -> int:
    """How many inputs a test damages; ``default`` in an ordinary run."""
    return int(os.environ.get("RAY_MM_FUZZ_CASES", default))


def archive(name: str) -> Path | None:
    """One of the real archives, if it is there."""
    path = REAL_DATA / name
    return path if path.is_file() else None


@lru_cache
def real_tars(max_bytes: int = 100_000) -> dict[str, bytes]:
    """Tars that other projects test with: of each, the first members that ``max_bytes`` have room for, as they were written."""
    found: dict[str, bytes] = {}
    whole = archive("tars.tar.gz")
    if whole is None:
        return found
    with tarfile.open(whole) as outer:
        for entry in outer:
            opened = outer.extractfile(entry) if entry.name.endswith((".tar", ".tgz")) else None
            if opened is not None:
                with tarfile.open(fileobj=opened) as inner:
                    found[Path(entry.name).name] = _beginning(inner, max_bytes)
    return found


def _beginning(tar: tarfile.TarFile, max_bytes: int) -> bytes:
    stream, content = tar.fileobj, b""
    assert stream is not None
    for member in tar.getmembers():
        stop = member.offset_data + (member.size + 511 & -512 if member.isreg() else 0)
        if len(content) + stop - member.offset <= max_bytes:
            stream.seek(member.offset)
            content += stream.read(stop - member.offset)
    return content + bytes(1024)
