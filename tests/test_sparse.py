"""Sparse matrices against dense ones."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.functional import sparse
from tfclip.functional.sparse import (
    parts,
    rows_from_keys,
    spread,
    stack,
    transposed,
    weighted_sums,
)

SEEDS = st.integers(0, 9999)


def dense(matrix, num_columns):
    """Read the compressed form literally."""
    starts = matrix.starts.tolist()
    result = torch.zeros(len(starts) - 1, num_columns, dtype=torch.float64)
    for row, (first, last) in enumerate(pairwise(starts)):
        columns = matrix.columns[first:last].tolist()
        assert columns == sorted(set(columns))  # ascending, none twice
        for column, value in zip(columns, matrix.values[first:last].tolist(), strict=True):
            result[row, column] = value
    assert starts[0] == 0
    assert starts[-1] == len(matrix.columns) == len(matrix.values)
    return result


def draw_entries(random, num_entries, num_rows, num_columns):
    """Draw entries, some in one place, of which sums are exact; and what they are together."""
    keys = torch.randint(num_rows * num_columns, (num_entries,), generator=random)
    values = torch.randint(1, 9, (num_entries,), generator=random).double() / 4
    expected = torch.zeros(num_rows * num_columns, dtype=torch.float64)
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        expected[key] += value
    return keys, values, expected.view(num_rows, num_columns)


@settings(deadline=None)
@given(SEEDS, st.integers(0, 30), st.integers(1, 6), st.integers(1, 6))
def test_entries_in_one_place_are_added_up(seed, num_entries, num_rows, num_columns):
    random = torch.Generator().manual_seed(seed)
    keys, values, expected = draw_entries(random, num_entries, num_rows, num_columns)
    matrix = rows_from_keys(keys, values, num_rows, num_columns)
    assert torch.equal(dense(matrix, num_columns), expected)


@settings(deadline=None)
@given(SEEDS, st.integers(0, 30), st.integers(2, 6), st.data())
def test_columns_of_the_last_rows_are_their_transposed_matrix(seed, num_entries, num_rows, data):
    random = torch.Generator().manual_seed(seed)
    keys, values, expected = draw_entries(random, num_entries, num_rows, 5)
    first = data.draw(st.integers(0, num_rows - 1))
    turned = transposed(rows_from_keys(keys, values, num_rows, 5), first, 5)
    assert torch.equal(dense(turned, num_rows - first), expected[first:].T)


@settings(deadline=None)
@given(SEEDS, st.integers(0, 30), st.integers(0, 8))
def test_entries_of_chosen_rows_are_listed_row_by_row(seed, num_entries, num_chosen):
    random = torch.Generator().manual_seed(seed)
    keys, values, _ = draw_entries(random, num_entries, 6, 5)
    starts = rows_from_keys(keys, values, 6, 5).starts
    chosen = torch.randint(6, (num_chosen,), generator=random)
    owner, place = spread(starts, chosen)
    expected = [
        (i, entry)
        for i, row in enumerate(chosen.tolist())
        for entry in range(int(starts[row]), int(starts[row + 1]))
    ]
    assert list(zip(owner.tolist(), place.tolist(), strict=True)) == expected


@settings(deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 4), st.sampled_from([1, 5, 20, 2**20]))
def test_weighted_sums_are_a_product_with_the_matrix_of_factors(seed, num_entries, width, entries):
    random = torch.Generator().manual_seed(seed)
    keys, values, whole = draw_entries(random, num_entries, 7, 7)
    nearest = torch.stack([torch.randperm(7, generator=random)[:width] for _ in range(7)])
    factors = torch.randint(3, (7, width), generator=random).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "ENTRIES", entries)
        sums = weighted_sums(rows_from_keys(keys, values, 7, 7), nearest, factors)
    weights = torch.zeros(7, 7, dtype=torch.float64).scatter_(1, nearest, factors)
    assert torch.equal(dense(sums, 7), weights @ whole)
    assert (sums.values > 0).all()  # what has factor zero adds no entries


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=20))
def test_a_list_is_cut_where_one_more_would_be_too_much(lengths):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "ENTRIES", 10)
        found = parts(torch.tensor(lengths))
    cuts, first = [], 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or sum(lengths[first : last + 1]) > 10:
            cuts.append(slice(first, last))
            first = last
    assert found == cuts


def test_matrices_are_stacked_in_their_order():
    random = torch.Generator().manual_seed(0)
    drawn = [draw_entries(random, count, rows, 5) for count, rows in ((9, 3), (0, 2), (7, 4))]
    matrices = [rows_from_keys(keys, values, len(whole), 5) for keys, values, whole in drawn]
    expected = torch.cat([whole for _, _, whole in drawn])
    assert torch.equal(dense(stack(matrices), 5), expected)
