"""Crops that are too bad to count."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tracking.growing import close, draw, grade, graded
from tfclip import TrackletEncoder
from tfclip.tracking import Judgement, QualityGate, sharpness


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
