"""Tracklets that grow: the same as encoding what counts at once, in memory that is bounded."""

from __future__ import annotations

import os
import stat
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tfclip
from tfclip import TFCLIP, TFCLIPConfig, TrackletEncoder
from tfclip.errors import FrameError, SnapshotError
from tfclip.tracking import Judgement, QualityGate, sharpness
from tfclip.tracking.windows import most_redundant

CLIP = 4


def build(**changes) -> TFCLIP:
    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 2, "heads": 2, "output_dim": 32}
    config = TFCLIPConfig(
        backbone_options=sizes, frame_size=(32, 16), clip_length=CLIP, num_cameras=3, **changes
    )
    return TFCLIP(config).eval()


@pytest.fixture(scope="module")
def model():
    return build()


def draw(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 12, 3), dtype=np.uint8)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


WINDOWS = [
    {},
    {"max_frames": 1},
    {"max_frames": 3},
    {"max_frames": CLIP},
    {"max_frames": 2 * CLIP},
    {"max_frames": 2, "policy": "diverse"},
    {"max_frames": CLIP, "policy": "diverse"},
    {"max_frames": 3 * CLIP, "policy": "diverse"},
]


# --- the same as encode_sequence -----------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(st.lists(st.sampled_from("abc"), max_size=7), min_size=1, max_size=9),
    window=st.sampled_from(WINDOWS),
    batch_frames=st.integers(1, 9),
    normalize=st.booleans(),
    data=st.data(),
)
def test_any_schedule_of_updates_gives_what_encode_sequence_gives_for_the_kept_frames(
    model, calls, window, batch_frames, normalize, data
):
    cameras: dict[Any, Any] = {
        name: data.draw(st.sampled_from([None, 0, 2]), name) for name in "abc"
    }
    gaps = data.draw(st.lists(st.sampled_from([0, 1, 50]), min_size=9, max_size=9))
    encoder = TrackletEncoder(
        model, batch_frames=batch_frames, normalize=normalize, max_age=200, **window
    )
    crops: dict[Any, list[np.ndarray]] = {}
    time = 0.0
    for place, ids in enumerate(calls):
        time += gaps[place]
        new = draw(len(ids), seed=place)
        found = encoder.update(ids, new, time, cameras=[cameras[name] for name in ids])
        for name, crop in zip(ids, new, strict=True):
            crops.setdefault(name, []).append(crop)
        assert set(found) == set(ids)
        for name, embedding in found.items():
            kept = encoder.state(name).kept
            frames = crops[name] if kept is None else [crops[name][i] for i in kept]
            close(embedding, model.encode_sequence(frames, cameras[name], normalize=normalize))
    assert encoder.counts["aged"] == encoder.counts["restarted"] == 0
    for name, embedding in zip(*encoder.embeddings(), strict=True):
        torch.testing.assert_close(embedding, encoder.embedding(name))


@pytest.mark.parametrize(
    "changes",
    [
        {"temporal_head": "tmc"},
        {"temporal_depth": 2, "temporal_position": True},
        {"temporal_head": "convolution"},
        {"temporal_head": "transformer"},
        {"temporal_head": "average"},
        {"descriptor": ("projected", "appearance")},
        {"neck": "after"},
        {"unknown_camera": "mean"},
    ],
)
@pytest.mark.parametrize("window", [{}, {"max_frames": 3}, {"max_frames": 8, "policy": "diverse"}])
def test_it_holds_for_other_models(changes, window):
    other = build(**changes)
    encoder, crops = TrackletEncoder(other, **window), draw(11)
    for crop in crops:
        encoder.update(["a"], [crop])
    kept = encoder.state("a").kept or range(11)
    close(encoder.embedding("a"), other.encode_sequence([crops[i] for i in kept]))


def test_it_holds_for_a_resnet_whose_projection_reads_every_token():
    torch.manual_seed(0)
    options = {"width": 16, "layers": [1, 1, 1, 1], "output_dim": 32}
    config = TFCLIPConfig(
        backbone="RN50", backbone_options=options, frame_size=(64, 32), clip_length=CLIP
    )
    resnet, crops = TFCLIP(config).eval(), draw(6)
    encoder = TrackletEncoder(resnet)
    for crop in crops:
        encoder.update(["a"], [crop])
    close(encoder.embedding("a"), resnet.encode_sequence(crops))


def test_each_crop_goes_through_the_tower_once(model, monkeypatch):
    sizes = []
    forward = model.backbone.forward
    monkeypatch.setattr(
        model.backbone, "forward", lambda x, codes: (sizes.append(len(x)), forward(x, codes))[1]
    )
    encoder = TrackletEncoder(model, batch_frames=8)
    for call in range(6):
        encoder.update(range(10), draw(10, call))
        encoder.embeddings()
    assert sizes == [8, 2] * 6  # the crops of ten tracks share batches


def test_tokens_kept_in_half_precision_change_little(model):
    crops = draw(6)
    exact, half = TrackletEncoder(model), TrackletEncoder(model, token_dtype=torch.float16)
    for crop in crops:
        exact.update(["a"], [crop])
        half.update(["a"], [crop])
    difference = (exact.embedding("a") - half.embedding("a")).abs().max()
    assert 0 < difference < 1e-3
    # two frames of the open clip, each of two patches and the class token
    assert exact.num_bytes - half.num_bytes == 2 * 3 * 64 * 2


def test_the_model_stays_in_the_mode_it_was_in(model):
    expected = TrackletEncoder(model).update(["a"], draw(3)[:1])["a"]
    model.train()
    found = TrackletEncoder(model).update(["a"], draw(3)[:1])["a"]
    assert model.training
    model.eval()
    close(found, expected)


def test_bgr_crops_are_the_rgb_ones_turned_round(model):
    crops = draw(2)
    rgb = TrackletEncoder(model).update(["a", "a"], crops)["a"]
    bgr = TrackletEncoder(model).update(["a", "a"], crops[..., ::-1], channels="bgr")["a"]
    wrong = TrackletEncoder(model).update(["a", "a"], crops[..., ::-1])["a"]
    close(bgr, rgb)
    assert (wrong - rgb).abs().max() > 1e-3


# --- which frames count --------------------------------------------------------------------------


def test_the_newest_window_moves_by_whole_clips_and_one_clip_slides(model):
    moving, sliding = TrackletEncoder(model, max_frames=8), TrackletEncoder(model, max_frames=3)
    for call in range(9):
        moving.update(["a"], draw(1, call))
        sliding.update(["a"], draw(1, call))
    assert moving.state("a").kept == (4, 5, 6, 7, 8)
    assert sliding.state("a").kept == (6, 7, 8)


def least_distance(features: torch.Tensor) -> float:
    """The smallest cosine distance between two rows, by loops."""
    rows = [row / row.norm() for row in features.double()]
    return min(
        float(1 - rows[i] @ rows[j]) for i in range(len(rows)) for j in range(i + 1, len(rows))
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 7))
def test_leaving_out_the_most_redundant_never_brings_the_others_nearer(seed, count):
    features = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    before = least_distance(features[:-1])
    place = most_redundant(features)
    after = least_distance(torch.cat([features[:place], features[place + 1 :]]))
    assert after >= before - 1e-6


def test_a_diverse_window_lets_no_twin_in(model):
    crops = draw(3)
    encoder = TrackletEncoder(model, max_frames=3, policy="diverse")
    for crop in [*crops, crops[0], crops[1], crops[2]]:
        encoder.update(["a"], [crop])
    kept = encoder.state("a").kept or ()
    assert sorted(number % 3 for number in kept) == [0, 1, 2]
    assert encoder.state("a").num_used == 6


# --- the gate ------------------------------------------------------------------------------------


def grade(crop, box, frame_size):
    """Pass crops whose first value is 200 or more; their score is that value."""
    value = int(crop[0, 0, 0])
    return Judgement(None if value >= 200 else "dark", float(value))


def graded(*values: int) -> np.ndarray:
    crops = draw(len(values), seed=values[0])
    crops[:, 0, 0, 0] = values
    return crops


def test_crops_that_do_not_pass_are_counted_and_do_not_count(model):
    encoder, crops = TrackletEncoder(model, gate=grade), graded(210, 30, 220, 40)
    found = encoder.update(["a"] * 4, crops)
    close(found["a"], model.encode_sequence(crops[[0, 2]]))
    state = encoder.state("a")
    assert (state.num_crops, state.num_used, state.gated) == (4, 2, {"dark": 2})
    assert encoder.counts["dark"] == 2


@pytest.mark.parametrize("together", [True, False])
def test_a_track_without_a_good_crop_is_its_best_one_until_a_good_one_comes(model, together):
    encoder, crops = TrackletEncoder(model, gate=grade), graded(30, 90, 40)
    calls, found = ([crops] if together else [crops[:1], crops[1:2], crops[2:]]), {}
    for call in calls:
        found = encoder.update(["a"] * len(call), call)
    close(found["a"], model.encode_sequence(crops[[1]]))
    assert encoder.state("a").kept == (1,)
    good = graded(250)
    close(encoder.update(["a"], good)["a"], model.encode_sequence(good))
    assert encoder.state("a").kept is None
    close(encoder.update(["a"], graded(100))["a"], model.encode_sequence(good))


def test_the_gate_says_why_and_how_far():
    gate = QualityGate(min_height=20, min_width=10, min_sharpness=50)
    sharp = draw(1)[0]
    assert gate(sharp) == Judgement(None, 1.2)  # 24 rows of 20, 12 columns of 10
    assert gate(sharp[:10]) == Judgement("small", 0.5)
    assert gate(np.full_like(sharp, 90)) == Judgement("blurred", 0.0)
    assert gate(sharp, (0, 5, 12, 24), (100, 100)) == Judgement("cut_off", 0.5)
    assert gate(sharp, (2, 5, 12, 24), (29, 100)) == Judgement("cut_off", 0.5)
    assert gate(sharp, (2, 5, 12, 24), (100, 100)).reason is None
    assert gate(sharp, (0, 5, 12, 24), None).reason is None
    assert QualityGate(min_width=10, min_height=20, edge_margin=None)(
        sharp, (0, 5, 12, 24), (100, 100)
    ).reason is None  # fmt: skip


def test_sharpness_is_the_variance_of_the_laplacian_written_out():
    crop = draw(1, seed=3)[0]
    grey = crop.astype(float) @ [0.299, 0.587, 0.114]
    values = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
        for y in range(1, 23)
        for x in range(1, 11)
    ]
    assert sharpness(crop) == pytest.approx(np.var(values), rel=1e-4)
    assert sharpness(crop[:2]) == 0


@pytest.mark.parametrize("bad", [{"min_height": -1}, {"min_sharpness": float("nan")}])
def test_a_gate_refuses_limits_that_are_none(bad):
    with pytest.raises(ValueError, match=rf"{next(iter(bad))} must be a finite number from 0"):
        QualityGate(**bad)


# --- ageing, bounds, forgetting ------------------------------------------------------------------


def test_a_track_that_returns_after_max_age_begins_anew(model):
    encoder, crops = TrackletEncoder(model, max_age=5), draw(3)
    encoder.update(["a"], crops[:1], 0)
    encoder.update(["a"], crops[1:2], 5)  # not longer than max_age
    assert encoder.state("a").num_crops == 2
    close(encoder.update(["a"], crops[2:], 10.5)["a"], model.encode_sequence(crops[2:]))
    assert encoder.counts["restarted"] == 1


def test_tracks_are_forgotten_when_they_are_too_old_or_too_many(model):
    encoder = TrackletEncoder(model, max_age=10, max_tracks=3)
    encoder.update(["a", "b", "c"], draw(3), 0)
    encoder.update(["a"], draw(1), 4)
    encoder.update(["d"], draw(1), 5)  # b was updated least recently
    assert encoder.track_ids == ("c", "a", "d")
    encoder.update([], [], 11)  # an empty frame: c is older than 10 now
    assert encoder.track_ids == ("a", "d")
    assert encoder.counts["evicted"] == encoder.counts["aged"] == 1


def test_without_times_the_calls_are_counted(model):
    encoder = TrackletEncoder(model, max_age=2)
    encoder.update(["a"], draw(1))
    encoder.update([], [])
    encoder.update(["b"], draw(1))
    assert "a" in encoder
    encoder.update(["b"], draw(1))
    assert "a" not in encoder
    assert (encoder.state("b").first_time, encoder.state("b").last_time) == (2, 3)


def test_videos_one_after_another_may_each_begin_at_zero(model):
    encoder = TrackletEncoder(model, max_age=5)
    encoder.update([("north", 1)], draw(1), 60)
    encoder.update([("south", 1)], draw(1), 0)
    assert len(encoder) == 2


def test_forgetting_leaves_nothing(model):
    encoder = TrackletEncoder(model)
    encoder.update(["a", "b"], draw(2))
    one = encoder.num_bytes
    assert encoder.forget("a")
    assert not encoder.forget("a")
    assert "a" not in encoder
    assert encoder.num_bytes == one // 2
    with pytest.raises(KeyError, match="there is no track 'a'; it never came, or was forgotten"):
        encoder.embedding("a")
    close(encoder.update(["a"], draw(1, 5))["a"], model.encode_sequence(draw(1, 5)))
    encoder.clear()
    assert (len(encoder), encoder.num_bytes) == (0, 0)
    ids, embeddings = encoder.embeddings()
    assert ids == ()
    assert embeddings.shape == (0, model.embedding_dim)


@pytest.mark.parametrize("window", WINDOWS)
def test_memory_is_bounded_however_long_a_track_gets(model, window):
    encoder = TrackletEncoder(model, **window)
    most = 0
    token, embedding = 3 * 64 * 4, model.embedding_dim * 4  # 2 patches and the class token
    frame = token + 64 * 4 + 32 * 4
    limit = window.get("max_frames")
    frames = min(limit or CLIP, CLIP) if window.get("policy") != "diverse" else limit
    clips = 2 if limit is None else -(-limit // CLIP)
    for call in range(40):
        encoder.update(["a"], draw(1, call))
        most = max(most, encoder.num_bytes)
    assert most <= frames * frame + (clips + 1) * embedding


def test_kept_frames_own_their_memory(model):
    """A view into a batch would keep the whole batch."""
    encoder = TrackletEncoder(model)
    encoder.update(range(20), draw(20))
    for track in encoder._tracks.values():
        for frame in track.window.clips[0].frames:
            for part in frame:
                assert part is not None
                assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.slow
def test_thousands_of_tracks(model):
    encoder = TrackletEncoder(model, max_tracks=2000)
    encoder.update(range(2000), np.repeat(draw(20), 100, axis=0))
    encoder.update(range(1000, 3000), np.repeat(draw(20, 1), 100, axis=0))
    assert len(encoder) == 2000
    assert encoder.counts["evicted"] == 1000
    close(encoder.embedding(1500), model.encode_sequence([draw(20)[15], draw(20, 1)[5]]))


# --- frames and boxes ----------------------------------------------------------------------------


def test_boxes_are_clipped_and_those_outside_are_counted(model):
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    boxes = [[-5, -5, 25, 35], [70, 10, 40, 30], [200, 10, 20, 30], [10, 10, 0, 30]]
    encoder = TrackletEncoder(model)
    found = encoder.update_frame(["a", "b", "c", "d"], frame, boxes, 0)
    assert set(found) == {"a", "b"}
    close(found["a"], model.encode_sequence([frame[0:30, 0:20]]))
    close(found["b"], model.encode_sequence([frame[10:40, 70:80]]))
    assert encoder.counts["outside"] == 2
    again = encoder.update_frame(["a"], frame, boxes[2:3], 1)
    close(again["a"], found["a"])  # it is still there, unchanged
    assert encoder.update_frame([], frame, [], 2) == {}


def test_a_whole_frame_gives_the_gate_its_boxes(model):
    seen = []

    def look(crop, box, frame_size):
        seen.append((crop.shape[:2], list(box), frame_size))
        return Judgement(None, 1.0)

    frame = np.zeros((60, 80, 3), dtype=np.uint8)
    TrackletEncoder(model, gate=look).update_frame(["a"], frame, [[-5, 2, 25, 35]])
    assert seen == [((35, 20), [-5, 2, 25, 35], (60, 80))]


def test_zero_crops_are_no_error(model):
    encoder = TrackletEncoder(model)
    assert encoder.update([], []) == {}
    assert encoder.update([], [], []) == {}
    assert encoder.update(np.empty(0, dtype=int), [], np.empty(0)) == {}


def test_ids_of_numpy_and_torch_are_numbers(model):
    encoder = TrackletEncoder(model)
    encoder.update(np.array([3, 4]), draw(2))
    encoder.update(torch.tensor([3, 5]), draw(2))
    assert encoder.track_ids == (4, 3, 5)
    assert np.int64(3) in encoder
    assert encoder.state(torch.tensor(3)).num_crops == 2


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "best"}, "policy must be one of"),
        ({"policy": "diverse"}, "max_frames must be given with policy='diverse', such as 4"),
        ({"max_frames": 6}, "max_frames must be 1 to 4, the model's clip_length, or a multiple"),
        ({"max_frames": 0}, "max_frames must be 1 to 4"),
        ({"max_age": -1}, "max_age must be at least 0, or None, got -1"),
        ({"max_age": float("nan")}, "max_age must be at least 0, or None, got nan"),
        ({"max_tracks": 0}, "max_tracks must be at least 1, got 0"),
        ({"batch_frames": 0}, "batch_frames must be at least 1, got 0"),
        ({"token_dtype": torch.int8}, "token_dtype must be a floating type, or None"),
    ],
)
def test_options_that_cannot_be_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        TrackletEncoder(model, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"crops": draw(1)}, ValueError, "crops must have one entry for each of 2 track_ids"),
        ({"times": [1.0]}, ValueError, "times must have one entry for each of 2 track_ids, got 1"),
        ({"times": float("inf")}, ValueError, "times must be finite, got inf"),
        ({"times": "noon"}, TypeError, "times must be numbers"),
        ({"times": [6, 4]}, ValueError, "times must not go backwards within a track, got 4 for"),
        ({"times": [4, 4]}, ValueError, "got 4 for track 'a' after 5; forget"),
        ({"times": None}, ValueError, "times must be given in every call or in none"),
        ({"cameras": 1}, ValueError, "cameras must not change within a track, got 1 for track 'a'"),
        ({"cameras": 3}, ValueError, "camera must be 0 to 2, or None, got 3"),
        ({"cameras": [0]}, ValueError, "cameras must have one entry for each of 2 track_ids"),
        ({"channels": "gbr"}, ValueError, r"channels must be one of \('rgb', 'bgr'\), got 'gbr'"),
        ({"track_ids": "aa"}, TypeError, "track_ids must be a sequence of ids, got str"),
        ({"track_ids": [["a"], "a"]}, TypeError, "track ids must be numbers or texts, got list"),
        ({"track_ids": ["b", "c"]}, ValueError, "track_ids must name at most max_tracks = 1"),
        ({"crops": [np.zeros((4, 4), np.uint8)] * 2}, FrameError, r"crops\[0\] must be"),
        ({"crops": [np.zeros((4, 4, 3))] * 2}, FrameError, r"crops\[0\] must be uint8"),
        (
            {"crops": [np.zeros((0, 4, 3), np.uint8)] * 2},
            FrameError,
            "at least one frame and pixel",
        ),
        ({"boxes": [[0, 0, 1, 1]]}, ValueError, "boxes must have one entry for each of 2"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(model, arguments, error, message):
    encoder = TrackletEncoder(model, max_tracks=1)
    encoder.update(["a"], draw(1), 5, cameras=0)
    before = encoder.embedding("a"), encoder.state("a"), dict(encoder.counts)
    given = {"track_ids": ["a", "a"], "crops": draw(2), "times": [6, 7], **arguments}
    with pytest.raises(error, match=message):
        encoder.update(**given)
    assert torch.equal(before[0], encoder.embedding("a"))
    assert before[1:] == (encoder.state("a"), dict(encoder.counts))


@pytest.mark.parametrize(
    ("frame", "boxes", "message"),
    [
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 1]], r"boxes must be \(M, 4\)"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 1, np.nan]], r"boxes must be finite, got boxes\[0"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 1, 1]] * 2, "boxes must have one row for each"),
        (np.zeros((9, 9)), [[0, 0, 1, 1]], "frame must be uint8"),
    ],
)
def test_bad_frames_and_boxes_are_one_sentence(model, frame, boxes, message):
    with pytest.raises(FrameError, match=message):
        TrackletEncoder(model).update_frame(["a"], frame, boxes)


def test_a_tower_that_fails_leaves_no_track_without_an_embedding(model, monkeypatch):
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(model.backbone, "forward", fail)
        with pytest.raises(MemoryError):
            encoder.update(["a", "b"], draw(2))
    assert encoder.track_ids == ("a",)
    close(encoder.embedding("a"), model.encode_sequence(draw(1)))
    close(
        encoder.update(["a"], draw(1, 7))["a"], model.encode_sequence([draw(1)[0], draw(1, 7)[0]])
    )


# --- snapshots -----------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    before=st.lists(st.sampled_from([1, "b", ("c", 2)]), max_size=9),
    after=st.lists(st.sampled_from([1, "b", ("c", 2)]), max_size=9),
    window=st.sampled_from(WINDOWS),
    has_times=st.booleans(),
)
def test_a_restored_encoder_goes_on_as_if_nothing_had_happened(
    tmp_path_factory, model, before, after, window, has_times
):
    path = tmp_path_factory.mktemp("snapshot") / "tracks.safetensors"
    encoder = TrackletEncoder(model, max_age=100, gate=QualityGate(min_height=8), **window)
    for call, key in enumerate(before):
        encoder.update([key], draw(1, call), call if has_times else None)
    encoder.snapshot(path)
    other = TrackletEncoder.restore(path, model)
    assert other.gate == encoder.gate
    for one in (encoder, other):
        for call, key in enumerate(after, 50):
            one.update([key], draw(1, call), call if has_times else None)
    assert other.track_ids == encoder.track_ids
    assert other.counts == encoder.counts
    assert other.num_bytes == encoder.num_bytes
    for key in encoder.track_ids:
        assert torch.equal(other.embedding(key), encoder.embedding(key))
        assert other.state(key) == encoder.state(key)


def test_a_stand_in_survives_a_snapshot(model, tmp_path):
    encoder = TrackletEncoder(model, gate=grade, normalize=False)
    encoder.update(["a", "a"], graded(60, 50))
    encoder.snapshot(tmp_path / "tracks")
    with pytest.raises(SnapshotError, match="was taken with a gate that no file can hold"):
        TrackletEncoder.restore(tmp_path / "tracks", model)
    other = TrackletEncoder.restore(tmp_path / "tracks", model, gate=grade)
    for one in (encoder, other):
        one.update(["a"], graded(55))  # no better than 60
    assert torch.equal(other.embedding("a"), encoder.embedding("a"))
    assert other.state("a").kept == (0,)


def test_a_snapshot_is_for_its_owner_and_its_model(model, tmp_path):
    path = tmp_path / "tracks"
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))
    encoder.snapshot(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(SnapshotError, match="holds tracks of the model with fingerprint"):
        TrackletEncoder.restore(path, build(temporal_head="tmc"))


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one(model, tmp_path):
    path = tmp_path / "tracks"
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))
    encoder.snapshot(path)
    before = path.read_bytes()
    encoder.update([frozenset({1})], draw(1))
    with pytest.raises(TypeError, match="track ids of a snapshot must be numbers, texts or tuples"):
        encoder.snapshot(path)
    assert path.read_bytes() == before


def test_files_that_are_no_snapshot_are_one_sentence(model, tmp_path):
    path = tmp_path / "tracks"
    with pytest.raises(SnapshotError, match="there is no such file"):
        TrackletEncoder.restore(path, model)
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))
    encoder.snapshot(path)
    whole = path.read_bytes()
    for damage in (b"", whole[:-7], b"PK\x03\x04" + whole, whole.replace(b'"score"', b'"sc0re"')):
        path.write_bytes(damage)
        with pytest.raises(SnapshotError, match="tracks"):
            TrackletEncoder.restore(path, model)
    other = os.path.join(os.path.dirname(tfclip.__file__), "weights/tfclip-tiny/model.safetensors")  # noqa: PTH118, PTH120
    with pytest.raises(SnapshotError, match="is no snapshot of a TrackletEncoder"):
        TrackletEncoder.restore(other, model)
