"""Tracklets that grow: the same as encoding what counts at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracking.growing import CLIP, WINDOWS, build, close, draw
from tfclip import TFCLIP, TFCLIPConfig, TrackletEncoder
from tfclip.tracking import Judgement
from tfclip.tracking.windows import most_redundant

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
