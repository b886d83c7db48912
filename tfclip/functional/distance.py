"""Distances between every query and every gallery embedding; smaller is always nearer."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tfclip.functional.products import add_products

Metric = Literal["squared_euclidean", "cosine"]

_ROWS_AT_ONCE = 4_096  # embeddings squared at once


def squared_euclidean_distance(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return every query-gallery squared Euclidean distance.

    It is computed as ``|q|² - 2 q·g + |g|²``, so two equal rows can come out a rounding error
    away from zero. On unit vectors it equals ``2 - 2 cos``: from 0 to 4, in the same order as
    ``cosine_distance``.

    Args:
        queries: Embeddings, ``(Q, F)``, floating point.
        gallery: Embeddings, ``(G, F)``, of the same type and on the same device.

    Returns:
        Distances, ``(Q, G)``, never negative, in squared embedding units.

    Raises:
        ValueError: The two are not matrices of the same width.
        TypeError: They are not floating point, or their types differ.

    Example:
        >>> squared_euclidean_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([[25.]])
    """
    _check_embeddings(queries, gallery)
    squares = queries.square().sum(1, keepdim=True) + gallery.square().sum(1)
    return torch.addmm(squares, queries, gallery.T, alpha=-2).clamp_min(0)


def cosine_distance(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return one minus the cosine of the angle between every query and every gallery embedding.

    Args:
        queries: Embeddings of any length, ``(Q, F)``, floating point.
        gallery: Embeddings of any length, ``(G, F)``, of the same type and on the same device.

    Returns:
        Distances, ``(Q, G)``: 0 for one direction, 1 for a right angle, 2 for opposite directions.
        A zero vector has distance 1 to everything.

    Raises:
        ValueError: The two are not matrices of the same width.
        TypeError: They are not floating point, or their types differ.

    Example:
        >>> cosine_distance(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 1.0]]))
        tensor([[0., 1.]])
    """
    _check_embeddings(queries, gallery)
    cosine = normalize(queries, dim=1) @ normalize(gallery, dim=1).T
    return (1 - cosine).clamp(0, 2)


class DistanceStrips:
    """Distances of a few queries at a time to the whole gallery, in memory of one strip.

    The arithmetic is that of the two functions above, done in place and without gradient.

    Args:
        queries: Embeddings, ``(Q, F)``, floating point, finite.
        gallery: Embeddings, ``(G, F)``, of the same type and on the same device.
        metric: ``"squared_euclidean"`` or ``"cosine"``.

    Raises:
        ValueError: An unknown metric, widths that differ, or a distance that would not be finite.
        TypeError: They are not floating point, or their types differ.
    """

    def __init__(self, queries: Tensor, gallery: Tensor, metric: Metric) -> None:
        if metric not in get_args(Metric):
            raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
        _check_embeddings(queries, gallery)
        self._metric = metric
        self._strip: Tensor | None = None
        self._queries, self._gallery = queries.detach(), gallery.detach()
        for name, rows in (("queries", self._queries), ("gallery", self._gallery)):
            _check_finite(name, rows)
        if metric == "cosine":
            self._queries = normalize(self._queries, dim=1)
            self._gallery = normalize(self._gallery, dim=1)
            return
        self._query_squares = _squared_lengths(self._queries)
        self._gallery_squares = _squared_lengths(self._gallery)
        farthest = 2 * (self._query_squares.max() + self._gallery_squares.max())
        if not farthest.isfinite():
            raise ValueError(
                f"queries and gallery must be short enough for {queries.dtype}, got squared "
                f"lengths up to {self._query_squares.max()} and {self._gallery_squares.max()}"
            )

    def of(self, block: slice, columns: slice = slice(None)) -> Tensor:
        """Return the distances ``(B, G)`` of a block of queries, or to some of the gallery only.

        They stand where the block before stood: copy what is to stay. A new strip for every block
        would cost as much as a fifth of the product, in pages that the system hands out empty.
        """
        queries, gallery = self._queries[block], self._gallery[columns]
        size = len(queries) * len(gallery)
        if self._strip is None or len(self._strip) < size:
            self._strip = queries.new_empty(size)
        strip = self._strip[:size].view(len(queries), len(gallery))
        if self._metric == "cosine":
            return torch.mm(queries, gallery.T, out=strip).neg_().add_(1).clamp_(0, 2)
        torch.add(self._query_squares[block, None], self._gallery_squares[columns], out=strip)
        return add_products(strip, queries, gallery, -2).clamp_min_(0)


def _squared_lengths(rows: Tensor) -> Tensor:
    return torch.cat([chunk.square().sum(1) for chunk in rows.split(_ROWS_AT_ONCE)])


def _check_finite(name: str, rows: Tensor) -> None:
    if not rows.numel():
        raise ValueError(f"{name} must have at least one entry, got shape {tuple(rows.shape)}")
    low, high = rows.aminmax()  # NaN wins both
    if not (low.isfinite() and high.isfinite()):
        row, column = (~rows.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, got {rows[row, column].item()} in row {row}")


def _check_embeddings(queries: Tensor, gallery: Tensor) -> None:
    for name, embeddings, letter in (("queries", queries, "Q"), ("gallery", gallery, "G")):
        if embeddings.ndim != 2:
            raise ValueError(f"{name} must be ({letter}, F), got shape {tuple(embeddings.shape)}")
        if not embeddings.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {embeddings.dtype}")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must have the same width, got {queries.shape[1]} "
            f"and {gallery.shape[1]}; do they come from one model?"
        )
    if queries.dtype != gallery.dtype:
        raise TypeError(
            f"queries and gallery must have one type, got {queries.dtype} and {gallery.dtype}"
        )
