from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfclip.errors import FrameError
from tfclip.frames import open_frames
from tfclip.images import natural_key

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)
GREY = np.arange(96, dtype=np.uint8).reshape(12, 8)


def read(image: Image.Image, path: Path, **options: Any) -> np.ndarray:
    """Save an image and return the frame of its file, after checking that memory gives the same."""
    image.save(path, **options)
    [frame] = open_frames(path)
    with Image.open(path) as opened:
        [same] = open_frames(opened)
    assert np.array_equal(frame, same)
    return frame


# Every kind of pixel


def test_colours_keep_their_values(tmp_path: Path):
    assert np.array_equal(read(Image.fromarray(COLOURS), tmp_path / "a.png"), COLOURS)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp", "bmp", "tif", "ppm", "gif", "JPG"])
def test_common_formats_are_read(tmp_path: Path, suffix: str):
    frame = read(Image.new("RGB", (16, 24), (200, 100, 50)), tmp_path / f"a.{suffix}")
    assert frame.shape == (24, 16, 3)
    assert np.abs(frame.astype(int) - (200, 100, 50)).max() <= 4


def test_grey_has_three_equal_channels(tmp_path: Path):
    frame = read(Image.fromarray(GREY), tmp_path / "a.png")
    assert np.array_equal(frame, np.stack([GREY] * 3, axis=2))


def test_black_and_white_is_0_and_255(tmp_path: Path):
    frame = read(Image.fromarray(GREY > 40), tmp_path / "a.png")
    assert np.array_equal(frame[..., 0], np.where(GREY > 40, 255, 0))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(96))])
def test_a_palette_gives_its_colours(tmp_path: Path, transparency: int | bytes | None):
    palette = Image.fromarray(GREY, mode="P")
    palette.putpalette(COLOURS.reshape(96, 3).tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(read(palette, tmp_path / "a.png", **options), COLOURS)


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_dropped(tmp_path: Path, alpha: int):
    image = Image.fromarray(COLOURS)
    image.putalpha(alpha)
    assert np.array_equal(read(image, tmp_path / "colour.png"), COLOURS)
    image = Image.fromarray(GREY)
    image.putalpha(alpha)
    assert np.array_equal(read(image, tmp_path / "grey.png")[..., 1], GREY)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path: Path, suffix: str):
    deep = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], dtype=np.uint16)
    frame = read(Image.fromarray(deep), tmp_path / f"a.{suffix}")
    assert frame[0].tolist() == [[round(value / 257)] * 3 for value in deep[0].tolist()]


def test_cmyk_becomes_rgb(tmp_path: Path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan is full red
    for name in ("a.tif", "a.jpg"):
        assert np.abs(read(image, tmp_path / name).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("pixel", [5, 1.5])
def test_32_bit_pixels_have_no_known_range(tmp_path: Path, pixel: float):
    mode = "I" if isinstance(pixel, int) else "F"
    Image.new(mode, (4, 4), pixel).save(tmp_path / "a.tif")
    with pytest.raises(FrameError, match=rf"a.tif must have 8 or 16 bits .*\(mode '{mode}'\)"):
        list(open_frames(tmp_path / "a.tif"))


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_turns_the_picture_upright(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    frame = read(Image.fromarray(COLOURS), tmp_path / "a.png", exif=exif)
    assert np.array_equal(frame, UPRIGHT[orientation](COLOURS))


def test_boxes_are_in_the_upright_picture(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    [crop] = open_frames(tmp_path / "a.png", boxes=[[9, 1, 3, 5]])
    assert np.array_equal(crop, np.rot90(COLOURS, -1)[1:6, 9:12])


# Damaged files


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif"])
def test_a_truncated_image_is_refused_when_its_turn_comes(tmp_path: Path, name: str):
    whole, path = tmp_path / "0.png", tmp_path / name
    Image.fromarray(COLOURS).save(whole)
    Image.fromarray(np.tile(COLOURS, (8, 8, 1))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames = iter(open_frames([whole, path]))
    next(frames)
    with pytest.raises(FrameError, match=rf"{name} is not a readable image: "):
        next(frames)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(FrameError, match=r"a.jpg is not a readable image: cannot identify"):
        list(open_frames(tmp_path))


@pytest.fixture(scope="module", params=["jpg", "png", "gif", "bmp", "tif", "webp"])
def encoded(request, tmp_path_factory) -> Iterator[tuple[bytes, Path]]:
    path = tmp_path_factory.mktemp("damaged") / f"a.{request.param}"
    Image.fromarray(COLOURS).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # a damaged size may be any
        yield path.read_bytes(), path


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged metadata
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_damaged_image_is_a_frame_or_a_frame_error(encoded, changes):
    content, path = bytearray(encoded[0]), encoded[1]
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content)
    try:
        [frame] = open_frames(path)
    except FrameError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - either outcome is right
    else:
        assert frame.dtype == np.uint8
        assert frame.shape[2] == 3


def test_a_truncated_image_in_memory_is_refused_by_its_number(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(np.tile(COLOURS, (8, 8, 1))).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with Image.open(path) as image, pytest.raises(FrameError, match=r"frames\[0\] is not a read"):
        list(open_frames(image))


def test_an_animation_is_not_reduced_to_its_first_picture(tmp_path: Path):
    pictures = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 200)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    with pytest.raises(FrameError, match=r"a.gif must hold one picture, got several"):
        list(open_frames(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(FrameError, match=r"a.jpg must be a file or a folder"):
        open_frames(tmp_path / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_without_permission_is_refused(tmp_path: Path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(FrameError, match=r"a.png is not a readable image: Permission denied"):
        list(open_frames(tmp_path))


# Order of names

names = st.text(st.sampled_from("aB.19٣²_"), max_size=8)


@given(st.lists(names, unique=True))
@settings(deadline=None)
def test_natural_order_is_total(unordered: list[str]):
    in_order = sorted(unordered, key=natural_key)
    backwards = unordered[::-1]
    assert in_order == sorted(backwards, key=natural_key)


@given(st.lists(st.integers(0, 2000), unique=True))
@settings(deadline=None)
def test_numbers_in_names_are_counted(numbers: list[int]):
    in_order = sorted((f"cam1_{number}.jpg" for number in numbers), key=natural_key)
    assert in_order == [f"cam1_{number}.jpg" for number in sorted(numbers)]
