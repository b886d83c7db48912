"""Distances among queries and gallery, computed from embeddings or given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from tfclip.functional.distance import DistanceStrips
from tfclip.functional.products import add_products, pair_products

TILE_ROWS = 1024
"""Rows of a tile by default: enough for a matrix product at full speed."""


class PairDistances(Protocol):
    """Distances among queries and gallery, stacked in this order, of pairs of rows."""

    num_queries: int
    num_rows: int

    def new_full(self, size: tuple[int, ...], value: float) -> Tensor:
        """Return a tensor of the type and on the device of the distances."""
        ...

    def of_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the distance ``(M,)`` of each pair of rows, of which the first are ascending."""
        ...


class Distances(PairDistances, Protocol):
    """Symmetric distances, of pairs and of whole tiles."""

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return ``(B, C)`` distances; they stand where those of the call before stood.

        Neither slice reaches from the queries into the gallery.
        """
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
        self.width = gallery.shape[1]
        # Two matrices and not one of all rows, which would be a copy.
        squares = []
        for each in halves:
            own = torch.arange(len(each), device=each.device)
            squares.append(pair_products(each, each, own, own))
        self._squares = torch.cat(squares)
        self._strip = self._queries.new_empty(0)

    def new_full(self, size: tuple[int, ...], value: float) -> Tensor:
        """Return a tensor of the type and on the device of the distances."""
        return self._queries.new_full(size, value)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return ``(B, C)`` distances; that of a row to itself is zero, whatever rounding says."""
        left, right = self.rows(rows), self.rows(columns)
        size = len(left) * len(right)
        if len(self._strip) < size:
            self._strip = left.new_empty(size)
        tile = self._strip[:size].view(len(left), len(right))
        torch.add(self._squares[rows, None], self._squares[columns], out=tile)
        add_products(tile, left, right, -2).clamp_min_(0)
        first = max(rows.start, columns.start)
        last = min(rows.stop, columns.stop)
        if first < last:
            own = torch.arange(first, last, device=tile.device)
            tile[own - rows.start, own - columns.start] = 0
        return tile

    def rows(self, some: slice) -> Tensor:
        """Return embeddings ``(B, F)``, all of queries or all of the gallery."""
        if some.start < self.num_queries:
            return self._queries[some]
        return self._gallery[some.start - self.num_queries : some.stop - self.num_queries]

    def of_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the distance ``(M,)`` of each pair of rows; equal rows are zero apart."""
        values = self._squares[rows] + self._squares[columns]
        split, last = self.num_queries, self.num_rows
        for left in (slice(0, split), slice(split, last)):
            ends = torch.searchsorted(rows, rows.new_tensor([left.start, left.stop])).tolist()
            part = slice(*ends)
            for right in (slice(0, split), slice(split, last)):
                chosen = (columns[part] >= right.start) & (columns[part] < right.stop)
                products = pair_products(
                    self.rows(left),
                    self.rows(right),
                    rows[part][chosen] - left.start,
                    columns[part][chosen] - right.start,
                )
                values[part][chosen] -= 2 * products
        return values.clamp_min_(0)

    def rounding(self) -> Tensor:
        """Bound, for each row ``(M,)``, how far rounding moves any of its distances.

        It holds for ``tile`` and for ``of_pairs``, in whatever order products are added up.
        """
        lengths = self._squares.sqrt()
        unit = torch.finfo(self._squares.dtype).eps / 2
        return (lengths + lengths.max()).square_().mul_(unit * (self.width + 8))


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


def cut(first: int, last: int, size: int) -> Iterator[slice]:
    """Cut a range into slices of ``size`` rows or fewer."""
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
    for rows in cut(0, len(matrix), TILE_ROWS):
        for columns in cut(rows.start, len(matrix), TILE_ROWS):
            apart = (matrix[rows, columns] - matrix[columns, rows].T).abs()
            if apart.max() > tolerance:
                i, j = (apart > tolerance).nonzero()[0].tolist()
                i, j = i + rows.start, j + columns.start
                raise ValueError(
                    f"{name} must be symmetric, got {matrix[i, j].item()} in row {i}, column {j} "
                    f"and {matrix[j, i].item()} in row {j}, column {i}"
                )
