"""A few members of each suffix of some tars → the fields that they would make, and a job that makes a dataset of them.

A proposal is a ``kind: preprocess`` job that can be run as it is, or changed. What can't be a field is listed with the reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from ray_mm.data.decode.arrays import at_path, parse_json
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.numeric import class_text, listed_classes
from ray_mm.data.found import Found
from ray_mm.data.gzip_bytes import GzipRanges
from ray_mm.data.index import ShardIndex
from ray_mm.data.recognize import is_pickled, is_short_text, recognize
from ray_mm.storage.ranges import RangeReader
from ray_mm.storage.remote import ObjectInfo

_LOOKED_AT = 12
_READ_FOR_CLASSES = 300
_SHARDS = 3
_LABELS_PER_SHARD = 1000
_MAX_BYTES = 32 << 20
_TO_DIVIDE = 100
"""A tenth of so many is empty once in 40,000 times, when each is drawn by itself."""


def look_at_members(shards: Sequence[tuple[ObjectInfo, ShardIndex]]) -> list[Found]:
    """Reads a few members of every suffix of some shards; of short texts more, for a few do not tell classes from captions.

    Raises:
        StorageError: a store does not answer, or refuses.
    """
    payloads: dict[str, list[bytes]] = {suffix: [] for _, index in shards for suffix in index.offsets}
    more: dict[str, list[bytes]] = {suffix: [] for suffix in payloads}
    # Spread over the shards: those at the end may be others.
    chosen = sorted({int(number) for number in np.linspace(0, len(shards) - 1, _SHARDS).round()}) if shards else []
    missing = {suffix for number in chosen for suffix in payloads if suffix not in shards[number][1].offsets}
    for number, (info, index) in enumerate(shards):
        if number in chosen or missing & index.offsets.keys():
            reader = member_reader(info, index)
            for suffix in index.offsets:
                if not is_pickled(suffix):
                    found = read_some(reader, index, suffix, max(1, _LOOKED_AT // len(chosen)))
                    payloads[suffix] += found
                    if is_short_text(found):
                        more[suffix] += read_some(reader, index, suffix, max(1, _READ_FOR_CLASSES // len(chosen)))
            missing -= index.offsets.keys()
    return [recognize(suffix, found, more[suffix]) for suffix, found in sorted(payloads.items())]


def count_labels(
    shards: Sequence[tuple[ObjectInfo, ShardIndex]], fields: Mapping[str, Any], members: Mapping[str, Any]
) -> dict[str, Counter[str]]:
    """Class label → what stands in its members → how often. Of a long list of shards, some are read, and of those all members
    up to a thousand.

    Args:
        shards: with their indexes.
        fields: as ``propose`` gives them.
        members: as ``propose`` gives them.
    """
    chosen = sorted({int(number) for number in np.linspace(0, len(shards) - 1, _SHARDS).round()}) if shards else []
    counts: dict[str, Counter[str]] = {
        name: Counter()
        for name, spec in fields.items()
        if spec["type"] == "label" and spec.get("target") not in ("number", "mask")
    }
    for number in chosen if counts else ():
        info, index = shards[number]
        reader = member_reader(info, index)
        for name, count in counts.items():
            suffixes = [members[name]] if isinstance(members[name], str) else members[name]
            for suffix in suffixes:
                if suffix in index.offsets:
                    payloads = read_some(reader, index, suffix, _LABELS_PER_SHARD)
                    for payload in payloads:
                        count.update(_label_texts(payload, fields[name]))
    return counts


def _label_texts(payload: bytes, spec: Mapping[str, Any]) -> list[str]:
    """The classes that a member names: one, or with ``target: classes`` any number; none where it can't be read."""
    path, several = spec.get("path"), spec.get("target") == "classes"
    if path is None and not several:
        return list(filter(None, [payload.decode("utf-8-sig", "replace").strip()]))
    try:
        found = parse_json(payload)
        found = found if path is None else at_path(found, path)
        if several:
            return [] if found is None else listed_classes(found)
    except DecodeError:
        return []
    return [] if found is None or isinstance(found, (dict, list)) else list(filter(None, [class_text(found).strip()]))


def member_reader(info: ObjectInfo, index: ShardIndex) -> RangeReader:
    """Reads members of a shard that was just indexed."""
    if index.unpacked_bytes is None:
        return RangeReader(info)
    assert index.seek_points is not None, "index_shard gives them"
    return GzipRanges(info, index.seek_points, index.unpacked_bytes)


def read_some(reader: RangeReader, index: ShardIndex, suffix: str, count: int) -> list[bytes]:
    """Up to ``count`` members of a suffix, spread over the shard; empty and very large ones are left out."""
    sizes = index.sizes[suffix]
    rows = np.flatnonzero((sizes > 0) & (sizes <= _MAX_BYTES))
    if len(rows) > count:
        rows = rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
    ranges = [(int(index.offsets[suffix][row]), int(sizes[row])) for row in rows]
    return [bytes(view) for view in reader.read(ranges)] if ranges else []


def propose(found: Sequence[Found], indexes: Sequence[ShardIndex]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``fields`` and the ``members`` of a job.

    Suffixes of one type without a name of their own, such as ``jpg`` and ``png``, are one field unless a sample has both.
    """
    fields: dict[str, Any] = {}
    members: dict[str, list[str]] = {}
    for entry in found:
        for part, spec in entry.specs.items():
            base = entry.suffix.rpartition(".")[0] or ("" if part else spec["type"])
            name = _field_name("_".join(filter(None, (base, part))) or spec["type"])
            other = members.get(name)
            if other and (fields[name] != spec or any(_together(indexes, entry.suffix, suffix) for suffix in other)):
                name = _unused(_field_name(f"{name}_{entry.suffix}"), fields)
            fields[name] = spec
            members.setdefault(name, []).append(entry.suffix)
    return fields, {name: suffixes[0] if len(suffixes) == 1 else suffixes for name, suffixes in members.items()}


def proposed_job(
    patterns: Sequence[str], fields: Mapping[str, Any], members: Mapping[str, Any], num_samples: int
) -> str:
    """A preprocess job as YAML; empty where there is nothing to propose.

    Args:
        patterns: of the tars.
        fields: as ``propose`` gives them.
        members: as ``propose`` gives them.
        num_samples: of all tars; too few for a tenth of them to be sure of one are not divided.
    """
    if not fields:
        return ""
    shown = patterns[0] if len(patterns) == 1 else list(patterns)
    parts: list[dict[str, Any]] = [
        {"kind": "preprocess"},
        {"name": "tars"},
        {"shards": shown},
        {"fields": dict(fields)},
        {"members": dict(members)},
        {"splits": {"by": "hash", "fractions": {"train": 1.0}}} if num_samples < _TO_DIVIDE else {},
        {"output": "data/tars"},
    ]
    text = "".join(yaml.safe_dump(part, sort_keys=False, allow_unicode=True, width=120) for part in parts if part)
    # One line per field is easier to read and to change.
    return re.sub(
        r"(?m)^(  [\w-]+):\n((?:    \S.*\n)+|(?:  - .*\n)+)", lambda match: f"{match[1]}: {_flow(match[2])}\n", text
    )


def _flow(block: str) -> str:
    return yaml.safe_dump(yaml.safe_load(block), default_flow_style=True, sort_keys=False, width=1000).strip()


def _together(indexes: Sequence[ShardIndex], suffix: str, other: str) -> bool:
    return any(
        suffix in index.sizes
        and other in index.sizes
        and bool(((index.sizes[suffix] > 0) & (index.sizes[other] > 0)).any())
        for index in indexes
    )


def _field_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:60].strip("_-") or "field"
    return name if name[0].isalpha() else f"field_{name}"


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    number = 2
    unused = name
    while unused in taken:
        unused, number = f"{name}_{number}", number + 1
    return unused
