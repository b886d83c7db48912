from __future__ import annotations

import numpy as np
import pytest

from tfclip.data import SyntheticTracklets, SyntheticVideo, read_boxes
from tfclip.video import Video

SMALL = {"num_frames": 24, "frame_size": (72, 128), "seed": 5}


@pytest.fixture(scope="module")
def video() -> SyntheticVideo:
    return SyntheticVideo([3, 8, 11], 1, **SMALL)


def test_a_video_is_the_same_each_time_and_in_any_piece(video, monkeypatch):
    frames = [frame.pixels for frame in video]
    again = [frame.pixels for frame in SyntheticVideo([3, 8, 11], 1, **SMALL)]
    assert len(frames) == len(video) == 24
    assert np.array_equal(frames, again)
    assert frames[0].shape == (72, 128, 3)
    assert frames[0].dtype == np.uint8
    assert [frame.time for frame in video] == [i / 10 for i in range(24)]


def test_another_seed_camera_or_person_is_another_video(video):
    first = np.stack([frame.pixels for frame in video])
    others = (
        SyntheticVideo([3, 8, 11], 2, **SMALL),
        SyntheticVideo([3, 8, 12], 1, **SMALL),
        SyntheticVideo([3, 8, 11], 1, **{**SMALL, "seed": 6}),
    )
    for other in others:
        assert not np.array_equal(first, np.stack([frame.pixels for frame in other]))


def test_boxes_are_where_something_moves(video):
    frames = np.stack([frame.pixels for frame in video]).astype(int)
    still = np.median(frames, axis=0)
    inside, outside = [], []
    for number, found in video.boxes.items():
        mask = np.zeros(frames.shape[1:3], dtype=bool)
        for left, top, width, height in found.clip(128, 72).boxes.astype(int).tolist():
            mask[top : top + height, left : left + width] = True
        change = np.abs(frames[number] - still).mean(axis=2)
        inside.append(change[mask].mean())
        outside.append(change[~mask].mean())
    assert np.mean(inside) > 3 * np.mean(outside)


def test_every_track_is_one_person_and_tracks_are_numbered_as_they_come(video):
    assert sorted(video.persons.values()) == [3, 8, 11]
    first = {}
    for number, found in video.boxes.items():
        for track in found.track_ids.tolist():
            first.setdefault(track, number)
    assert list(first) == sorted(first)
    assert set(first) == set(video.persons)


def test_a_person_looks_as_in_the_tracklets_of_the_same_seed():
    """The colours of a person's crops are nearest to those of that person's tracklet."""
    people = [2, 5, 9, 14]
    video = SyntheticVideo(people, 0, num_frames=40, frame_size=(144, 256), seed=5)
    frames = [frame.pixels for frame in video]
    drawn = SyntheticTracklets(frame_size=(128, 64), occlusion=0, seed=5)
    looks = {person: _middle(drawn.draw(person, 0, 0).frames) for person in people}
    right = 0
    for track, person in video.persons.items():
        crops = [
            crop
            for number, found in video.boxes.items()
            for crop in found.select(found.track_ids == track).clip(256, 144).crop(frames[number])
        ]
        mean = np.mean([_middle(crop[None]) for crop in crops], axis=0)
        nearest = min(people, key=lambda other: float(np.abs(mean - looks[other]).sum()))
        right += nearest == person
    assert right >= 3  # of 4, where chance gives 1


def _middle(frames: np.ndarray) -> np.ndarray:
    """Return the mean colours of breast and thighs."""
    height, width = frames.shape[1:3]
    middle = frames[:, :, round(0.4 * width) : round(0.6 * width)]
    parts = ((0.22, 0.42), (0.5, 0.62))
    return np.concatenate(
        [middle[:, round(a * height) : round(b * height)].mean((0, 1, 2)) for a, b in parts]
    )


def test_what_is_written_is_read_again(tmp_path, video):
    pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")
    path, table = video.write(tmp_path, "street")
    found = list(Video(path).timed())
    assert [frame.time for frame in found] == [i / 10 for i in range(24)]
    first = next(iter(video)).pixels.astype(int)
    assert np.abs(found[0].pixels - first).mean() < 8
    boxes = read_boxes(table)
    assert list(boxes) == list(video.boxes)
    for number, wanted in video.boxes.items():
        assert np.array_equal(boxes[number].track_ids, wanted.track_ids)
        np.testing.assert_allclose(boxes[number].boxes, wanted.boxes, atol=0.006)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([], 0), {}, ValueError, "people must be different numbers, at least one"),
        (([1, 1], 0), {}, ValueError, "people must be different numbers"),
        (([1], -1), {}, ValueError, "first_camera must be 0 or more, got -1"),
        (([1], 0.5), {}, TypeError, "first_camera must be a whole number"),
        (([1], 0), {"num_frames": 1}, ValueError, "num_frames must be 2 or more, got 1"),
        (([1], 0), {"frame_size": (32, 99)}, ValueError, "frame_size must be 64 pixels or more"),
        (([1], 0), {"rate": 0}, ValueError, "rate must be above 0 and finite, got 0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        SyntheticVideo(*arguments, **options)
