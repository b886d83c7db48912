"""Nearest neighbours of every row among all rows, in memory of one tile of distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from tfclip.functional.distance import DistanceStrips

TILE_ROWS = 1024
"""Rows of a tile by default: enough for a matrix product at full speed."""
_COLUMNS_PER_ROW = 4  # a tile is wider than high; 16 MiB in float32
_PAIR_ENTRIES = 2**19  # numbers gathered at once for distances of single pairs: stays in the cache


class Distances(Protocol):
    """Symmetric distances among queries and gallery, stacked in this order."""

    num_queries: int
    num_rows: int

    def empty_across(self) -> Tensor:
        """Return ``(Q, G)`` for distances, not filled."""
        ...

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return ``(B, C)`` distances; they stand where those of the call before stood.

        Neither slice reaches from the queries into the gallery.
        """
        ...

    def of_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the distance ``(M,)`` of each pair of rows."""
        ...


class FeatureDistances:
    """Squared Euclidean distances of embeddings, computed when they are asked for.

    Args:
        queries: ``(Q, F)``, floating point, finite; half precision is taken to float32.
        gallery: ``(G, F)``, of the same type and on the same device.
    """

    def __init__(self, queries: Tensor, gallery: Tensor) -> None:
        DistanceStrips(queries, gallery, "squared_euclidean")  # says what is wrong with them
        self.num_queries = len(queries)
        rows = torch.cat([queries.detach(), gallery.detach()])
        self._rows = rows.float() if rows.dtype.itemsize < 4 else rows
        self.num_rows = len(rows)
        self._strips = DistanceStrips(self._rows, self._rows, "squared_euclidean")

    def empty_across(self) -> Tensor:
        """Return ``(Q, G)`` for distances, not filled."""
        return self._rows.new_empty(self.num_queries, self.num_rows - self.num_queries)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return ``(B, C)`` distances; that of a row to itself is zero, whatever rounding says."""
        tile = self._strips.of(rows, columns)
        first = max(rows.start, columns.start)
        last = min(rows.stop, columns.stop)
        if first < last:
            own = torch.arange(first, last, device=tile.device)
            tile[own - rows.start, own - columns.start] = 0
        return tile

    def of_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the distance ``(M,)`` of each pair of rows."""
        size = max(1, _PAIR_ENTRIES // self._rows.shape[1])
        parts = [
            (self._rows[first] - self._rows[second]).square_().sum(1)
            for first, second in zip(rows.split(size), columns.split(size), strict=True)
        ]
        return torch.cat(parts) if parts else self._rows.new_empty(0)


class MatrixDistances:
    """Distances that somebody else computed.

    Args:
        queries: ``(Q, Q)`` among queries; only what is on and above the diagonal is read.
        across: ``(Q, G)`` from queries to gallery.
        gallery: ``(G, G)`` among the gallery, likewise.
    """

    def __init__(self, queries: Tensor, across: Tensor, gallery: Tensor) -> None:
        self._queries, self._across, self._gallery = queries, across, gallery
        self.num_queries = len(queries)
        self.num_rows = len(queries) + len(gallery)

    def empty_across(self) -> Tensor:
        """Return ``(Q, G)`` for distances, not filled."""
        return torch.empty_like(self._across)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return a view of ``(B, C)`` distances, rows not after columns."""
        split = self.num_queries
        if columns.start < split:
            return self._queries[rows, columns]
        columns = slice(columns.start - split, columns.stop - split)
        if rows.start < split:
            return self._across[rows, columns]
        return self._gallery[rows.start - split : rows.stop - split, columns]

    def of_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the distance ``(M,)`` of each pair of rows."""
        first, second = torch.minimum(rows, columns), torch.maximum(rows, columns)
        values = self._across.new_empty(len(rows))
        split = self.num_queries
        for matrix, inside, shifts in (
            (self._queries, second < split, (0, 0)),
            (self._across, (first < split) & (second >= split), (0, split)),
            (self._gallery, first >= split, (split, split)),
        ):
            values[inside] = matrix[first[inside] - shifts[0], second[inside] - shifts[1]]
        return values


class Neighbours(NamedTuple):
    """The nearest rows of every row, itself among them, and how far the farthest row is."""

    indices: Tensor
    """``(M, k)`` int64, from the nearest on; of equal distances the lower row comes first."""
    distances: Tensor
    """``(M, k)``."""
    farthest: Tensor
    """``(M,)`` the greatest distance of a row; one where it is zero, to divide by."""


def find_neighbours(
    distances: Distances,
    width: int,
    across: Tensor | None = None,
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> Neighbours:
    """Find the nearest rows of every row; each distance is computed once and serves both its rows.

    Args:
        distances: Among M rows.
        width: Neighbours of a row; fewer where there are fewer rows.
        across: ``(Q, G)`` to which the distances from queries to gallery are written on the way.
        tile_rows: Rows of a tile.
        progress: Show a progress bar.

    Returns:
        The neighbours.
    """
    split, total = distances.num_queries, distances.num_rows
    lists: _Lists | None = None
    with tqdm(total=total, unit="row", desc="neighbours", disable=not progress) as bar:
        for rows, columns in _tiles(split, total, tile_rows):
            tile = distances.tile(rows, columns)
            if lists is None:
                lists = _Lists(tile, total, min(width, total))
            if across is not None and rows.start < split <= columns.start:
                across[rows, columns.start - split : columns.stop - split] = tile
            # Rows come in ascending order on both sides, so what is in a list already is lower.
            lists.add(rows, columns.start, tile)
            if columns.start > rows.start:
                lists.add(columns, rows.start, tile.T)
            if columns.stop == total:
                bar.update(rows.stop - rows.start)
    assert lists is not None
    lists.farthest[lists.farthest == 0] = 1
    return Neighbours(lists.indices, lists.values, lists.farthest)


def smallest(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the ``width`` smallest entries of each row, ascending, and where they stand.

    Of equal entries the first comes first, as in a stable sort, which would take 20 times as long.
    """
    if width >= values.shape[1]:
        return torch.sort(values, dim=1, stable=True)
    # One more than needed shows where the choice among equal entries was left to chance.
    some, places = values.topk(width + 1, dim=1, largest=False)
    tied = some[:, -1] == some[:, -2]
    places, order = places[:, :-1].sort(dim=1)
    some, order = some[:, :-1].gather(1, order).sort(dim=1, stable=True)
    places = places.gather(1, order)
    if tied.any():
        whole, where = torch.sort(values[tied], dim=1, stable=True)
        some[tied], places[tied] = whole[:, :width], where[:, :width]
    return some, places


class _Lists:
    """The nearest rows met so far."""

    def __init__(self, like: Tensor, total: int, width: int) -> None:
        self.values = like.new_full((total, width), torch.inf)
        self.indices = torch.zeros((total, width), dtype=torch.int64, device=like.device)
        self.farthest = like.new_zeros(total)

    def add(self, rows: slice, first: int, tile: Tensor) -> None:
        """Take in distances ``(B, C)`` to the columns from ``first`` on."""
        self.farthest[rows] = torch.maximum(self.farthest[rows], tile.amax(1))
        width = self.values.shape[1]
        values, places = smallest(tile.contiguous(), width)
        values = torch.cat([self.values[rows], values[:, :width]], dim=1)
        indices = torch.cat([self.indices[rows], places[:, :width] + first], dim=1)
        values, order = values.sort(dim=1, stable=True)
        self.values[rows] = values[:, :width]
        self.indices[rows] = indices.gather(1, order[:, :width])


def _tiles(split: int, total: int, height: int) -> Iterator[tuple[slice, slice]]:
    """Cut the triangle on and above the diagonal into tiles, none across the split."""
    blocks = [*_cut(0, split, height), *_cut(split, total, height)]
    for rows in blocks:
        yield rows, rows
        yield from (
            (rows, columns) for columns in _cut(rows.stop, split, _COLUMNS_PER_ROW * height)
        )
        after = max(rows.stop, split)
        yield from ((rows, columns) for columns in _cut(after, total, _COLUMNS_PER_ROW * height))


def _cut(first: int, last: int, size: int) -> Iterator[slice]:
    for start in range(first, last, size):
        yield slice(start, min(start + size, last))
