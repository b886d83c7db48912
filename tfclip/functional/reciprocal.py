"""k-reciprocal neighbour sets as sparse vectors, and the Jaccard distance between them."""

from __future__ import annotations

import torch
from torch import Tensor

from tfclip.functional.neighbours import Neighbours
from tfclip.functional.pairwise import PairDistances
from tfclip.functional.sparse import (
    ENTRIES,
    SparseRows,
    parts,
    rows_from_keys,
    stack,
    transposed,
    weighted_sums,
)


def encode(distances: PairDistances, neighbours: Neighbours, k1: int, k2: int) -> SparseRows:
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
    size = max(1, ENTRIES // (k1 + 1) ** 2)
    blocks = [
        _weights(distances, neighbours, sets, slice(first, first + size))
        for first in range(0, distances.num_rows, size)
    ]
    weights = stack(blocks)
    if k2 == 1:
        return weights
    nearest = neighbours.indices[:, :k2]
    return weighted_sums(weights, nearest, _shares(torch.ones_like(nearest), weights.values))


def encode_by_camera(
    own: Neighbours, others: Neighbours, k1: tuple[int, int], k2: tuple[int, int]
) -> SparseRows:
    """Return for every row the weights of its neighbours in both lists (Chen et al., 2024, sec. 3).

    Args:
        own: Of every row, the nearest of its camera, at least ``max(k1 + 1, k2)`` of them.
        others: Likewise, of all other cameras.
        k1: Neighbours in each list; both are one wider.
        k2: Rows averaged of each list.

    Returns:
        ``(M, M)`` weights; each row adds up to one, or has no entry.
    """
    num_rows = len(own.indices)
    lists = list(zip((own, others), k1, k2, strict=True))
    keys, lengths = [], []
    for each, width, _ in lists:
        near, length = each.indices[:, : width + 1], each.distances[:, : width + 1]
        mutual, _ = _mutual(near, length.isfinite())
        rows, place = mutual.nonzero(as_tuple=True)
        keys.append(rows * num_rows + near[rows, place])
        lengths.append(length[rows, place] / each.farthest[rows])
    weights = _normalised(torch.cat(keys), torch.cat(lengths), num_rows, num_rows)
    nearest = torch.cat([each.indices[:, :width] for each, _, width in lists], dim=1)
    present = torch.cat([each.distances[:, :width] for each, _, width in lists], dim=1).isfinite()
    return weighted_sums(weights, nearest, _shares(present, weights.values))


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
        height, width = queries.stop - queries.start, self._num_gallery
        starts = self._weights.starts[queries.start : queries.stop + 1]
        entries = slice(int(starts[0]), int(starts[-1]))
        columns, values = self._weights.columns[entries], self._weights.values[entries]
        first = self._lists.starts[columns]
        lengths = self._lists.starts[columns + 1] - first
        # Half the memory to go through takes half the time.
        small = max(height * width, len(self._lists.values)) < 2**31
        kind = torch.int32 if small else torch.int64
        line = torch.repeat_interleave(starts[1:] - starts[:-1]).mul_(width).to(kind)
        rows = self._lists.columns.to(kind)
        shared = values.new_zeros(height * width)
        for part in parts(lengths):
            some = lengths[part]
            ahead = some.cumsum(0) - some
            owner = torch.repeat_interleave(some.to(kind))
            place = torch.arange(len(owner), dtype=kind, device=owner.device)
            place += (first[part] - ahead).to(kind).index_select(0, owner)
            smaller = values[part].index_select(0, owner)
            torch.minimum(smaller, self._lists.values.index_select(0, place), out=smaller)
            key = line[part].index_select(0, owner).add_(rows.index_select(0, place))
            shared.index_add_(0, key, smaller)
        # Both vectors add up to one, so the greater of each pair add up to two less what is shared.
        return shared.div_(2 - shared).neg_().add_(1).view(height, width)


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


def _mutual(near: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tell which neighbours have the row among theirs, ``(M, k)``, with the keys of these."""
    num_rows = len(near)
    rows = torch.arange(num_rows, device=near.device)[:, None]
    keys = rows * num_rows + near
    if present is None:
        mutual = _contains(keys.sort(dim=1)[0].view(-1), near * num_rows + rows)
    else:
        mutual = _contains(keys[present].sort()[0], near * num_rows + rows) & present
    return mutual, keys[mutual].sort()[0]


def _contains(ordered: Tensor, keys: Tensor) -> Tensor:
    if not len(ordered):
        return torch.zeros_like(keys, dtype=torch.bool)
    place = torch.searchsorted(ordered, keys).clamp_max_(len(ordered) - 1)
    return ordered[place] == keys


def _weights(
    distances: PairDistances, neighbours: Neighbours, sets: _Sets, block: slice
) -> SparseRows:
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
    length /= neighbours.farthest[rows]
    return _normalised(keys - block.start * num_rows, length, len(mutual), num_rows)


def _shares(present: Tensor, like: Tensor) -> Tensor:
    """Return for each neighbour that is present its part in a mean over them."""
    return present.to(like.dtype) / present.sum(1, keepdim=True)


def _normalised(keys: Tensor, lengths: Tensor, height: int, num_rows: int) -> SparseRows:
    """Return weights ``exp(-length)`` that add up to one in each row."""
    weight = (-lengths).exp_()
    rows = keys // num_rows
    weight /= weight.new_zeros(height).index_add_(0, rows, weight)[rows]
    return rows_from_keys(keys, weight, height, num_rows)
