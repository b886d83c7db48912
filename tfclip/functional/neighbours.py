"""Nearest neighbours of every row among all rows, in memory of one tile of distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tfclip.functional.pairwise import TILE_ROWS, Distances, FeatureDistances, cut
from tfclip.functional.products import bfloat16_is_faster
from tfclip.functional.shortlist import HalfDistances, RoughDistances, Shortlist, TooManyError

_COLUMNS_PER_ROW = 4  # a tile is wider than high; 16 MiB in float32
_MANY = 4_096  # rows with which it pays to find out whether bfloat16 does
_FEW_LISTS = 2  # lengths of a list: merging no more than this is faster than selecting again


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
        The neighbours. Of embeddings, which they are does not depend on ``tile_rows``, threads or
        the precision of the search: distances of single pairs decide.
    """
    if isinstance(distances, FeatureDistances):
        for kind in (HalfDistances, RoughDistances) if _half_pays(distances) else (RoughDistances,):
            try:
                return _decide(kind(distances), width, across, tile_rows, progress)
            except TooManyError:
                continue
    lists = _Lists(distances, min(width, distances.num_rows))
    farthest = _scan(distances, [lists], None, across, tile_rows, progress)
    return Neighbours(lists.indices, lists.values, farthest)


def _half_pays(distances: FeatureDistances) -> bool:
    like = distances.new_full((0,), 0)
    return (
        distances.num_rows >= _MANY
        and like.dtype == torch.float32
        and like.device.type == "cpu"
        and bfloat16_is_faster(torch.get_num_threads())
    )


def _decide(
    rough: RoughDistances,
    width: int,
    across: Tensor | None,
    tile_rows: int,
    progress: bool,
) -> Neighbours:
    """Look at rough distances, then at those of the pairs that may be nearest or farthest.

    Raises:
        TooManyError: These are too many.
    """
    split, total = rough.exact.num_queries, rough.exact.num_rows
    shortlist = Shortlist(rough, min(width, total))
    with tqdm(total=total, unit="row", desc="neighbours", disable=not progress) as bar:
        for rows, columns in _tiles(split, total, tile_rows):
            if across is not None and rows.start < split <= columns.start:
                tile = rough.exact.tile(rows, columns)
                across[rows, columns.start - split : columns.stop - split] = tile
            else:
                tile = rough.tile(rows, columns)
            shortlist.add(rows, columns, tile)
            if columns.stop == total:
                bar.update(rows.stop - rows.start)
    return Neighbours(*shortlist.decide())


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
    blocks = [*cut(0, split, height), *cut(split, total, height)]
    for rows in blocks:
        yield rows, rows
        yield from ((rows, columns) for columns in cut(rows.stop, split, _COLUMNS_PER_ROW * height))
        after = max(rows.stop, split)
        yield from ((rows, columns) for columns in cut(after, total, _COLUMNS_PER_ROW * height))
