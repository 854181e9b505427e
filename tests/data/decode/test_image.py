"""Pictures: what is decoded, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from ray_mm.config.fields import ImageField, RandomCrop
from ray_mm.data.decode.crop import view_of
from ray_mm.data.decode.draw import Draw
from ray_mm.data.decode.error import DecodeError
from ray_mm.data.decode.image import decode_image, image_size


def _decode(payload: bytes | memoryview, height: int = 16, width: int = 16, **more: object) -> npt.NDArray[np.uint8]:
    spec = ImageField.model_validate({"height": height, "width": width, **more})
    out = np.full((height, width, spec.channels), 77, np.uint8)
    decode_image(payload, spec, out)
    return out


def _encode(pixels: npt.NDArray[np.generic], format: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    picture = Image.fromarray(pixels)
    stream = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(stream, format, **options)
    return stream.getvalue()


def _gradient(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Red grows to the right, green downwards."""
    red = np.broadcast_to(np.linspace(0, 255, width)[None, :], (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, np.full((height, width), 60.0)], axis=-1).round().astype(np.uint8)


def test_a_png_of_the_right_size_keeps_its_pixels() -> None:
    pixels = _gradient(16, 16)
    assert (_decode(_encode(pixels)) == pixels).all()
    assert (_decode(memoryview(_encode(pixels))) == pixels).all()


@pytest.mark.parametrize("size", [(16, 16), (40, 60), (333, 77), (130, 129), (8, 8)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_jpeg_is_close_to_what_exact_scaling_gives(size: tuple[int, int], fit: str) -> None:
    pixels = _gradient(*size)
    found = _decode(_encode(pixels, "JPEG", quality=95, subsampling=0), fit=fit).astype(int)
    exact = _decode(_encode(pixels, "PNG"), fit=fit).astype(int)
    assert np.abs(found - exact).max() <= 16  # a partial block at the edge counts as a whole one


def test_crop_keeps_the_aspect_ratio_and_stretch_does_not() -> None:
    pixels = np.zeros((16, 64, 3), np.uint8)
    pixels[:, 24:40] = 255  # the middle quarter
    assert _decode(_encode(pixels), fit="crop").min() == 255
    assert _decode(_encode(pixels), fit="stretch")[:, 0].max() == 0


def test_a_cmyk_jpeg_comes_out_in_its_colours() -> None:
    red = np.zeros((32, 32, 3), np.uint8) + np.array([220, 30, 30], np.uint8)
    found = _decode(_encode(red, "JPEG", mode="CMYK", quality=95)).astype(int)
    assert np.abs(found - red[:16, :16]).max() < 15


def test_a_grey_picture_fills_three_channels_and_a_colour_picture_fills_one() -> None:
    grey = _gradient(16, 16)[..., 0]
    for format in ("PNG", "JPEG"):
        found = _decode(_encode(grey, format))
        assert (found[..., 0] == found[..., 1]).all() and np.abs(found[..., 0].astype(int) - grey).max() < 8
        assert _decode(_encode(_gradient(16, 16), format), channels=1).shape == (16, 16, 1)


def test_sixteen_bit_grey_keeps_its_upper_bits() -> None:
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = _decode(_encode(grey), channels=1)[..., 0]
    assert (found == grey >> 8).all()


def test_pixels_of_unknown_range_are_refused() -> None:
    with pytest.raises(DecodeError, match="32-bit pixels"):
        _decode(_encode(np.ones((4, 4), np.float32), "TIFF"))


def test_a_palette_with_transparency_is_decoded_without_a_warning() -> None:
    picture = Image.fromarray(_gradient(16, 16)).quantize(16)
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=b"\x00\x80" + b"\xff" * 14)
    assert _decode(stream.getvalue()).shape == (16, 16, 3)


def test_an_alpha_channel_is_dropped() -> None:
    pixels = np.dstack([_gradient(16, 16), np.full((16, 16), 128, np.uint8)])
    assert (_decode(_encode(pixels)) == pixels[..., :3]).all()
    assert (_decode(_encode(pixels, "WEBP", lossless=True, exact=True)) == pixels[..., :3]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("target", [(16, 16), (1, 1), (16, 5), (5, 16)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_the_thinnest_pictures_fill_every_shape(
    size: tuple[int, int], target: tuple[int, int], fit: str, format: str
) -> None:
    payload = _encode(np.full((*size, 3), 200, np.uint8), format)
    assert np.abs(_decode(payload, *target, fit=fit).astype(int) - 200).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_decoded_as_it_is_displayed(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = _encode(_gradient(24, 48), "JPEG", quality=95, exif=exif.tobytes())
    upright = Image.open(io.BytesIO(_encode(_gradient(24, 48))))
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = np.asarray(upright if orientation == 1 else upright.transpose(turned[orientation]))
    height, width = expected.shape[:2]
    assert image_size(payload) == (height, width)
    assert np.abs(_decode(payload, height, width).astype(int) - expected).max() <= 12


def test_exif_is_found_behind_other_segments() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    payload = _encode(_gradient(24, 48), "JPEG", exif=exif.tobytes())
    filler = b"\xff\xe2" + (9000).to_bytes(2, "big") + bytes(8998)
    assert (_decode(payload[:2] + filler + payload[2:], 48, 24) == _decode(payload, 48, 24)).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_random_crop_shows_another_part_in_every_epoch_and_the_same_again(format: str) -> None:
    payload = _encode(_gradient(300, 400), format)
    spec = ImageField(height=32, width=32, random_crop=RandomCrop(scale=(0.2, 0.5)))

    def seen(draw: Draw | None) -> npt.NDArray[np.uint8]:
        out = np.zeros((32, 32, 3), np.uint8)
        decode_image(payload, spec, out, "image", draw)
        return out

    epochs = [seen(Draw(0, epoch, 7)) for epoch in range(4)]
    for epoch, found in enumerate(epochs):
        assert (found == seen(Draw(0, epoch, 7))).all()
        box = view_of("image", 300, 400, spec, Draw(0, epoch, 7)).box
        # Red grows to the right and green downwards: the corner tells where the crop lies.
        assert np.abs(found[0, 0, :2].astype(int) - [255 * box.left, 255 * box.top]).max() <= 14
    assert len({found.tobytes() for found in epochs}) == 4
    assert (seen(None) == _decode(payload, 32, 32)).all()


def test_a_jpeg_is_scaled_by_what_is_seen_of_it_not_by_its_size() -> None:
    sharp = np.zeros((512, 512, 3), np.uint8)
    sharp[:, ::2] = 255  # stripes of one pixel survive at full scale only
    spec = ImageField(height=128, width=128, random_crop=RandomCrop(scale=(0.0625, 0.0625), ratio=(1, 1)))
    out = np.zeros((128, 128, 3), np.uint8)
    decode_image(_encode(sharp, "JPEG", quality=95), spec, out, "image", Draw(0, 0, 0))
    assert out.std() > 100
    assert _decode(_encode(sharp, "JPEG", quality=95), 128, 128).std() < 10


def test_a_jpeg_with_stray_bytes_between_its_segments_is_decoded() -> None:
    payload = _encode(_gradient(48, 48), "JPEG")
    frame = payload.index(b"\xff\xc0")
    found = _decode(payload[:frame] + b"\0" * 20 + payload[frame:])
    assert np.abs(found.astype(int) - _decode(payload)).max() <= 4


def test_a_jpeg_of_an_unknown_revision_is_decoded() -> None:
    payload = bytearray(_encode(_gradient(48, 48), "JPEG"))
    expected = _decode(bytes(payload))
    payload[11] = 17  # major version of JFIF: a strict reader refuses it
    with pytest.raises(ValueError, match="JFIF revision"):
        simplejpeg.decode_jpeg(bytes(payload))
    assert np.abs(_decode(bytes(payload)).astype(int) - expected).max() <= 4


def test_formats_that_start_programs_are_not_read() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
    for decode in (_decode, image_size):
        with pytest.raises(DecodeError, match="no known format"):
            decode(postscript)


def test_an_animation_shows_its_first_picture() -> None:
    first, second = (Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (200, 20))
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        stream = io.BytesIO()
        first.save(stream, format, save_all=True, append_images=[second])
        assert np.abs(_decode(stream.getvalue()).astype(int) - 200).max() <= 4


def test_colour_of_sixteen_bits_keeps_its_upper_bits() -> None:
    rows = b"".join(b"\0" + bytes([0x12, 0xFF, 0x80, 0x00, 0xFE, 0x01] * 16) for _ in range(16))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert (_decode(png) == [0x12, 0x80, 0xFE]).all()


@pytest.mark.parametrize("kept", [3, 10, 200, 700, -200])
def test_a_jpeg_that_was_cut_short_is_refused(kept: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(DecodeError, match="JPEG"):
        _decode(_encode(noise, "JPEG")[:kept])


def test_what_is_no_picture_is_refused_with_a_reason_that_names_no_address() -> None:
    for decode in (_decode, image_size):
        with pytest.raises(DecodeError, match="no known format") as caught:
            decode(b"hello, I am a text")
        assert "0x" not in str(caught.value)


def test_a_picture_over_the_pixel_limit_is_refused_from_its_header() -> None:
    jpeg = bytearray(_encode(_gradient(16, 16), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20000, 20000)
    with pytest.raises(DecodeError, match="20000×20000 pixels"):
        _decode(bytes(jpeg))
    png = bytearray(_encode(_gradient(16, 16)))
    png[16:24] = struct.pack(">II", 60000, 60000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    for decode in (_decode, image_size):
        with pytest.raises(DecodeError, match="3600000000 pixels"):
            decode(bytes(png))


def test_a_png_with_a_flipped_bit_is_refused_or_the_same_picture() -> None:
    png = _encode(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8), "PNG")
    expected, refused = _decode(png), 0
    for bit in range(len(png) * 8):
        damaged = bytearray(png)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert (_decode(bytes(damaged)) == expected).all()
        except DecodeError:
            refused += 1
    assert refused > 0.9 * len(png) * 8
    for size in range(8, len(png) - 12):
        with pytest.raises(DecodeError):
            _decode(png[:size])


@pytest.mark.parametrize("draw", [None, Draw(0, 1, 2)])
def test_parts_of_a_whole_picture_show_what_parts_of_the_file_show(draw: Draw | None) -> None:
    coarse = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
    payload = _encode(smooth, "JPEG", quality=95)
    found = []
    for side in (None, 300):
        crop = RandomCrop(scale=(0.3, 0.6), whole_side=side)
        spec = ImageField(height=96, width=128, random_crop=crop, random_flip=0.5)
        out = np.zeros((96, 128, 3), np.uint8)
        decode_image(payload, spec, out, "camera", draw)
        found.append(out.astype(int))
    assert np.abs(found[0] - found[1]).mean() < 3 < np.abs(found[0] - found[1][:, ::-1]).mean()
