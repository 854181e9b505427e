"""One function per field that fills a row of a batch from a member's bytes."""

from __future__ import annotations

from typing import Protocol

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
from ray_mm.data.decode.audio import decode_audio
from ray_mm.data.decode.container import require_av
from ray_mm.data.decode.draw import Draw
from ray_mm.data.decode.error import DecodeError, SilentError, StreamError
from ray_mm.data.decode.image import decode_image, decode_whole
from ray_mm.data.decode.mask import decode_mask
from ray_mm.data.decode.numeric import (
    decode_classes,
    decode_label,
    fill_points,
    fill_series,
    fill_vector,
    read_points,
    read_series,
    read_vector,
)
from ray_mm.data.decode.streams import Payloads, read_streams
from ray_mm.data.decode.text import ReplacementCount, decode_text, load_tokenizer, read_text
from ray_mm.data.decode.video import decode_video, decode_whole_clip
from ray_mm.data.fields import Arrays, length_name, size_name, time_name
from ray_mm.data.preprocessor import Preprocessor

Payload = bytes | memoryview

__all__ = ["DecodeError", "Decoder", "Draw", "decoder_for"]


class Decoder(Protocol):
    """Fills one field's row of a batch, presence excluded."""

    def __call__(self, payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        """Decodes a member's bytes.

        Args:
            payload: the member.
            arrays: of a batch, see ``data.fields``; the row holds zeros.
            row: which one is filled.
            draw: makes the random choices; None: nothing is left to chance.

        Returns:
            Whether the field is there. A member may be there and say nothing of it, such as JSON without its key.

        Raises:
            DecodeError: it can't be decoded; a part of the row may have been written, and the caller clears it.
        """


def decoder_for(name: str, preprocessor: Preprocessor) -> Decoder:
    """The decoder of one field that is read from one member. Array names and shapes are those of ``data.fields``."""
    spec = preprocessor.fields[name]
    match spec:
        case ImageField():
            return _image(name, spec)
        case TextField():
            return _text(name, spec, preprocessor.tokenizers[name], preprocessor.first_id(name))
        case AudioField():
            return _audio(name, spec)
        case VideoField():
            return _video(name, spec)
        case SeriesField():
            return _series(name, spec)
        case PointsField():
            return _points(name, spec)
        case VectorField():
            return _vector(name, spec)
        case LabelField() if spec.target == "mask":
            return _mask(name, spec, preprocessor.fields.get(spec.like or ""))
        case LabelField():
            return _label(name, spec)
        case _:
            assert_never(spec)


def _image(name: str, spec: ImageField) -> Decoder:
    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        decode_image(payload, spec, arrays[name][row], name, draw)
        return True

    return decode


def whole_decoder(name: str, spec: ImageField | VideoField) -> Decoder:
    """The decoder of a field of pictures or clips into the arrays of ``data.fields.whole_arrays``."""
    size = size_name(name)
    if isinstance(spec, VideoField):
        return _whole_clip(name, spec)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        arrays[size][row] = decode_whole(payload, spec, arrays[name][row])
        return True

    return decode


def _text(name: str, spec: TextField, tokenizer_json: str, first_id: int) -> Decoder:
    tokenizer, replaced = load_tokenizer(tokenizer_json), ReplacementCount(name)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        found = read_text(payload, spec)
        if found is None:
            return False
        text, lost = found
        if lost:
            replaced.add()
        decode_text(text, tokenizer, arrays[name][row], first_id)
        return True

    return decode


def _audio(name: str, spec: AudioField) -> Decoder:
    length = length_name(name)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        try:
            arrays[length][row] = decode_audio(payload, spec, arrays[name][row])
        except SilentError:
            return False
        return True

    return decode


def _video(name: str, spec: VideoField) -> Decoder:
    length, time = length_name(name), time_name(name)
    # Before the first sample, and not as the fault of one.
    require_av(f"field {name!r} (video)")

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        arrays[length][row] = decode_video(payload, spec, arrays[name][row], arrays[time][row], name, draw)
        return True

    return decode


def _whole_clip(name: str, spec: VideoField) -> Decoder:
    length, time, size = length_name(name), time_name(name), size_name(name)
    require_av(f"field {name!r} (video)")

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        arrays[length][row], arrays[size][row] = decode_whole_clip(payload, spec, arrays[name][row], arrays[time][row])
        return True

    return decode


def _series(name: str, spec: SeriesField) -> Decoder:
    length = length_name(name)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        values = read_series(payload, spec, len(arrays[name][row]))
        if values is None:
            return False
        arrays[length][row] = fill_series(values, arrays[name][row])
        return True

    return decode


class StreamsDecoder(Protocol):
    """Fills the row of a series of several streams, presence excluded."""

    def __call__(self, payloads: Payloads, arrays: Arrays, row: int, /) -> bool:
        """Decodes the members of a sample; arguments and result as of ``Decoder``.

        Raises:
            StreamError: with the members that are at fault.
        """


def streams_decoder(name: str, spec: SeriesField) -> StreamsDecoder:
    """The decoder of a series of several streams."""
    length = length_name(name)

    def decode(payloads: Payloads, arrays: Arrays, row: int, /) -> bool:
        values = read_streams(payloads, spec, len(arrays[name][row]))
        if values is None:
            return False
        try:
            arrays[length][row] = fill_series(values, arrays[name][row])
        except DecodeError as error:
            raise StreamError(spec.members, str(error)) from None
        return True

    return decode


def _points(name: str, spec: PointsField) -> Decoder:
    length = length_name(name)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        values = read_points(payload, spec)
        # A sensor that saw nothing is as good as none.
        if values is None or values.size == 0:
            return False
        arrays[length][row] = fill_points(values, arrays[name][row])
        return True

    return decode


def _vector(name: str, spec: VectorField) -> Decoder:
    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        values = read_vector(payload, spec)
        if values is not None:
            fill_vector(values, arrays[name][row])
        return values is not None

    return decode


def _mask(name: str, spec: LabelField, picture: FieldSpec | None) -> Decoder:
    like = picture if isinstance(picture, ImageField) else None

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        return decode_mask(payload, spec, like, arrays[name][row], draw)

    return decode


def _label(name: str, spec: LabelField) -> Decoder:
    if spec.target == "classes":
        return _classes(name, spec)

    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        value = decode_label(payload, spec)
        if value is not None:
            arrays[name][row] = value
        return value is not None

    return decode


def _classes(name: str, spec: LabelField) -> Decoder:
    def decode(payload: Payload, arrays: Arrays, row: int, draw: Draw | None = None, /) -> bool:
        numbers = decode_classes(payload, spec)
        if numbers is not None:
            arrays[name][row, numbers] = 1
        return numbers is not None

    return decode
