"""The exact nearest entries, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tfclip.gallery.entries import UNKNOWN

_QUERIES = 256  # queries and
_ROWS = 16_384  # entries whose products are held at once
_EXACT_ROWS = 4_096  # distances computed exactly at once


class Best:
    """The ``k`` nearest rows of each query so far.

    Equal distances keep the order of the rows.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.distances = np.full((queries, k), np.inf)
        self.rows = np.full((queries, k), UNKNOWN, dtype=np.int64)

    def offer(self, queries: np.ndarray, rows: np.ndarray, distances: np.ndarray) -> None:
        """Take up pairs ``(M,)`` of a query and a row, each pair once."""
        touched = np.unique(queries)
        k = self.rows.shape[1]
        old = np.repeat(touched, k)
        old_rows = self.rows[touched].ravel()
        valid = old_rows != UNKNOWN
        queries = np.concatenate([old[valid], queries])
        rows = np.concatenate([old_rows[valid], rows])
        distances = np.concatenate([self.distances[touched].ravel()[valid], distances])
        order = np.lexsort((rows, distances, queries))
        queries, rows, distances = queries[order], rows[order], distances[order]
        place = np.arange(len(queries)) - np.searchsorted(queries, queries)
        kept = place < k
        self.rows[queries[kept], place[kept]] = rows[kept]
        self.distances[queries[kept], place[kept]] = distances[kept]


def squared_distances(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the squared distance of each pair of rows ``(M, F)`` in float64."""
    return np.square(queries.astype(np.float64) - vectors).sum(axis=1)


def search_exact(
    queries: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    k: int,
    cameras: tuple[np.ndarray, Sequence[np.ndarray]] | None = None,
    own: np.ndarray | None = None,
) -> Best:
    """Find the ``k`` nearest rows of each query.

    Products in float32 choose the candidates, with a margin that is wider than their rounding
    error can be; the distances are computed and compared in float64. So the result is that of
    float64 throughout, whatever the number of threads or the size of blocks.

    Args:
        queries: ``(Q, F)`` float32 of length 1.
        parts: Vectors ``(M, F)`` float32 of length 1 and a mask ``(M,)`` of those to look at; rows
            are counted through all parts.
        k: Rows to find.
        cameras: Of the queries ``(Q,)``, and of each part: equal ones are left out.
        own: ``(Q,)``: for each query a row that is left out, or -1.
    """
    best = Best(len(queries), k)
    offset = 0
    for part, (vectors, mask) in enumerate(parts):
        for rows, block in _blocks(vectors, mask):
            for start in range(0, len(queries), _QUERIES):
                some = slice(start, start + _QUERIES)
                products = queries[some] @ block.T
                if cameras is not None:
                    theirs = cameras[1][part][rows]
                    same = (cameras[0][some, None] == theirs) & (theirs != UNKNOWN)
                    products[same] = -np.inf
                if own is not None:
                    _leave_out(products, rows, own[some] - offset)
                _take_up(best, start, queries[some], products, block, rows + offset)
        offset += len(vectors)
    return best


def _blocks(vectors: np.ndarray, mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield row numbers and vectors of those to look at; copied only where some are left out."""
    rows = np.flatnonzero(mask)
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        whole = some[-1] - some[0] + 1 == len(some)
        yield some, vectors[some[0] : some[-1] + 1] if whole else vectors[some]


def _leave_out(products: np.ndarray, rows: np.ndarray, own: np.ndarray) -> None:
    places = np.searchsorted(rows, own).clip(max=len(rows) - 1)
    found = np.flatnonzero(rows[places] == own)
    products[found, places[found]] = -np.inf


def _take_up(
    best: Best,
    start: int,
    queries: np.ndarray,
    products: np.ndarray,
    block: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Offer every row that can be among the nearest, with its exact distance."""
    k = best.rows.shape[1]
    # Both products are off by F roundings at most, and the lengths by one or two.
    margin = (2 * queries.shape[1] + 16) * 2.0**-24
    farthest = best.distances[start : start + len(queries), -1]
    lowest = (1 - farthest / 2 - margin).astype(np.float32)
    chosen = products >= lowest[:, None]
    if products.shape[1] > k and np.count_nonzero(chosen) > 4 * k * len(queries):
        kth = np.partition(products, -k, axis=1)[:, -k]
        chosen = products >= np.maximum(lowest, kth - np.float32(margin))[:, None]
    chosen &= products > -np.inf
    pairs = np.nonzero(chosen)
    for first in range(0, len(pairs[0]), _EXACT_ROWS):
        query, place = (index[first : first + _EXACT_ROWS] for index in pairs)
        distances = squared_distances(queries[query], block[place])
        best.offer(query + start, rows[place], distances)
