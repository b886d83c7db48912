"""How neighbours are found must not show: rough products, other tiles, an index, given lists."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_reranking import draw, problems, slow_rerank, slow_rerank_of_features
from tfclip.errors import MissingExtraError
from tfclip.functional import (
    k_reciprocal_rerank,
    k_reciprocal_rerank_blocks,
    k_reciprocal_rerank_from_topk,
    k_reciprocal_rerank_topk,
    neighbours,
    products,
    shortlist,
)
from tfclip.functional.neighbours import find_neighbours
from tfclip.functional.pairwise import FeatureDistances


@pytest.fixture
def half(monkeypatch):
    """Make every search in float32 one in bfloat16."""
    monkeypatch.setattr(neighbours, "_MANY", 0)
    monkeypatch.setattr(neighbours, "bfloat16_is_faster", lambda threads: True)


def clustered(num_rows=700, width=96, seed=0, offset=0.0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    persons = torch.randn(40, width, generator=random)
    who = torch.randint(40, (num_rows,), generator=random)
    return (persons[who] + torch.randn(num_rows, width, generator=random) + offset) * scale


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


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999), st.sampled_from([torch.float32, torch.float64]))
def test_products_of_pairs_are_those_of_the_whole_and_know_no_order(seed, dtype):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(9, 33, generator=random, dtype=dtype)
    columns = torch.randn(7, 33, generator=random, dtype=dtype)
    first = torch.randint(9, (20,), generator=random).sort()[0]
    second = torch.randint(7, (20,), generator=random)
    found = products.pair_products(rows, columns, first, second)
    torch.testing.assert_close(found, (rows @ columns.T)[first, second])
    order = second.argsort(stable=True)
    turned = products.pair_products(columns, rows, second[order], first[order])
    assert torch.equal(turned, found[order])
    alone = products.pair_products(rows, columns, first[5:6], second[5:6])
    assert torch.equal(alone, found[5:6])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_by_convolution_is_the_product(monkeypatch, threads):
    monkeypatch.setattr(products, "_LARGE", 0)
    monkeypatch.setattr(products, "convolution_is_faster", lambda threads: True)
    random = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(37, 50, generator=random), torch.randn(64, 50, generator=random)
    start = torch.randn(37, 64, generator=random)
    torch.set_num_threads(threads)
    try:
        result = products.add_products(start.clone(), rows, columns, -2)
    finally:
        torch.set_num_threads(1)
    exact = start.double() - 2 * rows.double() @ columns.double().T
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5)


def test_the_measured_choices_have_an_answer():
    assert products.convolution_is_faster(torch.get_num_threads()) in (True, False)
    assert products.bfloat16_is_faster(torch.get_num_threads()) in (True, False)


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


# --- given lists -----------------------------------------------------------------------------


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
@given(problems(), st.integers(0, 20), st.sampled_from([None, 0.5, 2.0]))
def test_what_no_list_has_is_as_far_as_the_last_of_the_list(problem, more, farthest):
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
    found, places = k_reciprocal_rerank_from_topk(
        indices, values, len(queries), k1, k2, lambda_value, farthest=far, top=9
    )
    torch.testing.assert_close(found, expected.sort(dim=1)[0][:, :9], rtol=0, atol=1e-12)
    torch.testing.assert_close(expected.gather(1, places), found, rtol=0, atol=1e-12)


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
        ({"indices": torch.full((4, 3), 4)}, ValueError, "indices must be rows from 0 to 3, got 4"),
        ({"indices": torch.zeros(4, 3).long()}, ValueError, "no row twice in a list, got 0 twice"),
        ({"distances": torch.zeros(4, 3) - 1}, ValueError, "finite and not negative, got -1"),
        (
            {"distances": torch.tensor([0.0, 2.0, 1.0]).expand(4, 3)},
            ValueError,
            "must ascend in each list, got 2.0 before 1.0 in list 0",
        ),
        ({"num_queries": 4}, ValueError, "num_queries must be less than the 4 rows .*, got 4"),
        ({"num_queries": 0}, ValueError, "num_queries must be at least 1, got 0"),
        ({"k1": 3}, ValueError, "indices must list 4 to 4 rows .*, got 3"),
        ({"farthest": torch.ones(3)}, ValueError, r"farthest must be one number or \(4,\), got"),
        ({"farthest": -1.0}, ValueError, "farthest must be finite and not negative, got -1"),
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
