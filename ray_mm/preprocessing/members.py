"""The value of a cell → the bytes and the extension of a member, and what the summary of the data needs to know of it.

    image, audio, video  a path; the file's bytes as they are, its extension from its first bytes, checked by its header
    text            the value
    series of streams  a path or a list per column                        → float32 [T, C] as NPY, aligned by their times
    series, points  a path of a file of numbers, a nested list, or one as JSON  → float32 [T, C] or [N, C] as NPY
    vector          columns, a number, a list, one as JSON, or a path           → float32 [size] as NPY
    label           a class → its number; classes → a JSON list of their numbers; a number → as it is; a mask: a path, the
                    file's bytes as they are

An empty cell, text or array, or the sound of a silent clip, is an absent field; an empty list of classes is there, and says that
the sample has none.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_never

from ray_mm.config.fields import (
    AudioField,
    FieldSpec,
    ImageField,
    LabelField,
    PointsField,
    SeriesField,
    TextField,
    VectorField,
    VideoField,
)
from ray_mm.data.decode.arrays import as_finite
from ray_mm.data.decode.audio import recording_length
from ray_mm.data.decode.error import DecodeError, SilentError, StreamError
from ray_mm.data.decode.formats import PICTURES, RECORDINGS, SOUND_IN_CONTAINERS, VIDEOS, known_format
from ray_mm.data.decode.image import image_size
from ray_mm.data.decode.mask import occurring, read_mask, require_size
from ray_mm.data.decode.numeric import class_text, decode_label, read_points, read_series, read_vector
from ray_mm.data.decode.streams import read_streams
from ray_mm.data.decode.video import video_shape
from ray_mm.preprocessing.table import cell_classes

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Member:
    """One member of a sample.

    Attributes:
        extension: without a dot.
        payload: its bytes.
        shape: image, video and mask (height, width) in pixels; audio (rate in Hz,); series and points (channels,); vector
            (size,).
        longest: audio and video in seconds; series in steps; points in points.
        values: float32 [N, C], for statistics: series, points, vector and number label.
        class_names: of a label: its class, or all that it has; of a mask all that occur.
    """

    extension: str
    payload: bytes
    shape: tuple[int, ...] = ()
    longest: float = 0.0
    values: FloatArray | None = None
    class_names: tuple[str, ...] = ()


EXTENSIONS: dict[str, tuple[str, ...]] = {
    "image": PICTURES,
    "text": ("txt",),
    "audio": (*RECORDINGS, *SOUND_IN_CONTAINERS),
    "video": VIDEOS,
    "series": ("npy",),
    "points": ("npy",),
    "vector": ("npy",),
    "label": ("cls", "json", "png", "npy"),
}
"""Field type → the extensions that its members can have."""


def member_of(spec: FieldSpec, cells: Sequence[Any], paths: Sequence[Path | None]) -> Member | None:
    """Makes a member of a field's cells.

    Args:
        spec: the field; of a class label with its classes.
        cells: one, or one per column of a vector or of a series of streams.
        paths: the file that each cell names, or None where it holds the value itself.

    Returns:
        The member, or None where the field is absent.

    Raises:
        DecodeError: the value or file is not what the field says.
        OSError: the file can't be read.
    """
    if any(cell is None or cell == "" for cell in cells):
        return None
    cell, path = cells[0], paths[0]
    match spec:
        case ImageField():
            assert path is not None, "files.require_paths comes first"
            payload = path.read_bytes()
            return Member(
                _extension(payload, PICTURES, "JPEG, PNG, WebP, GIF, BMP, TIFF or PPM"), payload, image_size(payload)
            )
        case AudioField():
            assert path is not None, "files.require_paths comes first"
            payload = path.read_bytes()
            extension = _extension(payload, EXTENSIONS["audio"], "WAV, FLAC, OGG, MP3 or another recording")
            try:
                frames, rate_hz = recording_length(payload)
            except SilentError:
                return None
            return Member(extension, payload, (rate_hz,), frames / rate_hz)
        case VideoField():
            assert path is not None, "files.require_paths comes first"
            payload = path.read_bytes()
            extension = _extension(payload, VIDEOS, "MP4, MKV, WebM, AVI, MPEG, TS, FLV or WMV")
            height, width, seconds = video_shape(payload)
            return Member(extension, payload, (height, width), seconds)
        case TextField():
            return Member("txt", _text(cell).encode())
        case SeriesField() if spec.streams is not None:
            named = zip(spec.members, cells, paths, strict=True)
            return _rows(read_streams({name: _of_stream(name, *cell) for name, *cell in named}, spec), spec)
        case SeriesField():
            return _rows(read_series(_payload(cell, path), spec), spec)
        case PointsField():
            return _rows(read_points(_payload(cell, path), spec), spec)
        case VectorField():
            if len(cells) > 1:
                return _vector(as_finite([_number(cell) for cell in cells]), spec)
            return _vector(read_vector(_payload(cell, path), spec), spec)
        case LabelField() if spec.target == "mask":
            assert path is not None, "files.require_paths comes first"
            payload = path.read_bytes()
            return mask_member(payload, spec, known_format(payload) or "")
        case LabelField():
            return _label(cell, spec)
        case _:
            assert_never(spec)


def _extension(payload: bytes, known: tuple[str, ...], formats: str) -> str:
    found = known_format(payload)
    if found is None or found not in known:
        raise DecodeError(f"is not {formats}")
    return found


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else class_text(cell)


def _payload(cell: Any, path: Path | None) -> bytes:
    """A file's bytes, or the numbers in a cell as those of a file."""
    if path is not None:
        return path.read_bytes()
    if isinstance(cell, str):
        return cell.encode()
    return _npy(as_finite(cell))


def _of_stream(name: str, cell: Any, path: Path | None) -> bytes:
    try:
        return _payload(cell, path)
    except DecodeError as error:
        raise StreamError((name,), str(error)) from None
    except OSError as error:
        raise StreamError((name,), error.strerror or str(error)) from None


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise DecodeError(f"{cell!r:.60} is not a number") from None


def _rows(values: FloatArray | None, spec: SeriesField | PointsField) -> Member | None:
    if values is None or values.size == 0:
        return None
    if spec.channels is not None and values.shape[1] != spec.channels:
        raise DecodeError(f"has shape {list(values.shape)}, expected [any, {spec.channels}]")
    return Member("npy", _npy(values), (values.shape[1],), float(len(values)), values)


def _vector(values: FloatArray | None, spec: VectorField) -> Member | None:
    if values is None or values.size == 0:
        return None
    if spec.size is not None and values.size != spec.size:
        raise DecodeError(f"has {values.size} values, expected {spec.size}")
    return Member("npy", _npy(values), (values.size,), values=values[None, :])


def _label(cell: Any, spec: LabelField) -> Member:
    if spec.target == "class":
        assert spec.classes is not None, "table.label_classes comes first"
        name = class_text(cell)
        return Member("cls", str(spec.classes.index(name)).encode(), class_names=(name,))
    if spec.target == "classes":
        assert spec.classes is not None, "table.label_classes comes first"
        names = cell_classes(cell)
        numbers = sorted(map(spec.classes.index, names))
        return Member("json", json.dumps(numbers).encode(), class_names=tuple(names))
    payload = json.dumps(_number(cell)).encode()
    return Member("json", payload, values=np.array([[decode_label(payload, spec)]], np.float32))


def mask_member(payload: bytes | memoryview, spec: LabelField, extension: str) -> Member | None:
    """A mask as a member; None where no cell of it has a label.

    Raises:
        DecodeError: it is none, or has another size than its field says.
    """
    numbers = read_mask(payload, spec)
    if spec.like is None:
        require_size(numbers.shape, spec)
    names = occurring(numbers, spec)
    return Member(extension, bytes(payload), numbers.shape, class_names=names) if names else None


def _npy(values: FloatArray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
