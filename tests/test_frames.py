from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfclip.boxes import crop_frame
from tfclip.errors import FrameError
from tfclip.frames import Frames, open_frames, sample_dense, sample_restricted

SAMPLING = json.loads((Path(__file__).parent / "golden" / "sampling.json").read_text())["entries"]

counts = st.integers(1, 60)
lengths = st.integers(1, 12)


def noise(frames: int, height: int = 9, width: int = 7) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_images(folder: Path, names: list[str]) -> list[np.ndarray]:
    """Save one picture under each name, losslessly, and return the pictures."""
    pictures = list(noise(len(names)))
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(folder / name)
    return pictures


def assert_frames(frames: Frames, expected: list[np.ndarray] | np.ndarray) -> None:
    assert len(frames) == len(expected)
    for _ in range(2):  # they can be iterated again
        given_frames = list(frames)
        assert len(given_frames) == len(expected)
        for frame, picture in zip(given_frames, expected, strict=True):
            assert frame.dtype == np.uint8
            assert frame.flags.c_contiguous
            assert np.array_equal(frame, picture)


# Every kind of source


def test_a_folder_gives_its_images_in_natural_order(tmp_path: Path):
    names = ["frame1.png", "frame2.PNG", "frame10.bmp", "other.tiff"]
    pictures = save_images(tmp_path, names)
    assert_frames(open_frames(tmp_path), pictures)
    assert_frames(open_frames(str(tmp_path)), pictures)


def test_a_folder_gives_nothing_but_visible_images(tmp_path: Path):
    pictures = save_images(tmp_path, ["1.png"])
    save_images(tmp_path, [".hidden.png"])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub").mkdir()
    save_images(tmp_path / "sub", ["0.png"])
    assert_frames(open_frames(tmp_path), pictures)


def test_names_that_count_alike_still_have_one_order(tmp_path: Path):
    names = ["a", "a1", "a01", "a1b", "a1b2", "A2"]
    save_images(tmp_path, [f"{name}.png" for name in names])
    first = [frame.tobytes() for frame in open_frames(tmp_path)]
    assert [frame.tobytes() for frame in open_frames(tmp_path)] == first
    assert len(set(first)) == len(names)


def test_a_list_of_paths_keeps_its_order(tmp_path: Path):
    pictures = save_images(tmp_path, ["b.png", "a.png"])
    assert_frames(open_frames([tmp_path / "b.png", str(tmp_path / "a.png")]), pictures)


def test_one_image_is_a_tracklet_of_one_frame(tmp_path: Path):
    [picture] = save_images(tmp_path, ["a.png"])
    (tmp_path / "a.png").rename(tmp_path / "no_suffix")
    assert_frames(open_frames(tmp_path / "no_suffix"), [picture])
    assert_frames(open_frames(Image.fromarray(picture)), [picture])
    assert_frames(open_frames(picture), [picture])
    assert_frames(open_frames(torch.from_numpy(picture).permute(2, 0, 1)), [picture])


def test_arrays_tensors_and_images_hold_the_same_frames():
    pictures = noise(4)
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    for source in (
        pictures,
        list(pictures),
        tuple(pictures),
        [Image.fromarray(picture) for picture in pictures],
        tensor,
        list(tensor),
        tensor.float() / 255,
        tensor.double() / 255,
        tensor.half() / 255,
        list(tensor.float() / 255),
        (tensor.float() / 255).requires_grad_(),
        open_frames(pictures),
        [pictures[0], tensor[1], Image.fromarray(pictures[2]), pictures[3]],
    ):
        assert_frames(open_frames(source), pictures)


def test_bgr_arrays_are_turned_to_rgb():
    pictures = noise(3)
    assert_frames(open_frames(pictures, channels="bgr"), pictures[..., ::-1])
    assert_frames(open_frames(list(pictures), channels="bgr"), pictures[..., ::-1])


def test_arrays_that_are_not_contiguous_give_contiguous_frames():
    pictures = noise(8, 20, 20)[::-2, ::3, 5:15]
    assert_frames(open_frames(pictures), pictures)


def test_a_read_only_memory_map_is_a_source(tmp_path: Path):
    np.save(tmp_path / "frames.npy", noise(3))
    assert_frames(open_frames(np.load(tmp_path / "frames.npy", mmap_mode="r")), noise(3))


def test_frames_of_different_sizes_keep_their_sizes():
    pictures = [noise(1, height, 5)[0] for height in (4, 9, 2)]
    assert_frames(open_frames(pictures), pictures)


def test_a_float_tensor_may_leave_its_range_by_rounding():
    assert_frames(open_frames(torch.full((1, 3, 2, 2), 1 + 1e-6)), np.full((1, 2, 2, 3), 255))


def test_opened_frames_are_passed_on_as_they_are():
    frames = open_frames(noise(3))
    assert open_frames(frames) is frames


def test_changing_the_list_does_not_change_the_frames():
    pictures = list(noise(3))
    frames = open_frames(pictures)
    pictures.clear()
    assert_frames(frames, noise(3))


def test_frames_travel_to_another_process(tmp_path: Path):
    pictures = save_images(tmp_path, ["1.png", "2.png"])
    boxes = [[1, 1, 3, 3]] * 2
    copy = pickle.loads(pickle.dumps(open_frames(tmp_path, boxes=boxes)))
    assert_frames(copy, [picture[1:4, 1:4] for picture in pictures])


def test_thousands_of_files_need_the_memory_of_one(tmp_path: Path):
    save_images(tmp_path, ["a.png"])
    Image.new("RGB", (512, 512)).save(tmp_path / "a.png")  # 786 kB decoded
    tracemalloc.start()
    try:
        for _ in open_frames([tmp_path / "a.png"] * 200):
            pass
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_name_says_where_the_frames_come_from(tmp_path: Path):
    save_images(tmp_path, ["a.png"])
    assert open_frames(tmp_path).name == str(tmp_path)
    assert open_frames(noise(1)).name == "frames"


# Selecting


@given(st.lists(st.integers(0, 9)).map(sorted), st.booleans())
@settings(max_examples=50, deadline=None)
def test_selecting_equals_indexing(indices: list[int], boxed: bool):
    boxes = [[index % 4, 1, 3, 5] for index in range(10)] if boxed else None
    frames = open_frames(noise(10), boxes=boxes)
    everything = list(frames)
    selected = list(frames.select(indices))
    assert len(selected) == len(indices)
    for frame, index in zip(selected, indices, strict=True):
        assert np.array_equal(frame, everything[index])


def test_selecting_decodes_nothing_else(tmp_path: Path):
    pictures = save_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "3.png").write_bytes(b"damaged")
    [frame] = open_frames(tmp_path).select([1])
    assert np.array_equal(frame, pictures[1])


@pytest.mark.parametrize("indices", [[1, 0], [1, 2, 1], [-1], [0, 3]])
def test_indices_must_ascend_and_be_inside(indices: list[int]):
    with pytest.raises(ValueError, match=r"indices must be .* got"):
        open_frames(noise(3)).select(indices)


def test_indices_must_be_whole_numbers():
    with pytest.raises(TypeError):
        open_frames(noise(3)).select([0.5])  # pyright: ignore[reportArgumentType]


# Boxes

edges = st.integers(-5, 25)
sides = st.integers(1, 30)


@given(edges, edges, sides, sides)
@settings(deadline=None)
def test_a_crop_equals_slicing_the_clipped_box(left: int, top: int, width: int, height: int):
    frame = noise(1, 20, 15)[0]
    x0, y0 = max(left, 0), max(top, 0)
    expected = frame[y0 : max(top + height, 0), x0 : max(left + width, 0)]
    assume(expected.size > 0)
    boxes = [[left, top, width, height]]
    for kind in (boxes, np.array(boxes), np.array(boxes, dtype=np.float32), torch.tensor(boxes)):
        assert_frames(open_frames(frame, boxes=kind), [expected])


@given(st.floats(-5, 25), st.floats(-5, 25), st.floats(1, 30), st.floats(1, 30))
@settings(deadline=None)
def test_edges_between_pixels_are_rounded_as_pillow_does(
    left: float, top: float, width: float, height: float
):
    frame = noise(1, 20, 15)[0]
    corners = [round(left), round(top), round(left + width), round(top + height)]
    inside = [min(max(c, 0), end) for c, end in zip(corners, (15, 20, 15, 20), strict=True)]
    assume(inside[0] < inside[2] and inside[1] < inside[3])
    crop = crop_frame(frame, (left, top, width, height), "box")
    assert np.array_equal(
        crop, np.asarray(Image.fromarray(frame).crop((inside[0], inside[1], inside[2], inside[3])))
    )


def test_each_box_crops_its_own_frame(tmp_path: Path):
    pictures = save_images(tmp_path, ["1.png", "2.png", "3.png"])
    boxes = [[0, 0, 2, 2], [1, 1, 3, 4], [2, 0, 5, 9]]
    crops = [p[y : y + h, x : x + w] for p, (x, y, w, h) in zip(pictures, boxes, strict=True)]
    assert_frames(open_frames(tmp_path, boxes=boxes), crops)


def test_a_crop_does_not_keep_its_frame_in_memory():
    [crop] = open_frames(noise(1, 100, 100), boxes=[[0, 0, 100, 1]])
    assert crop.base is None


def test_boxes_can_crop_crops():
    picture = noise(1, 20, 20)
    frames = open_frames(open_frames(picture, boxes=[[5, 5, 10, 10]]), boxes=[[1, 2, 3, 4]])
    assert_frames(frames, picture[:, 7:11, 6:9])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 0, 5]] * 2, r"boxes must have a width and height above zero.*boxes\[0\]"),
        ([[0, 0, 5, 5], [0, 0, 5, -1]], r"boxes must have a width and height.*boxes\[1\]"),
        ([[0, 0, 5, 5], [np.nan, 0, 5, 5]], r"boxes must be finite, got boxes\[1\] = \[nan"),
        ([[0, 0, np.inf, 5]] * 2, r"boxes must be finite, got boxes\[0\]"),
        ([[0, 0, 5, 5]], r"boxes must have one row for each frame, got 1 rows and 2 frames"),
        ([[0, 0, 5, 5]] * 3, r"boxes must have one row for each frame, got 3 rows and 2 frames"),
        ([0, 0, 5, 5], r"boxes must be \(T, 4\), got shape \(4,\)"),
        (np.zeros((2, 5)), r"boxes must be \(T, 4\), got shape \(2, 5\)"),
        ([], r"boxes must be \(T, 4\), got shape \(0,\)"),
        ([[0, 0, 5, 5], [0, 0, 5]], r"boxes must be numbers \(T, 4\)"),
        ("boxes", r"boxes must be numbers \(T, 4\), got 'boxes'"),
    ],
)
def test_boxes_that_do_not_fit_are_refused_at_once(boxes: object, message: str):
    with pytest.raises(FrameError, match=message):
        open_frames(noise(2), boxes=boxes)


@pytest.mark.parametrize(
    "box", [[7, 0, 3, 3], [-4, 0, 3, 3], [0, 9, 3, 3], [0, -9, 3, 3], [1.6, 0, 0.2, 3], [1e18] * 4]
)
def test_a_box_without_a_pixel_of_its_frame_is_refused(box: list[float]):
    with pytest.raises(FrameError, match=r"boxes\[1\] must cover .* in a frame 7 wide and 9 high"):
        list(open_frames(noise(2), boxes=[[0, 0, 2, 2], box]))


# What is no source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "frames must have at least one frame, got an empty list"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"frames must have at least one frame .*\(0, 4, 4, 3\)"),
        (torch.zeros(0, 3, 4, 4), r"frames must have at least one frame and pixel"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"at least one frame and pixel"),
        ("", "frames must be a path, got an empty string"),
        (np.zeros((2, 4, 4, 3), np.uint16), r"frames must be uint8 .* got uint16"),
        (np.zeros((2, 4, 4, 3), np.int64), r"frames must be uint8 .* got int64"),
        (np.zeros((2, 4, 4, 3), bool), r"frames must be uint8 .* got bool"),
        (np.zeros((2, 4, 4, 3)), r"frames must be uint8 .* got float64; .* model\(frames\)"),
        (np.array(["a.png"]), r"frames must be uint8 .* got <U5"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), r"uint8 .* or float .* got torch.int64"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.bool), r"uint8 .* or float .* got torch.bool"),
        (torch.full((2, 3, 4, 4), 1.5), r"in \[0, 1\].* 1.5 to 1.5; use uint8 .*model\(frames\)"),
        (torch.full((2, 3, 4, 4), -0.5), r"in \[0, 1\] .* -0.5; already normalised .*model\("),
        (torch.full((2, 3, 4, 4), float("nan")), r"frames must be finite, got values from nan"),
        (torch.full((2, 3, 4, 4), float("inf")), r"frames must be finite, .* to inf"),
        (torch.zeros(2, 3, 4, 4).to_sparse(), r"frames must be a dense tensor with values"),
        (torch.zeros(2, 3, 4, 4, device="meta"), r"frames must be a dense tensor with values"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"\(2, 3, 4, 5\); use frames.transpose\(0, 2, 3, 1\)"),
        (np.zeros((3, 2, 4, 5), np.uint8), r"use frames.transpose\(1, 2, 3, 0\)"),
        (np.zeros((3, 4, 5), np.uint8), r"use frames.transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 5, 4), np.uint8), r"drop alpha with frames\[:, :, :, :3\]"),
        (np.zeros((2, 4, 5, 1), np.uint8), r"repeat the grey channel"),
        (np.zeros((4, 5), np.uint8), r"must be \(T, H, W, 3\), got shape \(4, 5\)"),
        (torch.zeros(2, 4, 5, 3), r"\(2, 4, 5, 3\); use frames.permute\(0, 3, 1, 2\)"),
        (torch.zeros(3, 2, 4, 5), r"use frames.permute\(1, 0, 2, 3\)"),
        (torch.zeros(4, 5, 3), r"use frames.permute\(2, 0, 1\)"),
        (torch.zeros(2, 4, 4, 5), r"drop alpha with frames\[:, :3\]"),
        (torch.zeros(2, 2, 3, 4, 5), r"takes one tracklet, encode_sequences takes many"),
        ([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)], r"frames\[1\] must be"),
        ([np.zeros((3, 4, 5), np.uint8)], r"use frames\[0\].transpose\(1, 2, 0\)"),
        ([np.zeros((2, 4, 5, 3), np.uint8)], r"frames\[0\] must be \(H, W, 3\)"),
        ([torch.zeros(3, 4, 5), torch.zeros(3, 4, 5) - 1], r"frames\[1\] must be in \[0, 1\]"),
    ],
)
def test_what_cannot_be_frames_is_refused_with_its_name_rule_and_value(
    source: object, message: str
):
    with pytest.raises(FrameError, match=message):
        open_frames(source)  # pyright: ignore[reportArgumentType]


def test_the_cures_for_wrong_axes_work():
    array, tensor = np.zeros((2, 3, 4, 5), np.uint8), torch.zeros(2, 4, 5, 3)
    assert len(open_frames(array.transpose(0, 2, 3, 1))) == 2
    assert len(open_frames(tensor.permute(0, 3, 1, 2))) == 2
    assert len(open_frames(np.zeros((2, 4, 5, 4), np.uint8)[:, :, :, :3])) == 2


@pytest.mark.parametrize(
    ("source", "kind"), [(None, "NoneType"), (5, "int"), ({}, "dict"), (iter([]), "list_iterator")]
)
def test_other_types_are_refused(source: object, kind: str):
    with pytest.raises(TypeError, match=f"frames must be a path.* got {kind}"):
        open_frames(source)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=rf"frames\[1\] must be a path.* got {kind}"):
        open_frames([noise(1)[0], source])  # pyright: ignore[reportArgumentType]


def test_bgr_is_for_arrays_alone(tmp_path: Path):
    save_images(tmp_path, ["a.png"])
    picture = Image.new("RGB", (4, 4))
    for source in (tmp_path, picture, torch.zeros(1, 3, 4, 4), open_frames(picture), [picture]):
        with pytest.raises(ValueError, match="channels='bgr' is for ndarrays; "):
            open_frames(source, channels="bgr")
    with pytest.raises(ValueError, match=r"channels must be one of .* got 'gbr'"):
        open_frames(noise(1), channels="gbr")  # pyright: ignore[reportArgumentType]


def test_a_missing_path_is_refused_at_once(tmp_path: Path):
    missing = tmp_path / "missing.jpg"
    with pytest.raises(FrameError, match=r"missing.jpg cannot be opened: No such file"):
        open_frames(missing)
    with pytest.raises(FrameError, match=r"missing.jpg cannot be opened: No such file"):
        open_frames([missing])
    with pytest.raises(FrameError, match="cannot be opened"):
        open_frames("zero\0byte.jpg")


def test_a_folder_without_images_is_refused_by_name(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(FrameError, match=rf"{tmp_path.name} must hold images .* got none"):
        open_frames(tmp_path)


def test_a_link_to_a_missing_image_is_not_dropped_in_silence(tmp_path: Path):
    save_images(tmp_path, ["1.png"])
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FrameError, match=r"2.png cannot be opened: No such file"):
        open_frames(tmp_path)


def test_a_folder_inside_a_list_is_refused(tmp_path: Path):
    with pytest.raises(FrameError, match=r"frames\[0\] must be an image file, got the folder"):
        open_frames([tmp_path])


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("neither an image nor a video\n" * 50)
    with pytest.raises(FrameError, match=r"notes.txt must be a folder of images, an image, or a v"):
        open_frames(text)


# Sampling


@pytest.mark.parametrize("entry", SAMPLING, ids=lambda e: f"{e['num_frames']}in{e['seq_len']}")
def test_sampling_equals_the_reference(entry: dict):
    size = entry["num_frames"], entry["seq_len"]
    assert sample_dense(*size) == entry["dense"]
    assert sample_restricted(*size) == entry["rrs_test"]
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_restricted(*size, generator=generator) for _ in range(1000)]
    for chunk, pool in enumerate(entry["rrs_pools"]):
        assert {draw[chunk] for draw in drawn} == set(pool)  # all of them, and nothing else


@given(counts, lengths)
@settings(deadline=None)
def test_dense_clips_cover_every_frame_in_order(num_frames: int, clip_length: int):
    clips = sample_dense(num_frames, clip_length)
    assert all(len(clip) == clip_length for clip in clips)
    in_order = [index for clip in clips for index in clip]
    assert in_order[:num_frames] == list(range(num_frames))
    own = range((len(clips) - 1) * clip_length, num_frames)
    assert clips[-1] == [own[index % len(own)] for index in range(clip_length)]


@given(counts, lengths, st.none() | st.integers(0, 99))
@settings(deadline=None)
def test_restricted_samples_ascend_inside_the_tracklet(
    num_frames: int, clip_length: int, seed: int | None
):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    indices = sample_restricted(num_frames, clip_length, generator)
    assert len(indices) == clip_length
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < num_frames


def test_a_seed_repeats_its_draw():
    first, second = (sample_restricted(1000, 8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second != sample_restricted(1000, 8)


@pytest.mark.parametrize("sample", [sample_dense, sample_restricted])
def test_counts_below_one_are_refused(sample):
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        sample(0, 8)
    with pytest.raises(ValueError, match="clip_length must be at least 1, got -1"):
        sample(5, -1)
