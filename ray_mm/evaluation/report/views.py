"""A field of one sample, as a person can look at it: what the model got, decoded from the sample's own bytes.

image   the picture in the model's size          series   a line per channel
text    the words                                points   from above, one dot per point
audio   the waveform, and a player               vector   a bar per value
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile
from markupsafe import Markup
from PIL import Image
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
from ray_mm.data.fields import Arrays, length_name
from ray_mm.data.manifest import Statistics
from ray_mm.evaluation.report.svg import dots, number, picture, polyline

_MAX_LETTERS = 500
_MAX_CHANNELS = 6
_MAX_STEPS = 240
_MAX_DOTS = 500
_MAX_BARS = 64
_MAX_SOUND_BYTES = 160_000
_MAX_OVERLAID = 3
_WIDTH, _HEIGHT, _MAX_HEIGHT, _LANE = 240.0, 72.0, 200.0, 22.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """One field of an example: markup to look at, and a line of words below it."""

    field: str
    type: str
    content: Markup
    caption: str


def view(field: str, spec: FieldSpec, arrays: Arrays, member: bytes, statistics: Statistics | None) -> View:
    """Draws a field that is present.

    Args:
        field: its name.
        spec: its type and shape.
        arrays: a batch of one sample, decoded for the model.
        member: the field's bytes in the shard.
        statistics: of its channels, if the training data has them.
    """
    match spec:
        case ImageField():
            content, caption = _image(field, arrays[field][0])
        case TextField():
            content, caption = _text(member)
        case AudioField():
            content, caption = _audio(field, spec, arrays[field][0], int(arrays[length_name(field)][0]))
        case VideoField():
            length = int(arrays[length_name(field)][0])
            content, caption = _image(field, arrays[field][0, max(0, length - 1) // 2])
            caption = f"the middle one of {length} frames, {caption}"
        case SeriesField():
            length = int(arrays[length_name(field)][0])
            values = arrays[field][0, :length]
            content, caption = _series(field, spec, _standardised(values, statistics), values)
        case PointsField():
            content, caption = _points(field, arrays[field][0, : int(arrays[length_name(field)][0])])
        case VectorField():
            content, caption = _vector(field, arrays[field][0], statistics)
        case LabelField():
            raise AssertionError("a label is no input")
        case _:
            assert_never(spec)
    return View(field, spec.type, content, caption)


def _image(field: str, pixels: npt.NDArray[np.generic]) -> tuple[Markup, str]:
    height, width = pixels.shape[:2]
    shown = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    stream = io.BytesIO()
    small = width * height <= 128 * 128
    shown.save(stream, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 88}))
    uri = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"
    # A few pixels, blown up, are clearest as squares; a photograph is not.
    tag = Markup('<img class="{}" src="{}" width="{}" height="{}" alt="{}" decoding="async">')
    return tag.format(
        "pixels" if max(width, height) <= 48 else "photo", uri, width, height, f"field {field}"
    ), f"{width}×{height} pixels"


def _text(member: bytes) -> tuple[Markup, str]:
    words = member.decode("utf-8", "replace").strip()
    cut = words if len(words) <= _MAX_LETTERS else words[:_MAX_LETTERS].rstrip() + " …"
    return Markup("<blockquote>{}</blockquote>").format(cut), f"{len(words):,} characters" if cut != words else ""


def _audio(field: str, spec: AudioField, frames: npt.NDArray[np.generic], length: int) -> tuple[Markup, str]:
    assert spec.rate_hz is not None
    sound = np.asarray(frames[:length], np.int16)
    edges = np.linspace(0, length, min(length, 200) + 1).astype(np.int64)
    low, high = np.minimum.reduceat(sound, edges[:-1]), np.maximum.reduceat(sound, edges[:-1])
    # Quiet recordings fill the height, too: it is the shape that one looks for.
    peak = float(np.abs(sound.astype(np.float64)).max()) or 1.0
    x = np.linspace(1, _WIDTH - 1, len(low))
    path = "".join(
        f"M{column:.1f} {_HEIGHT / 2 * (1 - 0.94 * top / peak) - 0.3:.1f}V{_HEIGHT / 2 * (1 - 0.94 * bottom / peak) + 0.3:.1f}"
        for column, bottom, top in zip(x.tolist(), low.tolist(), high.tolist(), strict=True)
    )
    seconds = length / spec.rate_hz
    drawn = picture(
        [Markup('<path class="wave" d="{}"/>').format(path)],
        f"waveform of field {field}, {seconds:.2f} seconds",
        _WIDTH,
        _HEIGHT,
        "view",
    )
    if sound.nbytes <= _MAX_SOUND_BYTES:
        stream = io.BytesIO()
        soundfile.write(stream, sound, spec.rate_hz, format="WAV", subtype="PCM_16")
        uri = "data:audio/wav;base64," + base64.b64encode(stream.getvalue()).decode()
        tag = Markup('<audio controls preload="none" src="{}" aria-label="{}"></audio>')
        drawn += tag.format(uri, f"play field {field}")
    return drawn, f"{seconds:.2f} s at {spec.rate_hz:,} Hz"


def _series(field: str, spec: SeriesField, values: Floats, measured: npt.NDArray[np.generic]) -> tuple[Markup, str]:
    steps, channels = values.shape
    shown = values[:: -(-steps // _MAX_STEPS), :_MAX_CHANNELS]
    # More than three lines on top of each other are a tangle: then each has a lane of its own, all with one scale.
    lanes = shown.shape[1] if shown.shape[1] > _MAX_OVERLAID else 1
    height = _HEIGHT if lanes == 1 else 8 + _LANE * lanes
    if lanes == 1:
        low, high = _reach(shown)
        parts, bottoms = _baseline(shown), [0.0] * shown.shape[1]
    else:
        bottoms = shown.min(axis=0).tolist()
        low, high = 0.0, float(np.ptp(shown, axis=0).max()) or 1.0
        parts = [polyline([(0, 4 + _LANE * lane), (_WIDTH, 4 + _LANE * lane)], "zero") for lane in range(1, lanes)]
    x = np.linspace(2, _WIDTH - 2, max(len(shown), 2))[: len(shown)].tolist()
    tall = (height - 8) / lanes
    for channel, bottom in enumerate(bottoms):
        foot = height - 4 - tall * (lanes - 1 - channel) if lanes > 1 else height - 4
        y = (foot - (shown[:, channel] - bottom - low) / (high - low) * (tall - 3 * (lanes > 1))).tolist()
        parts.append(polyline(zip(x, y, strict=True), f"channel c{channel}"))
    duration = f"{steps / spec.rate_hz:.2f} s at {spec.rate_hz:g} Hz" if spec.rate_hz else f"{steps:,} steps"
    count = f"{_MAX_CHANNELS} of {channels} channels" if channels > _MAX_CHANNELS else f"{channels} channels"
    if channels == 1:
        count = "1 channel"
    caption = f"{duration}, {count}, {_extent(measured)}"
    return picture(parts, f"series of field {field}, {caption}", _WIDTH, height, "view"), caption


def _extent(values: npt.NDArray[np.generic]) -> str:
    """Where the values lie, in their own unit: every card has a scale of its own, so shapes alone can't be compared."""
    floats: Floats = values.astype(np.float64)
    columns = floats.T if floats.shape[1] <= _MAX_OVERLAID else floats.reshape(1, -1)
    digits = 3 if len(columns) == 1 else 2

    def short(value: float) -> str:
        return number(float(f"{value:.{digits}g}"))

    return " · ".join(f"{short(column.min())} to {short(column.max())}" for column in columns)


def _points(field: str, cloud: npt.NDArray[np.generic]) -> tuple[Markup, str]:
    count = len(cloud)
    chosen = np.linspace(0, count - 1, min(count, _MAX_DOTS)).round().astype(np.int64)
    places = cloud[chosen, :2].astype(np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    # The sensor stands at the origin: it is shown where it is not far from what it sees.
    near = np.maximum(low, 0) - np.minimum(high, 0) <= 0.3 * float((high - low).max())
    with_origin = bool(near.all())
    if with_origin:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    # One scale for both axes: distances must look alike in every direction.
    wide, tall = (high - low).tolist()
    scale = min((_WIDTH - 24) / wide if wide else np.inf, (_MAX_HEIGHT - 24) / tall if tall else np.inf)
    scale = scale if np.isfinite(scale) else 1.0
    height = max(round(tall * scale + 24), _HEIGHT)
    middle = (low + high) / 2

    def place(point: Floats) -> tuple[float, float]:
        right, up = ((point - middle) * scale).tolist()
        return _WIDTH / 2 + right, height / 2 - up

    parts = []
    if with_origin:
        x, y = place(np.zeros(2))
        parts = [
            polyline([(0, y), (_WIDTH, y)], "zero"),
            polyline([(x, 0), (x, height)], "zero"),
            dots([(x, y)], "origin", 3),
            Markup("<title>red: the origin, where the sensor stands</title>"),
        ]
    parts.append(dots([place(point) for point in places], "point", 2.2))
    cut = f"{_MAX_DOTS} of {count:,} points" if count > _MAX_DOTS else f"{count:,} point{'s' if count > 1 else ''}"
    caption = f"{cut}, {number(float(f'{max(wide, tall):.2g}'))} across"
    return picture(parts, f"points of field {field} from above, {caption}", _WIDTH, height, "view"), caption


def _vector(field: str, values: npt.NDArray[np.generic], statistics: Statistics | None) -> tuple[Markup, str]:
    shown = _standardised(values[None], statistics)[0, :_MAX_BARS]
    parts = _baseline(shown)
    low, high = _reach(shown)
    zero = _HEIGHT - 4 - (0 - low) / (high - low) * (_HEIGHT - 8)
    step = (_WIDTH - 4) / len(shown)
    width = max(min(step * 0.7, 18.0), 0.5)
    for index, value in enumerate(shown.tolist()):
        y = _HEIGHT - 4 - (value - low) / (high - low) * (_HEIGHT - 8)
        tip = f"value {index}: {number(float(values[index]))}"
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                round(2 + index * step + (step - width) / 2, 1),
                round(min(y, zero), 1),
                round(width, 1),
                round(max(abs(y - zero), 0.8), 1),
                tip,
            )
        )
    size = len(values)
    count = f"{_MAX_BARS} of {size} values" if size > _MAX_BARS else f"{size} values"
    first = ", ".join(number(float(f"{value:.3g}")) for value in values[:4].astype(float).tolist())
    title = f"values of field {field}: {first}{', …' if size > 4 else ''}"
    return picture(parts, title, _WIDTH, _HEIGHT, "view"), count


def _standardised(values: npt.NDArray[np.generic], statistics: Statistics | None) -> Floats:
    """Channels of different units, brought to one scale as the model does."""
    as_floats: Floats = values.astype(np.float64)
    if statistics is None:
        return as_floats
    standardised: Floats = (as_floats - np.array(statistics.mean)) / np.array(statistics.std)
    return standardised


def _reach(values: Floats) -> tuple[float, float]:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _baseline(values: Floats) -> list[Markup]:
    low, high = _reach(values)
    y = _HEIGHT - 4 - (0 - low) / (high - low) * (_HEIGHT - 8)
    return [polyline([(0, y), (_WIDTH, y)], "zero")]
