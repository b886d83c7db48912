"""How neighbours are found must not show: rough products, other tiles, an index."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_reranking import clustered, draw, problems, slow_rerank_of_features
from tfclip.errors import MissingExtraError
from tfclip.functional import (
    k_reciprocal_rerank,
    k_reciprocal_rerank_blocks,
    k_reciprocal_rerank_topk,
    neighbours,
    shortlist,
)
from tfclip.functional.neighbours import find_neighbours
from tfclip.functional.pairwise import FeatureDistances


@pytest.fixture
def half(monkeypatch):
    """Make every search in float32 one in bfloat16."""
    monkeypatch.setattr(neighbours, "_MANY", 0)
    monkeypatch.setattr(neighbours, "bfloat16_is_faster", lambda threads: True)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (5.0, 1.0), (0.0, 1e-3), (-3.0, 300.0)])
def test_a_search_in_bfloat16_gives_the_same_bits(request, offset, scale):
    rows = clustered(offset=offset, scale=scale)
    single = find_neighbours(FeatureDistances(rows[:50], rows[50:]), 21)
    result = k_reciprocal_rerank(rows[:50], rows[50:])
    request.getfixturevalue("half")
    found = find_neighbours(FeatureDistances(rows[:50], rows[50:]), 21)
    for ours, theirs in zip(found, single, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(k_reciprocal_rerank(rows[:50], rows[50:]), result)


def test_bfloat16_alone_would_change_the_neighbours():
    rows = clustered()
    exact = find_neighbours(FeatureDistances(rows[:50], rows[50:]), 21).indices
    rounded = rows.bfloat16().float()
    rough = find_neighbours(FeatureDistances(rounded[:50], rounded[50:]), 21).indices
    assert not torch.equal(exact, rough)


@pytest.mark.parametrize("tile_rows", [17, 64, 1000])
def test_the_size_of_tiles_leaves_every_bit_of_the_neighbours(tile_rows):
    rows = clustered()
    distances = FeatureDistances(rows[:50], rows[50:])
    for ours, theirs in zip(
        find_neighbours(distances, 21, None, tile_rows), find_neighbours(distances, 21), strict=True
    ):
        assert torch.equal(ours, theirs)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9999),
    st.integers(1, 80),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([shortlist.RoughDistances, shortlist.HalfDistances]),
)
def test_no_rough_distance_is_off_by_more_than_its_slack(seed, width, offset, scale, kind):
    rows = clustered(40, width, seed, offset, scale)
    rows[3] = rows[4]
    distances = FeatureDistances(rows[:15], rows[15:])
    rough = kind(distances)
    every = torch.arange(40)
    pairs = distances.of_pairs(every.repeat_interleave(40), every.repeat(40)).view(40, 40)
    doubles = rows.double()
    exact = (doubles[:, None] - doubles).square().sum(2)
    assert ((pairs - exact).abs() <= distances.rounding()[:, None]).all()
    for side in (slice(0, 15), slice(15, 40)):
        tile = rough.tile(side, side).clone()
        for column in range(tile.shape[1]):
            slack = rough.slack(side, tile[:, column])
            assert ((tile[:, column] - pairs[side, side.start + column]).abs() <= slack).all()


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(1, 9))
def test_with_few_pairs_allowed_ties_and_duplicates_still_rank_by_the_definition(
    problem, tile_rows
):
    queries, gallery, parameters = problem
    expected = slow_rerank_of_features(queries, gallery, *parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortlist, "_LEAST_LOG", 30)
        patch.setattr(shortlist, "_LOG_PER_NEIGHBOUR", 0)
        result = k_reciprocal_rerank(queries, gallery, *parameters, tile_rows=tile_rows)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_rows_that_rounding_cannot_tell_apart_fall_back_to_plain_tiles(half, monkeypatch):
    monkeypatch.setattr(shortlist, "_LEAST_LOG", 2_000)
    monkeypatch.setattr(shortlist, "_LOG_PER_NEIGHBOUR", 0)
    kinds = []
    for kind in (shortlist.HalfDistances, shortlist.RoughDistances):
        start = kind.__init__
        monkeypatch.setattr(
            kind,
            "__init__",
            lambda self, exact, start=start: (kinds.append(type(self)), start(self, exact))[1],
        )
    rows = torch.ones(200, 8)
    rows[0] = 2
    result = k_reciprocal_rerank(rows[:20], rows[20:], k1=5, k2=1)
    assert {shortlist.HalfDistances, shortlist.RoughDistances} <= set(kinds)
    expected = slow_rerank_of_features(rows[:20], rows[20:], 5, 1, 0.3)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)


# --- an index of FAISS -----------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(problems())
def test_an_index_that_finds_everything_gives_the_definition(problem):
    pytest.importorskip("faiss")
    queries, gallery, parameters = problem
    expected = slow_rerank_of_features(queries, gallery, *parameters)
    result = k_reciprocal_rerank(queries, gallery, *parameters, neighbours="ivf")  # has one list
    # Of many equal rows an index may find others than the first; then only values are comparable.
    if len(torch.cat([queries, gallery]).unique(dim=0)) == len(queries) + len(gallery):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert result.shape == expected.shape
    assert ((result >= -1e-12) & (result <= 1)).all()


@pytest.mark.parametrize("search", ["hnsw", "ivf"])
def test_an_index_finds_nearly_all_neighbours_and_their_exact_distances(search):
    pytest.importorskip("faiss")
    from tfclip.functional.approximate import find_approximately

    queries, gallery = draw(100, 4_900, width=24)
    distances = FeatureDistances(queries, gallery)
    exact = find_neighbours(distances, 21)
    found = find_approximately(distances, 21, search)
    shared = [
        len(set(ours.tolist()) & set(theirs.tolist()))
        for ours, theirs in zip(found.indices, exact.indices, strict=True)
    ]
    assert sum(shared) / exact.indices.numel() > 0.9
    assert (found.indices[:, 0] == torch.arange(5_000)).all()
    same = found.indices == exact.indices
    assert torch.equal(found.distances[same], exact.distances[same])
    assert (found.farthest <= exact.farthest + 1e-6).all()
    assert (found.farthest / exact.farthest).mean() > 0.99  # it is that of a sample


@pytest.mark.parametrize("search", ["hnsw", "ivf"])
def test_all_outputs_of_an_index_tell_the_same(search):
    pytest.importorskip("faiss")
    queries, gallery = draw(60, 640)
    whole = k_reciprocal_rerank(queries, gallery, neighbours=search)
    blocks = k_reciprocal_rerank_blocks(queries, gallery, neighbours=search, block_queries=7)
    torch.testing.assert_close(torch.cat(list(blocks)), whole, rtol=0, atol=1e-6)
    values, places = k_reciprocal_rerank_topk(queries, gallery, top=5, neighbours=search)
    torch.testing.assert_close(values, whole.sort(dim=1)[0][:, :5], rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.gather(1, places), values, rtol=0, atol=1e-6)


def test_a_search_that_is_unknown_or_not_installed_is_refused_in_a_sentence(monkeypatch):
    queries, gallery = draw(2, 5)
    with pytest.raises(ValueError, match="neighbours must be 'exact', 'hnsw' or 'ivf', got 'lsh'"):
        k_reciprocal_rerank(queries, gallery, neighbours="lsh")  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "faiss", None)
    for rerank in (k_reciprocal_rerank, k_reciprocal_rerank_blocks):
        with pytest.raises(MissingExtraError, match=r"'ivf' needs faiss; .*'tfclip\[index\]'"):
            rerank(queries, gallery, neighbours="ivf")
    assert k_reciprocal_rerank(queries, gallery).shape == (2, 5)
