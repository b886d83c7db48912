from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tfclip.functional import cosine_distance, distance, squared_euclidean_distance
from tfclip.functional.distance import DistanceStrips

GOLDEN = Path(__file__).parent / "golden" / "metrics.safetensors"
SIZES = st.integers(1, 5)


def draw(queries, gallery, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, width, generator=generator),
        torch.randn(gallery, width, generator=generator),
    )


def test_squared_euclidean_distance_equals_the_reference():
    golden = load_file(GOLDEN)
    distance = squared_euclidean_distance(golden["dist.x"], golden["dist.y"])
    torch.testing.assert_close(distance, golden["dist.squared_euclidean"], rtol=0, atol=2e-5)


def test_cosine_distance_is_twice_the_references_half_cosine():
    golden = load_file(GOLDEN)
    distance = cosine_distance(golden["dist.x"], golden["dist.y"])
    torch.testing.assert_close(distance / 2, golden["dist.half_cosine_loss"], rtol=0, atol=1e-6)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 99))
def test_squared_euclidean_distance_is_the_sum_of_squared_differences(
    queries, gallery, width, seed
):
    q, g = draw(queries, gallery, width, seed)
    slow = torch.tensor([[((a - b) ** 2).sum().item() for b in g] for a in q])
    torch.testing.assert_close(squared_euclidean_distance(q, g), slow, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.integers(0, 99))
def test_on_unit_vectors_the_squared_distance_is_twice_the_cosine_distance(q, g, width, seed):
    queries, gallery = (torch.nn.functional.normalize(x, dim=1) for x in draw(q, g, width, seed))
    squared = squared_euclidean_distance(queries, gallery)
    torch.testing.assert_close(squared, 2 * cosine_distance(queries, gallery), rtol=0, atol=2e-6)


def test_no_distance_is_negative_even_between_equal_rows():
    rows = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * 100
    assert squared_euclidean_distance(rows, rows).min() >= 0
    assert cosine_distance(rows, rows).min() >= 0


def test_a_zero_vector_is_at_a_right_angle_to_everything():
    distance = cosine_distance(torch.zeros(1, 3), torch.eye(3))
    assert distance.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("function", [squared_euclidean_distance, cosine_distance])
def test_embeddings_that_do_not_fit_are_refused_by_name(function):
    with pytest.raises(ValueError, match=r"queries must be \(Q, F\), got shape \(3,\)"):
        function(torch.zeros(3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="same width, got 3 and 4"):
        function(torch.zeros(1, 3), torch.zeros(1, 4))
    with pytest.raises(TypeError, match="gallery must be floating point"):
        function(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="one type"):
        function(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("function", [squared_euclidean_distance, cosine_distance])
def test_a_gradient_reaches_both_sides(function):
    queries, gallery = (x.requires_grad_() for x in draw(3, 4, 5, seed=1))
    function(queries, gallery).sum().backward()
    assert queries.grad is not None
    assert gallery.grad is not None
    assert queries.grad.abs().sum() > 0
    assert gallery.grad.abs().sum() > 0


def test_vectors_whose_distance_would_not_be_finite_are_refused_and_shorter_ones_are_not():
    long = torch.tensor([[1e19]])  # 4e38 from its opposite, and float32 ends at 3.4e38
    with pytest.raises(ValueError, match=r"must be short enough for torch\.float32, got squared"):
        DistanceStrips(long, -long, "squared_euclidean")
    short = 0.9 * long
    strips = DistanceStrips(short, -short, "squared_euclidean")
    assert strips.of(slice(0, 1)).isfinite().all()


def test_of_two_entries_that_are_not_finite_the_first_is_named():
    rows = torch.zeros(4, 3)
    rows[1, 2], rows[3, 0] = torch.inf, torch.nan
    with pytest.raises(ValueError, match="gallery must be finite, got inf in row 1"):
        DistanceStrips(torch.zeros(1, 3), rows, "cosine")


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_strips_of_some_queries_and_columns_are_parts_of_the_whole(metric, monkeypatch):
    monkeypatch.setattr(distance, "_ROWS_AT_ONCE", 3)
    queries, gallery = (rows.double() for rows in draw(7, 11, 4, seed=2))
    whole = {"cosine": cosine_distance, "squared_euclidean": squared_euclidean_distance}[metric](
        queries, gallery
    )
    strips = DistanceStrips(queries, gallery, metric)
    for block in (slice(0, 2), slice(2, 7), slice(5, 6)):
        torch.testing.assert_close(strips.of(block), whole[block])
        some = strips.of(block, slice(3, 9))
        torch.testing.assert_close(some, whole[block, 3:9])
