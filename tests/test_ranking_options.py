"""Junk, own rows, embeddings and lists: every way to a ranking against one slow reading."""

import re
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.functional import (
    cosine_distance,
    evaluate_ranking,
    evaluate_ranking_from_features,
    evaluate_ranking_topk,
    ranking,
    squared_euclidean_distance,
)
from tfclip.functional.candidates import Candidates, Exclusion, matrix_sizes
from tfclip.functional.ranks import _ranks_on_device, match_ranks, without

EXCLUSIONS = get_args(Exclusion)
JUNK = -1


@st.composite
def problems(draw):
    """Draw embeddings on a small grid, so that ties are exact, with labels and options."""
    num_queries, num_gallery = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    rows = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    persons = [draw(st.integers(0, 3)) for _ in range(num_queries)]
    gallery_persons = [draw(st.integers(JUNK, 3)) for _ in range(num_gallery)]
    own_rows = []
    for person in persons:
        possible = [g for g in range(num_gallery) if gallery_persons[g] == person]
        own_rows.append(draw(st.sampled_from([-1, *possible])))
    return {
        "queries": torch.tensor([draw(rows) for _ in persons], dtype=torch.float32),
        "gallery": torch.tensor([draw(rows) for _ in gallery_persons], dtype=torch.float32),
        "labels": (
            persons,
            gallery_persons,
            [draw(st.integers(0, 2)) for _ in persons],
            [draw(st.integers(0, 2)) for _ in gallery_persons],
        ),
        "options": {
            "exclude": draw(st.sampled_from(EXCLUSIONS)),
            "junk_ids": draw(st.sampled_from([(), [JUNK]])),
            "query_rows": draw(st.sampled_from([None, own_rows])),
        },
    }


def kept_rankings(distance, labels, options):
    """Return each query's ranking, row by row as the rules read, and what is right in it."""
    query_ids, gallery_ids, query_cameras, gallery_cameras = labels
    rankings = []
    for q, row in enumerate(distance.tolist()):
        order = sorted(range(len(row)), key=lambda g: row[g])  # Python's sort is stable
        ranking = []
        for g in order:
            same_person = gallery_ids[g] == query_ids[q]
            same_camera = gallery_cameras[g] == query_cameras[q]
            if options["exclude"] == "camera" and same_camera:
                continue
            if options["exclude"] == "person_and_camera" and same_camera and same_person:
                continue
            if gallery_ids[g] in options["junk_ids"]:
                continue
            if options["query_rows"] is not None and options["query_rows"][q] == g:
                continue
            ranking.append(g)
        rankings.append((ranking, [gallery_ids[g] == query_ids[q] for g in ranking]))
    return rankings


def step_precision(right):
    """Average precision of one ranking, added up in its order."""
    total, found = 0.0, 0
    for position, is_right in enumerate(right, start=1):
        if is_right:
            found += 1
            total += found / position
    return total / found


def assert_same(result, other):
    assert (result.mAP, result.mINP) == (other.mAP, other.mINP)
    assert result.cmc.tolist() == other.cmc.tolist()
    for ours, theirs in zip(result.per_query, other.per_query, strict=True):
        assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_counting_equals_a_stable_sort_to_the_last_bit(problem):
    distance = squared_euclidean_distance(problem["queries"], problem["gallery"])
    rankings = kept_rankings(distance, problem["labels"], problem["options"])
    valid = [right for _, right in rankings if any(right)]
    if not valid:
        with pytest.raises(ValueError, match="no query has a right match"):
            evaluate_ranking(distance, *problem["labels"], **problem["options"])
        return
    before = distance.clone()
    result = evaluate_ranking(distance, *problem["labels"], **problem["options"])
    assert torch.equal(distance, before)
    scores = result.per_query
    assert scores is not None
    for q, (_, right) in enumerate(rankings):
        if any(right):
            assert scores.average_precision[q] == step_precision(right)
            assert scores.first_match[q] == right.index(True) + 1
            assert scores.num_matches[q] == sum(right)
            last = len(right) - right[::-1].index(True)
            assert scores.inverse_penalty[q] == sum(right) / last
        else:
            assert scores.average_precision[q].isnan()
            assert scores.inverse_penalty[q].isnan()
            assert scores.first_match[q] == scores.num_matches[q] == 0
    longest = max(len(right) for right in valid)
    reached = [sum(any(right[:k]) for right in valid) for k in range(1, longest + 1)]
    assert result.cmc.tolist() == [count / len(valid) for count in reached]


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 6), st.sampled_from([torch.float32, torch.float64]))
def test_embeddings_in_blocks_equal_the_whole_matrix(problem, block_queries, dtype):
    queries, gallery = problem["queries"].to(dtype), problem["gallery"].to(dtype)
    distance = squared_euclidean_distance(queries, gallery)
    if not any(any(r) for _, r in kept_rankings(distance, problem["labels"], problem["options"])):
        return
    whole = evaluate_ranking(distance, *problem["labels"], **problem["options"])
    strips = evaluate_ranking_from_features(
        queries, gallery, *problem["labels"], **problem["options"], block_queries=block_queries
    )
    assert_same(strips, whole)
    assert strips.protocol == whole.protocol + "; squared Euclidean distance"


@pytest.mark.parametrize("block_queries", [None, 1, 7, 40, 64])
@pytest.mark.parametrize("ap", ["step", "trapezoid"])
def test_cosine_in_blocks_equals_the_whole_matrix(block_queries, ap):
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(200, 16, generator=generator, dtype=torch.float64)
    persons, cameras = [i % 30 for i in range(200)], [i % 4 for i in range(200)]
    labels = persons[:40], persons, cameras[:40], cameras
    whole = evaluate_ranking(cosine_distance(gallery[:40], gallery), *labels, ap)
    strips = evaluate_ranking_from_features(
        gallery[:40], gallery, *labels, ap, metric="cosine", block_queries=block_queries
    )
    assert_same(strips, whole)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_way_for_gpus_gives_the_same_ranks(problem):
    distance = squared_euclidean_distance(problem["queries"], problem["gallery"])
    candidates = Candidates(*problem["labels"], sizes=matrix_sizes(distance), **problem["options"])
    rows = [candidates.of(query) for query in range(len(distance))]
    counted = match_ranks(distance, rows)
    on_device = _ranks_on_device(without(distance, rows), [row.matches for row in rows])
    for one, other in zip(counted, on_device, strict=True):
        assert one.tolist() == other.tolist()


def test_few_near_rows_are_counted_like_many():
    # The two ways through a row, sorting all and picking out the near ones, with ties at the match.
    for match in range(0, 100, 9):
        distance = (torch.arange(100) // 3).double()[None]
        ids = [int(i == match) for i in range(100)]
        result = evaluate_ranking(distance, [1], ids, [0], [1] * 100, max_rank=100)
        assert result.cmc.tolist() == [0] * match + [1] * (100 - match)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_ranks_by_its_own_values(dtype):
    distance = torch.rand(4, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = [0, 1, 2, 3], [i % 5 for i in range(50)], [0] * 4, [1] * 50
    assert_same(evaluate_ranking(distance, *labels), evaluate_ranking(distance.double(), *labels))


def test_scores_do_not_depend_on_the_layout_or_need_a_gradient():
    distance = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 2, 3], [i % 5 for i in range(50)], [0] * 4, [1] * 50
    other = distance.T.contiguous().T.requires_grad_()
    assert_same(evaluate_ranking(distance, *labels), evaluate_ranking(other, *labels))


def test_junk_is_neither_right_nor_wrong():
    distance = torch.tensor([[0.1, 0.2, 0.3]])
    labels = [5], [-1, 5, -1], [0], [1, 1, 1]
    assert evaluate_ranking(distance, *labels).cmc.tolist() == [0, 1, 1]
    without_junk = evaluate_ranking(distance, *labels, junk_ids=[-1])
    assert without_junk.cmc.tolist() == [1]
    assert "2 rows of junk persons are in no ranking" in without_junk.protocol


def test_a_negative_id_that_is_not_junk_is_a_person():
    assert evaluate_ranking(torch.zeros(1, 1), [-1], [-1], [0], [1]).mAP == 1


def test_junk_that_could_never_be_found_is_refused():
    arguments = torch.zeros(1, 2), ["a"], ["a", "-1"], [0], [1, 1]
    with pytest.raises(ValueError, match=r"junk_ids must be of the type .* got -1 where .* 'a'"):
        evaluate_ranking(*arguments, junk_ids=[-1])
    with pytest.raises(TypeError, match="junk_ids must be a collection of persons"):
        evaluate_ranking(*arguments, junk_ids="-1")
    with pytest.raises(ValueError, match="query_ids must have no junk person, got 'a' at pos"):
        evaluate_ranking(*arguments, junk_ids=["a"])


def test_a_query_in_a_gallery_of_one_camera_is_left_out_by_its_row():
    distance = torch.tensor([[0.0, 0.4, 0.2], [0.4, 0.0, 0.3]])
    labels = [1, 1], [1, 1, 2], None, None
    with_itself = evaluate_ranking(distance, *labels, exclude="none")
    assert with_itself.rank(1) == 1
    result = evaluate_ranking(distance, *labels, exclude="none", query_rows=[0, 1])
    assert result.cmc.tolist() == [0, 1]
    assert "so is each query's own row" in result.protocol


@pytest.mark.parametrize("own_camera", [0, 1])
def test_an_own_row_is_taken_out_once_whatever_its_camera(own_camera):
    distance = torch.tensor([[0.0, 0.2, 0.1, 0.3]])
    labels = [1], [1, 1, 2, -1], [0], [own_camera, 1, 1, 0]
    result = evaluate_ranking(distance, *labels, exclude="camera", query_rows=[0], junk_ids=[-1])
    assert result.cmc.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([0], ValueError, "query_rows must have one entry for each of the 2 rows of distance"),
        ([0, 3], ValueError, "gallery rows from 0 to 2, or -1 for none, got 3 at position 1"),
        ([0, -2], ValueError, "or -1 for none, got -2 at position 1"),
        ([0.0, 1.0], TypeError, "query_rows must be integers, got 0.0 at position 0"),
        ([0, 2], ValueError, "query_rows must name rows of the query's person, got row 2 of 2"),
    ],
)
def test_own_rows_that_cannot_be_right_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        evaluate_ranking(torch.zeros(2, 3), [1, 1], [1, 1, 2], [0, 0], [1, 1, 1], query_rows=rows)


def test_every_cause_of_no_match_is_named():
    with pytest.raises(ValueError, match="the only row of each query's person is the query"):
        evaluate_ranking(torch.zeros(1, 2), [1], [1, 2], None, None, exclude="none", query_rows=[0])
    with pytest.raises(ValueError, match="every gallery row is of a junk person"):
        evaluate_ranking(torch.zeros(1, 1), [1], [-1], [0], [1], junk_ids=[-1])
    with pytest.raises(ValueError, match="query_cameras must be given with exclude='camera'"):
        evaluate_ranking(torch.zeros(1, 1), [1], [1], None, [1], exclude="camera")


def test_a_message_names_the_first_of_those_it_is_about():
    distance = torch.zeros(2, 3)
    distance[0, 2], distance[1, 0] = torch.inf, torch.nan
    labels = [1, 2], [3, 4, 5], [0, 0], [1, 1, 1]
    with pytest.raises(ValueError, match="got inf for query 0 and gallery row 2"):
        evaluate_ranking(distance, *labels)
    with pytest.raises(ValueError, match=r"queries have 1, \.\.\., the gallery 3, \.\.\."):
        evaluate_ranking(torch.zeros(2, 3), *labels)


def misaligned_figures(distance, labels, frames_per_tracklet):
    """Score with a camera list of which every tracklet got as many entries as it has frames."""
    query_ids, gallery_ids, query_cameras, gallery_cameras = labels
    per_frame = [
        [camera for camera, n in zip(cameras, frames, strict=True) for _ in range(n)]
        for cameras, frames in zip(
            (query_cameras, gallery_cameras), frames_per_tracklet, strict=True
        )
    ]
    rank1, num_valid = 0, 0
    for q in range(len(query_ids)):
        order = sorted(range(len(gallery_ids)), key=lambda g: distance[q][g])
        kept = [
            g for g in order if gallery_ids[g] != query_ids[q] or per_frame[1][g] != per_frame[0][q]
        ]
        right = [gallery_ids[g] == query_ids[q] for g in kept]
        if any(right):
            num_valid += 1
            rank1 += right[0]
    return rank1 / num_valid, per_frame


def test_cameras_of_frames_in_place_of_tracklets_are_refused_for_they_flatter():
    # Tracklets of one person and one camera look alike, and across cameras they hardly do. Taken
    # frame by frame, the cameras are a list many times too long; read by tracklet number it holds
    # the cameras of others, and the tracklets beside the query's own are not left out any more.
    random = np.random.default_rng(0)
    persons = np.repeat(np.arange(60), 9)
    cameras = np.tile(np.repeat(np.arange(3), 3), 60)
    looks = (
        random.normal(size=(60, 24))[persons]
        + 2 * random.normal(size=(60, 3, 24))[persons, cameras]
    )
    features = torch.from_numpy(looks + 0.3 * random.normal(size=looks.shape))
    query_rows = np.arange(0, len(persons), 3)
    distance = squared_euclidean_distance(features[query_rows], features)
    labels: tuple[Any, ...] = (
        persons[query_rows].tolist(),
        persons.tolist(),
        cameras[query_rows].tolist(),
        cameras.tolist(),
    )
    honest = evaluate_ranking(distance, *labels)
    frames = random.integers(8, 60, len(persons))
    flattered, per_frame = misaligned_figures(
        distance.tolist(), labels, (frames[query_rows].tolist(), frames.tolist())
    )
    aligned, _ = misaligned_figures(
        distance.tolist(), labels, ([1] * len(query_rows), [1] * len(persons))
    )
    assert aligned == pytest.approx(honest.rank(1))  # the loop is right, its cameras were wrong
    assert flattered > honest.rank(1) + 0.3
    with pytest.raises(ValueError, match="query_cameras must have one entry for each of the 180"):
        evaluate_ranking(distance, labels[0], labels[1], per_frame[0], per_frame[1])
    with pytest.raises(ValueError, match="gallery_cameras must have one entry for each of the 540"):
        evaluate_ranking(distance, labels[0], labels[1], labels[2], per_frame[1])
    stacked = torch.tensor(labels[2])[:, None].expand(-1, 8)  # one row of frames per tracklet
    with pytest.raises(ValueError, match=r"query_cameras must have one entry .* got a list for"):
        evaluate_ranking(distance, labels[0], labels[1], stacked, labels[3])


@pytest.mark.parametrize("unknown", [None, float("nan")])
def test_an_unknown_camera_is_refused(unknown):
    with pytest.raises(ValueError, match=f"gallery_cameras must be known, got {unknown} at pos"):
        evaluate_ranking(torch.zeros(1, 2), [1], [1, 1], [0], [0, unknown])


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 12), st.booleans())
def test_lists_give_the_exact_start_of_the_cmc_and_lower_bounds(problem, k, pad):
    distance = squared_euclidean_distance(problem["queries"], problem["gallery"])
    labels, options = problem["labels"], problem["options"]
    k = min(k, distance.shape[1])
    lists = distance.argsort(dim=1, stable=True)[:, :k]
    if pad:
        lists = torch.cat([lists, torch.full((len(lists), 2), -1)], dim=1)
    rankings = kept_rankings(distance, labels, options)
    kept = [
        [g for g in row if g in r] for row, (r, _) in zip(lists.tolist(), rankings, strict=True)
    ]
    right = [[labels[1][g] == labels[0][q] for g in row] for q, row in enumerate(kept)]
    valid = [q for q, (_, every) in enumerate(rankings) if any(every)]
    short = [len(kept[q]) for q in valid if not any(right[q])]
    if not valid:
        with pytest.raises(ValueError, match="no query has a right match"):
            evaluate_ranking_topk(lists, *labels, **options)
        return
    if not pad and short and min(short) == 0:
        with pytest.raises(ValueError, match="ask the index for longer lists"):
            evaluate_ranking_topk(lists, *labels, **options)
        return
    result = evaluate_ranking_topk(lists, *labels, **options)
    whole = evaluate_ranking(distance, *labels, **options)
    expected = lists.shape[1] if pad or not short else min(short)
    assert len(result.cmc) == expected
    if not pad:  # of full lists every entry is that of the whole ranking
        for position in range(1, expected + 1):
            assert result.rank(position) == whole.rank(position)
    truncated = [
        step_precision(right[q]) * sum(right[q]) / sum(rankings[q][1]) if any(right[q]) else 0
        for q in valid
    ]
    assert result.mAP == pytest.approx(sum(truncated) / len(valid))
    assert result.mAP <= whole.mAP + 1e-12
    assert result.mINP <= whole.mINP + 1e-12
    assert result.num_valid_queries == len(valid)
    assert "mAP and mINP are lower bounds" in result.protocol


def test_a_whole_ranking_as_lists_is_worth_what_the_matrix_is():
    distance = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    labels = list(range(6)), [i % 8 for i in range(40)], [0] * 6, [i % 3 for i in range(40)]
    lists = distance.argsort(dim=1, stable=True)
    for ap in ("step", "trapezoid"):
        result = evaluate_ranking_topk(lists.numpy(), *labels, ap)
        whole = evaluate_ranking(distance, *labels, ap)
        assert result.mAP == pytest.approx(whole.mAP, abs=1e-15)
        assert result.mINP == whole.mINP
        assert [result.rank(k) for k in (1, 5, 20)] == [whole.rank(k) for k in (1, 5, 20)]


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        (torch.zeros(2), ValueError, r"indices must be \(Q, k\)"),
        (torch.zeros(1, 2), TypeError, "indices must be integers, got float32"),
        (torch.tensor([[0, 2]]), ValueError, "gallery rows from 0 to 1, or -1 for none, got 2"),
        (torch.tensor([[0, -2]]), ValueError, "or -1 for none, got -2"),
        (torch.tensor([[1, 1]]), ValueError, "must not repeat a row, got 1 twice for query 0"),
        (torch.tensor([[0, 1, 1]]), ValueError, "must not repeat a row, got 1 twice for query 0"),
    ],
)
def test_lists_that_no_index_returns_are_refused(lists, error, message):
    with pytest.raises(error, match=message):
        evaluate_ranking_topk(lists, [1], [1, 2], [0], [1, 1])


def test_a_bar_counts_queries_on_request_only(capsys, monkeypatch):
    monkeypatch.setattr(ranking, "_STRIP_ENTRIES", 5)  # less than one query has distances
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (
        torch.randn(4, 3, generator=generator),
        torch.randn(9, 3, generator=generator),
    )
    labels = [0, 1, 2, 3], [i % 4 for i in range(9)], [0] * 4, [1] * 9
    result = evaluate_ranking_from_features(queries, gallery, *labels)
    assert capsys.readouterr().err == ""
    assert_same(evaluate_ranking_from_features(queries, gallery, *labels, progress=True), result)
    assert re.search(r"100%\|[^|]*\| 4/4 \[.*query", capsys.readouterr().err)


def test_embeddings_that_cannot_be_ranked_are_refused():
    labels = [1], [1, 2], [0], [1, 1]
    queries, gallery = torch.zeros(1, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"metric must be one of .* got 'euclidean'"):
        evaluate_ranking_from_features(queries, gallery, *labels, metric="euclidean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block_queries must be at least 1, got 0"):
        evaluate_ranking_from_features(queries, gallery, *labels, block_queries=0)
    with pytest.raises(ValueError, match="gallery must be finite, got inf in row 1"):
        evaluate_ranking_from_features(
            queries, torch.tensor([[0.0], [torch.inf]]).expand(2, 3), *labels
        )
    with pytest.raises(ValueError, match=r"short enough for torch\.float32, got squared lengths"):
        evaluate_ranking_from_features(queries + 1e19, gallery, *labels)
    with pytest.raises(ValueError, match=r"gallery must have at least one entry, got shape \(0,"):
        evaluate_ranking_from_features(queries, torch.zeros(0, 3), [1], [], [0], [])
    with pytest.raises(ValueError, match="gallery_ids must have one entry for each of the 2 rows"):
        evaluate_ranking_from_features(queries, gallery, [1], [1], [0], [1])
