"""The other ways to re-rank, each against its definition read slowly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.functional import (
    alpha_query_expansion,
    camera_aware_jaccard,
    cosine_distance,
    gnn_rerank,
    neighbour_average,
)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a):
    return [x / (math.sqrt(dot(a, a)) or 1.0) for x in a]


def ranking(rows, i, among):
    """Rank rows by their cosine to row i, the lower row first where it is equal."""
    return sorted(among, key=lambda j: (-dot(rows[i], rows[j]), j))


def split_cosine_distance(rows, num_queries):
    rows = [unit(row) for row in rows]
    return torch.tensor(
        [[1 - dot(q, g) for g in rows[num_queries:]] for q in rows[:num_queries]],
        dtype=torch.float64,
    )


def slow_alpha_query_expansion(rows, num_queries, k, alpha):
    rows = [unit(row) for row in rows]
    expanded = []
    for q in range(num_queries):
        row = rows[q]
        for g in ranking(rows, q, range(num_queries, len(rows)))[:k]:
            cosine = dot(rows[q], rows[g])
            weight = cosine**alpha if cosine > 0 else 0
            row = [x + weight * y for x, y in zip(row, rows[g], strict=True)]
        expanded.append(row)
    return split_cosine_distance(expanded + rows[num_queries:], num_queries)


def slow_neighbour_average(rows, num_queries, k1, k2):
    rows = [unit(row) for row in rows]
    everyone = range(len(rows))
    others = [ranking(rows, i, [j for j in everyone if j != i]) for i in everyone]
    added = []
    for i in everyone:
        row = rows[i]
        for j in others[i][:k1]:
            if i in others[j][:k2]:
                row = [x + y for x, y in zip(row, rows[j], strict=True)]
        added.append(row)
    return split_cosine_distance(added, num_queries)


def slow_gnn_rerank(rows, num_queries, k1, k2):
    rows = [unit(row) for row in rows]
    everyone = range(len(rows))
    near = [ranking(rows, i, everyone) for i in everyone]
    a = [[1.0 if j in near[i][:k1] else 0.0 for j in everyone] for i in everyone]
    for _ in range(2 if k2 > 1 else 0):
        both = [[a[i][j] + a[j][i] for j in everyone] for i in everyone]
        a = [
            unit(
                [
                    sum(dot(rows[i], rows[n]) ** 2 * both[n][j] for n in near[i][:k2])
                    for j in everyone
                ]
            )
            for i in everyone
        ]
    return split_cosine_distance(a, num_queries)


def slow_camera_aware_jaccard(rows, cameras, num_queries, k1, k2, lambda_value):
    everyone = range(len(rows))
    d = [[sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    scaled = [[d[i][j] / (max(d[i]) or 1.0) for j in everyone] for i in everyone]
    near = []
    for same in (True, False):
        kind = [[j for j in everyone if (cameras[i] == cameras[j]) is same] for i in everyone]
        near.append([sorted(kind[i], key=lambda j, i=i: (d[i][j], j)) for i in everyone])
    weights = []
    for i in everyone:
        members = {
            j
            for ranked, k in zip(near, k1, strict=True)
            for j in ranked[i][: k + 1]
            if i in ranked[j][: k + 1]
        }
        weight = {j: math.exp(-scaled[i][j]) for j in members}
        weights.append({j: weight[j] / sum(weight.values()) for j in weight})
    averaged = []
    for i in everyone:
        used = near[0][i][: k2[0]] + near[1][i][: k2[1]]
        columns = {j for n in used for j in weights[n]}
        averaged.append({j: sum(weights[n].get(j, 0) for n in used) / len(used) for j in columns})
    result = []
    for q in range(num_queries):
        line = []
        for g in range(num_queries, len(rows)):
            shared = sum(min(averaged[q][j], averaged[g].get(j, 0)) for j in averaged[q])
            jaccard = 1 - shared / (2 - shared)
            line.append((1 - lambda_value) * jaccard + lambda_value * scaled[q][g])
        result.append(line)
    return torch.tensor(result, dtype=torch.float64)


@st.composite
def problems(draw):
    """Draw queries and gallery: of any direction, or of few directions with exact ties."""
    num_queries, num_gallery = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    random = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    total = num_queries + num_gallery
    if draw(st.booleans()):
        rows = torch.randn(total, 3, generator=random, dtype=torch.float64)
    else:
        axes = torch.cat([torch.eye(3), -torch.eye(3)]).double()
        rows = 2 * axes[torch.randint(draw(st.sampled_from([1, 4, 6])), (total,), generator=random)]
    return rows, num_queries


COUNTS = st.integers(1, 15)


@settings(deadline=None)
@given(problems(), COUNTS, st.sampled_from([0.0, 1.0, 3.0]))
def test_query_expansion_equals_a_literal_reading(problem, k, alpha):
    rows, split = problem
    result = alpha_query_expansion(rows[:split], rows[split:], k, alpha)
    expected = slow_alpha_query_expansion(rows.tolist(), split, k, alpha)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


@settings(deadline=None)
@given(problems(), COUNTS, COUNTS, st.integers(1, 9))
def test_neighbour_average_equals_a_literal_reading(problem, k1, k2, tile_rows):
    rows, split = problem
    result = neighbour_average(rows[:split], rows[split:], k1, k2, tile_rows=tile_rows)
    expected = slow_neighbour_average(rows.tolist(), split, k1, k2)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


@settings(deadline=None)
@given(problems(), COUNTS, COUNTS, st.integers(1, 9))
def test_graph_reranking_equals_a_literal_reading(problem, k1, k2, tile_rows):
    rows, split = problem
    result = gnn_rerank(rows[:split], rows[split:], k1, k2, tile_rows=tile_rows)
    expected = slow_gnn_rerank(rows.tolist(), split, k1, k2)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


@st.composite
def camera_problems(draw):
    """Draw points of a coarse grid, with many ties and duplicates, and their cameras."""
    num_queries, num_gallery = draw(st.integers(1, 5)), draw(st.integers(1, 14))
    random = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    total, side = num_queries + num_gallery, draw(st.sampled_from([1, 3, 1000]))
    rows = torch.randint(side, (total, 2), generator=random).double()
    cameras = torch.randint(draw(st.integers(1, 4)), (total,), generator=random)
    return rows, cameras.tolist(), num_queries


@settings(deadline=None, max_examples=200)
@given(
    camera_problems(),
    st.tuples(COUNTS, COUNTS),
    st.tuples(COUNTS, COUNTS),
    st.sampled_from([0.0, 0.3]),
    st.integers(1, 9),
)
def test_camera_aware_jaccard_equals_a_literal_reading(problem, k1, k2, lambda_value, tile_rows):
    rows, cameras, split = problem
    result = camera_aware_jaccard(
        *(rows[:split], rows[split:], cameras[:split], cameras[split:]),
        *(*k1, *k2, lambda_value),
        tile_rows=tile_rows,
    )
    expected = slow_camera_aware_jaccard(rows.tolist(), cameras, split, k1, k2, lambda_value)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


CAMERAS = [f"c{i % 3}" for i in range(70)]
ALL = {
    "alpha_query_expansion": alpha_query_expansion,
    "neighbour_average": neighbour_average,
    "gnn_rerank": gnn_rerank,
    "camera_aware_jaccard": lambda queries, gallery: camera_aware_jaccard(
        queries, gallery, CAMERAS[: len(queries)], CAMERAS[len(queries) :][: len(gallery)]
    ),
}


def draw_people(seed=0, num_queries=10, num_gallery=60):
    random = torch.Generator().manual_seed(seed)
    persons = torch.randn(8, 24, generator=random)
    rows = persons[torch.arange(num_queries + num_gallery) % 8]
    rows = rows + 0.8 * torch.randn(rows.shape, generator=random)
    return rows[:num_queries], rows[num_queries:]


@pytest.mark.parametrize("name", ALL)
def test_noisy_people_are_ranked_better_than_without(name):
    queries, gallery = draw_people()
    right = (torch.arange(10)[:, None] % 8) == ((10 + torch.arange(60)) % 8)

    def mean_rank(distance):
        return (distance.argsort(dim=1).argsort(dim=1) * right).sum() / right.sum()

    assert mean_rank(ALL[name](queries, gallery)) < mean_rank(cosine_distance(queries, gallery))


@pytest.mark.parametrize("name", ["alpha_query_expansion", "neighbour_average", "gnn_rerank"])
def test_permuting_the_gallery_permutes_the_columns(name):
    queries, gallery = draw_people()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    permuted = ALL[name](queries, gallery[order])
    torch.testing.assert_close(permuted, ALL[name](queries, gallery)[:, order], rtol=0, atol=1e-5)


def test_permuting_the_gallery_with_its_cameras_permutes_the_columns():
    queries, gallery = draw_people()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    cameras = torch.arange(70) % 3
    whole = camera_aware_jaccard(queries, gallery, cameras[:10], cameras[10:])
    permuted = camera_aware_jaccard(queries, gallery[order], cameras[:10], cameras[10:][order])
    torch.testing.assert_close(permuted, whole[:, order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_computed_in_single_precision_and_without_gradient(name):
    queries, gallery = (x.bfloat16().requires_grad_() for x in draw_people())
    result = ALL[name](queries, gallery)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert torch.equal(result, ALL[name](queries.float(), gallery.float()))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("entries", [50, 200])
def test_the_bounds_of_memory_do_not_matter(name, entries, monkeypatch):
    queries, gallery = draw_people()
    whole = ALL[name](queries, gallery)
    monkeypatch.setattr("tfclip.functional.sparse.ENTRIES", 50)
    for module in ("graph_reranking", "reranking"):
        monkeypatch.setattr(f"tfclip.functional.{module}._BLOCK_ENTRIES", entries)
    monkeypatch.setattr("tfclip.functional.expansion._STRIP_ENTRIES", entries)
    torch.testing.assert_close(ALL[name](queries, gallery), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_embeddings_that_do_not_fit_are_refused_by_name(name):
    queries, gallery = draw_people()
    with pytest.raises(ValueError, match="same width, got 24 and 23"):
        ALL[name](queries, gallery[:, :23])
    with pytest.raises(TypeError, match="one type"):
        ALL[name](queries, gallery.double())
    with pytest.raises(ValueError, match="queries must be finite, got inf in row 0"):
        ALL[name](queries.clone().index_fill_(0, torch.tensor(0), torch.inf), gallery)


@pytest.mark.parametrize("name", ["alpha_query_expansion", "neighbour_average", "gnn_rerank"])
def test_a_vector_without_direction_is_refused(name):
    queries, gallery = draw_people()
    gallery[3] = gallery[5] = 0
    with pytest.raises(ValueError, match="gallery must have a direction, got only zeros in row 3"):
        ALL[name](queries, gallery)


def test_rows_that_are_all_equal_are_no_less_than_zero_apart():
    row = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    for name in ALL:
        result = ALL[name](row.expand(10, -1), row.expand(60, -1))
        assert 0 <= result.min() <= result.max() <= 1


def test_parameters_out_of_range_are_refused_by_name():
    queries, gallery = draw_people()
    with pytest.raises(ValueError, match="alpha must be finite and not negative, got -1"):
        alpha_query_expansion(queries, gallery, alpha=-1)
    for alpha in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"alpha must be finite and not negative, got {alpha}"):
            alpha_query_expansion(queries, gallery, alpha=alpha)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        alpha_query_expansion(queries, gallery, k=0)
    with pytest.raises(TypeError, match=r"k2 must be an integer, got 2\.0"):
        neighbour_average(queries, gallery, k2=2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="k1 must be at least 1, got 0"):
        gnn_rerank(queries, gallery, k1=0)
    cameras = [0] * 10, [0] * 60
    with pytest.raises(ValueError, match="k1_inter must be at least 1, got 0"):
        camera_aware_jaccard(queries, gallery, *cameras, k1_inter=0)
    with pytest.raises(ValueError, match="gallery_cameras must have one entry for each of the 60"):
        camera_aware_jaccard(queries, gallery, cameras[0], cameras[0])
    with pytest.raises(ValueError, match="query_cameras must be known, got None at position 1"):
        camera_aware_jaccard(queries, gallery, ["a", None, *"bcdefghi"[:8]], cameras[1])
