"""A threshold that keeps its promise, and probabilities that mean what they say."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tfclip.functional import Calibration, fit_threshold, match


def drawn_pairs(num_same=400, num_different=4000, seed=0):
    """Distances whose logit of P(same) is linear, by Bayes' rule, in the distance."""
    random = np.random.default_rng(seed)
    distance = np.concatenate(
        [random.normal(1, 0.5, num_same), random.normal(2, 0.5, num_different)]
    )
    return torch.from_numpy(distance), torch.arange(len(distance)) < num_same


@st.composite
def labelled_pairs(draw):
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, 8).map(lambda value: value / 4), st.booleans()),
            min_size=2,
            max_size=12,
        )
    )
    distance, same = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assume(same.any() and not same.all())
    assume(distance[same].mean() < distance[~same].mean())
    return distance, same


@settings(max_examples=100, deadline=None)
@given(labelled_pairs(), st.sampled_from([0.25, 0.5, 1.0]))
def test_a_threshold_is_the_largest_distance_that_keeps_the_rate(pairs, rate):
    distance, same = pairs
    different = distance[~same]
    allowed = [d for d in distance.tolist() if (different <= d).double().mean() <= rate]
    if len(different) * rate < 1 or not allowed:
        with pytest.raises(ValueError, match=r"cannot be measured|no threshold reaches"):
            fit_threshold(distance, same, false_match_rate=rate)
        return
    calibration = fit_threshold(distance, same, false_match_rate=rate)
    assert calibration.threshold == max(allowed)
    matched = calibration.match(distance)
    assert calibration.false_match_rate == matched[~same].double().mean()
    assert calibration.false_non_match_rate == pytest.approx(1 - matched[same].double().mean())
    assert (calibration.num_same, calibration.num_different) == (int(same.sum()), len(different))


@settings(max_examples=100, deadline=None)
@given(labelled_pairs(), st.sampled_from([None, 0.1, 0.5]))
def test_isotonic_probabilities_equal_the_min_max_formula(pairs, prior):
    # The least-squares fit that never rises: at each distance the least, over all starts before
    # it, of the greatest mean up to any end after it (Barlow and others, 1972).
    distance, same = pairs
    calibration = fit_threshold(distance, same, false_match_rate=1, prior=prior)
    share = same.double().mean().item()
    prior = share if prior is None else prior
    knots = sorted(set(distance.tolist()))
    assert calibration.prior == prior

    def mean(first, last):
        inside = (distance >= knots[first]) & (distance <= knots[last])
        gain = (same & inside).sum().item() * prior / share
        return gain / (gain + (~same & inside).sum().item() * (1 - prior) / (1 - share))

    expected = [
        min(max(mean(a, b) for b in range(i, len(knots))) for a in range(i + 1))
        for i in range(len(knots))
    ]
    assert calibration.probability(torch.tensor(knots)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_probabilities_never_rise_and_are_right_on_other_pairs(kind):
    calibration = fit_threshold(*drawn_pairs(), kind=kind)
    places = torch.linspace(-1, 4, 500)
    probability = calibration.probability(places)
    assert probability.dtype == torch.float64
    assert (probability.diff() <= 0).all()
    assert 0 <= probability.min() <= probability.max() <= 1
    distance, same = drawn_pairs(seed=1)
    said = calibration.probability(distance)
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        there = (said >= low) & (said < high)
        assert same[there].double().mean() == pytest.approx(said[there].mean().item(), abs=0.1)


@pytest.mark.parametrize("prior", [None, 0.5, 0.01])
def test_a_logistic_fit_finds_the_true_curve(prior):
    distance, same = drawn_pairs(20_000, 40_000)
    calibration = fit_threshold(distance, same, kind="logistic", prior=prior)
    # log N(d; 2, 0.5) - log N(d; 1, 0.5) = 4 d - 6, minus the log odds of the prior
    share = prior or 1 / 3
    assert calibration.slope == pytest.approx(4, rel=0.05)
    assert calibration.intercept == pytest.approx(-6 - np.log(share / (1 - share)), rel=0.05)


def test_a_logistic_fit_is_where_the_likelihood_is_flat():
    distance, same = drawn_pairs(50, 80)
    calibration = fit_threshold(distance, same, kind="logistic", false_match_rate=0.1)
    targets = same.double() * (51 / 52 - 1 / 82) + 1 / 82
    error = calibration.probability(distance) - targets
    assert error.sum().abs() < 1e-8
    assert (error * distance).sum().abs() < 1e-8


def test_kinds_that_do_not_overlap_give_a_finite_logistic_curve():
    distance = torch.tensor([0.1, 0.2, 0.8, 0.9])
    same = torch.tensor([True, True, False, False])
    calibration = fit_threshold(distance, same, kind="logistic", false_match_rate=0.5)
    assert 0 < calibration.slope < 100
    near, far = calibration.probability(torch.tensor([0.1, 0.9])).tolist()
    assert near > 0.6
    assert far < 0.4


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_a_calibration_survives_json(kind):
    calibration = fit_threshold(*drawn_pairs(), kind=kind)
    values = json.loads(json.dumps(calibration.to_dict(), allow_nan=False))
    assert Calibration.from_dict(values) == calibration
    places = torch.linspace(0, 3, 50)
    expected = calibration.probability(places)
    assert torch.equal(Calibration.from_dict(values).probability(places), expected)


@pytest.mark.parametrize("kind", ["isotonic", "logistic"])
def test_what_belongs_to_the_other_kind_stays_empty(kind):
    calibration = fit_threshold(*drawn_pairs(), kind=kind)
    isotonic = calibration.distances, calibration.probabilities
    logistic = calibration.slope, calibration.intercept
    assert (isotonic == ((), ())) == (kind == "logistic")
    assert (logistic == (0, 0)) == (kind == "isotonic")


def test_the_ends_of_every_range_belong_to_it():
    values = fit_threshold(*drawn_pairs()).to_dict()
    values |= {"distances": [0.0, 0.0, 1.0], "probabilities": [1.0, 1.0, 0.0], "slope": 0.0}
    for end in (0, 1):
        rates = ("asked_false_match_rate", "false_match_rate", "false_non_match_rate", "prior")
        calibration = Calibration.from_dict(values | dict.fromkeys(rates, end))
        assert calibration.probability(torch.tensor([-1.0, 0.5, 2.0])).tolist() == [1, 0.5, 0]


def test_a_damaged_calibration_is_refused():
    values = fit_threshold(*drawn_pairs()).to_dict()
    for change, message in (
        ({"threshold": "0.5"}, "threshold must be finite numbers, got '0.5'"),
        ({"threshold": float("nan")}, "threshold must be finite numbers, got nan"),
        ({"kind": "platt"}, "kind must be one of"),
        ({"num_same": True}, "num_same must be finite numbers, got True"),
        ({"prior": 2}, "prior must be from 0 to 1, got 2"),
        ({"prior": -0.5}, "prior must be from 0 to 1, got -0.5"),
        ({"slope": -1.0}, "slope must be at least 0"),
        ({"distances": []}, "of one length"),
        ({"distances": [1.0, 0.0], "probabilities": [1.0, 0.0]}, "must ascend"),
        ({"distances": [0.0, 1.0], "probabilities": [0.0, 1.0]}, "must not rise"),
        ({"distances": [0.0], "probabilities": [2.0]}, "probabilities must be from 0 to 1"),
        ({"colour": 1}, r"check \['colour'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Calibration.from_dict(values | change)
    del values["prior"]
    with pytest.raises(ValueError, match=r"check \['prior'\]"):
        Calibration.from_dict(values)


def test_unless_told_otherwise_one_false_match_in_a_thousand_is_asked_for():
    calibration = fit_threshold(*drawn_pairs())
    assert (calibration.asked_false_match_rate, calibration.kind) == (1e-3, "isotonic")


def test_matching_gives_the_first_nearest_row_or_rejects():
    calibration = dataclasses.replace(fit_threshold(*drawn_pairs()), threshold=0.5)
    distance = torch.tensor([[0.9, 0.5, 0.5], [0.7, 0.6, 0.8]])
    assert match(distance, calibration).tolist() == [1, -1]  # at the threshold is a match
    assert match(distance, calibration, reject=False).tolist() == [1, 1]
    assert match(distance, calibration).dtype == torch.long
    with pytest.raises(ValueError, match="distance must be finite, got nan"):
        match(torch.tensor([[torch.nan]]), calibration)


def test_pairs_that_teach_nothing_are_refused():
    distance, same = drawn_pairs()
    with pytest.raises(ValueError, match=r"smaller for pairs of one person.*is it a similarity"):
        fit_threshold(-distance, same)
    with pytest.raises(ValueError, match="cannot be measured with 4000 pairs of two persons"):
        fit_threshold(distance, same, false_match_rate=1e-4)
    with pytest.raises(ValueError, match=r"no threshold reaches a false_match_rate of 0\.5"):
        fit_threshold(
            torch.tensor([0.0, 0.0, 0.0, 1.0]),
            torch.tensor([True, False, False, False]),
            false_match_rate=0.5,
        )
    with pytest.raises(ValueError, match="kind must be one of"):
        fit_threshold(distance, same, kind="platt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prior must be between 0 and 1, got 1"):
        fit_threshold(distance, same, prior=1)
    with pytest.raises(ValueError, match="prior must be between 0 and 1, got 0"):
        fit_threshold(distance, same, prior=0)
    with pytest.raises(ValueError, match="distance must be a number, got NaN"):
        fit_threshold(distance, same).probability(torch.tensor([torch.nan]))


def test_a_million_pairs_are_pooled_in_moments():
    distance, same = drawn_pairs(20_000, 1_000_000)
    calibration = fit_threshold(distance, same, false_match_rate=1e-4)
    assert calibration.false_match_rate <= 1e-4
    assert len(calibration.distances) < 2000
