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
_FEW_LISTS = 2  # lengths of a list: merging no more than this is faster than selecting again
_PAIR_ENTRIES = 2**19  # numbers gathered at once for distances of single pairs: stays in the cache


class Distances(Protocol):
    """Symmetric distances among queries and gallery, stacked in this order."""

    num_queries: int
    num_rows: int

    def new_full(self, size: tuple[int, ...], value: float) -> Tensor:
        """Return a tensor of the type and on the device of the distances."""
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
        halves = [
            each.detach().float() if each.dtype.itemsize < 4 else each.detach()
            for each in (queries, gallery)
        ]
        self._queries, self._gallery = halves
        self.num_queries = len(queries)
        self.num_rows = len(queries) + len(gallery)
        # Not one matrix of all rows, which would be a copy.
        self._among_queries = DistanceStrips(self._queries, self._queries, "squared_euclidean")
        self._across = DistanceStrips(self._queries, self._gallery, "squared_euclidean")
        self._among_gallery = DistanceStrips(self._gallery, self._gallery, "squared_euclidean")

    def new_full(self, size: tuple[int, ...], value: float) -> Tensor:
        """Return a tensor of the type and on the device of the distances."""
        return self._queries.new_full(size, value)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return ``(B, C)`` distances; that of a row to itself is zero, whatever rounding says."""
        split = self.num_queries
        if columns.start < split:
            tile = self._among_queries.of(rows, columns)
        elif rows.start < split:
            return self._across.of(rows, slice(columns.start - split, columns.stop - split))
        else:
            tile = self._among_gallery.of(
                slice(rows.start - split, rows.stop - split),
                slice(columns.start - split, columns.stop - split),
            )
        first = max(rows.start, columns.start)
        last = min(rows.stop, columns.stop)
        if first < last:
            own = torch.arange(first, last, device=tile.device)
            tile[own - rows.start, own - columns.start] = 0
        return tile

    def of_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the distance ``(M,)`` of each pair of rows."""
        size = max(1, _PAIR_ENTRIES // self._gallery.shape[1])
        parts = [
            (self._gather(first) - self._gather(second)).square_().sum(1)
            for first, second in zip(rows.split(size), columns.split(size), strict=True)
        ]
        return torch.cat(parts) if parts else self._gallery.new_empty(0)

    def _gather(self, rows: Tensor) -> Tensor:
        of_queries = rows < self.num_queries
        if not of_queries.any():
            return self._gallery[rows - self.num_queries]
        gathered = self._gallery.new_empty(len(rows), self._gallery.shape[1])
        gathered[of_queries] = self._queries[rows[of_queries]]
        gathered[~of_queries] = self._gallery[rows[~of_queries] - self.num_queries]
        return gathered


class MatrixDistances:
    """Distances that somebody else computed.

    Args:
        queries: ``(Q, Q)`` among queries, symmetric but for rounding; what is below the diagonal
            is only compared.
        across: ``(Q, G)`` from queries to gallery.
        gallery: ``(G, G)`` among the gallery, likewise.

    Raises:
        TypeError: They are not floating point, or of more than one type.
        ValueError: Shapes that do not fit, or an entry that is not finite, negative or asymmetric.
    """

    def __init__(self, queries: Tensor, across: Tensor, gallery: Tensor) -> None:
        _check_matrices(queries, across, gallery)
        wide = [
            each.detach().float() if each.dtype.itemsize < 4 else each.detach()
            for each in (queries, across, gallery)
        ]
        self._queries, self._across, self._gallery = wide
        self.num_queries = len(queries)
        self.num_rows = len(queries) + len(gallery)

    def new_full(self, size: tuple[int, ...], value: float) -> Tensor:
        """Return a tensor of the type and on the device of the distances."""
        return self._across.new_full(size, value)

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
    lists = _Lists(distances, min(width, distances.num_rows))
    farthest = _scan(distances, [lists], None, across, tile_rows, progress)
    return Neighbours(lists.indices, lists.values, farthest)


def find_neighbours_by_camera(
    distances: Distances,
    widths: tuple[int, int],
    cameras: Tensor,
    across: Tensor | None = None,
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> tuple[Neighbours, Neighbours]:
    """Find the nearest rows of a row's own camera, itself among them, and those of all others.

    Args:
        distances: Among M rows.
        widths: Neighbours in each of the two lists.
        cameras: ``(M,)`` int64.
        across: As in ``find_neighbours``, and so on.
        tile_rows: Rows of a tile.
        progress: Show a progress bar.

    Returns:
        The two lists; where a list is longer than there are rows, it ends in infinite distances.
    """
    lists = [_Lists(distances, min(width, distances.num_rows)) for width in widths]
    farthest = _scan(distances, lists, cameras, across, tile_rows, progress)
    own, others = (Neighbours(each.indices, each.values, farthest) for each in lists)
    return own, others


def _scan(
    distances: Distances,
    lists: list[_Lists],
    cameras: Tensor | None,
    across: Tensor | None,
    tile_rows: int,
    progress: bool,
) -> Tensor:
    """Fill the lists, and return the greatest distance of each row."""
    split, total = distances.num_queries, distances.num_rows
    farthest = torch.zeros_like(lists[0].values[:, 0])
    with tqdm(total=total, unit="row", desc="neighbours", disable=not progress) as bar:
        for rows, columns in _tiles(split, total, tile_rows):
            tile = distances.tile(rows, columns)
            if across is not None and rows.start < split <= columns.start:
                across[rows, columns.start - split : columns.stop - split] = tile
            tiles = [tile]
            if cameras is not None:
                same = cameras[rows, None] == cameras[columns]
                tiles = [tile.masked_fill(~same, torch.inf), tile.masked_fill(same, torch.inf)]
            # Rows come in ascending order on both sides, so what is in a list already is lower.
            farthest[rows] = torch.maximum(farthest[rows], tile.amax(1))
            for each, part in zip(lists, tiles, strict=True):
                each.add(rows, columns.start, part)
            if columns.start > rows.start:
                farthest[columns] = torch.maximum(farthest[columns], tile.amax(0))
                for each, part in zip(lists, tiles, strict=True):
                    each.add(columns, rows.start, part.T)
            if columns.stop == total:
                bar.update(rows.stop - rows.start)
    farthest[farthest == 0] = 1
    return farthest


def smallest(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the ``width`` smallest entries of each row, ascending, and where they stand.

    Of equal entries the first comes first, as in a stable sort, which would take 20 times as long.
    """
    if width >= values.shape[1]:
        return torch.sort(values, dim=1, stable=True)
    # One more than needed shows where the choice among equal entries was left to chance.
    some, places = values.topk(width + 1, dim=1, largest=False)
    tied = (some[:, -1] == some[:, -2]) & some[:, -1].isfinite()
    places, order = places[:, :-1].sort(dim=1)
    some, order = some[:, :-1].gather(1, order).sort(dim=1, stable=True)
    places = places.gather(1, order)
    if tied.any():
        whole, where = torch.sort(values[tied], dim=1, stable=True)
        some[tied], places[tied] = whole[:, :width], where[:, :width]
    return some, places


class _Lists:
    """The nearest rows met so far."""

    def __init__(self, distances: Distances, width: int) -> None:
        self.values = distances.new_full((distances.num_rows, width), torch.inf)
        self.indices = torch.zeros_like(self.values, dtype=torch.int64)

    def add(self, rows: slice, first: int, tile: Tensor) -> None:
        """Take in distances ``(B, C)`` to the columns from ``first`` on, lower ones first."""
        width, last = self.values.shape[1], self.values[rows, -1:]
        if last.isfinite().all():
            places = _places(tile < last)  # after the first tiles, hardly any
            counts = places[0].bincount(minlength=len(tile))
            if int(counts.max()) <= _FEW_LISTS * width:
                self._merge_few(rows.start, first, tile, places, counts)
                return
        values, columns = smallest(tile.contiguous(), width)
        all_rows = torch.arange(rows.start, rows.stop, device=tile.device)
        self._merge(all_rows, values[:, :width], columns[:, :width] + first)

    def _merge_few(
        self,
        first_row: int,
        first: int,
        tile: Tensor,
        places: tuple[Tensor, Tensor],
        counts: Tensor,
    ) -> None:
        """Merge the entries at ``places``, so many of each row."""
        rows, columns = places
        slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        values = tile.new_full((len(tile), int(counts.max())), torch.inf)
        indices = torch.zeros_like(values, dtype=torch.int64)
        values[rows, slot], indices[rows, slot] = tile[rows, columns], columns + first
        touched = counts.nonzero()[:, 0]
        self._merge(touched + first_row, values[touched], indices[touched])

    def _merge(self, rows: Tensor, values: Tensor, indices: Tensor) -> None:
        width = self.values.shape[1]
        values = torch.cat([self.values[rows], values], dim=1)
        indices = torch.cat([self.indices[rows], indices], dim=1)
        values, order = values.sort(dim=1, stable=True)
        self.values[rows] = values[:, :width]
        self.indices[rows] = indices.gather(1, order[:, :width])


def _places(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of what is true, row by row and from the left on."""
    if chosen.is_contiguous():
        rows, columns = chosen.nonzero(as_tuple=True)
        return rows, columns
    # Of a transposed tile: to read across the rows of memory would take ten times as long.
    columns, rows = chosen.T.nonzero(as_tuple=True)
    rows, order = rows.sort(stable=True)
    return rows, columns[order]


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


def _check_matrices(queries: Tensor, across: Tensor, gallery: Tensor) -> None:
    shapes = [tuple(each.shape) for each in (queries, across, gallery)]
    if across.ndim != 2 or 0 in across.shape:
        raise ValueError(
            "distance_qg must be (Q, G) with at least one query and one gallery row, "
            f"got shape {shapes[1]}"
        )
    for name, matrix, size in (
        ("distance_qq", queries, shapes[1][0]),
        ("distance_qg", across, None),
        ("distance_gg", gallery, shapes[1][1]),
    ):
        if size is not None and matrix.shape != (size, size):
            raise ValueError(
                f"{name} must be ({size}, {size}) to fit distance_qg of shape {shapes[1]}, "
                f"got shape {tuple(matrix.shape)}"
            )
        if not matrix.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {matrix.dtype}")
        if matrix.dtype != across.dtype:
            raise TypeError(
                f"{name} must have the type of distance_qg, got {matrix.dtype} and {across.dtype}"
            )
        low, high = matrix.detach().aminmax()  # NaN wins both
        if not (low >= 0 and high.isfinite()):
            wrong = low if not low >= 0 else high
            raise ValueError(f"{name} must be finite and not negative, got {wrong.item()}")
        if size is not None:
            _check_symmetric(name, matrix.detach(), float(high))


def _check_symmetric(name: str, matrix: Tensor, high: float) -> None:
    tolerance = high * 100 * torch.finfo(matrix.dtype).eps
    for rows in _cut(0, len(matrix), TILE_ROWS):
        for columns in _cut(rows.start, len(matrix), TILE_ROWS):
            apart = (matrix[rows, columns] - matrix[columns, rows].T).abs()
            if apart.max() > tolerance:
                i, j = (apart > tolerance).nonzero()[0].tolist()
                i, j = i + rows.start, j + columns.start
                raise ValueError(
                    f"{name} must be symmetric, got {matrix[i, j].item()} in row {i}, column {j} "
                    f"and {matrix[j, i].item()} in row {j}, column {i}"
                )
