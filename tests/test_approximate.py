"""What surrounds an index of FAISS: the pairs compared, the sample of rows, the farthest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_reranking import draw
from tfclip.functional import approximate
from tfclip.functional.approximate import find_approximately
from tfclip.functional.neighbours import find_neighbours
from tfclip.functional.pairwise import FeatureDistances


@settings(deadline=None)
@given(st.integers(0, 9999), st.integers(1, 6), st.integers(1, 5))
def test_a_row_is_compared_with_what_was_found_or_with_all_where_that_is_too_little(
    seed, num_found, width
):
    random = torch.Generator().manual_seed(seed)
    total, block = 9, slice(3, 7)
    found = torch.stack([torch.randperm(total, generator=random)[:num_found] for _ in range(4)])
    missing = torch.randint(num_found + 1, (4, 1), generator=random)
    found[torch.arange(num_found) >= missing] = -1  # as an index fills up what it does not find
    rows, columns = approximate._pairs(found, block, total, width)
    expected = []
    for row, line in zip(range(3, 7), found.tolist(), strict=True):
        known = {place for place in line if place >= 0}
        chosen = range(total) if len(known) < width else sorted(known | {row})
        expected += [(row, column) for column in chosen]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 30))
def test_a_sample_is_evenly_spaced_over_queries_and_gallery(num_queries, num_gallery, count):
    total = num_queries + num_gallery
    rows = torch.arange(total).double()[:, None]
    distances = FeatureDistances(rows[:num_queries], rows[num_queries:])
    places = approximate._sample(distances, count)[:, 0].long().tolist()
    assert len(places) == min(count, total)
    assert places[0] == 0
    gaps = [after - place for place, after in zip(places, [*places[1:], total], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_the_farthest_of_few_rows_is_that_of_all(monkeypatch):
    monkeypatch.setattr(approximate, "TILE_ROWS", 3)
    queries, gallery = (rows.double() for rows in draw(5, 11))
    rows = torch.cat([queries, gallery])
    expected = (rows[:, None] - rows).square().sum(2).amax(1)
    found = approximate._farthest(FeatureDistances(queries, gallery))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_where_all_rows_are_equal_the_farthest_is_one_to_divide_by():
    rows = torch.ones(6, 3)
    assert approximate._farthest(FeatureDistances(rows[:2], rows[2:])).tolist() == [1] * 6


@pytest.mark.parametrize("rows_at_once", [50, 4_096])
@pytest.mark.parametrize(
    ("search", "width"), [("ivf", 1), ("ivf", 7), ("ivf", 400), ("hnsw", 1), ("hnsw", 400)]
)
def test_an_index_of_few_rows_finds_the_exact_neighbours(monkeypatch, search, rows_at_once, width):
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "_ROWS_AT_ONCE", rows_at_once)
    queries, gallery = (rows.double() for rows in draw(20, 280))
    distances = FeatureDistances(queries, gallery)
    exact, found = find_neighbours(distances, width), find_approximately(distances, width, search)
    assert found.indices.shape == (300, min(width, 300))
    assert torch.equal(found.indices, exact.indices)
    assert torch.equal(found.distances, exact.distances)
    torch.testing.assert_close(found.farthest, exact.farthest, rtol=0, atol=1e-12)


@pytest.mark.parametrize("search", ["hnsw", "ivf"])
def test_an_index_of_few_rows_writes_nothing_to_the_terminal(search, capfd):
    pytest.importorskip("faiss")
    find_approximately(FeatureDistances(*draw(2, 9)), 3, search)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("num_rows", [3, 63, 127, 128, 700])
def test_an_inverted_list_holds_64_rows_or_more_on_average(num_rows):
    pytest.importorskip("faiss")
    distances = FeatureDistances(*draw(2, num_rows - 2))
    index, _ = approximate._build(distances, "ivf", 128, False)
    assert index.ntotal == num_rows
    assert index.nlist == max(1, num_rows // 64)


@pytest.mark.parametrize(("width", "effort"), [(3, 128), (64, 128), (65, 130), (400, 600)])
def test_a_graph_keeps_128_rows_in_view_or_twice_those_wanted(monkeypatch, width, effort):
    faiss, asked = pytest.importorskip("faiss"), []
    search = faiss.SearchParametersHNSW
    monkeypatch.setattr(
        faiss,
        "SearchParametersHNSW",
        lambda **options: asked.append(options) or search(**options),
    )
    find_approximately(FeatureDistances(*draw(20, 280)), width, "hnsw")
    assert asked == [{"efSearch": effort}]
