"""Matrices of which almost every entry is zero, held as the entries that are not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ENTRIES = 2**20
"""Entries handled together: bounds the memory, however many there are."""


class SparseRows(NamedTuple):
    """Rows of entries, in the compressed form that is usual (CSR)."""

    starts: Tensor
    """``(rows + 1,)`` int64: where each row's entries start, and the last ends."""
    columns: Tensor
    """int64, ascending within a row."""
    values: Tensor


def rows_from_keys(keys: Tensor, values: Tensor, num_rows: int, num_columns: int) -> SparseRows:
    """Return the matrix with these entries, of which equal ones are added up.

    Args:
        keys: ``row * num_columns + column`` of each entry, int64, in any order.
        values: The entries.
        num_rows: Height of the matrix.
        num_columns: Width of the matrix.

    Returns:
        The matrix.
    """
    keys, order = keys.sort()
    values = values[order]
    new = torch.ones_like(keys, dtype=torch.bool)
    new[1:] = keys[1:] != keys[:-1]
    if not new.all():
        place = new.cumsum(0) - 1
        values = values.new_zeros(int(place[-1]) + 1).index_add_(0, place, values)
        keys = keys[new]
    rows = torch.arange(num_rows + 1, device=keys.device) * num_columns
    return SparseRows(torch.searchsorted(keys, rows), keys % num_columns, values)


def spread(starts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """List the entries of chosen rows.

    Args:
        starts: As in ``SparseRows``.
        chosen: ``(M,)`` rows, in any order, some perhaps twice.

    Returns:
        For each entry the place of its row in ``chosen``, and its own place in the matrix.
    """
    lengths = starts[chosen + 1] - starts[chosen]
    owner = torch.repeat_interleave(lengths)
    ahead = lengths.cumsum(0) - lengths
    place = torch.arange(len(owner), device=owner.device) + (starts[chosen] - ahead)[owner]
    return owner, place


def transposed(matrix: SparseRows, first: int, num_columns: int) -> SparseRows:
    """Return the columns of the rows from ``first`` on; rows are counted from there."""
    start = int(matrix.starts[first])
    columns = matrix.columns[start:]
    lengths = matrix.starts[first + 1 :] - matrix.starts[first:-1]
    columns, order = columns.sort(stable=True)
    bounds = torch.arange(num_columns + 1, device=columns.device)
    return SparseRows(
        torch.searchsorted(columns, bounds),
        torch.repeat_interleave(lengths)[order],
        matrix.values[start:][order],
    )


def weighted_sums(matrix: SparseRows, nearest: Tensor, factors: Tensor) -> SparseRows:
    """Return for every row the sum of the rows near it, each times its factor.

    Args:
        matrix: ``(M, M)``.
        nearest: ``(M, k)`` rows.
        factors: ``(M, k)``; what has factor zero adds no entries.

    Returns:
        ``(M, M)``.
    """
    num_rows = len(nearest)
    lengths = (matrix.starts[1:] - matrix.starts[:-1])[nearest] * (factors != 0)
    sums = []
    for part in parts(lengths.sum(1)):
        rows, place = factors[part].nonzero(as_tuple=True)
        owner, entry = spread(matrix.starts, nearest[part][rows, place])
        values = matrix.values[entry] * factors[part][rows, place][owner]
        keys = rows[owner].mul_(num_rows).add_(matrix.columns[entry])
        sums.append(rows_from_keys(keys, values, part.stop - part.start, num_rows))
    return stack(sums)


def parts(lengths: Tensor) -> list[slice]:
    """Cut a list into parts of ``ENTRIES`` entries or fewer, but of one element at least."""
    ends = lengths.cumsum(0)
    cuts, first, done = [], 0, 0
    while first < len(lengths):
        last = int(torch.searchsorted(ends, done + ENTRIES, right=True))
        last = max(last, first + 1)
        cuts.append(slice(first, last))
        first, done = last, int(ends[last - 1])
    return cuts


def stack(matrices: list[SparseRows]) -> SparseRows:
    """Return matrices under one another."""
    starts, ahead = [matrices[0].starts[:1]], 0
    for matrix in matrices:
        starts.append(matrix.starts[1:] + ahead)
        ahead += len(matrix.columns)
    return SparseRows(
        torch.cat(starts),
        torch.cat([matrix.columns for matrix in matrices]),
        torch.cat([matrix.values for matrix in matrices]),
    )
