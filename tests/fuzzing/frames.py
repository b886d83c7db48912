"""Pictures and videos."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzzing.target import Samples, Target
from tfclip.errors import FrameError
from tfclip.frames import open_frames


def _make_pictures(folder: Path) -> Samples:
    ramp = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)
    rgb = Image.fromarray(ramp)
    samples = {}
    for name, image, options in (
        ("rgb.png", rgb, {}),
        ("palette.png", rgb.quantize(8), {"transparency": 0}),
        ("deep.png", Image.fromarray(ramp[..., 0].astype(np.uint16) * 257), {}),
        ("rgb.jpg", rgb, {"exif": _turned(), "quality": 70}),
        ("progressive.jpeg", rgb.convert("L"), {"progressive": True}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("rgb.bmp", rgb, {}),
        ("rgb.gif", rgb, {}),
        ("rgb.ppm", rgb, {}),
        ("grey.pgm", rgb.convert("L"), {}),
        ("rgb.tif", rgb, {}),
        ("packed.tiff", rgb, {"compression": "tiff_lzw"}),
        ("rgb.webp", rgb, {"lossless": True}),
    ):
        stream = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(name.rpartition(".")[2])
        image.save(stream, kind or name.rpartition(".")[2].upper(), **options)
        samples[name] = stream.getvalue()
    return samples


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _png_again(rng: random.Random, data: bytes) -> bytes:
    """Give the chunks of a damaged PNG the checksums of what is there now, sometimes."""
    if rng.random() < 0.3 or data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    changed, place = bytearray(data), 8
    while place + 12 <= len(changed):
        (size,) = struct.unpack_from(">I", changed, place)
        end = place + 8 + size
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)


def _make_videos(folder: Path) -> Samples:
    import av

    samples = {}
    for name, codec in (
        ("short.mp4", "mpeg4"),
        ("short.mkv", "libx264"),
        ("short.avi", "mjpeg"),
        ("short.webm", "libvpx"),
    ):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=5)
            stream.width, stream.height = 48, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number in range(3):
                pixels = np.full((32, 48, 3), 60 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())
        samples[name] = (folder / name).read_bytes()
    return samples


def _read_frames(folder: Path, name: str) -> None:
    for frame in open_frames(folder / name):
        assert frame.dtype == np.uint8
        assert frame.ndim == 3


TARGETS = {
    "image": Target(_make_pictures, _read_frames, (FrameError,), _png_again, memory=1024),
    "video": Target(_make_videos, _read_frames, (FrameError,), memory=1024),
}
