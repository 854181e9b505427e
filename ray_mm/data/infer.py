"""A few members of each suffix → what they are, and the fields that they would make. Bytes decide; names only name.

A proposal is a ``kind: preprocess`` job that can be run as it is, or changed. What can't be a field is listed with the reason.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from ray_mm.config.preprocess import PICKLED
from ray_mm.data.decode.arrays import at_path, parse_csv, parse_json, read_npy
from ray_mm.data.decode.audio import recording_length
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.formats import PICTURES, RECORDINGS, SOUND_IN_CONTAINERS, VIDEOS, known_format
from ray_mm.data.decode.image import image_size
from ray_mm.data.decode.video import video_shape
from ray_mm.data.gzip_bytes import GzipRanges
from ray_mm.data.index import ShardIndex
from ray_mm.errors import UsageError
from ray_mm.storage.ranges import RangeReader
from ray_mm.storage.remote import ObjectInfo

_LOOKED_AT = 12
_SHARDS = 3
_LABELS_PER_SHARD = 1000
_MAX_BYTES = 32 << 20
_MAX_KEYS = 8
_MAX_CLASS_LETTERS = 40
_TO_DIVIDE = 100
"""A tenth of so many is empty once in 40,000 times, when each is drawn by itself."""
_POINTS = re.compile(r"point|cloud|lidar|radar|pcd", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Found:
    """What the members of one suffix are.

    Attributes:
        suffix: of the members.
        format: such as ``jpg``, ``JSON``, ``whole numbers``.
        detail: sizes, rates or examples, for people.
        specs: part of the name (empty: none) → the field that it would make. None where it can't be one.
        reason: why it can't be a field.
    """

    suffix: str
    format: str
    detail: str = ""
    specs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""


def look_at_members(shards: Sequence[tuple[ObjectInfo, ShardIndex]]) -> list[Found]:
    """Reads a few members of every suffix of some shards.

    Raises:
        StorageError: a store does not answer, or refuses.
    """
    payloads: dict[str, list[bytes]] = {suffix: [] for _, index in shards for suffix in index.offsets}
    # Spread over the shards: those at the end may be others.
    chosen = sorted({int(number) for number in np.linspace(0, len(shards) - 1, _SHARDS).round()}) if shards else []
    missing = {suffix for number in chosen for suffix in payloads if suffix not in shards[number][1].offsets}
    for number, (info, index) in enumerate(shards):
        if number in chosen or missing & index.offsets.keys():
            reader = member_reader(info, index)
            for suffix in index.offsets:
                if not _is_pickled(suffix):
                    payloads[suffix] += read_some(reader, index, suffix, max(1, _LOOKED_AT // len(chosen)))
            missing -= index.offsets.keys()
    return [_found(suffix, found) for suffix, found in sorted(payloads.items())]


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
        name: Counter() for name, spec in fields.items() if spec["type"] == "label" and spec.get("target") != "number"
    }
    for number in chosen if counts else ():
        info, index = shards[number]
        reader = member_reader(info, index)
        for name, count in counts.items():
            suffixes = [members[name]] if isinstance(members[name], str) else members[name]
            for suffix in suffixes:
                if suffix in index.offsets:
                    payloads = read_some(reader, index, suffix, _LABELS_PER_SHARD)
                    count.update(filter(None, (_label_text(payload, fields[name].get("path")) for payload in payloads)))
    return counts


def _label_text(payload: bytes, path: str | None) -> str | None:
    if path is None:
        return payload.decode("utf-8", "replace").strip()
    try:
        found = at_path(parse_json(payload), path)
    except DecodeError:
        return None
    return None if found is None or isinstance(found, (dict, list)) else str(found)


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


def _is_pickled(suffix: str) -> bool:
    return suffix.rpartition(".")[2].lower() in PICKLED


def _found(suffix: str, payloads: Sequence[bytes]) -> Found:
    if _is_pickled(suffix):
        return Found(suffix, "pickle", reason="reading one runs the code in it, so they are never loaded")
    if not payloads:
        return Found(suffix, "empty", reason="all members that were looked at are empty, or very large")
    formats = Counter(known_format(payload) for payload in payloads)
    if len({_kind(known) for known in formats}) > 1:
        shown = ", ".join(f"{known or 'unknown'} {count}" for known, count in formats.most_common())
        return Found(
            suffix, "mixed", shown, reason="of several kinds; to use one, name its field with on_missing: absent"
        )
    known, _ = formats.most_common(1)[0]
    same = [payload for payload in payloads if known_format(payload) == known]
    try:
        return _of_format(suffix, known, same) if known is not None else _without_mark(suffix, same)
    except (DecodeError, UsageError) as error:
        return Found(suffix, known or "unknown", reason=str(error))


def _kind(known: str | None) -> str | None:
    for kind in (PICTURES, VIDEOS, (*RECORDINGS, *SOUND_IN_CONTAINERS)):
        if known in kind:
            return kind[0]
    return known


def _of_format(suffix: str, known: str, payloads: Sequence[bytes]) -> Found:
    if known in PICTURES:
        sizes = Counter(image_size(payload) for payload in payloads)
        return Found(suffix, known, _pixels(sizes), {"": {"type": "image"}})
    if known in VIDEOS:
        shapes = [video_shape(payload) for payload in payloads[:_SHARDS]]
        seconds = ", ".join(f"{shape[2]:.3g}" for shape in shapes)
        sizes = Counter((height, width) for height, width, _ in shapes)
        return Found(suffix, known, f"{_pixels(sizes)}, {seconds} s", {"": {"type": "video"}})
    if known in RECORDINGS or known in SOUND_IN_CONTAINERS:
        frames, rate_hz = recording_length(payloads[0])
        return Found(suffix, known, f"{rate_hz:,} Hz, {frames / rate_hz:.3g} s", {"": {"type": "audio"}})
    if known == "npy":
        return _arrays(suffix, [read_npy(payload).shape for payload in payloads])
    if known == "pcd":
        return Found(suffix, known, specs={"": {"type": "points"}})
    return Found(suffix, known, reason="say with a field's path which of its parts is meant")


def _pixels(sizes: Counter[tuple[int, int]]) -> str:
    shown = ", ".join(f"{width}×{height}" for (height, width), _ in sizes.most_common(3))
    return f"{shown}, …" if len(sizes) > 3 else shown


def _arrays(suffix: str, shapes: Sequence[tuple[int, ...]]) -> Found:
    detail = ", ".join("×".join(map(str, shape)) or "one number" for shape in dict.fromkeys(shapes[:3]))
    dims = {len(shape) for shape in shapes}
    if dims == {2}:
        kind = "points" if _POINTS.search(suffix) else "series"
        return Found(suffix, "npy", detail, {"": {"type": kind}})
    if dims <= {0, 1}:
        kind = "vector" if len(set(shapes)) == 1 else "series"
        return Found(suffix, "npy", detail, {"": {"type": kind}})
    return Found(suffix, "npy", detail, reason=f"no field has arrays of {max(dims)} dimensions")


def _without_mark(suffix: str, payloads: Sequence[bytes]) -> Found:
    if all(payload.startswith(b"\x1f\x8b") for payload in payloads):
        return Found(suffix, "gzip", reason="members that are compressed one by one are not read; unpack them")
    try:
        texts = [payload.decode("utf-8").strip() for payload in payloads]
    except UnicodeDecodeError:
        texts = []
    if not texts or any("\0" in text for text in texts):
        return Found(suffix, "unknown", f"begins with {payloads[0][:8].hex(' ')}", reason="no format that ray_mm reads")
    if all(text[:1] in ("{", "[") for text in texts):
        return _json(suffix, [parse_json(payload) for payload in payloads])
    if all(re.fullmatch(r"\d{1,9}", text) for text in texts):
        return Found(suffix, "whole numbers", _examples(texts), {"": {"type": "label"}})
    if all(_NUMBER.fullmatch(text) for text in texts):
        return Found(suffix, "numbers", _examples(texts), {"": {"type": "label", "target": "number"}})
    if all("," in text and "\n" in text for text in texts):
        with contextlib.suppress(DecodeError):  # a text may have commas and lines, too
            shape = parse_csv(payloads[0])[1].shape
            return Found(suffix, "CSV", f"{shape[0]}×{shape[1]}", {"": {"type": "series"}})
    return Found(suffix, "text", _examples(texts), {"": _words(texts)})


def _words(texts: Sequence[str], path: str | None = None) -> dict[str, Any]:
    """A class where few short values repeat, a text else."""
    place: dict[str, Any] = {} if path is None else {"path": path}
    few = len(texts) >= 4 and len(set(texts)) <= len(texts) // 2
    if few and all(len(text) <= _MAX_CLASS_LETTERS and "\n" not in text for text in texts):
        return {"type": "label", **place, "written_as": "name"}
    return {"type": "text", **place}


def _json(suffix: str, values: Sequence[Any]) -> Found:
    if all(isinstance(value, list) for value in values):
        shapes = []
        for value in values:
            array = np.asarray(value) if _is_regular(value) else np.asarray("")
            if array.dtype.kind not in "iuf":
                return Found(suffix, "JSON", "lists", reason="lists of other things than numbers are no field")
            shapes.append(array.shape)
        arrays = _arrays(suffix, shapes)
        return Found(suffix, "JSON", arrays.detail, arrays.specs, arrays.reason)
    if not all(isinstance(value, dict) for value in values):
        return Found(suffix, "JSON", reason="neither objects nor lists throughout")
    keys = list(dict.fromkeys(key for value in values for key in value))
    specs: dict[str, dict[str, Any]] = {}
    for key in keys:
        found = [value[key] for value in values if value.get(key) is not None]
        if not found or "." in key or not key or len(specs) == _MAX_KEYS:
            continue
        if all(isinstance(value, str) and value for value in found):
            specs[key] = _words(found, key)
        elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found):
            specs[key] = {"type": "label", "target": "number", "path": key}
    reason = "" if specs else "no value that is a text or a number"
    return Found(suffix, "JSON", ", ".join(keys)[:80], specs, reason)


def _is_regular(value: list[Any]) -> bool:
    rows = [row for row in value if isinstance(row, list)]
    same = len({len(row) for row in rows}) <= 1 and len(rows) in (0, len(value))
    return same and not any(isinstance(inner, (list, dict)) for row in rows for inner in row)


def _examples(texts: Sequence[str]) -> str:
    shown = [text if len(text) <= 24 else f"{text[:24]}…" for text in dict.fromkeys(texts)][:3]
    return ", ".join(repr(text) for text in shown)
