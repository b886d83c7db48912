"""Ways of reading that are not exact: what they choose, how far off they are, where they show."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfclip.data import EmbeddingTable, SyntheticTracklets, Tracklet, read_folder
from tfclip.frames import open_frames, sample_restricted
from tfclip.groups import GroupEncoder, make_groups
from tfclip.images import open_picture, read_picture
from tfclip.jobs import encode_cached, encode_to_file
from tfclip.preprocess import Preprocess, resize_frame
from tfclip.reading import Reading, diverse_frames, spread_frames

# --- which frames --------------------------------------------------------------------------------


@given(num_frames=st.integers(1, 500), max_frames=st.integers(1, 60))
def test_spread_frames_are_the_middles_of_equal_parts(num_frames, max_frames):
    chosen = spread_frames(num_frames, max_frames)
    if num_frames <= max_frames:
        assert chosen == list(range(num_frames))
        return
    assert len(set(chosen)) == max_frames
    for number, index in enumerate(chosen):
        middle = Fraction(2 * number + 1, 2) * Fraction(num_frames, max_frames)
        assert index <= middle < index + 1


def slow_diverse(points: list[list[float]], max_frames: int) -> list[int]:
    """Read the definition literally, with loops."""

    def distance(a, b):
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    mean = [sum(column) / len(points) for column in zip(*points, strict=True)]
    chosen = [min(range(len(points)), key=lambda i: (distance(points[i], mean), i))]
    while len(chosen) < min(max_frames, len(points)):
        rest = [i for i in range(len(points)) if i not in chosen]
        chosen.append(
            max(rest, key=lambda i: (min(distance(points[i], points[j]) for j in chosen), -i))
        )
    return sorted(chosen)


@settings(deadline=None)
@given(
    points=st.lists(
        st.lists(st.integers(0, 7).map(float), min_size=4, max_size=4), min_size=1, max_size=16
    ),
    max_frames=st.integers(1, 20),
)
def test_diverse_frames_are_those_of_the_slow_definition(points, max_frames):
    if len(points) & (len(points) - 1):  # a mean that rounds may tell equal distances apart
        points = points[: 1 << (len(points).bit_length() - 1)]
    assert diverse_frames(np.array(points), max_frames) == slow_diverse(points, max_frames)


def test_frames_that_are_all_alike_are_each_chosen_once():
    assert diverse_frames(np.zeros((5, 2, 2)), 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_frames": 0}, ValueError, "max_frames must be at least 1, got 0"),
        ({"max_frames": 8.0}, TypeError, "max_frames must be a whole number or None, got float"),
        ({"selection": "best"}, ValueError, "selection must be one of .* got 'best'"),
        ({"resizer": "magic"}, ValueError, "resizer must be one of .* got 'magic'"),
    ],
)
def test_a_wrong_way_of_reading_is_one_sentence(arguments, error, message):
    with pytest.raises(error, match=message):
        Reading(**arguments)


def test_numbers_of_frames_below_one_are_refused():
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        spread_frames(0, 3)
    with pytest.raises(ValueError, match="max_frames must be at least 1, got 0"):
        diverse_frames(np.zeros((3, 1)), 0)
    with pytest.raises(ValueError, match="thumbnails must be at least one"):
        diverse_frames(np.zeros((0, 1)), 2)


# --- fewer frames --------------------------------------------------------------------------------


def draw(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 40, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("sampling", ["dense", "all"])
@pytest.mark.parametrize("num_frames", [3, 8, 9, 50])
def test_fewer_frames_give_what_these_frames_alone_give(tiny_model, num_frames, sampling):
    frames = draw(num_frames)
    expected = tiny_model.encode_sequence(frames[spread_frames(num_frames, 8)], sampling=sampling)
    reading = Reading(max_frames=8)
    found = tiny_model.encode_sequence(frames, sampling=sampling, reading=reading)
    assert torch.equal(found, expected)


def test_restricted_sampling_takes_its_clip_from_the_chosen_frames(tiny_model):
    frames = draw(50)
    chosen = np.array(spread_frames(50, 10))[sample_restricted(10, 4)]
    expected = tiny_model.encode_sequence(frames[chosen], sampling="all")
    found = tiny_model.encode_sequence(frames, sampling="rrs", reading=Reading(max_frames=10))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_diverse_frames_are_chosen_by_what_is_in_them(tiny_model, workers):
    frames = np.repeat(draw(4), 10, axis=0)  # four pictures, each ten times
    found = tiny_model.encode_sequence(
        frames, reading=Reading(max_frames=4, selection="diverse"), workers=workers
    )
    expected = tiny_model.encode_sequence(frames[::10])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_only_the_chosen_files_are_read(tiny_model, tmp_path):
    for number in range(20):
        path = tmp_path / f"{number}.png"
        Image.fromarray(draw(1, number)[0]).save(path)
        if number not in spread_frames(20, 4):
            path.write_bytes(b"no image")
    reading = Reading(max_frames=4)
    assert tiny_model.encode_sequence(tmp_path, reading=reading).isfinite().all()


def test_a_video_is_read_like_its_frames(tiny_model, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 48, 64
        for number in range(30):
            pixels = np.full((64, 48, 3), 8 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    whole = np.stack([*iter(open_frames(tmp_path / "v.mp4"))])
    for reading in (
        Reading(),
        Reading(max_frames=8),
        Reading(max_frames=8, selection="diverse"),
        Reading(resizer="tensor"),
    ):
        for sampling in ("dense", "rrs", "all"):
            options = {"sampling": sampling, "reading": reading}
            expected = tiny_model.encode_sequence(whole, workers=0, **options)
            for workers in (0, 3):
                found = tiny_model.encode_sequence(tmp_path / "v.mp4", workers=workers, **options)
                assert torch.equal(found, expected)


# --- drafts --------------------------------------------------------------------------------------


def photograph(height: int, width: int) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (8, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((64, 32), (64, 32)), ((127, 64), (127, 64)), ((128, 64), (64, 32)), ((520, 260), (65, 33))],
)
def test_a_draft_is_a_fraction_of_the_picture_and_never_too_small(tmp_path, size, decoded):
    photograph(*size).save(tmp_path / "a.jpg", quality=95)
    picture = open_picture(tmp_path / "a.jpg", "frame", draft=(64, 32))
    assert isinstance(picture, Image.Image)
    assert picture.size == decoded[::-1]
    exact = read_picture(tmp_path / "a.jpg", "frame")
    assert exact.shape[:2] == size
    difference = np.abs(
        np.asarray(picture.resize((32, 64))).astype(int)
        - np.asarray(Image.fromarray(exact).resize((32, 64))).astype(int)
    )
    assert difference.mean() < 3


def test_drafts_are_twice_as_large_as_the_models_frames_at_least(tiny_model, tmp_path):
    photograph(256, 128).save(tmp_path / "a.jpg")  # decoded at a half for frames of 64 x 32
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft(None, (64, 128))
        half = np.array(image)
    assert half.shape == (128, 64, 3)
    drafted = tiny_model.encode_sequence(tmp_path, reading=Reading(draft=True))
    assert torch.equal(drafted, tiny_model.encode_sequence(half))
    exact = tiny_model.encode_sequence(tmp_path)
    assert not torch.equal(drafted, exact)
    assert drafted @ exact > 0.999


def test_a_draft_of_a_picture_to_be_turned_is_large_enough(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    photograph(64, 128).save(tmp_path / "a.jpg", exif=exif)
    picture = open_picture(tmp_path / "a.jpg", "frame", draft=(64, 32))
    assert isinstance(picture, Image.Image)
    assert picture.size == (32, 64)


@pytest.mark.parametrize("name", ["a.png", "b.jpg"])
def test_what_is_no_large_jpeg_is_read_exactly(tmp_path, name):
    photograph(128 if name == "a.png" else 96, 64).save(tmp_path / name)
    picture = open_picture(tmp_path / name, "frame", draft=(64, 32))
    assert np.array_equal(np.asarray(picture), read_picture(tmp_path / name, "frame"))


def test_boxes_count_the_pixels_of_the_whole_frame(tiny_model, tmp_path):
    photograph(512, 256).save(tmp_path / "a.jpg")
    expected = tiny_model.encode_sequence(tmp_path, boxes=[(10, 20, 64, 128)])
    drafted = tiny_model.encode_sequence(
        tmp_path, boxes=[(10, 20, 64, 128)], reading=Reading(draft=True)
    )
    assert torch.equal(drafted, expected)


# --- resizing ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 9),
)
def test_the_tensor_resizer_is_one_step_of_pillow_at_most(size, target, interpolation, seed):
    frame = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    frame.flags.writeable = False
    pillow, tensor = (
        resize_frame(frame, target, interpolation, resizer) for resizer in ("pillow", "tensor")
    )
    assert tensor.shape == (3, *target)
    assert tensor.is_contiguous()
    assert (pillow.int() - tensor.int()).abs().max() <= 1


def test_an_image_is_resized_like_its_array(tiny_config):
    image = photograph(96, 80)
    for resizer in ("pillow", "tensor"):
        preprocess = Preprocess(tiny_config, resizer)
        expected = preprocess.resize(np.asarray(image))
        assert torch.equal(preprocess.resize_picture(image), expected)


def test_an_unknown_resizer_is_one_sentence(tiny_config):
    with pytest.raises(ValueError, match=r"resizer must be one of .* got 'magic'"):
        Preprocess(tiny_config, "magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"resizer must be one of .* got 'magic'"):
        resize_frame(draw(1)[0], (8, 4), resizer="magic")  # type: ignore[arg-type]


# --- jobs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracklets(tmp_path_factory) -> list[Tracklet]:
    folder = tmp_path_factory.mktemp("people")
    people = SyntheticTracklets(2, 2, 1, num_frames=(9, 14), frame_size=(280, 136))
    people.write(folder, "jpg")
    return read_folder(folder, "{person}/{camera}/{tracklet}")


WAYS = [
    Reading(),
    Reading(draft=True),
    Reading(resizer="tensor"),
    Reading(max_frames=4),
    Reading(max_frames=4, selection="diverse"),
]


def test_each_way_of_reading_has_a_file_of_its_own_in_the_cache(tiny_model, tracklets, tmp_path):
    tables = [encode_cached(tiny_model, tracklets, tmp_path, reading=reading) for reading in WAYS]
    assert len(list(tmp_path.iterdir())) == len(WAYS)
    for reading, table in zip(WAYS, tables, strict=True):
        recorded = {name: table.settings.get(name) for name in reading.settings()}
        assert recorded == reading.settings()
        expected = tiny_model.encode_sequences([t.open() for t in tracklets], reading=reading)
        torch.testing.assert_close(table.embeddings, expected, atol=1e-5, rtol=0)
        assert all(count is not None and count >= 9 for count in table.num_frames)
    different = {tuple(table.embeddings[0].tolist()) for table in tables}
    assert len(different) == len(WAYS)


def test_the_exact_way_is_recorded_as_before(tiny_model, tracklets, tmp_path):
    table = encode_to_file(tiny_model, tracklets, tmp_path / "o.safetensors")
    assert set(table.settings) == {"sampling", "cameras", "dtype", "tfclip"}


@pytest.mark.parametrize("reading", WAYS)
def test_a_job_has_the_same_bytes_for_any_number_of_threads(
    tiny_model, tracklets, tmp_path, reading
):
    written = set()
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}.safetensors"
        encode_to_file(tiny_model, tracklets, out, reading=reading, workers=workers)
        written.add(out.read_bytes())
    assert len(written) == 1


def in_a_recording(folder: Path) -> list[Tracklet]:
    """Two people in the frames of one folder, who overlap in time."""
    folder.mkdir()
    for number in range(30):
        photograph(96, 128).rotate(number).save(folder / f"{number:03d}.jpg")
    return [
        Tracklet(
            name=name,
            frames=str(folder),
            frame_indices=tuple(range(first, last)),
            boxes=[(left + i % 5, 4, 40, 80) for i in range(last - first)],
        )
        for name, first, last, left in (("a", 0, 20, 3), ("b", 7, 30, 60))
    ]


@pytest.mark.parametrize("reading", WAYS)
@pytest.mark.parametrize("workers", [0, 2])
def test_tracklets_of_a_recording_are_read_as_they_are_alone(
    tiny_model, tmp_path, reading, workers
):
    tracklets = in_a_recording(tmp_path / "recording")
    table = encode_to_file(
        tiny_model, tracklets, tmp_path / "o.safetensors", reading=reading, workers=workers
    )
    expected = tiny_model.encode_sequences([t.open() for t in tracklets], reading=reading)
    torch.testing.assert_close(table.embeddings, expected, atol=1e-5, rtol=0)
    assert table.num_frames == (20, 23)
    assert EmbeddingTable.load(tmp_path / "o.safetensors").settings == table.settings


def test_progress_counts_every_frame_once(tiny_model, tracklets, tmp_path):
    sources = [tracklets, in_a_recording(tmp_path / "recording")]
    for sampling, limit, members in itertools.product(("dense", "rrs"), (None, 4), sources):
        counts: list[int] = []
        encoder = GroupEncoder(tiny_model, sampling, False, Reading(max_frames=limit), 8, 2)
        groups = make_groups(members, encoder.recording)
        for _ in encoder.encode(groups, members, counts.append):
            pass
        assert sum(counts) == sum(len(tracklet.open()) for tracklet in members)
