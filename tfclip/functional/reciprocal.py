"""k-reciprocal neighbour sets as sparse vectors, and the Jaccard distance between them."""

from __future__ import annotations

import torch
from torch import Tensor

from tfclip.functional.neighbours import Distances, Neighbours
from tfclip.functional.sparse import SparseRows, rows_from_keys, spread, transposed

_ENTRIES = 2**20  # entries handled together: bounds the memory, whatever the neighbourhoods


def encode(distances: Distances, neighbours: Neighbours, k1: int, k2: int) -> SparseRows:
    """Return for every row the weights of its k-reciprocal neighbours (Zhong et al., 2017, sec. 3).

    Args:
        distances: Among M rows.
        neighbours: Of every row, at least ``max(k1 + 1, k2)`` where there are as many rows.
        k1: Neighbours of a row beside itself.
        k2: Rows averaged.

    Returns:
        ``(M, M)`` weights; each row adds up to one, or has no entry.
    """
    sets = _Sets(neighbours.indices, k1)
    size = max(1, _ENTRIES // (k1 + 1) ** 2)
    parts = [
        _weights(distances, neighbours, sets, slice(first, first + size))
        for first in range(0, distances.num_rows, size)
    ]
    weights = _stack(parts)
    if k2 == 1:
        return weights
    return _averaged(weights, neighbours.indices[:, :k2])


class InvertedLists:
    """For every row the gallery rows that have it in their set: what a query shares, and where.

    Args:
        weights: ``(M, M)``.
        num_queries: Rows before the gallery.
    """

    def __init__(self, weights: SparseRows, num_queries: int) -> None:
        num_rows = len(weights.starts) - 1
        self._weights = weights
        self._lists = transposed(weights, num_queries, num_rows)
        self._num_gallery = num_rows - num_queries

    def jaccard(self, queries: slice) -> Tensor:
        """Return the Jaccard distance ``(B, G)`` of some queries to the gallery, from 0 to 1."""
        starts, columns, values = self._weights
        first, last = int(starts[queries.start]), int(starts[queries.stop])
        rows = torch.arange(queries.stop - queries.start, device=columns.device)
        rows = rows.repeat_interleave(
            starts[queries.start + 1 : queries.stop + 1] - starts[queries]
        )
        shared = values.new_zeros((queries.stop - queries.start) * self._num_gallery)
        columns, values = columns[first:last], values[first:last]
        lengths = self._lists.starts[columns + 1] - self._lists.starts[columns]
        for part in _parts(lengths):
            owner, place = spread(self._lists.starts, columns[part])
            smaller = torch.minimum(values[part][owner], self._lists.values[place])
            key = rows[part][owner] * self._num_gallery + self._lists.columns[place]
            shared.index_add_(0, key, smaller)
        # Both vectors add up to one, so the greater of each pair add up to two less what is shared.
        shared = shared.view(-1, self._num_gallery)
        return 1 - shared / (2 - shared)


class _Sets:
    """k-reciprocal sets at ``k1`` and at half of it."""

    def __init__(self, indices: Tensor, k1: int) -> None:
        self.num_rows = len(indices)
        self.near = indices[:, : k1 + 1]
        self.mutual, self.keys = _mutual(self.near)
        self.half = indices[:, : round(k1 / 2) + 1]  # Python rounds half to even, as NumPy does
        self.half_mutual, _ = _mutual(self.half)
        self.half_sizes = self.half_mutual.sum(1)

    def has(self, keys: Tensor) -> Tensor:
        """Tell which ``row * num_rows + column`` are in the sets at ``k1``."""
        return _contains(self.keys, keys)


def _mutual(near: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which neighbours have the row among theirs, ``(M, k)``, with the keys of these."""
    num_rows = len(near)
    rows = torch.arange(num_rows, device=near.device)[:, None]
    keys = rows * num_rows + near
    mutual = _contains(keys.sort(dim=1)[0].view(-1), near * num_rows + rows)
    return mutual, keys[mutual].sort()[0]


def _contains(ordered: Tensor, keys: Tensor) -> Tensor:
    if not len(ordered):
        return torch.zeros_like(keys, dtype=torch.bool)
    place = torch.searchsorted(ordered, keys).clamp_max_(len(ordered) - 1)
    return ordered[place] == keys


def _weights(distances: Distances, neighbours: Neighbours, sets: _Sets, block: slice) -> SparseRows:
    """Return the expanded sets of some rows, weighted and normalised."""
    num_rows = sets.num_rows
    mutual = sets.mutual[block]
    rows, place = mutual.nonzero(as_tuple=True)
    rows += block.start
    members = sets.near[rows, place]
    candidates, inside = sets.half[members], sets.half_mutual[members]
    keys = rows[:, None] * num_rows + candidates
    known = sets.has(keys) & inside
    # Added whole where more than two thirds of a member's set are in the row's.
    added = 3 * known.sum(1) > 2 * sets.half_sizes[members]
    keys = keys[inside & ~known & added[:, None]].unique()
    new_rows, new_members = keys // num_rows, keys % num_rows
    length = torch.cat(
        [neighbours.distances[rows, place], distances.of_pairs(new_rows, new_members)]
    )
    rows, keys = torch.cat([rows, new_rows]), torch.cat([rows * num_rows + members, keys])
    weight = (-length / neighbours.farthest[rows]).exp_()
    height = len(mutual)
    total = weight.new_zeros(height).index_add_(0, rows - block.start, weight)
    weight /= total[rows - block.start]
    return rows_from_keys(keys - block.start * num_rows, weight, height, num_rows)


def _averaged(weights: SparseRows, nearest: Tensor) -> SparseRows:
    """Return for every row the mean of its nearest rows' vectors."""
    num_rows, width = nearest.shape
    lengths = weights.starts[1:] - weights.starts[:-1]
    parts = []
    for part in _parts(lengths[nearest].sum(1)):
        owner, place = spread(weights.starts, nearest[part].reshape(-1))
        height = part.stop - part.start
        keys = owner.div_(width, rounding_mode="floor").mul_(num_rows).add_(weights.columns[place])
        parts.append(rows_from_keys(keys, weights.values[place] / width, height, num_rows))
    return _stack(parts)


def _parts(lengths: Tensor) -> list[slice]:
    """Cut a list into parts of about as many entries, at least one element each."""
    ends = lengths.cumsum(0)
    parts, first, done = [], 0, 0
    while first < len(lengths):
        last = int(torch.searchsorted(ends, done + _ENTRIES, right=True))
        last = max(last, first + 1)
        parts.append(slice(first, last))
        first, done = last, int(ends[last - 1])
    return parts


def _stack(parts: list[SparseRows]) -> SparseRows:
    """Return matrices under one another."""
    starts, ahead = [parts[0].starts[:1]], 0
    for part in parts:
        starts.append(part.starts[1:] + ahead)
        ahead += len(part.columns)
    return SparseRows(
        torch.cat(starts),
        torch.cat([part.columns for part in parts]),
        torch.cat([part.values for part in parts]),
    )
