"""Field types: what a typed column of a sample is. The same words serve preprocess jobs, ``dataset.json`` and overrides.

A value of None means "take it from the data" in a preprocess job, and "take it from the dataset" in a train job.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeGuard

from pydantic import Field, field_validator, model_validator

from ray_mm.config.base import Config, Fraction

PathText = Annotated[str, Field(min_length=1, max_length=200)]
Paths = PathText | Annotated[tuple[PathText, ...], Field(min_length=1)]
"""Where values lie within a member: a path in JSON such as ``pose.position``, a key of an NPZ, a column of a CSV or PCD; or
several, which are put side by side."""


def names_of(paths: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """``Paths`` as a tuple; empty where they are unset."""
    return (paths,) if isinstance(paths, str) else paths or ()


Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=100)]


class RandomCrop(Config):
    """A part of a picture, another one in every epoch; it is scaled to the field's height and width."""

    scale: tuple[Share, Share] = (0.35, 1.0)
    """Smallest and largest share of the picture's area."""
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    """Narrowest and widest, relative to what is not distorted: 2 shows things half as wide as they are."""
    whole_side: int | None = Field(default=None, ge=8, le=2048)
    """First the whole picture, or every frame of a clip, is brought to this many rows and columns, and the part is cut from that:
    the cache of decoded samples can keep it. Unset: the part is cut from the picture with all its detail, and decoded in every
    epoch."""

    @model_validator(mode="after")
    def _from_small_to_large(self) -> RandomCrop:
        for key, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{key} [{low:g}, {high:g}] must name the smaller number first")
        return self


class ImageField(Config):
    """A picture: JPEG, PNG, WebP, … Decoded to uint8 [height, width, channels]."""

    type: Literal["image"] = "image"
    height: int | None = Field(default=None, ge=1, le=16384)
    """Rows in pixels after decoding. Unset: the median of the data, at most 224."""
    width: int | None = Field(default=None, ge=1, le=16384)
    """Columns in pixels after decoding. Unset: the median of the data, at most 224."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for grey."""
    fit: Literal["crop", "stretch"] = "crop"
    """How a picture of another aspect ratio is made to fit: scaled and centre-cropped, or stretched."""
    random_crop: RandomCrop | None = None
    """Another part of the picture in every epoch, in training only. Unset: always the same part."""
    random_flip: Fraction = 0.0
    """Chance that a picture is mirrored left to right, in training only."""

    @property
    def whole_side(self) -> int | None:
        """Rows and columns of the whole picture that parts are cut from. None: they are cut from the file."""
        return self.random_crop.whole_side if self.random_crop is not None else None


class TextField(Config):
    """A text, UTF-8. Tokenised to int32 [max_tokens], padded with 0."""

    type: Literal["text"] = "text"
    max_tokens: int | None = Field(default=None, ge=1, le=65536)
    """Longer texts are cut. Unset: the longest text of the data, at most 256."""
    vocabulary_size: int | None = Field(default=None, ge=2)
    """Upper limit of the tokenizer's vocabulary; in ``dataset.json`` the size that it has. Unset: 8,000."""
    path: PathText | None = None
    """Where the text lies in a JSON member, such as ``caption.en``. Unset: the member is the text."""


class AudioField(Config):
    """A recording: WAV, FLAC, OGG, MP3, …, or the sound of a video. int16 [rate_hz × max_seconds] and a length in frames."""

    type: Literal["audio"] = "audio"
    rate_hz: int | None = Field(default=None, ge=1000, le=384000)
    """Sample rate after decoding, in Hz. Unset: the most frequent rate of the data."""
    channels: int = Field(default=1, ge=1, le=64)
    """1: all channels averaged. More: the recording's own, int16 [rate_hz × max_seconds, channels]; mono is repeated."""
    max_seconds: float | None = Field(default=None, gt=0, le=3600)
    """Longer recordings are cut, shorter ones padded. Unset: the longest of the data, at most 30."""


class VideoField(Config):
    """A clip: uint8 [num_frames, height, width, channels], the frames' times in seconds, and how many there are."""

    type: Literal["video"] = "video"
    num_frames: int = Field(default=8, ge=1, le=4096)
    """Frames that are decoded; a shorter clip has fewer, and zeros after them."""
    rate_hz: float | None = Field(default=None, gt=0, le=1000)
    """Frames per second, from the start of the clip. Unset: spread evenly over all of it."""
    height: int | None = Field(default=None, ge=1, le=16384)
    """Rows in pixels after decoding. Unset: the median of the data, at most 224."""
    width: int | None = Field(default=None, ge=1, le=16384)
    """Columns in pixels after decoding. Unset: the median of the data, at most 224."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for grey."""
    fit: Literal["crop", "stretch"] = "crop"
    """How frames of another aspect ratio are made to fit: scaled and centre-cropped, or stretched."""
    random_crop: RandomCrop | None = None
    """Another part of the clip in every epoch, in training only; all its frames show the same. Unset: always the same part."""
    random_flip: Fraction = 0.0
    """Chance that a clip is mirrored left to right, in training only."""

    @property
    def whole_side(self) -> int | None:
        """Rows and columns of the whole frames that parts are cut from. None: they are cut from the file."""
        return self.random_crop.whole_side if self.random_crop is not None else None


class SeriesStream(Config):
    """One sensor of a series that is made of several: where its values lie, and their times."""

    member: str = Field(min_length=1, max_length=200)
    """In a table the column whose cells hold it; in tars the suffix of its members, such as ``imu.npy``."""
    path: Paths | None = None
    """Where the values lie in the member; several become channels side by side. Unset: the whole member."""
    time_path: Paths | None = None
    """Where the times of the steps lie, in seconds: one for all of ``path``, or one each."""
    time_member: str | None = Field(default=None, min_length=1, max_length=200)
    """Another column or suffix, where the times lie in a member of their own: at ``time_path``, or the whole of it."""
    source_rate_hz: float | None = Field(default=None, gt=0)
    """Steps per second of members without times; their first step is then at 0 s."""

    @field_validator("member", "time_member")
    @classmethod
    def _without_a_dot(cls, name: str | None) -> str | None:
        if name is not None and name.startswith("."):
            raise ValueError(f"write {name.lstrip('.')!r}, without a dot before it")
        return name

    @model_validator(mode="after")
    def _has_one_clock(self) -> SeriesStream:
        timed = self.time_path is not None or self.time_member is not None
        if timed == (self.source_rate_hz is not None):
            raise ValueError(
                "a stream is put in its place by the times of its steps (time_path, time_member) or by their rate "
                "(source_rate_hz); give one of the two"
            )
        if self.time_member == self.member:
            raise ValueError("time_member is the stream's own member; say with time_path where in it the times lie")
        if len(names_of(self.time_path)) not in (0, 1, max(1, len(names_of(self.path)))):
            raise ValueError("time_path must be one, or as many as path")
        return self


class SeriesField(Config):
    """A sensor time series: float32 [max_length, channels] and a length in steps."""

    type: Literal["series"] = "series"
    channels: int | None = Field(default=None, ge=1)
    """Values per time step. Unset: what the data has."""
    max_length: int | None = Field(default=None, ge=1)
    """Longer series are cut, shorter ones padded, in steps. Unset: the longest of the data, at most 4,096."""
    rate_hz: float | None = Field(default=None, gt=0)
    """Steps per second after decoding. Resampled to it if times or ``source_rate_hz`` are known. Unset: not known."""
    source_rate_hz: float | None = Field(default=None, gt=0)
    """Steps per second of the members, where they have no times. Unset: that of ``rate_hz``."""
    path: Paths | None = None
    """Where the values lie in an NPZ, JSON or CSV member; several become channels side by side. Unset: the whole member."""
    time_path: Paths | None = None
    """Where the times of the steps lie, in seconds: one for all of ``path``, or one each. Unset: there are none."""
    streams: Annotated[tuple[SeriesStream, ...], Field(min_length=1, max_length=64)] | None = None
    """Sensors that lie in members or columns of their own; aligned by their times, they are put side by side at ``rate_hz``.
    Unset: all lies in one member."""

    @property
    def members(self) -> tuple[str, ...]:
        """The members or columns that ``streams`` name, each once, in their order; empty where there are no streams."""
        named = [name for stream in self.streams or () for name in (stream.member, stream.time_member)]
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @model_validator(mode="after")
    def _streams_say_where_they_lie(self) -> SeriesField:
        if self.streams is None:
            return self
        own = [key for key in ("path", "time_path", "source_rate_hz") if getattr(self, key) is not None]
        if own:
            raise ValueError(f"with streams every stream says its own {own[0]}; move {', '.join(own)} there")
        if self.rate_hz is None:
            raise ValueError("streams need rate_hz, the steps per second that all of them are brought to")
        return self

    @model_validator(mode="after")
    def _times_need_a_rate(self) -> SeriesField:
        if self.rate_hz is None and (self.time_path is not None or self.source_rate_hz is not None):
            raise ValueError("time_path and source_rate_hz need rate_hz, the steps per second to resample to")
        if self.time_path is not None and self.source_rate_hz is not None:
            raise ValueError("steps have times of their own (time_path) or one rate (source_rate_hz), not both")
        if len(names_of(self.time_path)) not in (0, 1, max(1, len(names_of(self.path)))):
            raise ValueError("time_path must be one, or as many as path")
        return self


def has_streams(spec: FieldSpec | None) -> TypeGuard[SeriesField]:
    """Whether a field is a series of several streams."""
    return isinstance(spec, SeriesField) and spec.streams is not None


class PointsField(Config):
    """A point cloud of radar or LiDAR: float32 [max_points, channels] and a number of points."""

    type: Literal["points"] = "points"
    channels: int | None = Field(default=None, ge=2)
    """Values per point; the first two or three are coordinates in metres. Unset: what the data has."""
    max_points: int | None = Field(default=None, ge=1)
    """Larger clouds are thinned evenly. Unset: the largest of the data, at most 4,096."""
    path: Paths | None = None
    """Which parts are the channels: columns of a PCD or CSV, keys of an NPZ, paths in JSON. Unset: the whole member."""
    raw_float32: bool = False
    """The members are bare little-endian float32 values, point after point, as KITTI's .bin files are."""

    @model_validator(mode="after")
    def _bare_values_need_channels(self) -> PointsField:
        if self.raw_float32 and (self.channels is None or self.path is not None):
            raise ValueError("raw_float32 needs channels, the values per point, and has no path")
        return self


class VectorField(Config):
    """Fixed features or table columns: float32 [size]."""

    type: Literal["vector"] = "vector"
    size: int | None = Field(default=None, ge=1)
    """Number of values. Unset: what the data has."""
    path: Paths | None = None
    """Where the values lie in an NPZ, JSON or CSV member; several are put one after the other. Unset: the whole member."""


UNLABELLED = 255
"""The number of a cell of a mask that nobody has labelled."""
MAX_MASK_CLASSES = 255


class LabelField(Config):
    """What is to be predicted: a class (int64), any number of classes (float32 [classes]), a number (float32), or a class for
    every cell of a map (uint8 [height, width])."""

    type: Literal["label"] = "label"
    target: Literal["class", "classes", "number", "mask"] = "class"
    """``class``: one of ``classes``. ``classes``: any number of them, also none. ``number``: a real value. ``mask``: one of
    ``classes`` for every cell of a map, from a PNG or NPY of their numbers; 255 is a cell that nobody has labelled."""
    classes: tuple[str, ...] | None = None
    """The classes in the order of their numbers. Unset: all values of the column, sorted; as numbers if they
    all are whole numbers. Of a mask they must be given."""
    path: PathText | None = None
    """Where the label lies in a JSON member, such as ``annotation.class``. Unset: the member is the label."""
    written_as: Literal["number", "name"] = "number"
    """What a member holds of a class: its number in ``classes``, from 0, or its name. One of ``target: classes`` is a JSON list
    of these."""
    height: int | None = Field(default=None, ge=1, le=16384)
    """Of a mask: rows after decoding. Unset: those of the picture that it is like, or what the data has."""
    width: int | None = Field(default=None, ge=1, le=16384)
    """Of a mask: columns after decoding. Unset: as ``height``."""
    like: str | None = Field(default=None, min_length=1, max_length=200)
    """Of a mask: the image field whose picture it labels. It is seen as that one is: the same part of it, mirrored alike. Unset:
    it labels a map of its own, such as one from above, which has the same size in all samples and is taken as it is."""

    @property
    def is_indexed(self) -> bool:
        """Whether a sample has one number of it, which stands in the indexes."""
        return self.target in ("class", "number")

    @model_validator(mode="after")
    def _classes_fit_target(self) -> LabelField:
        if self.target == "mask":
            if self.path is not None or self.written_as == "name":
                key = "written_as: name" if self.path is None else "path"
                raise ValueError(f"a label with target: mask is a PNG or NPY of numbers and has no {key}; leave it out")
            if self.classes is not None and len(self.classes) > MAX_MASK_CLASSES:
                raise ValueError(
                    f"a mask has at most {MAX_MASK_CLASSES} classes, found {len(self.classes)}; 255 is a cell without a label"
                )
        if self.target == "number" and self.classes is not None:
            raise ValueError("a label with target: number has no classes; remove them or set target: class")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        if self.target == "number" and self.written_as == "name":
            raise ValueError("a label with target: number is not written as a name")
        return self


def is_mask(spec: FieldSpec | None) -> TypeGuard[LabelField]:
    """Whether a field is a label with a class for every cell of a map."""
    return isinstance(spec, LabelField) and spec.target == "mask"


FieldSpec = Annotated[
    ImageField | TextField | AudioField | VideoField | SeriesField | PointsField | VectorField | LabelField,
    Field(discriminator="type"),
]
FIELD_TYPES = ("image", "text", "audio", "video", "series", "points", "vector", "label")
