"""Members of one suffix → what they are, and the fields that they would make. Bytes decide; names only name."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray_mm.config.preprocess import PICKLED
from ray_mm.data.decode.arrays import npz_shapes, parse_csv, parse_json, read_npy
from ray_mm.data.decode.audio import recording_length
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.formats import PICTURES, RECORDINGS, SOUND_IN_CONTAINERS, VIDEOS, known_format
from ray_mm.data.decode.image import image_size
from ray_mm.data.decode.mask import mask_numbers
from ray_mm.data.decode.video import video_shape
from ray_mm.data.found import Found, Parts, constant_text, is_constant, shapes_text, spec_of, words
from ray_mm.data.recognize_json import look_into_json
from ray_mm.errors import UsageError

_CLIPS = 3
_MAX_SHORT = 16 << 10
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def is_pickled(suffix: str) -> bool:
    """Whether members of this suffix would run code if they were loaded."""
    return suffix.rpartition(".")[2].lower() in PICKLED


def is_short_text(payloads: Sequence[bytes]) -> bool:
    """Whether members may hold classes: texts or JSON, none of them long."""
    return bool(payloads) and all(len(one) <= _MAX_SHORT and known_format(one) is None for one in payloads)


def recognize(suffix: str, payloads: Sequence[bytes], more: Sequence[bytes] = ()) -> Found:
    """What the members of a suffix are.

    Args:
        suffix: of the members.
        payloads: some of them, which decide what the format is.
        more: many of them, for telling which values come again and again; what can't be read among them is passed over.
    """
    if is_pickled(suffix):
        return Found(suffix, "pickle", reason="reading one runs the code in it, so they are never loaded")
    if not payloads:
        return Found(suffix, "empty", reason="all members that were looked at are empty, or very large")
    formats = Counter(known_format(payload) for payload in payloads)
    if len({_kind(known) for known in formats}) > 1:
        shown = ", ".join(f"{known or 'unknown'} {count}" for known, count in formats.most_common())
        return Found(
            suffix, "mixed", shown, reason="of several kinds; to use one, name its field with on_missing: absent"
        )
    known = [name for name, _ in formats.most_common() if name is not None]
    try:
        return _of_formats(suffix, known, payloads) if known else _without_mark(suffix, payloads, more)
    except (DecodeError, UsageError) as error:
        return Found(suffix, ", ".join(known) or "unknown", reason=str(error))


def _kind(known: str | None) -> str | None:
    for kind in (PICTURES, VIDEOS, (*RECORDINGS, *SOUND_IN_CONTAINERS)):
        if known in kind:
            return kind[0]
    return known


def _of_formats(suffix: str, formats: Sequence[str], payloads: Sequence[bytes]) -> Found:
    """Members of one kind, such as pictures, in one format or in several."""
    known, shown = formats[0], ", ".join(formats)
    if known in PICTURES:
        sizes = Counter(image_size(payload) for payload in payloads)
        largest = mask_numbers(payloads) if formats == ["png"] else None
        if largest is not None:
            classes = [str(number) for number in range(largest + 1)]
            spec = {"type": "label", "target": "mask", "classes": classes}
            return Found(suffix, shown, f"{_pixels(sizes)}, numbers 0 … {largest}: a mask", {"": spec})
        return Found(suffix, shown, _pixels(sizes), {"": {"type": "image"}})
    if known in VIDEOS:
        shapes = [video_shape(payload) for payload in payloads[:_CLIPS]]
        seconds = ", ".join(f"{shape[2]:.3g}" for shape in shapes)
        sizes = Counter((height, width) for height, width, _ in shapes)
        specs = {"": {"type": "video"}}
        if any(map(_has_sound, payloads[:_CLIPS])):
            specs["sound"] = {"type": "audio"}
        return Found(suffix, shown, f"{_pixels(sizes)}, {seconds} s", specs)
    if known in RECORDINGS or known in SOUND_IN_CONTAINERS:
        frames, rate_hz = recording_length(payloads[0])
        return Found(suffix, shown, f"{rate_hz:,} Hz, {frames / rate_hz:.3g} s", {"": {"type": "audio"}})
    if known == "npy":
        return _arrays(suffix, [read_npy(payload).shape for payload in payloads])
    if known == "npz":
        return _archives(suffix, [npz_shapes(payload) for payload in payloads])
    return Found(suffix, known, specs={"": {"type": "points"}})


def _has_sound(payload: bytes) -> bool:
    try:
        return recording_length(payload)[0] > 0
    except DecodeError:  # silent, or sound that can't be read: the frames are a field all the same
        return False


def _pixels(sizes: Counter[tuple[int, int]]) -> str:
    shown = ", ".join(f"{width}×{height}" for (height, width), _ in sizes.most_common(3))
    return f"{shown}, …" if len(sizes) > 3 else shown


def _arrays(suffix: str, shapes: Sequence[tuple[int, ...]]) -> Found:
    spec, detail = spec_of(suffix, shapes), shapes_text(shapes)
    if spec is None:
        dims = max(map(len, shapes))
        return Found(suffix, "npy", detail, reason=f"no field has arrays of {dims} dimensions")
    return Found(suffix, "npy", detail, {"": spec})


def _archives(suffix: str, archives: Sequence[Mapping[str, tuple[int, ...] | None]]) -> Found:
    """The arrays of NPZ files, each a field of its own."""
    parts = Parts()
    shown = []
    for name in dict.fromkeys(name for archive in archives for name in archive):
        shapes = [shape for archive in archives if (shape := archive.get(name)) is not None]
        shown.append(f"{name} {shapes_text(shapes[:1])}" if shapes else name)
        spec = spec_of(f"{suffix} {name}", shapes)
        if not shapes or len(shapes) < sum(name in archive for archive in archives):
            parts.pass_over(name, "no numbers")
        elif spec is None:
            parts.pass_over(name, f"{max(map(len, shapes))} dimensions")
        else:
            parts.add(name, spec)
    return parts.found(suffix, "npz", ", ".join(shown))


def _without_mark(suffix: str, payloads: Sequence[bytes], more: Sequence[bytes]) -> Found:
    if all(payload.startswith(b"\x1f\x8b") for payload in payloads):
        return Found(suffix, "gzip", reason="members that are compressed one by one are not read; unpack them")
    try:
        texts = [payload.decode("utf-8-sig").strip() for payload in payloads]
    except UnicodeDecodeError:
        texts = []
    if not texts or any("\0" in text for text in texts):
        return Found(suffix, "unknown", f"begins with {payloads[0][:8].hex(' ')}", reason="no format that ray_mm reads")
    if all(text[:1] in ("{", "[") for text in texts):
        return look_into_json(suffix, [parse_json(payload) for payload in payloads], _readable(more))
    all_texts = [payload.decode("utf-8-sig", "replace").strip() for payload in more or payloads]
    number_label: dict[str, Any] | None = None
    if all(re.fullmatch(r"\d{1,9}", text) for text in texts):
        number_label = {"type": "label"}
    elif all(_NUMBER.fullmatch(text) for text in texts):
        number_label = {"type": "label", "target": "number"}
    if number_label is not None:
        kind = "numbers" if "target" in number_label else "whole numbers"
        if is_constant(all_texts):
            return Found(suffix, kind, _examples(texts), reason=constant_text(texts[0]))
        return Found(suffix, kind, _examples(texts), {"": number_label})
    if all("," in text and "\n" in text for text in texts):
        with contextlib.suppress(DecodeError):  # a text may have commas and lines, too
            shape = parse_csv(payloads[0])[1].shape
            return Found(suffix, "CSV", f"{shape[0]}×{shape[1]}", {"": {"type": "series"}})
    return Found(suffix, "text", _examples(texts), {"": words(all_texts)})


def _readable(payloads: Sequence[bytes]) -> list[Any]:
    values = []
    for payload in payloads:
        with contextlib.suppress(DecodeError):
            values.append(parse_json(payload))
    return values


def _examples(texts: Sequence[str]) -> str:
    shown = [text if len(text) <= 24 else f"{text[:24]}…" for text in dict.fromkeys(texts)][:3]
    return ", ".join(repr(text) for text in shown)
