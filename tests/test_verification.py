"""Pairs, error rates and open-set search against slow readings of their definitions."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.functional import (
    Pairs,
    candidates,
    equal_error_rate,
    open_set_identification,
    pair_scores,
    roc_curve,
    tpr_at_fpr,
)

COARSE = st.integers(0, 6).map(lambda value: value / 4)  # exact in float32, and full of ties


@st.composite
def labelled_pairs(draw):
    """Pairs of both kinds, with ties."""
    pairs = draw(st.lists(st.tuples(COARSE, st.booleans()), max_size=14))
    pairs += [(draw(COARSE), True), (draw(COARSE), False)]
    distance, same = zip(*draw(st.permutations(pairs)), strict=True)
    return Pairs(torch.tensor(distance), torch.tensor(same))


def rates_at(pairs, threshold):
    """Count false and true matches at one threshold."""
    pairs = list(zip(*(column.tolist() for column in pairs), strict=True))
    false = [d <= threshold for d, is_same in pairs if not is_same]
    true = [d <= threshold for d, is_same in pairs if is_same]
    return sum(false) / len(false), sum(true) / len(true)


@settings(max_examples=100, deadline=None)
@given(labelled_pairs(), st.randoms())
def test_a_roc_curve_counts_at_every_threshold(pairs, random):
    curve = roc_curve(*pairs)
    thresholds = [-float("inf"), *sorted(set(pairs[0].tolist()))]
    assert curve.threshold.tolist() == thresholds
    expected = [rates_at(pairs, threshold) for threshold in thresholds]
    assert list(zip(*(rate.tolist() for rate in curve[1:]), strict=True)) == expected
    order = list(range(len(pairs[0])))
    random.shuffle(order)
    for ours, theirs in zip(curve, roc_curve(pairs[0][order], pairs[1][order]), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(labelled_pairs(), st.floats(0.05, 1))
def test_the_true_match_rate_is_the_best_that_a_threshold_reaches(pairs, rate):
    if (~pairs[1]).sum() * rate < 1:
        with pytest.raises(ValueError, match="cannot be measured with"):
            tpr_at_fpr(pairs.distance, pairs.same, rate)
        return
    points = [rates_at(pairs, threshold) for threshold in [-1.0, *pairs[0].tolist()]]
    assert tpr_at_fpr(pairs.distance, pairs.same, rate) == max(
        true for false, true in points if false <= rate
    )


@settings(max_examples=100, deadline=None)
@given(labelled_pairs())
def test_at_the_equal_error_rate_the_two_errors_meet(pairs):
    thresholds = [-1.0, *sorted(set(pairs[0].tolist()))]
    points = [rates_at(pairs, threshold) for threshold in thresholds]
    for (false, true), (next_false, next_true) in pairwise(points):
        if next_false >= 1 - next_true:  # bisect the line between the two points
            low, high = 0.0, 1.0
            for _ in range(60):
                middle = (low + high) / 2
                gap = (1 - middle) * (false + true) + middle * (next_false + next_true) - 1
                low, high = (middle, high) if gap < 0 else (low, middle)
            expected = (1 - high) * false + high * next_false
            assert equal_error_rate(*pairs) == pytest.approx(expected, abs=1e-9)
            return
    pytest.fail("the two errors never meet")


def test_error_rates_by_hand():
    distance = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.2, 0.4, 0.6, 0.7, 0.8])
    same = torch.tensor([True] * 4 + [False] * 5)
    # At 0.4: 3 of 4 true and 2 of 5 false; at 0.3: 3 of 4 and 1 of 5. From FMR 0.2 to 0.4 the
    # line at FNMR 0.25 is met at FMR 0.25.
    assert equal_error_rate(distance, same) == pytest.approx(0.25)
    assert tpr_at_fpr(distance, same, 0.2) == 0.75
    assert tpr_at_fpr(distance, same, 0.39) == 0.75
    assert tpr_at_fpr(distance, same, 0.4) == 1
    separable = torch.tensor([0.1, 0.2]), torch.tensor([True, False])
    assert equal_error_rate(*separable) == 0
    assert equal_error_rate(separable[0], ~separable[1]) == 1
    assert equal_error_rate(torch.zeros(2), separable[1]) == 0.5


@st.composite
def searches(draw):
    """A matrix of distances with labels and options."""
    num_queries, num_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    row = st.lists(COARSE, min_size=num_gallery, max_size=num_gallery)
    labels = (
        [draw(st.integers(0, 4)) for _ in range(num_queries)],
        [draw(st.integers(-1, 3)) for _ in range(num_gallery)],
        [draw(st.integers(0, 2)) for _ in range(num_queries)],
        [draw(st.integers(0, 2)) for _ in range(num_gallery)],
    )
    options = {
        "exclude": draw(st.sampled_from(["person_and_camera", "camera", "none"])),
        "junk_ids": draw(st.sampled_from([(), {-1}])),
    }
    return torch.tensor([draw(row) for _ in range(num_queries)]), labels, options


def stays(labels, options, q, g):
    query_ids, gallery_ids, query_cameras, gallery_cameras = labels
    same_camera = gallery_cameras[g] == query_cameras[q]
    if options["exclude"] == "person_and_camera" and same_camera:
        return gallery_ids[g] != query_ids[q] and gallery_ids[g] not in options["junk_ids"]
    if options["exclude"] == "camera" and same_camera:
        return False
    return gallery_ids[g] not in options["junk_ids"]


@settings(max_examples=100, deadline=None)
@given(searches())
def test_pairs_are_what_stands_in_the_rankings(search):
    distance, labels, options = search
    expected = [
        (distance[q, g].item(), labels[0][q] == labels[1][g])
        for q in range(distance.shape[0])
        for g in range(distance.shape[1])
        if stays(labels, options, q, g)
    ]
    if not any(is_same for _, is_same in expected):
        with pytest.raises(ValueError, match="no query has a right match"):
            pair_scores(distance, *labels, **options)
        return
    pairs = pair_scores(distance, *labels, **options)
    assert list(zip(pairs.distance.tolist(), pairs.same.tolist(), strict=True)) == expected


def test_of_too_many_pairs_a_fair_share_is_kept(monkeypatch):
    monkeypatch.setattr(candidates, "_BLOCK_ENTRIES", 5000)
    generator = torch.Generator().manual_seed(0)
    persons = torch.randint(20, (300,), generator=generator)
    distance = torch.rand(300, 300, generator=generator)
    cameras = torch.arange(300)
    every = pair_scores(distance, persons, persons, cameras, cameras)
    some = pair_scores(distance, persons, persons, cameras, cameras, max_different=20_000)
    assert torch.equal(some.distance[some.same], every.distance[every.same])
    assert 18_000 < (~some.same).sum() < 20_500
    assert some.distance[~some.same].mean() == pytest.approx(
        every.distance[~every.same].mean().item(), abs=0.01
    )
    again = pair_scores(distance, persons, persons, cameras, cameras, max_different=20_000, seed=0)
    assert torch.equal(some.distance, again.distance)
    other = pair_scores(distance, persons, persons, cameras, cameras, max_different=20_000, seed=1)
    assert len(some.distance) != len(other.distance) or not torch.equal(some[0], other[0])


@settings(max_examples=100, deadline=None)
@given(searches(), st.sampled_from([0.2, 0.34, 0.5, 1.0]))
def test_open_set_rates_equal_a_count_over_all_thresholds(search, rate):
    distance, labels, options = search
    mated, strangers = [], []
    for q in range(distance.shape[0]):
        kept = [g for g in range(distance.shape[1]) if stays(labels, options, q, g)]
        nearest = min(kept, key=lambda g: distance[q, g].item()) if kept else None
        value = float("inf") if nearest is None else distance[q, nearest].item()
        if any(labels[1][g] == labels[0][q] for g in kept):
            mated.append((value, labels[1][nearest] == labels[0][q]))
        else:
            strangers.append(value)
    options["false_alarm_rates"] = [rate]
    if not mated or len(strangers) * rate < 1:
        with pytest.raises(ValueError, match=r"no query has a right match|cannot be measured"):
            open_set_identification(distance, *labels, **options)
        return
    best = 0.0
    for threshold in sorted(set(distance.flatten().tolist())):
        if sum(value <= threshold for value in strangers) / len(strangers) <= rate:
            found = sum(is_right and value <= threshold for value, is_right in mated)
            best = max(best, found / len(mated))
    result = open_set_identification(distance, *labels, **options)
    assert result.rates == (best,)
    assert (result.num_mated, result.num_non_mated) == (len(mated), len(strangers))
    alarms = sum(value <= result.thresholds[0] for value in strangers) / len(strangers)
    assert result.reached == (alarms,)
    assert alarms <= rate


def test_a_stranger_nearer_than_all_leaves_no_threshold():
    distance = torch.tensor([[0.5, 0.9], [0.1, 0.9], [0.1, 0.8]])
    labels = [1, 8, 9], [1, 2], [0, 0, 0], [1, 1]
    result = open_set_identification(distance, *labels, false_alarm_rates=(0.5, 1))
    assert result.thresholds == (-float("inf"), 0.5)
    assert result.rates == (0, 1)
    assert result.reached == (0, 1)


def test_unless_told_otherwise_one_false_alarm_in_a_hundred_and_in_ten_is_asked_for():
    distance = torch.rand(101, 1, generator=torch.Generator().manual_seed(0))
    result = open_set_identification(distance, list(range(101)), [0], [0] * 101, [1])
    assert result.false_alarm_rates == (0.01, 0.1)


def test_rates_that_so_few_trials_cannot_show_are_refused():
    distance, same = torch.rand(100), torch.arange(100) < 50
    with pytest.raises(ValueError, match=r"0\.001 cannot be measured with 50 pairs .* least 1000"):
        tpr_at_fpr(distance, same, 1e-3)
    with pytest.raises(ValueError, match="false_match_rate must be above 0 and at most 1, got 0"):
        tpr_at_fpr(distance, same, 0)
    with pytest.raises(ValueError, match=r"0\.01 cannot be measured with 1 non-mated .* least 100"):
        open_set_identification(torch.rand(2, 1), [1, 2], [1], [0, 0], [1])
    assert tpr_at_fpr(torch.rand(20), torch.arange(20) < 10, 0.1) >= 0  # one of 10 is enough


def test_bad_pairs_are_refused():
    distance, same = torch.tensor([0.1, 0.2]), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"must both be \(M,\), got shapes \(2,\) and \(1,\)"):
        roc_curve(distance, same[:1])
    with pytest.raises(TypeError, match="distance must be floating point"):
        roc_curve(same, same)
    with pytest.raises(TypeError, match="same must be boolean"):
        roc_curve(distance, distance)
    with pytest.raises(ValueError, match="distance must be finite, got inf at position 1"):
        roc_curve(torch.tensor([0.1, torch.inf]), same)
    with pytest.raises(ValueError, match="got none of two persons"):
        equal_error_rate(distance, same | True)
    with pytest.raises(ValueError, match="got none of one person"):
        equal_error_rate(distance, same & False)
    with pytest.raises(ValueError, match="got none of two persons"):
        roc_curve(distance[:0], same[:0])
    with pytest.raises(ValueError, match="max_different must be at least 1"):
        pair_scores(torch.rand(1, 1), [1], [1], [0], [1], max_different=0)
    with pytest.raises(ValueError, match="false_alarm_rates must have at least one"):
        open_set_identification(torch.rand(2, 1), [1, 2], [1], [0, 0], [1], false_alarm_rates=[])


def test_pairs_of_one_person_are_kept_though_one_of_two_is_all_that_is_asked_for():
    distance = torch.tensor([[0.1, 0.2, 0.9]])
    pairs = pair_scores(distance, [7], [7, 8, 7], [0], [1, 1, 2], max_different=1)
    assert torch.equal(pairs.distance[pairs.same], distance[0, [0, 2]])


def test_pairs_of_any_precision_lose_no_order():
    distance = torch.from_numpy(np.array([1.0, 1.0 + 1e-15, 2.0]))
    curve = roc_curve(distance, torch.tensor([True, False, True]))
    assert curve.false_match_rate.tolist() == [0, 0, 1, 1]
