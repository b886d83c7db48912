"""What a grouping is worth: every figure against a slow reading of its definition."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.errors import MissingExtraError
from tfclip.functional import ClusteringResult, evaluate_clustering

pytest.importorskip("scipy", reason="SciPy (extra 'cluster') is not installed")


def harmonic(a, b):
    return 2 * a * b / (a + b) if a + b else 0.0


def pairwise(labels, persons):
    """Count every pair of rows."""
    grouped = true = both = 0
    for i, j in itertools.combinations(range(len(labels)), 2):
        grouped += labels[i] == labels[j]
        true += persons[i] == persons[j]
        both += labels[i] == labels[j] and persons[i] == persons[j]
    precision = both / grouped if grouped else 1.0
    recall = both / true if true else 1.0
    return precision, recall, harmonic(precision, recall)


def bcubed(labels, persons):
    """Ask each row about its group and its person."""
    precisions, recalls = [], []
    rows = range(len(labels))
    for i in rows:
        group = [j for j in rows if labels[j] == labels[i]]
        person = [j for j in rows if persons[j] == persons[i]]
        right = len(set(group) & set(person))
        precisions.append(right / len(group))
        recalls.append(right / len(person))
    precision, recall = sum(precisions) / len(rows), sum(recalls) / len(rows)
    return precision, recall, harmonic(precision, recall)


def purity(labels, persons):
    right = 0
    for label in set(labels):
        members = [p for g, p in zip(labels, persons, strict=True) if g == label]
        right += max(members.count(person) for person in members)
    return right / len(labels)


def identity_f1(labels, persons):
    """Try every way to give each group a person of its own, or none."""
    groups, people = sorted(set(labels)), sorted(set(persons))
    choices = people + [None] * len(groups)
    best = 0
    for chosen in set(itertools.permutations(choices, len(groups))):
        meaning = dict(zip(groups, chosen, strict=True))
        right = sum(meaning[g] == p for g, p in zip(labels, persons, strict=True))
        best = max(best, right)
    # Ristani and others (2016): 2 IDTP / (2 IDTP + IDFP + IDFN)
    wrong = len(labels) - best
    return 2 * best / (2 * best + wrong + wrong)


def adjusted_rand(labels, persons):
    """Compare with the mean over every reordering of the labels: what chance gives."""
    pairs = list(itertools.combinations(range(len(labels)), 2))

    def together(groups):
        return sum(groups[i] == groups[j] and persons[i] == persons[j] for i, j in pairs)

    shuffled = [together(order) for order in itertools.permutations(labels)]
    expected = sum(shuffled) / math.factorial(len(labels))
    most = sum((labels[i] == labels[j]) + (persons[i] == persons[j]) for i, j in pairs) / 2
    return (together(labels) - expected) / (most - expected) if most != expected else 1.0


@st.composite
def groupings(draw, most=9, kinds=5):
    size = draw(st.integers(1, most))
    column = st.lists(st.integers(0, kinds - 1), min_size=size, max_size=size)
    return draw(column), draw(column)


@settings(max_examples=150, deadline=None)
@given(groupings())
def test_pairs_rows_and_purity_equal_their_definitions(grouping):
    labels, persons = grouping
    result = evaluate_clustering(labels, persons)
    found = (result.pairwise_precision, result.pairwise_recall, result.pairwise_f1)
    assert found == pytest.approx(pairwise(labels, persons))
    found = (result.bcubed_precision, result.bcubed_recall, result.bcubed_f1)
    assert found == pytest.approx(bcubed(labels, persons))
    assert result.purity == pytest.approx(purity(labels, persons))
    assert result.inverse_purity == pytest.approx(purity(persons, labels))
    assert result.num_tracklets == len(labels)
    assert (result.num_clusters, result.num_persons) == (len(set(labels)), len(set(persons)))


@settings(max_examples=80, deadline=None)
@given(groupings(most=7, kinds=3))
def test_matching_and_chance_equal_every_possibility_tried(grouping):
    labels, persons = grouping
    result = evaluate_clustering(labels, persons)
    assert result.identity_f1 == pytest.approx(identity_f1(labels, persons))
    if len(labels) <= 6:  # 720 orders
        expected = adjusted_rand(labels, persons)
        assert result.adjusted_rand_index == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(groupings(most=30, kinds=12), st.randoms(use_true_random=False))
def test_names_and_order_of_rows_do_not_count(grouping, random):
    labels, persons = grouping
    order = list(range(len(labels)))
    random.shuffle(order)
    renamed = [f"group {-labels[row]}" for row in order]
    assert evaluate_clustering(renamed, torch.tensor(persons)[order]).to_dict() == pytest.approx(
        evaluate_clustering(np.array(labels), persons).to_dict()
    )


def test_a_grouping_done_by_hand():
    # Groups: {a a a b}, {b b c}, {c}. Pairs in a group 6 + 3 = 9, of a person 3 + 3 + 1 = 7, of
    # both 3 + 1 = 4. Best matching: first group a (3), second b (2), third c (1): 6 of 8.
    # B-cubed precision: rows of a 3/4 each, the b among them 1/4; b 2/3 each, c 1/3; c 1:
    # (9/4 + 1/4 + 4/3 + 1/3 + 1) / 8 = 31/48. Recall: a 1 each, b 1/3 and twice 2/3, c twice 1/2:
    # (3 + 5/3 + 1) / 8 = 17/24. Rand: of 28 pairs, expected 9 * 7 / 28 = 9/4, at most 8.
    result = evaluate_clustering([0, 0, 0, 0, 1, 1, 1, 2], list("aaabbbcc"))
    assert (result.pairwise_precision, result.pairwise_recall) == (4 / 9, 4 / 7)
    assert result.pairwise_f1 == pytest.approx(1 / 2)
    assert result.identity_f1 == 6 / 8
    assert result.purity == 6 / 8
    assert result.inverse_purity == 6 / 8  # a 3, b 2, c 1
    assert result.bcubed_precision == pytest.approx(31 / 48)
    assert result.bcubed_recall == pytest.approx(17 / 24)
    assert result.adjusted_rand_index == pytest.approx((4 - 9 / 4) / (8 - 9 / 4))


def test_identity_matching_may_have_to_give_up_the_largest_overlap():
    # Group 0 shares 3 rows with a and 3 with b; group 1 shares 2 with a only: 3 + 2, not 3 + 0.
    labels, persons = [0] * 6 + [1] * 2, list("aaabbb") + list("aa")
    assert evaluate_clustering(labels, persons).identity_f1 == 5 / 8


def test_one_group_for_all_and_one_for_each_are_told_from_a_right_one():
    persons = [0, 0, 1, 1, 2, 2]
    right = evaluate_clustering(persons, persons)
    assert {value for value in right.to_dict().values() if isinstance(value, float)} == {1.0}
    all_in_one = evaluate_clustering([0] * 6, persons)
    assert (all_in_one.pairwise_precision, all_in_one.pairwise_recall) == (3 / 15, 1)
    assert (all_in_one.adjusted_rand_index, all_in_one.inverse_purity) == (0, 1)
    alone = evaluate_clustering(range(6), persons)
    assert (alone.pairwise_precision, alone.pairwise_recall, alone.pairwise_f1) == (1, 0, 0)
    assert (alone.adjusted_rand_index, alone.purity, alone.identity_f1) == (0, 1, 1 / 2)


def test_a_hundred_thousand_rows_make_no_table_of_all_groups_and_persons():
    # 30,000 groups by 30,000 persons would be 7 GB; and their pairs overflow 64 bits if multiplied.
    persons = np.repeat(np.arange(30_000), 4)
    labels = persons.copy()
    labels[::40] = 0
    result = evaluate_clustering(labels, persons)
    assert result.identity_f1 == pytest.approx(1 - 2999 / 120_000)
    assert 0.03 < result.pairwise_precision < 0.04
    assert 0 < result.adjusted_rand_index < 0.1


def test_it_is_written_read_and_printed():
    result = evaluate_clustering([0, 0, 1], ["a", "a", "a"])
    assert ClusteringResult.from_dict(json.loads(result.to_json())) == result
    assert str(result).splitlines() == [
        "pairwise F1       50.00%  (precision 100.00%, recall 33.33%)",
        "B-cubed F1        71.43%  (precision 100.00%, recall 55.56%)",
        "identity F1       66.67%",
        "purity           100.00%",
        "inverse purity    66.67%",
        "adjusted Rand     0.0000",
        "tracklets       3 of 1 persons in 2 groups",
    ]
    with pytest.raises(ValueError, match=r"must have its figures and no other entry.*'mAP'"):
        ClusteringResult.from_dict({**result.to_dict(), "mAP": 1})


@pytest.mark.parametrize(
    ("labels", "persons", "message"),
    [
        ([0, 1], [0], "labels and persons must have one length, got 2 and 1"),
        ([], [], r"labels must be \(M,\) with at least one row, got \[\]"),
        ([[0]], [0], r"labels must be \(M,\) with at least one row, got \[\[0\]\]"),
        (torch.tensor(3), [0], r"labels must be \(M,\) with at least one row, got tensor\(3\)"),
        ([0, 1], ["a", None], "persons must be known, got None in row 1"),
        ([0, math.nan], ["a", "b"], "labels must be known, got nan in row 1"),
    ],
)
def test_bad_input_is_one_sentence(labels, persons, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        evaluate_clustering(labels, persons)


def test_a_missing_scipy_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"needs SciPy.*pip install 'tfclip\[cluster\]'$"):
        evaluate_clustering([0], [0])
