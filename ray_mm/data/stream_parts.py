"""Field → the parts that it is read from: itself, or every member of a series of several streams.

A part is read, held against its checksum and set aside by itself, under a name of its own: ``drive.imu.npy`` is the member
``imu.npy`` of the field ``drive``. Field names hold no dot, so the names can't clash.
"""

from __future__ import annotations

from ray_mm.config.fields import FieldSpec, has_streams
from ray_mm.data.manifest import Manifest


def parts_of_field(name: str, spec: FieldSpec | None) -> dict[str, str]:
    """Part → its member, as the streams of the field name it; of another field its own name → itself."""
    return {f"{name}.{member}": member for member in spec.members} if has_streams(spec) else {name: name}


def field_of(part: str) -> str:
    """The field that a part belongs to."""
    return part.partition(".")[0]


def suffixes_of(manifest: Manifest, name: str) -> dict[str, tuple[str, ...]]:
    """Part of a field of a dataset → the suffixes under which it is found; the first that is there is taken. A field that the
    dataset does not have is found under none."""
    spec = manifest.fields.get(name)
    if has_streams(spec):
        return {part: (member,) for part, member in parts_of_field(name, spec).items()}
    return {name: manifest.members.get(name, ())}
