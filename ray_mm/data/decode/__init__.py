"""Members → arrays, one module per field type, in the order of ``config.fields``.

    image.py    JPEG at the nearest power-of-two scale, other formats through Pillow → uint8 [H, W, C]
    crop.py     which part of a picture is seen, and how it gets into its row
    mask.py     PNG or NPY of class numbers → uint8 [H, W]
    draw.py     the random choices of a sample
    text.py     UTF-8, alone or in JSON → int32 tokens
    audio.py    libsndfile, or FFmpeg where it can't → int16 frames at one rate
    video.py    FFmpeg → uint8 frames and their times
    container.py  what FFmpeg reads, through PyAV
    formats.py  what a file is, from its first bytes
    arrays.py   NPY, NPZ, JSON, CSV → arrays, whole or in parts
    pcd.py      point clouds of the Point Cloud Library
    resample.py  streams with times → one series at one rate
    numeric.py  arrays → float32 series, points and vectors; a label's text → a class or a number
    streams.py  members of several sensors → one series
    decoder.py  field → the one of these that decodes it
    error.py    what they raise

``decoder_for`` gives the function that fills one row of a batch.
"""

from ray_mm.data.decode.decoder import DecodeError, Decoder, Draw, decoder_for

__all__ = ["DecodeError", "Decoder", "Draw", "decoder_for"]
