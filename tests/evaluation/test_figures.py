"""The figures are those of tracklets encoded and compared one by one."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.evaluation.literally import distances, encode, labels, scores_of
from tfclip import functional
from tfclip.data import Dataset, Protocol, model_fingerprint, own_dataset
from tfclip.evaluation import evaluate_model
from tfclip.functional import (
    bootstrap_interval,
    equal_error_rate,
    evaluate_ranking,
    pair_scores,
    tpr_at_fpr,
)


def test_the_figures_are_those_of_tracklets_encoded_one_by_one(tiny_model, dataset):
    report = evaluate_model(tiny_model, dataset, frames=("dense", "rrs", "all"), use_cameras="both")
    assert [row.name for row in report.rows] == [
        "dense",
        "dense, cameras",
        "rrs",
        "rrs, cameras",
        "all",
        "all, cameras",
    ]
    (split,) = dataset.protocol().splits
    queries = [dataset.test[row] for row in split.query]
    gallery = [dataset.test[row] for row in split.gallery]
    told = labels(queries, gallery)
    for row in report.rows:
        settings = row.frames, row.cameras
        distance = distances(
            encode(tiny_model, queries, *settings), encode(tiny_model, gallery, *settings)
        )
        expected = evaluate_ranking(distance, *told)
        result = row.result
        assert result.mAP == pytest.approx(expected.mAP, abs=1e-12)
        assert result.cmc.equal(expected.cmc)
        assert result.mINP == pytest.approx(expected.mINP, abs=1e-12)
        assert result.protocol == f"{expected.protocol}; squared Euclidean distance"
        assert (result.num_valid_queries, result.num_queries) == (7, 7)
        assert row.interval("mAP") == pytest.approx(expected.interval("mAP"))
        assert row.interval("rank1") == pytest.approx(expected.interval("rank1"))
        pairs = pair_scores(distance, *told)
        assert row.verification.equal_error_rate == pytest.approx(equal_error_rate(*pairs))
        assert row.verification.true_match_rates[1e-2] == tpr_at_fpr(*pairs, 1e-2)
        assert row.verification.too_few_pairs_for == (1e-3,)
        assert row.verification.num_same == 14
        assert row.verification.num_different == 7 * 18
        assert row.num_tracklets == 21
        assert row.num_frames == sum(len(t.frames) for t in dataset.test)
    assert report.rows[0].result.mAP != report.rows[1].result.mAP
    assert report.fingerprint == model_fingerprint(tiny_model)


def test_only_what_the_protocol_needs_is_encoded_and_its_rules_are_the_default(
    tiny_model, people, tmp_path
):
    missing = dataclasses.replace(people[0], name="gone", frames=(str(tmp_path / "gone.png"),))
    test = (missing, *people)
    rows = tuple(range(1, len(test)))
    protocol = Protocol(
        name="p",
        query=rows[:2],
        gallery=rows,
        description="d",
        frames="rrs",
        ap="trapezoid",
        exclude="camera",
        junk=("0006",),
    )
    report = evaluate_model(
        tiny_model,
        Dataset(name="d", root="d", train=(), test=test, protocols={"p": protocol}),
    )
    (row,) = report.rows
    assert (row.frames, row.cameras, row.num_tracklets) == ("rrs", False, len(people))
    features = encode(tiny_model, people, "rrs")
    expected = evaluate_ranking(
        distances(features[:2], features),
        *labels(people[:2], people),
        ap="trapezoid",
        exclude="camera",
        junk_ids=["0006"],
    )
    assert row.result.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert "AP by trapezoid" in row.result.protocol
    assert "3 rows of junk persons" in row.result.protocol


def test_without_cameras_a_query_never_finds_itself(tiny_model, people):
    unknown = [dataclasses.replace(t, camera=None) for t in people]
    dataset = own_dataset(unknown, exclude="none")
    (row,) = evaluate_model(tiny_model, dataset).rows
    features = encode(tiny_model, people)
    ranks = []
    for query, features_of_query in enumerate(features):
        order = sorted(
            (g for g in range(len(people)) if g != query),
            key=lambda g: float((features[g] - features_of_query).square().sum()),
        )
        right = [people[g].person == people[query].person for g in order]
        ranks.append(right.index(True) + 1)
    assert scores_of(row).first_match.tolist() == ranks
    assert row.verification.num_same == len(people) * 2


def test_splits_are_averaged_whatever_their_sizes(tiny_model, people):
    rows = tuple(range(len(people)))
    splits = [(rows[:3], rows), (rows[5:9], rows[2:20]), (rows[:3], rows[:12])]

    def with_splits(*chosen):
        (query, gallery), *repeats = chosen
        protocol = Protocol(
            name="p", query=query, gallery=gallery, description="", repeats=tuple(repeats)
        )
        return Dataset(name="d", root="d", train=(), test=tuple(people), protocols={"p": protocol})

    report = evaluate_model(tiny_model, with_splits(*splits))
    alone = [evaluate_model(tiny_model, with_splits(split)).rows[0] for split in splits]
    (row,) = report.rows
    result = row.result
    assert result.mAP == pytest.approx(np.mean([each.result.mAP for each in alone]))
    assert result.mINP == pytest.approx(np.mean([each.result.mINP for each in alone]))
    for k in (1, 5, 10, 20):
        assert result.rank(k) == pytest.approx(np.mean([each.result.rank(k) for each in alone]))
    assert result.num_queries == 10
    assert result.protocol.startswith("mean of 3 splits, the first: 3 of 3 queries")
    rates = [each.verification.equal_error_rate or 0.0 for each in alone]
    assert row.verification.equal_error_rate == pytest.approx(np.mean(rates))
    assert row.verification.num_same == sum(each.verification.num_same for each in alone)
    values = [scores_of(each).average_precision for each in alone]
    weighted = torch.cat([value * 10 / (3 * len(value)) for value in values])
    assert float(weighted.mean()) == pytest.approx(result.mAP)
    assert row.interval("mAP") == pytest.approx(bootstrap_interval(weighted))
    assert [line["split"] for line in report.per_query()] == [0] * 3 + [1] * 4 + [2] * 3


def test_a_reranked_row_stands_below_its_plain_one_and_never_instead(
    tiny_model, dataset, monkeypatch
):
    calls = []

    def rerank(queries, gallery, k1, k2, lambda_value):
        calls.append((k1, k2, lambda_value))
        return -functional.squared_euclidean_distance(queries, gallery)  # the farthest first

    monkeypatch.setattr(functional, "k_reciprocal_rerank", rerank, raising=False)
    report = evaluate_model(tiny_model, dataset, frames=("dense", "rrs"), rerank=True)
    assert [row.name for row in report.rows] == [
        "dense",
        "dense, re-ranked",
        "rrs",
        "rrs, re-ranked",
    ]
    assert calls == [(20, 6, 0.3)] * 2
    plain, reranked = report.rows[:2]
    assert plain.result.mAP == evaluate_model(tiny_model, dataset).rows[0].result.mAP
    queries, gallery = (
        [dataset.test[row] for row in rows] for rows in dataset.protocol().splits[0]
    )
    distance = -distances(encode(tiny_model, queries), encode(tiny_model, gallery))
    expected = evaluate_ranking(distance, *labels(queries, gallery))
    assert reranked.result.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert "k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)" in reranked.result.protocol
    assert "re-ranking" not in plain.result.protocol


def test_reranking_is_that_of_the_matrix(tiny_model, dataset):
    report = evaluate_model(tiny_model, dataset, rerank=True)
    (split,) = dataset.protocol().splits
    queries = [dataset.test[row] for row in split.query]
    gallery = [dataset.test[row] for row in split.gallery]
    rerank = vars(functional)["k_reciprocal_rerank"]
    distance = rerank(encode(tiny_model, queries), encode(tiny_model, gallery))
    expected = evaluate_ranking(distance, *labels(queries, gallery))
    assert report.rows[1].result.mAP == pytest.approx(expected.mAP, abs=1e-6)
