"""Tracklets grouped into people: what rules forbid never happens, and the rest is SciPy's tree."""

import itertools
import math
import sys
import tracemalloc
from collections.abc import Set
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip import TFCLIP, association
from tfclip.association import associate
from tfclip.data import SyntheticTracklets
from tfclip.errors import MissingExtraError
from tfclip.functional import (
    cosine_distance,
    evaluate_clustering,
    fit_threshold,
    pair_scores,
    squared_euclidean_distance,
)

hierarchy = pytest.importorskip(
    "scipy.cluster.hierarchy", reason="SciPy (extra 'cluster') is not installed"
)
LINKAGES = ("average", "complete", "single")


def drawn_rows(seed, size, width=3):
    """Draw embeddings whose distances are all different."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, width, generator=generator, dtype=torch.float64)


def drawn_rules(seed, size) -> tuple[dict[str, Any], set[frozenset[int]]]:
    """Draw rules that do not contradict each other, as they are given and as forbidden pairs."""
    random = np.random.default_rng(seed)
    cameras = [None if c == 3 else int(c) for c in random.integers(0, 4, size)]
    begin = random.integers(0, 30, size).astype(float)
    times = np.stack([begin, begin + random.integers(0, 8, size)], axis=1)
    times[random.random(size) < 0.1] = math.nan
    travel = random.choice([-math.inf, 0.0, 4.0, 12.0], (3, 3))
    pairs = list(itertools.combinations(range(size), 2))
    said = [pair for pair in pairs if random.random() < 0.1]
    forbidden = {frozenset(pair) for pair in said}
    forbidden |= {
        frozenset(pair) for pair in pairs if cannot_be_one_person(*pair, cameras, times, travel)
    }
    groups = {row: {row} for row in range(size)}
    must = []
    for i, j in pairs:
        both = groups[i] | groups[j]
        inside = {frozenset(pair) for pair in itertools.combinations(both, 2)}
        if random.random() < 0.1 and not inside & forbidden:
            must.append((j, i))
            groups.update(dict.fromkeys(both, both))
    rules = {
        "cameras": cameras,
        "times": times,
        "min_travel": travel,
        "cannot_link": said,
        "must_link": must,
    }
    return rules, forbidden


def cannot_be_one_person(i, j, cameras, times, travel):
    """Read the rules on cameras and times literally."""
    a, b = cameras[i], cameras[j]
    if a is None or b is None or np.isnan(times[[i, j]]).any():
        return False
    (begin_i, end_i), (begin_j, end_j) = times[i], times[j]
    if a == b:
        instants = set(range(int(begin_i), int(end_i) + 1))
        return bool(instants & set(range(int(begin_j), int(end_j) + 1)))
    return not (begin_j - end_i >= travel[a, b] or begin_i - end_j >= travel[b, a])


def slow_association(distance, threshold, linkage, forbidden: Set = frozenset(), must=()):
    """Merge the two nearest groups that may merge, again and again, until they are too far."""
    groups = [{row} for row in range(len(distance))]
    for i, j in must:
        both = [group for group in groups if i in group or j in group]
        groups = [group for group in groups if group not in both] + [set.union(*both)]
    measure = {"average": np.mean, "complete": np.max, "single": np.min}[linkage]
    while True:
        best = None
        for a, b in itertools.combinations(groups, 2):
            if any(frozenset(pair) in forbidden for pair in itertools.product(a, b)):
                continue
            between = measure([distance[i, j] for i in a for j in b])
            if between <= threshold and (best is None or between < best[0]):
                best = between, a, b
        if best is None:
            return {frozenset(group) for group in groups}
        groups = [group for group in groups if group not in best[1:]] + [best[1] | best[2]]


def partition(labels):
    rows = range(len(labels))
    return {frozenset(row for row in rows if labels[row] == label) for label in labels.tolist()}


seeds = st.integers(0, 2**32 - 1)
problems = {
    "seed": seeds,
    "size": st.integers(1, 14),
    "threshold": st.floats(0, 12),
    "linkage": st.sampled_from(LINKAGES),
}


@settings(max_examples=200, deadline=None)
@given(**problems)
def test_it_is_the_slow_reading_of_constrained_clustering(seed, size, threshold, linkage):
    rows = drawn_rows(seed, size)
    rules, forbidden = drawn_rules(seed, size)
    found = associate(rows, threshold=threshold, linkage=linkage, **rules)
    distance = torch.cdist(rows, rows).square().numpy()
    expected = slow_association(distance, threshold, linkage, forbidden, rules["must_link"])
    assert partition(found.labels) == expected
    assert found.num_people == len(expected)


@settings(max_examples=200, deadline=None)
@given(**{**problems, "size": st.integers(1, 40)}, ties=st.booleans())
def test_no_group_holds_a_forbidden_pair_and_must_links_are_kept(
    seed, size, threshold, linkage, ties
):
    rows = drawn_rows(seed, size)
    if ties:
        rows = rows.round()  # many equal rows and equal distances
    rules, forbidden = drawn_rules(seed, size)
    for cut in (threshold, math.inf):
        found = associate(rows, threshold=cut, linkage=linkage, **rules)
        labels = found.labels.tolist()
        assert not [pair for pair in forbidden if len({labels[row] for row in pair}) == 1]
        assert all(labels[i] == labels[j] for i, j in rules["must_link"])
        assert sorted(set(labels)) == list(range(found.num_people))  # a partition, numbered
        first_seen = list(dict.fromkeys(labels))
        assert first_seen == sorted(first_seen)


@settings(max_examples=100, deadline=None)
@given(**problems, metric=st.sampled_from(["squared_euclidean", "cosine"]))
def test_without_rules_it_is_the_tree_of_scipy(seed, size, threshold, linkage, metric):
    rows = drawn_rows(seed, size + 1)
    measure = cosine_distance if metric == "cosine" else squared_euclidean_distance
    upper = np.triu_indices(len(rows), 1)
    tree = hierarchy.linkage(measure(rows, rows).numpy()[upper], linkage)
    expected = torch.from_numpy(hierarchy.fcluster(tree, threshold, criterion="distance"))
    found = associate(rows, threshold=threshold, linkage=linkage, metric=metric)
    assert partition(found.labels) == partition(expected)
    assert found.forbidden == ()


@settings(max_examples=60, deadline=None)
@given(**problems)
def test_the_order_of_rows_does_not_count(seed, size, threshold, linkage):
    rows = drawn_rows(seed, size)
    rules, _ = drawn_rules(seed, size)
    order = np.random.default_rng(seed).permutation(size)
    place = order.argsort()
    moved: dict[str, Any] = {
        "cameras": [rules["cameras"][row] for row in order],
        "times": rules["times"][order],
        "min_travel": rules["min_travel"],
        "cannot_link": [(int(place[i]), int(place[j])) for i, j in rules["cannot_link"]],
        "must_link": [(int(place[i]), int(place[j])) for i, j in rules["must_link"]],
    }
    before = associate(rows, threshold=threshold, linkage=linkage, **rules)
    after = associate(rows[order], threshold=threshold, linkage=linkage, **moved)
    assert partition(before.labels) == partition(after.labels[place])
    assert [rule.num_pairs for rule in before.forbidden] == [
        rule.num_pairs for rule in after.forbidden
    ]


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("with_rules", [False, True])
def test_parts_found_by_strips_give_what_one_part_of_all_gives(monkeypatch, linkage, with_rules):
    rows = drawn_rows(1, 120, width=4).float()
    rules = drawn_rules(1, 120)[0] if with_rules else {}
    found = associate(rows, threshold=0.6, linkage=linkage, **rules)
    assert found.largest_part < 120
    monkeypatch.setattr(association, "_BLOCK_ENTRIES", 300)  # strips of 2 rows and more
    in_strips = associate(rows, threshold=0.6, linkage=linkage, **rules)
    monkeypatch.setattr(association, "_rounding", lambda *_: math.inf)  # everything is linked
    without_parts = associate(rows, threshold=0.6, linkage=linkage, **rules)
    assert without_parts.largest_part == 120
    assert found.labels.equal(in_strips.labels)
    assert found.labels.equal(without_parts.labels)
    assert found.forbidden == in_strips.forbidden == without_parts.forbidden
    assert found.num_people > 1


@pytest.mark.parametrize("linkage", LINKAGES)
def test_the_ends_of_the_threshold(linkage):
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))[
        torch.tensor([0, 1, 2, 0, 3, 1, 0, 4])
    ]
    nearest = associate(rows, threshold=0, linkage=linkage)
    assert nearest.labels.tolist() == [0, 1, 2, 0, 3, 1, 0, 4]  # equal rows, and no other
    assert associate(rows, threshold=math.inf, linkage=linkage).labels.tolist() == [0] * 8
    apart = associate(rows, threshold=math.inf, linkage=linkage, cannot_link=[(0, 3)])
    assert apart.num_people == 2
    nobody = associate(rows[:3], threshold=math.inf, cannot_link=[(0, 1), (0, 2), (1, 2)])
    assert (nobody.num_people, nobody.largest_part) == (3, 1)  # forbidden pairs link no part


@settings(max_examples=60, deadline=None)
@given(seed=seeds, size=st.integers(2, 25))
def test_forbidden_pairs_are_counted_by_rule(seed, size):
    rows = drawn_rows(seed, size).float()
    rules, forbidden = drawn_rules(seed, size)
    del rules["must_link"]
    found = associate(rows, threshold=2.5, **rules)
    distance = squared_euclidean_distance(rows, rows)
    for rule, num_pairs, num_near in found.forbidden:
        pairs = [p for p in itertools.combinations(range(size), 2) if frozenset(p) in forbidden]
        if rule == "cannot_link":
            pairs = rules["cannot_link"]
        else:
            same = rule == "overlap"
            cameras, times, travel = rules["cameras"], rules["times"], rules["min_travel"]
            pairs = [
                (i, j)
                for i, j in pairs
                if (cameras[i] == cameras[j]) == same
                and cannot_be_one_person(i, j, cameras, times, travel)
            ]
        assert num_pairs == len(pairs)
        assert num_near == sum(float(distance[i, j]) <= 2.5 for i, j in pairs)
        assert all(found.why_not(i, j) for i, j in pairs)
    for pair in itertools.combinations(range(size), 2):
        assert (found.why_not(*pair) is None) == (frozenset(pair) not in forbidden)


def test_reasons_are_said_in_words():
    found = associate(
        torch.zeros(4, 1),
        threshold=1,
        cameras=[0, 0, 1, 1],
        times=[(0, 9), (9, 12.5), (15, 20), (60, 70)],
        min_travel=[[0, 30], [20, 0]],
        cannot_link=[(3, 0)],
    )
    assert (
        found.why_not(1, 0) == "rows 1 and 0 are both of camera 0, from 9 to 12.5 and from 0 to 9"
    )
    assert found.why_not(1, 2) == (
        "rows 1 and 2 are of camera 0 from 9 to 12.5 and of camera 1 from 15 to 20, with at least "
        "30 from the one to the other and 20 back"
    )
    assert found.why_not(0, 3) == "rows 0 and 3 are in cannot_link"
    assert found.why_not(2, 3) is None
    with pytest.raises(ValueError, match=r"^rows must be two rows from 0 to 3, got \(2, 2\)$"):
        found.why_not(2, 2)


def test_average_linkage_needs_more_than_a_distance_beyond_the_threshold():
    # Rows 0 and 5 are forbidden and the other pairs near: had the forbidden pair merely the
    # distance 1 above the threshold 0.5, the mean over the pairs of two groups would hide it.
    rows = torch.tensor([[0.0], [0.01], [0.02], [0.031], [0.042], [0.053]])
    found = associate(rows, threshold=0.5, cannot_link=[(0, 5)])
    assert found.labels[0] != found.labels[5]
    assert found.num_people == 2
    distance = squared_euclidean_distance(rows, rows).numpy()
    distance[0, 5] = distance[5, 0] = 1
    tree = hierarchy.linkage(distance[np.triu_indices(6, 1)], "average")
    assert len(set(hierarchy.fcluster(tree, 0.5, criterion="distance"))) == 1


def test_a_must_link_beyond_the_threshold_is_kept_though_a_third_row_is_nearer():
    rows = torch.tensor([[0.0], [9.0], [0.0], [0.0]])
    for linkage in LINKAGES:
        found = associate(rows, threshold=0.1, must_link=[(0, 1)], linkage=linkage)
        assert found.labels[0] == found.labels[1]
        assert found.labels[2] == found.labels[3]


def test_a_calibration_is_a_threshold():
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    persons = [0, 0, 1, 1, 2]
    distance = squared_euclidean_distance(rows, rows)
    pairs = pair_scores(
        distance, persons, persons, None, None, exclude="none", query_rows=list(range(5))
    )
    found = associate(rows, threshold=fit_threshold(*pairs, false_match_rate=0.1))
    assert found.threshold == 1
    assert found.labels.tolist() == persons


def test_inputs_of_other_kinds_say_the_same():
    rows = drawn_rows(3, 20)
    rules, _ = drawn_rules(3, 20)
    rules["cameras"] = [camera or 0 for camera in rules["cameras"]]
    del rules["must_link"]
    expected = associate(rows, threshold=3, **rules).labels
    tensors: dict[str, Any] = {name: torch.tensor(value) for name, value in rules.items()}
    arrays: dict[str, Any] = {name: np.array(value) for name, value in rules.items()}
    assert associate(rows, threshold=3, **tensors).labels.equal(expected)
    assert associate(rows, threshold=3, **arrays).labels.equal(expected)
    shrunk = associate(rows.half().requires_grad_(), threshold=3, cannot_link=torch.empty(0, 2))
    assert shrunk.labels.shape == (20,)


ROWS = torch.zeros(3, 2)
SEEN: dict[str, Any] = {"cameras": [0, 1, 0], "times": [(0, 1), (0, 1), (2, 3)]}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embeddings": torch.zeros(3)}, ValueError, "embeddings must be .M, F. .*shape .3,.$"),
        ({"embeddings": torch.zeros(0, 2)}, ValueError, "at least one row, got shape .0, 2.$"),
        ({"embeddings": torch.zeros(3, 2).long()}, TypeError, "floating point, got torch.int64$"),
        (
            {"embeddings": torch.tensor([[0.0], [math.nan]])},
            ValueError,
            "embeddings must be finite, which row 1 is not$",
        ),
        (
            {"embeddings": torch.full((3, 2), 1e30)},
            ValueError,
            "short enough for their squares in float32, got entries up to 1e.30$",
        ),
        ({"metric": "cosine"}, ValueError, "must have a direction, got zeros in row 0$"),
        ({"metric": "l2"}, ValueError, "metric must be one of .*got 'l2'$"),
        ({"linkage": "ward"}, ValueError, "linkage must be one of .*got 'ward'$"),
        ({"threshold": -1}, ValueError, "threshold must be at least 0, got -1.0$"),
        ({"threshold": math.nan}, ValueError, "threshold must be at least 0, got nan$"),
        ({"max_part": 0}, ValueError, "max_part must be at least 1, got 0$"),
        ({"max_part": 2}, ValueError, "threshold 1 links 3 rows step by step, more than max_part"),
        ({"cameras": [0, 1, 0]}, ValueError, "cameras and times .*together, got no times$"),
        ({"times": SEEN["times"]}, ValueError, "cameras and times .*together, got no cameras$"),
        ({"min_travel": [[0]]}, ValueError, "min_travel needs cameras and times, got neither$"),
        ({**SEEN, "cameras": [0, 1]}, ValueError, "cameras .* each of the 3 rows, got 2$"),
        ({**SEEN, "cameras": [0, 1, "a"]}, TypeError, "cameras .*None, got 'a' in row 2$"),
        ({**SEEN, "cameras": [0, 1, -1]}, ValueError, "cameras must be at least 0.*-1 in row 2$"),
        ({**SEEN, "times": [(0, 1)]}, ValueError, r"times must be \(3, 2\), got shape \(1, 2\)$"),
        ({**SEEN, "times": [(0, 1)] * 2 + [(3, 2)]}, ValueError, r"got \[3.0, 2.0\] in row 2$"),
        ({**SEEN, "times": [(0, math.inf)] * 3}, ValueError, r"got \[0.0, inf\] in row 0$"),
        ({**SEEN, "times": [(0, "b")] * 3}, ValueError, "times must be a table of numbers: "),
        ({**SEEN, "min_travel": [[0]]}, ValueError, r"C at least 2, .*got shape \(1, 1\)$"),
        ({**SEEN, "min_travel": [[0, math.nan]] * 2}, ValueError, "must be numbers, got NaN"),
        ({"cannot_link": [(0, 3)]}, ValueError, r"two rows from 0 to 2, got \(0, 3\)$"),
        ({"cannot_link": [(1, 1)]}, ValueError, r"two rows from 0 to 2, got \(1, 1\)$"),
        ({"must_link": [(0, 0.5)]}, TypeError, r"must_link must be whole .*got \(0, 0.5\)$"),
        ({"must_link": [(0, 1, 2)]}, ValueError, r"must be pairs of rows, got \(0, 1, 2\)$"),
        (
            {"must_link": [(0, 1), (1, 2)], "cannot_link": [(2, 0)]},
            ValueError,
            "must_link makes one person of rows 0 and 2, directly or through others, but rows 0 "
            "and 2 are in cannot_link$",
        ),
    ],
)
def test_bad_input_is_one_sentence(changes, error, message):
    arguments = {"threshold": 1, **changes}
    with pytest.raises(error, match=message) as caught:
        associate(arguments.pop("embeddings", ROWS), **arguments)
    assert "\n" not in str(caught.value)


def test_a_missing_scipy_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    with pytest.raises(MissingExtraError, match=r"needs SciPy.*pip install 'tfclip\[cluster\]'$"):
        associate(ROWS, threshold=1)


@pytest.mark.slow
def test_twenty_thousand_rows_of_many_people_need_no_matrix_of_them():
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(5000, 32, generator=generator)
    persons = torch.arange(20_000) % 5000
    rows = torch.nn.functional.normalize(
        people[persons] + 0.1 * torch.randn(20_000, 32, generator=generator), dim=1
    )
    tracemalloc.start()
    found = associate(rows, threshold=0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # NumPy's part; the matrix would take 1.6 GB in float32
    assert found.largest_part < 1000
    assert evaluate_clustering(found.labels, persons).pairwise_f1 > 0.95


@pytest.mark.slow
def test_drawn_people_are_found_again_by_a_threshold_fitted_on_others():
    model = TFCLIP.from_pretrained("tfclip-tiny")

    def draw(num_people, first):
        people = SyntheticTracklets(
            num_people, 3, 1, 12, (128, 64), seed=2**32 + 5, first_identity=first
        )
        embeddings = model.encode_sequences([tracklet.frames for tracklet in people])
        return people, embeddings, squared_euclidean_distance(embeddings, embeddings)

    others, _, distance = draw(24, 1000)
    pairs = pair_scores(
        distance, others.identities, others.identities, others.cameras, others.cameras
    )
    people, embeddings, _ = draw(12, 0)
    found = associate(embeddings, threshold=fit_threshold(*pairs, false_match_rate=0.01))
    result = evaluate_clustering(found.labels, people.identities)
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(0))
    chance = evaluate_clustering(found.labels[order], people.identities)
    assert result.pairwise_f1 > 0.75 > 0.15 > chance.pairwise_f1
    assert result.identity_f1 > 0.75
