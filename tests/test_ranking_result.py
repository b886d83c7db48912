"""What a result can tell: its table, its JSON form and its intervals."""

import json
import math

import numpy as np
import pytest
import torch

from tfclip.functional import (
    QueryScores,
    RankingResult,
    bootstrap_interval,
    evaluate_ranking,
    evaluate_ranking_topk,
)


def scores_of(result: RankingResult) -> QueryScores:
    assert result.per_query is not None
    return result.per_query


def some_result(**options):
    distance = torch.rand(12, 60, generator=torch.Generator().manual_seed(0))
    labels = list(range(12)), [i % 11 for i in range(60)], [0] * 12, [i % 3 for i in range(60)]
    return evaluate_ranking(distance, *labels, **options)  # person 11 has no match


def test_a_result_prints_as_an_aligned_table():
    distance = torch.tensor([[0.1, 0.2, 0.9]])
    lines = str(evaluate_ranking(distance, [7], [7, 8, 7], [0], [1, 1, 2])).splitlines()
    assert lines == [
        "mAP              83.33%",
        "rank-1          100.00%",
        "rank-5          100.00%",
        "rank-10         100.00%",
        "rank-20         100.00%",
        "mINP             66.67%",
        "valid queries         1 of 1",
        "protocol       1 of 1 queries have a match in a gallery of 3; gallery rows of the query's "
        "person and camera are left out; AP by step; ties in gallery order",
    ]


def test_beyond_a_short_gallery_a_rank_is_known_once_everybody_is_found():
    result = evaluate_ranking(torch.tensor([[0.1, 0.2]]), [7], [8, 7], [0], [1, 1])
    assert result.cmc.tolist() == [0, 1]
    assert result.rank(5) == 1
    assert str(result).splitlines()[1:3] == ["rank-1            0.00%", "rank-5          100.00%"]
    never = evaluate_ranking_topk(torch.tensor([[0, -1], [1, 0]]), [7, 7], [8, 7], [0, 0], [1, 1])
    assert never.cmc.tolist() == [0.5, 0.5]
    assert "rank-5" not in str(never)


def test_json_is_for_readers_too():
    lines = some_result().to_json().split("\n")
    assert lines[0] == "{"
    assert lines[1].startswith('  "mAP": 0.')
    assert lines[-2:] == ["}", ""]


def test_a_table_shows_no_rank_that_was_not_measured():
    assert "rank-5 " in str(some_result(max_rank=5))
    assert "rank-10" not in str(some_result(max_rank=5))


@pytest.mark.parametrize("per_query", [False, True])
def test_a_result_survives_json(per_query):
    result = some_result()
    text = result.to_json(per_query=per_query)
    back = RankingResult.from_dict(json.loads(text, parse_constant=pytest.fail))  # no NaN in it
    assert back.to_json(per_query=per_query) == text
    assert torch.equal(back.cmc, result.cmc)
    assert (back.mAP, back.mINP, back.protocol) == (result.mAP, result.mINP, result.protocol)
    if per_query:
        for ours, theirs in zip(scores_of(back), scores_of(result), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))
        assert back.interval("mAP") == result.interval("mAP")
    else:
        assert back.per_query is None
        with pytest.raises(ValueError, match="interval needs per_query"):
            back.interval("mAP")
        with pytest.raises(ValueError, match="per_query was not kept"):
            back.to_dict(per_query=True)


def test_a_damaged_result_is_refused():
    values = some_result().to_dict(per_query=True)
    with pytest.raises(ValueError, match=r"exactly the entries .* check \['mAP'\]"):
        RankingResult.from_dict({name: x for name, x in values.items() if name != "mAP"})
    with pytest.raises(ValueError, match=r"check \['rank1'\]"):
        RankingResult.from_dict(values | {"rank1": 0.5})
    with pytest.raises(ValueError, match="per_query must have"):
        RankingResult.from_dict(values | {"per_query": {}})


def test_figures_are_the_means_of_what_the_queries_gave():
    result = some_result()
    scores = scores_of(result)
    valid = scores.num_matches > 0
    assert (int(valid.sum()), len(valid)) == (11, 12)
    assert result.mAP == pytest.approx(scores.average_precision[valid].mean().item(), abs=0)
    assert result.rank(3) == pytest.approx((scores.first_match[valid] <= 3).double().mean().item())


def test_an_interval_equals_a_literal_bootstrap():
    result = some_result()
    values = scores_of(result).average_precision[:11].tolist()
    draws = np.random.default_rng(5).integers(11, size=(300, 11))
    means = sorted(math.fsum(values[i] for i in row) / 11 for row in draws.tolist())
    place_low, place_high = 0.05 * 299, 0.95 * 299

    def between(place):
        below = math.floor(place)
        return means[below] + (place - below) * (means[below + 1] - means[below])

    interval = result.interval("mAP", level=0.9, resamples=300, seed=5)
    assert interval == pytest.approx((between(place_low), between(place_high)))


def test_an_interval_is_decided_by_its_seed_and_not_by_its_blocks(monkeypatch):
    result = some_result()
    assert result.interval("rank1", seed=1) == result.interval("rank1", seed=1)
    assert result.interval("mINP", seed=1) != result.interval("mINP", seed=2)
    # 11 queries, 2,000 times: 222 blocks of 9 and a last one of 2, and 2,000 blocks of one.
    whole = result.interval("mAP"), result.interval("rank5")
    for draws_at_once in (100, 5):
        monkeypatch.setattr("tfclip.functional.bootstrap._BLOCK_DRAWS", draws_at_once)
        assert (result.interval("mAP"), result.interval("rank5")) == whole


def test_a_query_with_one_match_counts_in_an_interval():
    distance = torch.tensor([[0.1, 0.2, 0.3]]).expand(3, 3)
    result = evaluate_ranking(distance, [0, 1, 2], [0, 1, 2], [0] * 3, [1] * 3)
    assert result.interval("mAP") == bootstrap_interval([1, 1 / 2, 1 / 3])
    assert result.interval("rank2") == bootstrap_interval([1, 1, 0])


def test_unless_told_otherwise_an_interval_is_that_of_95_percent_from_2000_resamples():
    result = some_result()
    values = scores_of(result).average_precision[:11]
    told = {"level": 0.95, "resamples": 2000, "seed": 0}
    assert result.interval("mAP") == result.interval("mAP", **told)
    assert bootstrap_interval(values) == bootstrap_interval(values, **told)
    assert bootstrap_interval([0.25], resamples=1) == (0.25, 0.25)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(random.random(100), level=0.9, resamples=200, seed=seed)
        covered += low <= 0.5 <= high
    assert 0.85 <= covered / 300 <= 0.94


def test_an_interval_that_cannot_be_given_is_refused():
    result = some_result(max_rank=2)
    with pytest.raises(ValueError, match="figure must be 'mAP', 'mINP' or 'rank1'"):
        result.interval("rank0")
    with pytest.raises(ValueError, match="from 1 to the measured 2, got 5"):
        result.interval("rank5")
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 1"):
        result.interval("mAP", level=1)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 0"):
        result.interval("mAP", level=0)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        result.interval("mAP", resamples=0)
    with pytest.raises(ValueError, match=r"values must be \(M,\) with at least one"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="values must be finite, got nan at position 1"):
        bootstrap_interval([0.0, math.nan])
