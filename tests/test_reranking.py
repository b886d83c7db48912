"""Re-ranking against recorded numbers and against the definition, read slowly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_reranking import draw, problems, slow_rerank, slow_rerank_of_features
from tfclip.functional import (
    k_reciprocal_rerank,
    k_reciprocal_rerank_blocks,
    k_reciprocal_rerank_from_distance,
    k_reciprocal_rerank_topk,
    pairwise,
)
from tfclip.functional.neighbours import smallest

SETTINGS = [(20, 6, 0.3), (50, 15, 0.3), (20, 1, 0.3), (7, 3, 0.5)]


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), SETTINGS)
def test_it_equals_the_recorded_algorithm(golden, k1, k2, lambda_value):
    recorded = golden("rerank")
    expected = recorded[f"k1={k1},k2={k2},lambda={lambda_value}.float64"]
    features = recorded["query"], recorded["gallery"]
    double = [x.double() for x in features]
    exact = k_reciprocal_rerank(double[0], double[1], k1, k2, lambda_value)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-9)
    single = k_reciprocal_rerank(*features, k1, k2, lambda_value)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


def test_queries_that_stand_in_the_gallery_too_give_the_recorded_distances(golden):
    recorded = golden("metrics")
    rows = torch.nn.functional.normalize(recorded["evaluator.features"], dim=1)
    expected = recorded["evaluator.norm_rerank_50_15_0.3.distmat_float64"]
    exact = k_reciprocal_rerank(rows[:12].double(), rows.double(), 50, 15, 0.3)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-6)  # normalised in float32
    single = k_reciprocal_rerank(rows[:12], rows, 50, 15, 0.3)
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)


def test_the_reading_above_equals_the_recorded_algorithm_too(golden):
    recorded = golden("rerank")
    features = recorded["query"], recorded["gallery"]
    slow = slow_rerank_of_features(*features, 7, 3, 0.5)
    expected = recorded["k1=7,k2=3,lambda=0.5.float64"]
    torch.testing.assert_close(slow, expected, rtol=0, atol=1e-6)  # float32 rounds at the source


@settings(deadline=None, max_examples=200)
@given(problems(), st.integers(1, 9))
def test_it_equals_a_literal_reading_with_ties_duplicates_and_few_rows(problem, tile_rows):
    queries, gallery, parameters = problem
    expected = slow_rerank_of_features(queries, gallery, *parameters)
    result = k_reciprocal_rerank(queries, gallery, *parameters, tile_rows=tile_rows)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=100)
@given(problems(), st.integers(1, 9), st.integers(1, 7), st.integers(1, 20))
def test_all_inputs_and_outputs_tell_the_same(problem, tile_rows, block_queries, top):
    queries, gallery, parameters = problem
    whole = k_reciprocal_rerank(queries, gallery, *parameters)
    rows = torch.cat([queries, gallery])
    distance = (rows[:, None] - rows).square().sum(2)
    split = len(queries)
    given_distance = k_reciprocal_rerank_from_distance(
        distance[:split, :split],
        distance[:split, split:],
        distance[split:, split:],
        *parameters,
        tile_rows=tile_rows,
    )
    torch.testing.assert_close(given_distance, whole, rtol=0, atol=1e-12)
    blocks = k_reciprocal_rerank_blocks(
        queries, gallery, *parameters, block_queries=block_queries, tile_rows=tile_rows
    )
    torch.testing.assert_close(torch.cat(list(blocks)), whole, rtol=0, atol=1e-12)
    values, places = k_reciprocal_rerank_topk(queries, gallery, *parameters, top=top)
    expected, order = whole.sort(dim=1, stable=True)
    torch.testing.assert_close(values, expected[:, :top], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.gather(1, places), values, rtol=0, atol=1e-12)
    assert places.shape == order[:, :top].shape


@pytest.mark.parametrize(("k1", "half"), [(7, 4), (9, 4), (13, 6)])
def test_half_of_k1_is_rounded_to_even(k1, half):
    queries, gallery = (x.double() for x in draw(10, 60))
    rows = torch.cat([queries, gallery])
    distance = (rows[:, None] - rows).square().sum(2).tolist()
    result = k_reciprocal_rerank(queries, gallery, k1, 1, 0.0)
    expected = slow_rerank(distance, 10, k1, 1, 0.0, half)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    for other in (half - 1, half + 1):  # it shows
        assert (result - slow_rerank(distance, 10, k1, 1, 0.0, other)).abs().max() > 1e-3


@pytest.mark.parametrize("tile_rows", [1, 7, 64])
def test_the_size_of_tiles_does_not_matter(tile_rows):
    queries, gallery = draw(30, 170)
    whole = k_reciprocal_rerank(queries, gallery)
    tiled = k_reciprocal_rerank(queries, gallery, tile_rows=tile_rows)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)


def test_the_bounds_of_memory_do_not_matter(monkeypatch):
    queries, gallery = draw(30, 170)
    whole = k_reciprocal_rerank(queries, gallery)
    monkeypatch.setattr("tfclip.functional.reciprocal.ENTRIES", 50)
    monkeypatch.setattr("tfclip.functional.sparse.ENTRIES", 50)
    monkeypatch.setattr("tfclip.functional.reranking._BLOCK_ENTRIES", 300)
    monkeypatch.setattr("tfclip.functional.products._PAIR_ENTRIES", 40)
    torch.testing.assert_close(k_reciprocal_rerank(queries, gallery), whole, rtol=0, atol=1e-6)


def test_permuting_the_gallery_permutes_the_columns():
    queries, gallery = draw(30, 170)
    order = torch.randperm(170, generator=torch.Generator().manual_seed(1))
    whole = k_reciprocal_rerank(queries, gallery)
    permuted = k_reciprocal_rerank(queries, gallery[order])
    torch.testing.assert_close(permuted, whole[:, order], rtol=0, atol=1e-6)


def test_turning_and_scaling_the_space_changes_nothing():
    queries, gallery = (x.double() for x in draw(30, 170))
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)))[0]
    turned = k_reciprocal_rerank(7 * queries @ turn.double(), 7 * gallery @ turn.double())
    torch.testing.assert_close(turned, k_reciprocal_rerank(queries, gallery), rtol=0, atol=1e-6)


def test_with_all_weight_on_the_plain_distance_it_is_the_scaled_distance():
    queries, gallery = draw(30, 170)
    rows = torch.cat([queries, gallery])
    farthest = torch.cdist(queries, rows).square().amax(1, keepdim=True)
    expected = torch.cdist(queries, gallery).square() / farthest
    result = k_reciprocal_rerank(queries, gallery, lambda_value=1.0)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_rows_that_are_all_equal_share_their_first_neighbours_only():
    same = torch.ones(1, 4)
    assert k_reciprocal_rerank(same, same.expand(3, 4)).tolist() == [[0, 0, 0]]
    # Of 30 equal rows the first 3 are everybody's neighbours, so only these have a set.
    result = k_reciprocal_rerank(same, same.expand(29, 4), k1=2, k2=1)
    assert result[0, :2].tolist() == [0, 0]
    torch.testing.assert_close(result[0, 2:], torch.full((27,), 0.7))


def test_half_precision_is_computed_in_single_precision():
    queries, gallery = (x.bfloat16() for x in draw(5, 30))
    result = k_reciprocal_rerank(queries, gallery)
    expected = k_reciprocal_rerank(queries.float(), gallery.float())
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_distances_of_half_precision_are_taken_to_single_precision():
    rows = torch.cat(draw(5, 30))
    whole = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").bfloat16()
    parts = whole[:5, :5], whole[:5, 5:], whole[5:, 5:]
    result = k_reciprocal_rerank_from_distance(*parts)
    wide = parts[0].float(), parts[1].float(), parts[2].float()
    expected = k_reciprocal_rerank_from_distance(*wide)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_no_gradient_is_kept():
    queries, gallery = (x.requires_grad_() for x in draw(3, 9))
    assert not k_reciprocal_rerank(queries, gallery).requires_grad


def test_many_equal_distances_are_ranked_as_a_stable_sort_ranks_them():
    random = torch.Generator().manual_seed(0)
    values = torch.randint(4, (50, 300), generator=random).float()
    some, places = smallest(values, 20)
    whole, order = values.sort(dim=1, stable=True)
    assert torch.equal(some, whole[:, :20])
    assert torch.equal(places, order[:, :20])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k1": 0}, ValueError, "k1 must be at least 1, got 0"),
        ({"k2": 1.5}, TypeError, "k2 must be an integer, got 1.5"),
        ({"k1": True}, TypeError, "k1 must be an integer, got True"),
        ({"lambda_value": 1.1}, ValueError, "lambda_value must be from 0 to 1, got 1.1"),
        ({"lambda_value": -0.1}, ValueError, "lambda_value must be from 0 to 1, got -0.1"),
        ({"lambda_value": math.nan}, ValueError, "lambda_value must be from 0 to 1, got nan"),
        ({"tile_rows": 0}, ValueError, "tile_rows must be at least 1, got 0"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(arguments, error, message):
    queries, gallery = draw(2, 3)
    with pytest.raises(error, match=message):
        k_reciprocal_rerank(queries, gallery, **arguments)
    distance = torch.zeros(1, 1)
    with pytest.raises(error, match=message):
        k_reciprocal_rerank_from_distance(distance, distance, distance, **arguments)
    with pytest.raises(error, match=message):
        k_reciprocal_rerank_topk(queries, gallery, top=1, **arguments)


def test_output_sizes_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        k_reciprocal_rerank_topk(*draw(2, 3), top=0)
    with pytest.raises(ValueError, match="block_queries must be at least 1, got 0"):
        k_reciprocal_rerank_blocks(*draw(2, 3), block_queries=0)  # before the first block


def test_embeddings_that_do_not_fit_are_refused_by_name():
    queries, gallery = draw(2, 3)
    with pytest.raises(ValueError, match="same width, got 16 and 15"):
        k_reciprocal_rerank(queries, gallery[:, :15])
    with pytest.raises(ValueError, match="gallery must be finite, got nan in row 2"):
        k_reciprocal_rerank(queries, torch.where(torch.arange(3)[:, None] == 2, torch.nan, gallery))
    with pytest.raises(ValueError, match="gallery must have at least one entry"):
        k_reciprocal_rerank(queries, gallery[:0])
    with pytest.raises(TypeError, match="one type"):
        k_reciprocal_rerank(queries, gallery.double())


def test_distances_that_do_not_fit_are_refused_by_name():
    one, two, across = torch.zeros(1, 1), torch.zeros(2, 2), torch.zeros(1, 2)
    rerank = k_reciprocal_rerank_from_distance
    with pytest.raises(ValueError, match=r"distance_qg must be \(Q, G\).*got shape \(1, 0\)"):
        rerank(one, across[:, :0], two)
    with pytest.raises(ValueError, match=r"distance_gg must be \(2, 2\) to fit"):
        rerank(one, across, one)
    with pytest.raises(TypeError, match="distance_qq must have the type of distance_qg"):
        rerank(one.double(), across, two)
    with pytest.raises(TypeError, match="distance_qq must be floating point"):
        rerank(one.long(), across, two)
    with pytest.raises(ValueError, match=r"distance_qg must be finite .* got -0\.5"):
        rerank(one, torch.tensor([[1.0, -0.5]]), two)
    with pytest.raises(ValueError, match="distance_qg must be finite and not negative, got nan"):
        rerank(one, across * torch.nan, two)
    with pytest.raises(ValueError, match="distance_gg must be finite and not negative, got inf"):
        rerank(one, across, torch.tensor([[0.0, torch.inf], [torch.inf, 0.0]]))
    with pytest.raises(ValueError, match=r"distance_qq must be \(1, 1\) to fit"):
        rerank(two, across, two)
    with pytest.raises(ValueError, match=r"distance_gg must be symmetric, got 1.0 in row 0, col"):
        rerank(one, across, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))


def test_distances_may_be_asymmetric_by_rounding_and_no_more(monkeypatch):
    monkeypatch.setattr(pairwise, "TILE_ROWS", 2)
    queries, across = torch.zeros(1, 1), torch.ones(1, 5)
    gallery = 4 - 4 * torch.eye(5)
    expected = k_reciprocal_rerank_from_distance(queries, across, gallery)
    gallery[4, 1] -= 4e-5  # of 4; float32 has 7 digits
    result = k_reciprocal_rerank_from_distance(queries, across, gallery)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    gallery[4, 1] -= 4e-5
    with pytest.raises(ValueError, match=r"got 4\.0 in row 1, column 4 and 3\.99\d* in row 4, col"):
        k_reciprocal_rerank_from_distance(queries, across, gallery)
