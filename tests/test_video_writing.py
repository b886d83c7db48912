from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from tests.video_server import av, draw, number
from tfclip.errors import FrameError, SaveError
from tfclip.video import TimedFrame, Video, draw_boxes, identity_colour, write_video
from tfclip.video import writing as writing_module


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_is_written_is_read_again_with_its_times(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(writing_module, "_CODECS", (codec,))
    times = [0.5, 0.533, 0.7, 1.9, 2.0, 2.001]
    frames = [TimedFrame(draw(i), time, None) for i, time in enumerate(times)]
    path = tmp_path / "new" / "a.mp4"
    assert write_video(path, iter(frames)) == 6
    found = list(Video(path).timed())
    assert [frame.time for frame in found] == pytest.approx([t - 0.5 for t in times], abs=1e-9)
    assert [number(frame.pixels) for frame in found] == list(range(6))
    with av.open(path) as container:
        assert container.streams.video[0].codec_context.name == codec.replace("libx264", "h264")
        assert container.streams.video[0].pix_fmt == "yuv420p"


def test_frames_without_a_time_come_at_the_rate(tmp_path):
    pictures = np.stack([draw(i) for i in range(5)])
    for frames in (pictures, [TimedFrame(p, math.nan, 0) for p in pictures]):
        write_video(tmp_path / "a.mp4", frames, rate=8)
        assert Video(tmp_path / "a.mp4").times() == [0, 0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 47), (31, 47), (32, 48)])
def test_an_odd_side_gains_a_line_that_repeats_the_last(tmp_path, height, width):
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[-1, :] = picture[:, -1] = 200
    write_video(tmp_path / "a.mp4", [picture] * 2)
    first = next(iter(Video(tmp_path / "a.mp4")))
    assert first.shape == (height + height % 2, width + width % 2, 3)
    assert first[-1].mean() > 100
    assert first[: height // 2, : width // 2].mean() < 20


BAD = {
    "none": (lambda: [], {}, "frames must have at least one frame, got none"),
    "size": (lambda: [draw(0), draw(0)[:-2]], {}, "frames must be of one size"),
    "time": (
        lambda: [TimedFrame(draw(0), 1.0, 0), TimedFrame(draw(0), 1.0, 1)],
        {},
        "times of frames must rise by a millisecond at least, got 1 s after 1 s",
    ),
    "rate": (lambda: [draw(0)], {"rate": 0}, "rate must be above 0 and at most 1000, got 0"),
    "rate 2": (lambda: [draw(0)], {"rate": 1e6}, "rate must be above 0 and at most 1000"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_frames_are_refused_and_leave_nothing(tmp_path, name):
    frames, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames(), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_dies_leaves_what_stood_there(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, [draw(1)] * 3)
    before = path.read_bytes()

    def die():
        yield draw(2)
        raise FrameError("the source died")

    with pytest.raises(FrameError, match="the source died"):
        write_video(path, die())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(SaveError, match="it is a folder"):
        write_video(tmp_path, [draw(0)])


# --- boxes drawn in ------------------------------------------------------------------------------


def test_a_box_is_a_line_around_what_it_holds():
    picture = np.full((120, 160, 3), 90, dtype=np.uint8)
    drawn = draw_boxes(picture, [[40, 50, 60, 40]], colours=[(255, 0, 0)])
    assert (picture == 90).all()  # a copy
    red = (drawn == (255, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (50, 89, 40, 99)
    assert (drawn[54:86, 44:96] == 90).all()
    assert (np.delete(np.delete(drawn, np.s_[50:90], 0), np.s_[40:100], 1) == 90).all()


def test_a_label_lies_in_the_picture_wherever_its_box_is():
    picture = np.zeros((120, 160, 3), dtype=np.uint8)
    for box in ([0, 0, 20, 50], [150, 60, 40, 50], [-30, -30, 60, 60], [70, 110, 30, 30]):
        plain = draw_boxes(picture, [box], colours=[(9, 9, 9)])
        drawn = draw_boxes(picture, [box], ["person 3"], [(9, 9, 9)])
        white = (drawn > 200).all(axis=2)
        assert white.sum() > 30
        assert not (plain > 200).any()
        rows, columns = np.nonzero(white)
        # Some of the plate is around the letters on all sides.
        assert min(rows.min(), columns.min()) > 0
        assert rows.max() < 119
        assert columns.max() < 159


def test_labels_of_people_who_stand_together_do_not_hide_one_another():
    picture = np.zeros((200, 300, 3), dtype=np.uint8)
    boxes = [[100, 100, 40, 80], [104, 102, 40, 80], [96, 99, 40, 80]]

    def letters(shown) -> int:
        drawn = draw_boxes(picture, shown, ["person 8"] * len(shown), [(9, 9, 9)] * len(shown))
        return int((drawn > 200).all(axis=2).sum())

    assert letters(boxes) == sum(letters([box]) for box in boxes)


def test_nobody_in_the_picture_leaves_it_as_it_is():
    picture = draw(3)
    assert np.array_equal(draw_boxes(picture, np.empty((0, 4)), []), picture)
    assert np.array_equal(draw_boxes(picture, [[500, 500, 9, 9]]), picture)


def test_there_must_be_a_label_and_a_colour_for_each_box():
    with pytest.raises(ValueError, match="labels must be one for each of 2 boxes, got 1"):
        draw_boxes(draw(0), np.ones((2, 4)), ["a"])
    with pytest.raises(ValueError, match="colours must be one for each of 2 boxes, got 1"):
        draw_boxes(draw(0), np.ones((2, 4)), None, [(0, 0, 0)])


def test_the_first_people_have_colours_that_can_be_told_apart_and_carry_white_letters():
    colours = [identity_colour(person) for person in range(10)]
    for one, other in combinations(colours, 2):
        assert np.abs(np.subtract(one, other)).sum() > 60
    for red, green, blue in [identity_colour(person) for person in range(200)]:
        linear = [(v / 255) ** 2.2 for v in (red, green, blue)]
        luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
        assert 1.05 / (luminance + 0.05) > 3.5
