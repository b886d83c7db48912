from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfclip.boxes import FrameBoxes, crop_frame, pair_boxes
from tfclip.errors import FrameError
from tfclip.video import TimedFrame

WIDTH, HEIGHT = 12, 9
PICTURE = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)

sides = st.one_of(st.integers(-20, 40).map(float), st.floats(-20, 40), st.floats(-1e6, 1e6))
boxes = st.lists(st.tuples(sides, sides, sides, sides), max_size=6)


def frame_boxes(rows, **values) -> FrameBoxes:
    return FrameBoxes(**{"frame": 0, "boxes": rows, "track_ids": range(len(rows)), **values})


@given(boxes)
def test_clipping_changes_no_crop_and_drops_what_has_none(rows):
    kept = {}
    for track, box in enumerate(rows):
        try:
            kept[track] = crop_frame(PICTURE, box, "box")
        except FrameError:
            continue
    inside = frame_boxes(rows, track_ids=list(range(len(rows)))).clip(WIDTH, HEIGHT)
    assert inside.track_ids.tolist() == list(kept)
    assert inside.num_dropped == len(rows) - len(kept)
    for crop, track in zip(inside.crop(PICTURE), inside.track_ids.tolist(), strict=True):
        assert np.array_equal(crop, kept[track])


@given(boxes)
def test_what_is_clipped_lies_in_the_picture_and_stays_when_clipped_again(rows):
    inside = frame_boxes(rows, track_ids=list(range(len(rows)))).clip(WIDTH, HEIGHT)
    assert (inside.boxes[:, :2] >= 0).all()
    assert (inside.boxes[:, :2] + inside.boxes[:, 2:] <= np.array([WIDTH, HEIGHT]) + 1e-9).all()
    again = inside.clip(WIDTH, HEIGHT)
    np.testing.assert_allclose(again.boxes, inside.boxes)
    assert again.num_dropped == inside.num_dropped


def test_a_box_inside_is_not_touched_and_drops_add_up():
    found = frame_boxes(
        [[0.1, 0.2, 3.3, 4.4], [90, 0, 5, 5]],
        track_ids=[5, 6],
        confidences=[0.5, 0.25],
        num_dropped=2,
    )
    inside = found.clip(WIDTH, HEIGHT)
    assert inside.boxes.tolist() == [[0.1, 0.2, 3.3, 4.4]]
    assert inside.confidences is not None
    assert (inside.confidences.tolist(), inside.num_dropped, len(inside)) == ([0.5], 3, 1)


def test_some_boxes_can_be_chosen():
    found = frame_boxes([[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]], track_ids=[4, 2, 9])
    assert found.select([2, 0]).track_ids.tolist() == [9, 4]
    assert found.select(found.track_ids < 5).boxes[:, 0].tolist() == [0, 1]


def test_tensors_and_whole_floats_are_boxes_and_ids():
    found = frame_boxes(torch.ones(2, 4), track_ids=torch.tensor([3.0, 1.0]))
    assert found.boxes.dtype == np.float64
    assert (found.track_ids.dtype, found.track_ids.tolist()) == (np.int64, [3, 1])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"boxes": [[1, 2, 3]]}, FrameError, r"boxes must be \(N, 4\), got shape \(1, 3\)"),
        ({"boxes": ["abcd"]}, FrameError, r"boxes must be numbers \(N, 4\)"),
        ({"boxes": [[1, 2, 3, math.nan]]}, FrameError, r"boxes must be finite, got boxes\[0\]"),
        ({"track_ids": [1, 2]}, ValueError, "one for each of 1 boxes, got shape"),
        ({"track_ids": None}, ValueError, "track_ids must be numbers, got None"),
        ({"track_ids": [0.5]}, ValueError, "track_ids must be whole numbers"),
        ({"track_ids": [math.nan]}, ValueError, "track_ids must be whole numbers"),
        ({"confidences": [1, 2]}, ValueError, "confidences must be one for each of 1 boxes"),
        (
            {"boxes": np.ones((2, 4)), "track_ids": [7, 7]},
            ValueError,
            "track_ids must be unique, got 7 twice",
        ),
    ],
)
def test_boxes_and_ids_that_do_not_fit_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        frame_boxes(**{"rows": [[0, 0, 1, 1]], "track_ids": [0], **_rows(values)})


def _rows(values):
    return {"rows" if key == "boxes" else key: value for key, value in values.items()}


# --- frames and boxes together -------------------------------------------------------------------


def frames(count: int, numbered: bool = True):
    for number in range(count):
        yield TimedFrame(PICTURE + number, number / 10, number if numbered else None)


def test_a_table_gives_each_frame_its_boxes_and_others_none():
    table = {
        1: frame_boxes([[2, 2, 3, 3]], frame=1, track_ids=[7]),
        2: frame_boxes(np.empty((0, 4)), frame=2, num_dropped=3),
    }
    pairs = list(pair_boxes(frames(4), table))
    assert [found.track_ids.tolist() for _, found in pairs] == [[], [7], [], []]
    assert [found.num_dropped for _, found in pairs] == [0, 0, 3, 0]
    assert [found.frame for _, found in pairs] == [0, 1, 2, 3]
    frame, found = pairs[1]
    assert (frame.time, frame.number) == (0.1, 1)
    assert np.array_equal(found.crop(frame.pixels)[0], (PICTURE + 1)[2:5, 2:5])


def test_a_detector_sees_each_frame_once_in_order_and_only_when_it_is_asked_for():
    seen = []

    def detect(pixels):
        seen.append(int(pixels[0, 0, 0]))
        return [[1, 1, 4, 4]], [seen[-1]]

    pairs = pair_boxes(frames(5), detect)
    next(pairs)
    assert seen == [0]
    assert [found.track_ids.tolist() for _, found in pairs] == [[1], [2], [3], [4]]


def test_a_detector_that_finds_nobody_may_give_empty_lists():
    ((_, found),) = pair_boxes(frames(1), lambda pixels: ([], []))
    assert (len(found), found.boxes.shape) == (0, (0, 4))


def test_plain_pictures_are_numbered_and_have_no_time():
    pairs = list(pair_boxes(np.stack([PICTURE] * 2), lambda pixels: ([[0, 0, 2, 2]], [1])))
    assert [frame.number for frame, _ in pairs] == [0, 1]
    assert all(math.isnan(frame.time) for frame, _ in pairs)


def test_boxes_outside_are_dropped_and_said_at_the_end(caplog):
    with caplog.at_level(logging.WARNING):
        pairs = list(pair_boxes(frames(3), lambda pixels: ([[99, 0, 4, 4], [0, 0, 4, 4]], [1, 2])))
    assert [found.track_ids.tolist() for _, found in pairs] == [[2]] * 3
    assert "3 of 6 boxes have no pixel of the picture and are left out" in caplog.text


def test_a_table_needs_frames_with_numbers_and_a_detector_does_not():
    with pytest.raises(ValueError, match="frames must be numbered to be paired with a table"):
        next(pair_boxes(frames(1, numbered=False), {}))
    ((_, found),) = pair_boxes(frames(1, numbered=False), lambda pixels: ([[0, 0, 1, 1]], [1]))
    assert found.frame == 0
