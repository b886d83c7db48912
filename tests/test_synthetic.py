"""The drawn people: same numbers same pixels, people who are recognisable, cues that are fair."""

from __future__ import annotations

import pickle
import random
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image

from tfclip.data import SyntheticTracklets, Tracklet
from tfclip.data.synthetic import CUES, Cue

SMALL = {"num_cameras": 2, "tracklets_per_camera": 1, "num_frames": 4, "frame_size": (32, 16)}


def small(num_identities: int = 4, **changes) -> SyntheticTracklets:
    return SyntheticTracklets(num_identities, **{**SMALL, **changes})


def colour_histogram(frames: np.ndarray) -> np.ndarray:
    """Return the share of every coarse colour in the upper and in the lower half of a person."""
    height, width = frames.shape[1:3]
    middle = frames[:, :, width // 4 : -width // 4]
    parts = middle[:, height // 6 : height // 2], middle[:, height // 2 : height * 5 // 6]
    shares = [np.histogramdd(part.reshape(-1, 3), 6, [(0, 256)] * 3)[0].ravel() for part in parts]
    return np.concatenate(shares) / frames[..., 0].size


# -- what a data set holds -------------------------------------------------------------------------


def test_a_data_set_of_one_tracklet_of_one_frame_can_be_drawn():
    people = SyntheticTracklets(1, 1, 1, 1, (16, 8))
    assert [tracklet.frames.shape for tracklet in people] == [(1, 16, 8, 3)]


@pytest.mark.parametrize("size", [(32, 16), (64, 32), (128, 64), (256, 128), (50, 75), (40, 300)])
def test_frames_have_the_size_that_was_asked_for(size):
    frames = small(1, frame_size=size)[1].frames
    assert frames.shape == (4, *size, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 10  # something is on them


def test_a_tracklet_says_who_was_seen_where():
    people = SyntheticTracklets(3, 2, 2, 2, (16, 8), first_identity=5, first_camera=7)
    drawn = [(tracklet.person, tracklet.camera) for tracklet in people]
    assert drawn == list(zip(people.identities.tolist(), people.cameras.tolist(), strict=True))
    assert drawn[:5] == [(5, 7), (5, 7), (5, 8), (5, 8), (6, 7)]
    assert len({tracklet.name for tracklet in people}) == len(people) == 12


def test_a_drawn_tracklet_can_stand_where_a_tracklet_read_from_files_can():
    assert isinstance(small()[0], Tracklet)


def test_numbers_of_frames_can_differ_between_tracklets():
    lengths = {len(tracklet.frames) for tracklet in small(20, num_frames=(2, 4))}
    assert lengths == {2, 3, 4}


def test_positions_count_from_both_ends_and_stop_there():
    people = small(2)
    np.testing.assert_array_equal(people[-1].frames, people[3].frames)
    for outside in (4, -5):
        with pytest.raises(IndexError, match="index must be from -4 to 3"):
            people[outside]


# -- same numbers, same pixels ---------------------------------------------------------------------


@pytest.mark.parametrize("cue", CUES)
def test_the_same_seed_draws_the_same_pixels_in_any_order(cue):
    forwards = [tracklet.frames for tracklet in small(cue=cue)]
    people = small(cue=cue)
    backwards = [people[index].frames for index in reversed(range(len(people)))]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_tracklet_does_not_depend_on_how_many_others_there_are():
    few, many = small(2), SyntheticTracklets(9, 5, 3, 4, (32, 16))
    for tracklet in few:
        same = many.draw(tracklet.person, tracklet.camera, tracklet.number)
        np.testing.assert_array_equal(tracklet.frames, same.frames)


def test_another_seed_draws_other_people_in_other_places():
    one, other = small(seed=0)[0].frames, small(seed=1)[0].frames
    assert (one != other).mean() > 0.9


def test_a_copy_in_another_process_draws_the_same():
    people = small()
    copy = pickle.loads(pickle.dumps(people))
    np.testing.assert_array_equal(copy[2].frames, people[2].frames)
    assert repr(copy) == repr(people)


def test_drawing_frames_in_parts_changes_none_of_them(monkeypatch):
    # Parts keep a painting in the processor's cache; no frame may tell which part it was in.
    people = small(2, num_frames=7, frame_size=(64, 32), occlusion=1)
    at_once = [tracklet.frames for tracklet in people]
    monkeypatch.setattr("tfclip.data.synthetic.dataset._PIXELS_AT_ONCE", 3 * 64 * 32)
    for one, other in zip(at_once, people, strict=True):
        difference = np.abs(one.astype(int) - other.frames)
        assert difference.max() <= 1  # rounding
        assert difference.mean() < 1e-3


def test_nothing_global_is_seeded():
    torch_before, python_before = torch.get_rng_state(), random.getstate()
    numpy_before = pickle.dumps(np.random.get_state())  # noqa: NPY002
    list(small())
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert pickle.dumps(np.random.get_state()) == numpy_before  # noqa: NPY002
    assert random.getstate() == python_before


# -- people are recognisable -----------------------------------------------------------------------


def test_people_of_other_numbers_are_other_people():
    train, test = small(3), small(3, first_identity=3)
    assert set(train.identities).isdisjoint(test.identities)
    first, second = train.draw(0, 0, 0), test.draw(3, 0, 0)
    assert (first.frames != second.frames).mean() > 0.3


def test_a_person_looks_alike_twice_in_a_camera():
    people = SyntheticTracklets(20, 2, 2, 4, (64, 32), occlusion=0.0)
    for camera in (0, 1):
        first, second = (
            np.stack([colour_histogram(people.draw(p, camera, n).frames) for p in range(20)])
            for n in (0, 1)
        )
        distance = np.abs(first[:, None] - second[None]).sum(2)
        found = (distance.argmin(1) == np.arange(20)).mean()
        assert found > 0.5  # chance is 0.05


def test_a_person_looks_alike_in_two_cameras():
    # Nearest in the clothes' colours once each camera's own average is taken away.
    people = SyntheticTracklets(40, 2, 1, 4, (64, 32), occlusion=0.0, seed=2)

    def clothes(camera: int) -> np.ndarray:
        means = np.stack(
            [people.draw(p, camera, 0).frames[:, 16:52, 11:21].mean((0, 2)) for p in range(40)]
        ).reshape(40, -1)
        return (means - means.mean(0)) / means.std(0)

    distance = np.square(clothes(0)[:, None] - clothes(1)[None]).mean(2)
    rank = (distance < np.diag(distance)[:, None]).sum(1)  # how many others are nearer
    assert np.median(rank) <= 4  # chance is 19.5


@pytest.mark.parametrize("cue", ["badge", "gait", "order", "none"])
def test_a_pair_shares_its_look_and_other_pairs_do_not(cue):
    people = small(cue=cue, frame_size=(64, 32), num_cameras=1, num_frames=16, occlusion=0)
    legs = [people.draw(p, 0, 0).frames[:, 36:52, 12:20].mean((0, 1, 2)) for p in range(4)]
    within = np.abs(legs[0] - legs[1]).max(), np.abs(legs[2] - legs[3]).max()
    assert max(within) < np.abs(legs[0] - legs[2]).max()


# -- cues -----------------------------------------------------------------------------------------


@lru_cache
def badges(cue: Cue, frames: int = 8, pairs: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Return the badge colours, ``(pairs, frames)``, of first and of second persons."""
    people = SyntheticTracklets(2 * pairs, 1, 1, frames, (16, 8), cue=cue, occlusion=0)
    drawn = np.stack([np.asarray(tracklet.badge) for tracklet in people])
    return drawn[0::2], drawn[1::2]


def shares(colours: np.ndarray) -> np.ndarray:
    return np.stack([(colours == colour).mean(0) for colour in range(4)])


@pytest.mark.parametrize("cue", ["badge", "none"])
def test_each_badge_colour_is_as_likely_at_every_position_for_both_of_a_pair(cue):
    # The share of 150 draws has a standard error of 0.035; four of them, for 2 x 8 x 4 shares.
    for colours in badges(cue):
        assert np.abs(shares(colours) - 0.25).max() < 4 * 0.035


def test_a_steady_badge_keeps_its_colour_and_a_changing_one_does_not():
    steady, changing = badges("badge")
    assert (steady == steady[:, :1]).all()
    assert len(np.unique(steady[:, 0])) == 4
    different = (changing[:, 1:] != changing[:, :-1]).mean()
    assert abs(different - 0.75) < 0.05  # drawn anew for each frame


def test_the_badge_pair_has_equal_pixels_on_average_and_unequal_ones_within_a_tracklet():
    people = SyntheticTracklets(160, 1, 1, 8, (32, 16), cue="badge", occlusion=0, seed=1)
    chest = np.stack([t.frames[:, 9:13, 6:10].mean((1, 2)) for t in people])  # (M, T, 3)
    steady, changing = chest[0::2], chest[1::2]
    # Per-frame marginals: means and variances of all frames pooled, in standard errors. A steady
    # tracklet counts as one draw, so errors are those of tracklet averages.
    for moment in (1, 2):
        a, b = ((c**moment).mean(1) for c in (steady, changing))
        error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
        assert (np.abs(a.mean(0) - b.mean(0)) / error).max() < 3.5
    within = [np.median(c.std(1).max(1)) for c in (steady, changing)]
    assert within[1] > 3 * within[0]


def test_the_gait_pair_has_equal_pixels_on_average_and_unequal_ones_within_a_tracklet():
    people = SyntheticTracklets(160, 1, 1, 8, (32, 16), cue="gait", occlusion=0, seed=1)
    # How far apart the feet are: the legs' outline against the mean picture of the place.
    feet = np.stack([t.frames[:, 24:29].astype(float).mean((1, 3)) for t in people])
    still, walking = feet[0::2], feet[1::2]
    a, b = still.mean(1), walking.mean(1)
    error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    assert (np.abs(a.mean(0) - b.mean(0)) / error).max() < 3.5
    assert np.median(walking.std(1).mean(1)) > 1.15 * np.median(still.std(1).mean(1))


def test_the_order_pair_wears_the_same_colours_in_opposite_orders():
    forwards, backwards = badges("order")
    assert (forwards == [0, 1, 2, 3, 0, 1, 2, 3]).all()
    assert (backwards == [3, 2, 1, 0, 3, 2, 1, 0]).all()
    everyone = np.sort(np.concatenate([forwards, backwards]), axis=1)
    assert (everyone == [0, 0, 1, 1, 2, 2, 3, 3]).all()


def test_in_the_order_pair_the_whole_picture_runs_backwards(monkeypatch):
    # The second person's frames, turned round, are what a first person with their numbers would be.
    people = small(2, cue="order")
    played = people.draw(1, 0, 0)
    monkeypatch.setattr("tfclip.data.synthetic.dataset._plays_backwards", lambda cue, person: False)
    taken = people.draw(1, 0, 0)
    np.testing.assert_array_equal(played.frames, taken.frames[::-1])
    np.testing.assert_array_equal(np.asarray(played.badge)[::-1], taken.badge)


def test_only_cues_of_a_badge_show_one():
    assert [small(cue=cue)[0].badge is None for cue in CUES] == [True, False, True, False, False]


def test_occlusion_covers_some_tracklets_or_none():
    clear, covered = (small(10, frame_size=(64, 32), occlusion=share) for share in (0.0, 1.0))
    changed = [(a.frames != b.frames).any() for a, b in zip(clear, covered, strict=True)]
    assert sum(changed) > 10
    partly = small(10, frame_size=(64, 32), occlusion=0.5)
    half = [(a.frames != b.frames).any() for a, b in zip(clear, partly, strict=True)]
    assert 0 < sum(half) < sum(changed)


# -- writing and mistakes --------------------------------------------------------------------------


def test_written_frames_are_read_back_bit_for_bit(tmp_path):
    people = small(1)
    folders = people.write(tmp_path)
    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == [
        tracklet.name for tracklet in people
    ]
    for folder, tracklet in zip(folders, people, strict=True):
        pictures = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
        np.testing.assert_array_equal(np.stack(pictures), tracklet.frames)


def test_frames_can_be_written_smaller(tmp_path):
    folder = small(1).write(tmp_path, "jpg")[0]
    assert [p.name for p in sorted(folder.iterdir())] == [f"{t:04d}.jpg" for t in range(4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 0}, "num_identities must be 1 or more, got 0"),
        ({"num_identities": 3, "cue": "badge"}, "num_identities must be even, because this cue"),
        ({"first_identity": 1, "cue": "gait"}, "first_identity must be even, because this cue"),
        ({"num_cameras": 0}, "num_cameras must be 1 or more, got 0"),
        ({"tracklets_per_camera": -1}, "tracklets_per_camera must be 1 or more, got -1"),
        ({"num_frames": 0}, "num_frames must be 1 or more, got 0"),
        ({"num_frames": (5, 2)}, r"num_frames must be \(least, most\), got \(5, 2\)"),
        ({"num_frames": (1, 2, 3)}, "num_frames must be a number or"),
        ({"frame_size": 64}, r"frame_size must be \(height, width\), got 64"),
        ({"frame_size": (64, 4)}, "frame width must be 8 or more, got 4"),
        ({"frame_size": (8, 64)}, "frame height must be 16 or more, got 8"),
        ({"cue": "smell"}, "cue must be one of appearance, badge, gait, order, none, got 'smell'"),
        ({"occlusion": 1.5}, "occlusion must be from 0 to 1, got 1.5"),
        ({"occlusion": float("nan")}, "occlusion must be from 0 to 1, got nan"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"first_camera": -2}, "first_camera must be 0 or more, got -2"),
    ],
)
def test_an_argument_out_of_range_is_told_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticTracklets(**arguments)


def test_a_number_that_is_not_whole_is_told_in_a_sentence():
    with pytest.raises(TypeError, match=r"num_cameras must be a whole number, got 2\.5"):
        SyntheticTracklets(num_cameras=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="person must be 0 or more, got -1"):
        small().draw(-1, 0, 0)
    with pytest.raises(ValueError, match="image_format must be 'png' or 'jpg', got 'gif'"):
        small().write("nowhere", "gif")  # pyright: ignore[reportArgumentType]
