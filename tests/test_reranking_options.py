"""What all ways to re-rank have in common: parameters of their own, and bars on request."""

import re

import pytest
import torch

from tests.slow_reranking import draw
from tfclip.functional import (
    alpha_query_expansion,
    approximate,
    camera_aware_jaccard,
    expansion,
    gnn_rerank,
    graph_reranking,
    k_reciprocal_rerank,
    k_reciprocal_rerank_blocks,
    k_reciprocal_rerank_from_distance,
    k_reciprocal_rerank_from_topk,
    k_reciprocal_rerank_topk,
    neighbour_average,
    reranking,
    squared_euclidean_distance,
)
from tfclip.functional.neighbours import find_neighbours, find_neighbours_by_camera
from tfclip.functional.pairwise import FeatureDistances

QUERIES, GALLERY = draw(10, 60)
ROWS = torch.cat([QUERIES, GALLERY])
CAMERAS = [i % 3 for i in range(70)]
DISTANCE = squared_euclidean_distance(ROWS, ROWS).fill_diagonal_(0)
SPLIT = DISTANCE[:10, :10], DISTANCE[:10, 10:], DISTANCE[10:, 10:]
VALUES, INDICES = DISTANCE.sort(dim=1, stable=True)

PUBLISHED = {"k1": 20, "k2": 6, "lambda_value": 0.3}
RERANKINGS = {
    "k_reciprocal_rerank": (lambda **o: k_reciprocal_rerank(QUERIES, GALLERY, **o), PUBLISHED),
    "k_reciprocal_rerank_blocks": (
        lambda **o: torch.cat(list(k_reciprocal_rerank_blocks(QUERIES, GALLERY, **o))),
        PUBLISHED,
    ),
    "k_reciprocal_rerank_topk": (
        lambda **o: k_reciprocal_rerank_topk(QUERIES, GALLERY, top=60, **o)[0],
        PUBLISHED,
    ),
    "k_reciprocal_rerank_from_distance": (
        lambda **o: k_reciprocal_rerank_from_distance(*SPLIT, **o),
        PUBLISHED,
    ),
    "k_reciprocal_rerank_from_topk": (
        lambda **o: k_reciprocal_rerank_from_topk(
            INDICES, VALUES, 10, farthest=VALUES[:, -1], top=60, **o
        )[0],
        PUBLISHED,
    ),
    "alpha_query_expansion": (
        lambda **o: alpha_query_expansion(QUERIES, GALLERY, **o),
        {"k": 5, "alpha": 3.0},
    ),
    "neighbour_average": (
        lambda **o: neighbour_average(QUERIES, GALLERY, **o),
        {"k1": 2, "k2": 2},
    ),
    "gnn_rerank": (lambda **o: gnn_rerank(QUERIES, GALLERY, **o), {"k1": 26, "k2": 7}),
    "camera_aware_jaccard": (
        lambda **o: camera_aware_jaccard(QUERIES, GALLERY, CAMERAS[:10], CAMERAS[10:], **o),
        {"k1_intra": 5, "k1_inter": 20, "k2_intra": 3, "k2_inter": 3, "lambda_value": 0.3},
    ),
}


@pytest.mark.parametrize("name", RERANKINGS)
def test_unless_told_otherwise_the_parameters_are_those_of_the_papers(name):
    rerank, published = RERANKINGS[name]
    result = rerank()
    assert torch.equal(result, rerank(**published))
    for parameter, value in published.items():  # each of them shows
        other = value + (1 if value >= 1 else 0.1)
        assert not torch.equal(result, rerank(**published | {parameter: other}))


HAVE_NO_TILES = "k_reciprocal_rerank_from_topk", "alpha_query_expansion"


@pytest.mark.parametrize("name", RERANKINGS)
def test_every_count_is_a_whole_number_from_one_on(name):
    rerank, published = RERANKINGS[name]
    counts = [parameter for parameter, value in published.items() if isinstance(value, int)]
    for parameter in counts if name in HAVE_NO_TILES else [*counts, "tile_rows"]:
        with pytest.raises(ValueError, match=f"{parameter} must be at least 1, got 0"):
            rerank(**{parameter: 0})
        with pytest.raises(TypeError, match=f"{parameter} must be an integer, got True"):
            rerank(**{parameter: True})


NEIGHBOURS, RERANKING = ("neighbours: ", 70, "row"), ("re-ranking: ", 10, "query")
BARS = {
    "k_reciprocal_rerank": [NEIGHBOURS, RERANKING],
    "k_reciprocal_rerank_blocks": [NEIGHBOURS, RERANKING],
    "k_reciprocal_rerank_topk": [NEIGHBOURS, RERANKING],
    "k_reciprocal_rerank_from_distance": [NEIGHBOURS, RERANKING],
    "k_reciprocal_rerank_from_topk": [RERANKING],
    "alpha_query_expansion": [("", 10, "query")],
    "neighbour_average": [NEIGHBOURS],
    "gnn_rerank": [NEIGHBOURS, ("", 10, "query")],
    "camera_aware_jaccard": [NEIGHBOURS, RERANKING],
}


def check_bars(text, bars):
    """Every bar reaches its end, and says what it counts."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    for what, count, unit in bars:
        end = re.compile(rf"{what}100%\|[^|]*\| {count}/{count} \[.*{unit}")
        assert any(end.match(line) for line in lines), (what, text)
    assert len({line.partition("%")[0].rstrip("0123456789 ") for line in lines}) == len(bars)


@pytest.mark.parametrize("name", RERANKINGS)
def test_bars_are_shown_on_request_only_and_reach_their_end(name, monkeypatch, capsys):
    monkeypatch.setattr(reranking, "_BLOCK_ENTRIES", 4 * 60)
    monkeypatch.setattr(graph_reranking, "_BLOCK_ENTRIES", 4 * 70)
    monkeypatch.setattr(expansion, "_STRIP_ENTRIES", 4 * 60)
    rerank, _ = RERANKINGS[name]
    options = {} if name in HAVE_NO_TILES else {"tile_rows": 16}
    result = rerank(**options)
    assert capsys.readouterr().err == ""
    assert torch.equal(rerank(progress=True, **options), result)
    check_bars(capsys.readouterr().err, BARS[name])


def test_a_search_shows_no_bar_unless_asked(capsys):
    distances = FeatureDistances(QUERIES, GALLERY)
    find_neighbours(distances, 3)
    find_neighbours_by_camera(distances, (3, 3), torch.tensor(CAMERAS))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("search", ["hnsw", "ivf"])
def test_bars_of_an_index_count_blocks_of_rows(search, monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "_ROWS_AT_ONCE", 25)  # so the queries are 1, the gallery 3
    distances = FeatureDistances(QUERIES, GALLERY)
    approximate.find_approximately(distances, 5, search)
    assert capsys.readouterr().err == ""
    k_reciprocal_rerank(QUERIES, GALLERY, neighbours=search, progress=True)
    check_bars(
        capsys.readouterr().err,
        [("index: ", 4, "block"), ("neighbours: ", 4, "block"), RERANKING],
    )
