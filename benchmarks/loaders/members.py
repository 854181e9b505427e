"""The samples of the tars, for those who want them in another form."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path


def samples(data: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members (suffix → bytes) of every sample."""
    for shard in sorted((data / "tars" / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            key, members = "", dict[str, bytes]()
            for member in tar:
                name, _, suffix = member.name.partition(".")
                if name != key and members:
                    yield key, members
                    members = {}
                stream = tar.extractfile(member)
                assert stream is not None
                key, members[suffix] = name, stream.read()
            yield key, members
