import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import normalize

from tfclip.functional import (
    candidates,
    evaluate_ranking,
    evaluate_ranking_from_features,
    evaluate_ranking_topk,
    squared_euclidean_distance,
)

GOLDEN = Path(__file__).parent / "golden"


def load_case(case):
    """Return the five arguments of a recorded evaluation."""
    golden = load_file(GOLDEN / "metrics.safetensors")
    distance, *labels = (
        golden[f"eval_{case}.{part}"]
        for part in ("distmat", "q_pids", "g_pids", "q_camids", "g_camids")
    )
    query_ids, gallery_ids, query_cameras, gallery_cameras = labels
    return distance, query_ids, gallery_ids, query_cameras, gallery_cameras


def literal_scores(problem, ap, exclude):
    """Score one query after the other, the way the definitions read."""
    distance, query_ids, gallery_ids, query_cameras, gallery_cameras = problem
    results = []
    for q, row in enumerate(distance):
        ranked = sorted(range(len(gallery_ids)), key=lambda g: row[g])  # Python's sort is stable
        kept = [
            g
            for g in ranked
            if gallery_cameras[g] != query_cameras[q]
            or (exclude == "person_and_camera" and gallery_ids[g] != query_ids[q])
        ]
        right = [gallery_ids[g] == query_ids[q] for g in kept]
        if not any(right):
            continue
        average_precision, found, old_precision, old_recall = 0.0, 0, 1.0, 0.0
        for position, is_right in enumerate(right, start=1):
            found += is_right
            precision, recall = found / position, found / sum(right)
            if ap == "step":
                average_precision += is_right * precision / sum(right)
            else:
                average_precision += (recall - old_recall) * (old_precision + precision) / 2
            old_precision, old_recall = precision, recall
        last = max(position for position, is_right in enumerate(right, start=1) if is_right)
        results.append((average_precision, right.index(True) + 1, sum(right) / last, len(right)))
    return results


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_cmc_and_map_equal_the_reference(case):
    golden = load_file(GOLDEN / "metrics.safetensors")
    expected = next(
        entry
        for entry in json.loads((GOLDEN / "metrics.json").read_text())["eval_func"]
        if entry["case"] == case
    )
    result = evaluate_ranking(*load_case(case))
    assert result.mAP == pytest.approx(expected["mAP"], abs=1e-9)
    torch.testing.assert_close(result.cmc, golden[f"eval_{case}.cmc"], rtol=0, atol=1e-6)
    assert result.num_valid_queries == expected.get("valid_queries", result.num_queries)


@pytest.mark.parametrize("case", ["norm", "raw"])
def test_features_to_figures_equal_the_references_evaluator(case):
    golden = load_file(GOLDEN / "metrics.safetensors")
    expected = json.loads((GOLDEN / "metrics.json").read_text())["evaluator"]
    n = expected["num_query"]
    features = golden["evaluator.features"]
    features = normalize(features, dim=1) if case == "norm" else features
    ids, cameras = golden["evaluator.pids"], golden["evaluator.camids"]
    labels = ids[:n], ids, cameras[:n], cameras
    distance = squared_euclidean_distance(features[:n], features)
    for result in (
        evaluate_ranking(distance, *labels),
        evaluate_ranking_from_features(features[:n], features, *labels, block_queries=5),
    ):
        assert result.mAP == pytest.approx(expected["cases"][case]["mAP"], abs=1e-9)
        torch.testing.assert_close(result.cmc, golden[f"evaluator.{case}.cmc"], rtol=0, atol=1e-6)


@st.composite
def problems(draw):
    """Small rankings with ties, distractors and queries that have no match."""
    queries, gallery = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    labels = st.integers(0, 3)
    cameras = st.integers(0, 2)
    distances = st.integers(0, 5).map(lambda value: value / 5)
    return (
        [draw(st.lists(distances, min_size=gallery, max_size=gallery)) for _ in range(queries)],
        draw(st.lists(labels, min_size=queries, max_size=queries)),
        draw(st.lists(labels, min_size=gallery, max_size=gallery)),
        draw(st.lists(cameras, min_size=queries, max_size=queries)),
        draw(st.lists(cameras, min_size=gallery, max_size=gallery)),
    )


@settings(max_examples=200, deadline=None)
@given(
    problems(),
    st.sampled_from(["step", "trapezoid"]),
    st.sampled_from(["person_and_camera", "camera"]),
    st.integers(1, 8),
)
def test_figures_equal_a_literal_reading_of_their_definitions(problem, ap, exclude, max_rank):
    distance = torch.tensor(problem[0])
    options = {"ap": ap, "exclude": exclude, "max_rank": max_rank}
    slow = literal_scores(problem, ap, exclude)
    if not slow:
        with pytest.raises(ValueError, match="no query has a right match"):
            evaluate_ranking(distance, *problem[1:], **options)
        return
    result = evaluate_ranking(distance, *problem[1:], **options)
    precisions, firsts, penalties, candidates = zip(*slow, strict=True)
    length = min(max_rank, max(candidates))
    cmc = [sum(first <= k for first in firsts) / len(slow) for k in range(1, length + 1)]
    assert result.mAP == pytest.approx(sum(precisions) / len(slow))
    assert result.mINP == pytest.approx(sum(penalties) / len(slow))
    assert result.cmc.tolist() == pytest.approx(cmc)
    assert result.num_valid_queries == len(slow)


def test_scoring_in_blocks_changes_nothing(monkeypatch):
    parts = load_case("a")
    whole = evaluate_ranking(*parts)
    for entries in (1000, 1):  # six queries at a time, and one with more distances than that
        monkeypatch.setattr(candidates, "_BLOCK_ENTRIES", entries)
        blocks = evaluate_ranking(*parts)
        assert blocks.mAP == whole.mAP
        assert blocks.cmc.tolist() == whole.cmc.tolist()


def test_average_precision_by_hand():  # right at ranks 1 and 3
    arguments = (torch.tensor([[0.1, 0.2, 0.9]]), [7], [7, 8, 7], [0], [1, 1, 2])
    assert evaluate_ranking(*arguments).mAP == pytest.approx((1 + 2 / 3) / 2)
    trapezoid = evaluate_ranking(*arguments, ap="trapezoid").mAP
    assert trapezoid == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert evaluate_ranking(*arguments).mINP == pytest.approx(2 / 3)


def test_average_precision_of_two_queries_by_hand():
    # Person 7: its own camera's row is left out, right at ranks 2 and 3. Person 8: right at rank 4.
    distance = torch.tensor([[0.1, 0.2, 0.3, 0.9], [0.5, 0.7, 0.6, 0.2]])
    arguments = (distance, [7, 8], [7, 8, 7, 7], [0, 0], [0, 1, 1, 2])
    result = evaluate_ranking(*arguments)
    assert result.mAP == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 4) / 2)
    assert result.mINP == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert result.cmc.tolist() == [0, 0.5, 0.5, 1]
    area = ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    assert evaluate_ranking(*arguments, ap="trapezoid").mAP == pytest.approx((area + 1 / 8) / 2)


def test_ties_keep_the_order_of_the_gallery():
    distance = torch.zeros(1, 3)
    assert evaluate_ranking(distance, [1], [2, 1, 3], [0], [1, 1, 1]).cmc.tolist() == [0, 1, 1]
    assert evaluate_ranking(distance, [1], [1, 2, 3], [0], [1, 1, 1]).cmc.tolist() == [1, 1, 1]


def test_the_querys_own_camera_neither_helps_nor_hurts():
    same_camera_first = evaluate_ranking(torch.tensor([[0.0, 0.5]]), [1], [1, 1], [0], [0, 1])
    assert same_camera_first.mAP == 1
    assert same_camera_first.cmc.tolist() == [1]


def test_ids_may_be_strings_integers_arrays_or_tensors():
    distance = torch.tensor([[0.3, 0.1], [0.2, 0.4]])
    numbers = evaluate_ranking(distance, [5, 6], [5, 6], [0, 0], [1, 1])
    words = evaluate_ranking(distance, ["a", "b"], ["a", "b"], ["x", "x"], ["y", "y"])
    tensors = torch.tensor([5, 6]), torch.tensor([5, 6]), torch.zeros(2), torch.ones(2)
    assert numbers.mAP == words.mAP == evaluate_ranking(distance, *tensors).mAP
    queries, gallery, query_cameras, gallery_cameras = (tensor.numpy() for tensor in tensors)
    arrays = evaluate_ranking(distance, queries, gallery, query_cameras, gallery_cameras)
    assert numbers.mAP == arrays.mAP


def test_one_camera_everywhere_is_named_as_the_cause():
    with pytest.raises(ValueError, match=r"every camera is 0.*were the cameras given"):
        evaluate_ranking(torch.zeros(1, 2), [1], [1, 2], [0], [0, 0])


def test_strangers_in_the_gallery_are_named_as_the_cause():
    with pytest.raises(ValueError, match="no person is in both"):
        evaluate_ranking(torch.zeros(1, 1), ["1"], [1], [0], [1])


def test_persons_of_one_camera_are_named_as_the_cause():
    with pytest.raises(ValueError, match="every person was seen by one camera only"):
        evaluate_ranking(torch.zeros(2, 2), [1, 2], [1, 2], [0, 1], [0, 1])


@pytest.mark.parametrize("position", range(1, 5))
def test_labels_of_another_length_are_an_error(position):
    arguments: list[Any] = [torch.zeros(2, 3), [1, 2], [1, 2, 3], [0, 0], [1, 1, 1]]
    arguments[position] = [*arguments[position], 1]
    names = ("distance", "query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
    with pytest.raises(ValueError, match=f"{names[position]} must have one entry"):
        evaluate_ranking(*arguments)


def test_bad_distances_are_refused_with_their_place():
    labels = ([1], [1, 2], [0], [1, 1])
    with pytest.raises(ValueError, match="got nan for query 0 and gallery row 1"):
        evaluate_ranking(torch.tensor([[0.0, float("nan")]]), *labels)
    with pytest.raises(ValueError, match=r"must be \(Q, G\)"):
        evaluate_ranking(torch.zeros(2), *labels)
    with pytest.raises(TypeError, match="floating point"):
        evaluate_ranking(torch.zeros(1, 2, dtype=torch.long), *labels)
    with pytest.raises(ValueError, match="ap must be one of"):
        evaluate_ranking(torch.zeros(1, 2), *labels, ap="area")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_rank must be at least 1, got 0"):
        evaluate_ranking(torch.zeros(1, 2), *labels, max_rank=0)
    with pytest.raises(ValueError, match="exclude must be one of"):
        evaluate_ranking(torch.zeros(1, 2), *labels, exclude="junk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="query_ids must be known, got None at position 0"):
        evaluate_ranking(torch.zeros(1, 2), [None], [1, 2], [0], [1, 1])


def test_a_rank_beyond_what_was_measured_is_not_invented():
    distance = torch.arange(6.0)[None]
    result = evaluate_ranking(distance, [1], [2, 2, 2, 2, 2, 1], [0], [1] * 6, max_rank=3)
    assert result.rank(3) == 0
    with pytest.raises(ValueError, match="from 1 to the measured 3, got 4"):
        result.rank(4)
    assert evaluate_ranking(distance, [1], [2, 1, 2, 2, 2, 2], [0], [1] * 6).rank(20) == 1


def test_unless_told_otherwise_fifty_ranks_are_measured():
    places = torch.arange(80)
    labels = [1], [2] * 79 + [1], [0], [1] * 80
    for result in (
        evaluate_ranking(places.float()[None], *labels),
        evaluate_ranking_from_features(torch.zeros(1, 1), places.float()[:, None], *labels),
        evaluate_ranking_topk(places[None], *labels),
    ):
        assert result.cmc.tolist() == [0] * 50
        assert result.mAP == pytest.approx(1 / 80)


def test_the_protocol_says_what_was_counted():
    result = evaluate_ranking(torch.zeros(2, 2), [1, 9], [1, 2], [0, 0], [1, 1])
    assert result.protocol == (
        "1 of 2 queries have a match in a gallery of 2; gallery rows of the query's person and "
        "camera are left out; AP by step; ties in gallery order"
    )
