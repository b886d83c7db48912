"""Re-ranking by given lists of nearest rows, against the definition read on what they know."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_reranking import draw, problems, slow_rerank, slow_rerank_of_features
from tfclip.functional import (
    k_reciprocal_rerank,
    k_reciprocal_rerank_from_topk,
    reranking,
)
from tfclip.functional.neighbour_lists import ListDistances


def full_lists(queries, gallery):
    rows = torch.cat([queries, gallery])
    distance = (rows[:, None] - rows).square().sum(2)
    values, indices = distance.sort(dim=1, stable=True)
    return indices, values


@settings(deadline=None, max_examples=100)
@given(problems(), st.integers(1, 20))
def test_lists_of_all_rows_give_the_definition(problem, top):
    queries, gallery, parameters = problem
    indices, values = full_lists(queries, gallery)
    expected = slow_rerank_of_features(queries, gallery, *parameters)
    found, places = k_reciprocal_rerank_from_topk(
        indices, values, len(queries), *parameters, farthest=values[:, -1], top=top
    )
    torch.testing.assert_close(found, expected.sort(dim=1)[0][:, :top], rtol=0, atol=1e-12)
    torch.testing.assert_close(expected.gather(1, places), found, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=100)
@given(
    problems(),
    st.integers(0, 20),
    st.sampled_from([None, 0.5, 2.0]),
    st.sampled_from([1, 30, 2**22]),
)
def test_what_no_list_has_is_as_far_as_the_last_of_the_list(problem, more, farthest, at_once):
    queries, gallery, (k1, k2, lambda_value) = problem
    total = len(queries) + len(gallery)
    length = min(total, max(k1 + 1, k2) + more)
    indices, values = (each[:, :length] for each in full_lists(queries, gallery))
    lists = [
        dict(zip(*pair, strict=True))
        for pair in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    known = [
        [lists[i].get(j, lists[j].get(i, values[i, -1].item())) for j in range(total)]
        for i in range(total)
    ]
    far = values[:, -1].clamp_min(1) if farthest is None else farthest
    expected = slow_rerank(
        known,
        len(queries),
        k1,
        k2,
        lambda_value,
        ranking=indices.tolist(),
        farthest=[float(each) for each in torch.as_tensor(far).expand(total)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reranking, "_BLOCK_ENTRIES", at_once)
        found, places = k_reciprocal_rerank_from_topk(
            indices, values, len(queries), k1, k2, lambda_value, farthest=far, top=9
        )
    torch.testing.assert_close(found, expected.sort(dim=1)[0][:, :9], rtol=0, atol=1e-12)
    torch.testing.assert_close(expected.gather(1, places), found, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(1, 20))
def test_a_distance_is_that_of_either_list_or_as_far_as_the_last_of_the_first(problem, length):
    queries, gallery, _ = problem
    split, total = len(queries), len(queries) + len(gallery)
    indices, values = (each[:, :length] for each in full_lists(queries, gallery))
    lists = ListDistances(indices, values, split, 1e9, min(length, total))
    known = [
        dict(zip(*pair, strict=True))
        for pair in zip(indices.tolist(), values.tolist(), strict=True)
    ]
    expected = [
        [known[i].get(j, known[j].get(i, values[i, -1].item())) for j in range(total)]
        for i in range(total)
    ]
    every = torch.arange(total)
    pairs = lists.of_pairs(every.repeat_interleave(total), every.repeat(total))
    assert pairs.view(total, total).tolist() == expected
    for query in range(split):
        row = lists.across(slice(query, query + 1))
        assert row.tolist() == [expected[query][split:]]


def test_longer_lists_come_closer_to_the_whole():
    queries, gallery = (each.double() for each in draw(30, 370))
    whole = k_reciprocal_rerank(queries, gallery)
    indices, values = full_lists(queries, gallery)
    off = []
    for length in (21, 60, 400):
        found, places = k_reciprocal_rerank_from_topk(
            indices[:, :length], values[:, :length], 30, farthest=values[:, -1], top=10
        )
        off.append((whole.gather(1, places) - found).abs().mean())
    assert off[0] >= off[1] >= off[2]
    assert off[2] < 1e-12


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"indices": torch.zeros(4, 3)}, TypeError, "indices must be int64, got torch.float32"),
        ({"distances": torch.zeros(4, 2)}, ValueError, r"both be \(M, L\), got shapes \(4, 3\)"),
        ({"distances": torch.zeros(4, 3).long()}, TypeError, "distances must be floating point"),
        ({"indices": torch.tensor([[0, 1, 4]] * 4)}, ValueError, "rows from 0 to 3, got 4"),
        ({"indices": torch.full((4, 3), -1)}, ValueError, "must be rows from 0 to 3, got -1"),
        ({"indices": torch.zeros(4, 3).long()}, ValueError, "no row twice in a list, got 0 twice"),
        (
            {"indices": torch.tensor([[0, 1, 2], [1, 3, 3], [2, 2, 0], [3, 0, 1]])},
            ValueError,
            "no row twice in a list, got 3 twice in list 1",
        ),
        ({"distances": torch.full((4, 3), torch.inf)}, ValueError, "not negative, got inf"),
        ({"distances": torch.full((4, 3), torch.nan)}, ValueError, "not negative, got nan"),
        (
            {"distances": torch.tensor([-0.5, 0.0, 1.0]).expand(4, 3)},
            ValueError,
            "finite and not negative, got -0.5",
        ),
        (
            {"distances": torch.tensor([0.0, 2.0, 1.0]).expand(4, 3)},
            ValueError,
            "must ascend in each list, got 2.0 before 1.0 in list 0",
        ),
        ({"num_queries": 4}, ValueError, "num_queries must be less than the 4 rows .*, got 4"),
        ({"num_queries": 0}, ValueError, "num_queries must be at least 1, got 0"),
        ({"k1": 3}, ValueError, "indices must list 4 to 4 rows .*, got 3"),
        ({"farthest": torch.ones(3)}, ValueError, r"farthest must be one number or \(4,\), got"),
        (
            {"indices": torch.zeros(4, 5).long(), "distances": torch.zeros(4, 5)},
            ValueError,
            "indices must list 3 to 4 rows .*, got 5",
        ),
        (
            {"farthest": torch.tensor([0.5, 2, torch.inf, 2])},
            ValueError,
            "farthest must .* got inf",
        ),
        ({"farthest": -0.5}, ValueError, "farthest must be finite and not negative, got -0.5"),
        ({"top": 0}, ValueError, "top must be at least 1, got 0"),
    ],
)
def test_lists_that_do_not_fit_are_refused_by_name(change, error, message):
    arguments = {
        "indices": torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 0, 1]]),
        "distances": torch.tensor([0.0, 1.0, 2.0]).expand(4, 3),
        "num_queries": 1,
        "k1": 2,
        "k2": 1,
        "farthest": 2.0,
        "top": 2,
    }
    k_reciprocal_rerank_from_topk(**arguments)
    with pytest.raises(error, match=message):
        k_reciprocal_rerank_from_topk(**(arguments | change))


def test_lists_of_half_precision_are_taken_to_single_precision():
    queries, gallery = draw(5, 30)
    indices, values = full_lists(queries, gallery)
    single, double = torch.float32, torch.float64
    for each, dtype in ((values.bfloat16(), single), (values, single), (values.double(), double)):
        options: dict[str, Any] = {"farthest": 4, "top": 9}
        found, places = k_reciprocal_rerank_from_topk(indices, each, 5, **options)
        wide, expected = k_reciprocal_rerank_from_topk(indices, each.to(dtype), 5, **options)
        assert found.dtype == dtype
        assert torch.equal(found, wide)
        assert torch.equal(places, expected)


def test_where_all_rows_are_equal_their_farthest_may_be_zero():
    indices, values = full_lists(torch.ones(2, 3), torch.ones(4, 3))
    for farthest in (0.0, torch.zeros(6)):
        found, _ = k_reciprocal_rerank_from_topk(indices, values, 2, farthest=farthest, top=4)
        assert found.tolist() == [[0] * 4] * 2
