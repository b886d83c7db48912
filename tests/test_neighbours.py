"""Nearest neighbours, and the distances they are found by, against a stable sort of all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_reranking import clustered
from tfclip.functional import neighbours, shortlist
from tfclip.functional.neighbours import find_neighbours, find_neighbours_by_camera, smallest
from tfclip.functional.pairwise import FeatureDistances, MatrixDistances
from tfclip.functional.shortlist import HalfDistances, RoughDistances

COUNTS = st.integers(1, 22)


@st.composite
def problems(draw):
    """Draw points of a grid, with ties and duplicates; their distances are exact in float32."""
    num_queries, num_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    random = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    total, side = num_queries + num_gallery, draw(st.sampled_from([1, 3, 1000]))
    rows = torch.randint(side, (total, draw(st.integers(1, 3))), generator=random) / 64
    return rows.to(draw(st.sampled_from([torch.float32, torch.float64]))), num_queries


def all_distances(rows):
    return (rows[:, None] - rows).square().sum(2)


def distances_of(rows, split, kind):
    if kind == "embeddings":
        return FeatureDistances(rows[:split], rows[split:])
    whole = all_distances(rows)
    return MatrixDistances(whole[:split, :split], whole[:split, split:], whole[split:, split:])


def sort_all(distance):
    """Return what is nearest, how far it is, and how far the farthest is, or one."""
    values, indices = distance.sort(dim=1, stable=True)
    farthest = values[:, -1]
    return indices, values, torch.where(farthest == 0, torch.ones_like(farthest), farthest)


@pytest.mark.parametrize("kind", ["embeddings", "matrices"])
@settings(deadline=None)
@given(problem=problems(), width=COUNTS, tile_rows=st.integers(1, 9))
def test_neighbours_are_the_first_of_a_stable_sort(kind, problem, width, tile_rows):
    rows, split = problem
    distance = all_distances(rows)
    across = torch.full_like(distance[:split, split:], torch.nan)
    found = find_neighbours(distances_of(rows, split, kind), width, across, tile_rows)
    indices, values, farthest = sort_all(distance)
    assert torch.equal(found.indices, indices[:, :width])
    assert torch.equal(found.distances, values[:, :width])
    assert torch.equal(found.farthest, farthest)
    assert torch.equal(across, distance[:split, split:])


@pytest.mark.parametrize("kind", ["embeddings", "matrices"])
@settings(deadline=None)
@given(
    problem=problems(),
    widths=st.tuples(COUNTS, COUNTS),
    tile_rows=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_neighbours_by_camera_are_the_first_of_a_stable_sort(
    kind, problem, widths, tile_rows, seed
):
    rows, split = problem
    cameras = torch.randint(3, (len(rows),), generator=torch.Generator().manual_seed(seed))
    distance = all_distances(rows)
    across = torch.full_like(distance[:split, split:], torch.nan)
    both = find_neighbours_by_camera(
        distances_of(rows, split, kind), widths, cameras, across, tile_rows
    )
    farthest = sort_all(distance)[2]
    for found, is_own, width in zip(both, (True, False), widths, strict=True):
        wrong = (cameras[:, None] == cameras) != is_own
        indices, values, _ = sort_all(distance.masked_fill(wrong, torch.inf))
        assert torch.equal(found.distances, values[:, :width])
        present = found.distances.isfinite()
        assert torch.equal(found.indices[present], indices[:, :width][present])
        assert torch.equal(found.farthest, farthest)
    assert torch.equal(across, distance[:split, split:])


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 5))
def test_tiles_hold_every_pair_of_rows_once_and_are_no_larger_than_said(split, gallery, height):
    total = split + gallery
    times = torch.zeros(total, total, dtype=torch.long)
    for rows, columns in neighbours._tiles(split, total, height):
        assert rows.stop - rows.start <= height
        assert columns.stop - columns.start <= 4 * height
        for side in (rows, columns):
            assert side.stop <= split or side.start >= split
        times[rows, columns] += 1
        if rows != columns:
            times[columns, rows] += 1
    assert (times == 1).all()


@settings(deadline=None)
@given(st.integers(0, 9999), st.integers(1, 14), st.sampled_from([1, 4, 12, 1000]))
def test_the_smallest_are_the_first_of_a_stable_sort(seed, width, distinct):
    # Of 12 values in every row, tied at the border in no row, in some or in all.
    random = torch.Generator().manual_seed(seed)
    values = torch.randint(distinct, (9, 12), generator=random).float()
    found, places = smallest(values, width)
    whole, order = values.sort(dim=1, stable=True)
    assert torch.equal(found, whole[:, :width])
    assert torch.equal(places, order[:, :width])


@pytest.mark.parametrize(
    ("num_rows", "dtype", "is_faster", "expected"),
    [
        (8, torch.float32, True, True),
        (7, torch.float32, True, False),
        (8, torch.float64, True, False),
        (8, torch.float32, False, False),
    ],
)
def test_bfloat16_is_for_many_rows_of_float32_where_it_is_faster(
    monkeypatch, num_rows, dtype, is_faster, expected
):
    monkeypatch.setattr(neighbours, "_MANY", 8)
    monkeypatch.setattr(neighbours, "bfloat16_is_faster", lambda threads: is_faster)
    rows = torch.zeros(num_rows, 2, dtype=dtype)
    assert neighbours._half_pays(FeatureDistances(rows[:3], rows[3:])) is expected


# --- distances -------------------------------------------------------------------------------


def test_rounding_makes_no_distance_negative_and_leaves_none_from_a_row_to_itself():
    # The rows are a hundred thousand times longer than they are apart.
    random = torch.Generator().manual_seed(0)
    rows = 100 + 1e-4 * torch.randn(20, 64, generator=random)
    squares = rows.square().sum(1)
    assert (squares[:, None] + squares - 2 * rows @ rows.T).min() < 0
    distances = FeatureDistances(rows, rows)
    for side in (slice(0, 20), slice(20, 40)):
        tile = distances.tile(side, side)
        assert tile.min() == 0
        assert not tile.diagonal().any()
    assert distances.tile(slice(0, 20), slice(20, 40)).min() >= 0
    every = torch.arange(40)
    pairs = distances.of_pairs(every.repeat_interleave(40), every.repeat(40)).view(40, 40)
    assert pairs.min() >= 0
    equal = (every[:, None] - every) % 20 == 0
    assert not pairs[equal].any()


@pytest.mark.parametrize("kind", ["embeddings", "matrices"])
@settings(deadline=None)
@given(problem=problems(), seed=st.integers(0, 99))
def test_pairs_have_the_distances_of_the_whole_matrix(kind, problem, seed):
    rows, split = problem
    random = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(rows), len(rows), generator=random) < 0.3  # none at all, perhaps
    first, second = chosen.nonzero(as_tuple=True)
    found = distances_of(rows, split, kind).of_pairs(first, second)
    assert torch.equal(found, all_distances(rows)[first, second])


def test_a_tile_may_be_wider_than_the_one_before():
    rows = torch.arange(9.0)[:, None]
    distances, whole = FeatureDistances(rows[:3], rows[3:]), all_distances(rows)
    for side, other in ((slice(0, 1), slice(3, 4)), (slice(0, 3), slice(3, 9))):
        assert torch.equal(distances.tile(side, other), whole[side, other])


# --- rough distances -------------------------------------------------------------------------


class Perturbed(RoughDistances):
    """Distances that are all off by as much as they say they may be."""

    def __init__(self, exact, amount, seed):
        super().__init__(exact)
        random = torch.Generator().manual_seed(seed)
        size = exact.num_rows, exact.num_rows
        off = amount * (2 * torch.randint(2, size, generator=random) - 1).triu()
        self._off, self._amount = off + off.triu(1).T, amount

    def tile(self, rows, columns):
        return self.exact.tile(rows, columns) + self._off[rows, columns]

    def slack(self, rows, values):
        return torch.full_like(values, self._amount)


@settings(deadline=None, max_examples=200)
@given(
    problems(),
    COUNTS,
    st.integers(1, 9),
    st.sampled_from([1e-3, 0.25, 4.0]),
    st.integers(0, 99),
)
def test_whatever_rough_distances_say_within_their_slack_the_exact_ones_decide(
    problem, width, tile_rows, amount, seed
):
    rows, split = problem[0].double(), problem[1]
    rough = Perturbed(FeatureDistances(rows[:split], rows[split:]), amount, seed)
    found = neighbours._decide(rough, width, None, tile_rows, False)
    indices, values, farthest = sort_all(all_distances(rows))
    assert torch.equal(found.indices, indices[:, :width])
    assert torch.equal(found.distances, values[:, :width])
    assert torch.equal(found.farthest, farthest)


@pytest.mark.parametrize("tile_rows", [64, 1024])
@pytest.mark.parametrize(
    ("kind", "near", "far"), [(RoughDistances, 1.01, 1.1), (HalfDistances, 1.1, 1.4)]
)
def test_hardly_more_pairs_are_compared_than_there_are_neighbours(kind, near, far, tile_rows):
    rows = clustered(offset=5.0)
    distances, compared = FeatureDistances(rows[:50], rows[50:]), []
    of_pairs = distances.of_pairs
    distances.of_pairs = lambda rows, columns: compared.append(len(rows)) or of_pairs(rows, columns)
    neighbours._decide(kind(distances), 21, None, tile_rows, False)
    of_nearest, of_farthest = compared
    assert 1 <= of_nearest / (21 * 700) < near
    assert 1 <= of_farthest / 700 < far


def test_rounding_rows_to_bfloat16_a_few_at_a_time_changes_nothing(monkeypatch):
    random = torch.Generator().manual_seed(0)
    rows = 3 + torch.randn(40, 24, generator=random)
    distances = FeatureDistances(rows[:15], rows[15:])
    whole = HalfDistances(distances)
    monkeypatch.setattr(shortlist, "_ROWS_AT_ONCE", 7)
    few = HalfDistances(distances)
    for side, other in ((slice(0, 15), slice(15, 40)), (slice(15, 40), slice(15, 40))):
        tile = whole.tile(side, other)
        torch.testing.assert_close(few.tile(side, other), tile, rtol=0, atol=1e-4)
        slack = whole.slack(side, tile[:, 0])
        torch.testing.assert_close(few.slack(side, tile[:, 0]), slack, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("width", "most"), [(1, 10), (3, 12)])
def test_a_log_that_is_too_long_drops_what_is_not_wanted_or_gives_up(monkeypatch, width, most):
    monkeypatch.setattr(shortlist, "_LEAST_LOG", 10)
    monkeypatch.setattr(shortlist, "_LOG_PER_NEIGHBOUR", 1)  # of each of 4 rows
    log = shortlist._Log(torch.zeros(4), width)
    every = torch.arange(most + 1)

    def note(chosen):
        log.add(every % 4, every % 4, every.float(), chosen)

    note(every < most)
    log.shrink(lambda rows, values: values < 0)
    assert log._length == most  # no longer than it may be: nothing is dropped yet
    note(every == most)
    log.shrink(lambda rows, values: values < most // 2)
    assert log._length == most // 2
    note(every >= 0)
    with pytest.raises(shortlist.TooManyError):
        log.shrink(lambda rows, values: values < most // 2)  # each is there twice: all it may hold
