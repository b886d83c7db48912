"""Re-ranking by passing neighbourhoods along the graph of nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from tfclip.functional.expansion import unit_rows
from tfclip.functional.neighbours import find_neighbours
from tfclip.functional.pairwise import TILE_ROWS, FeatureDistances
from tfclip.functional.reranking import check_parameters
from tfclip.functional.sparse import SparseRows, rows_from_keys, weighted_sums

_LAYERS = 2  # as published
_BLOCK_ENTRIES = 2**22


def gnn_rerank(
    queries: Tensor,
    gallery: Tensor,
    k1: int = 26,
    k2: int = 7,
    *,
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> Tensor:
    """Return the cosine distance between what neighbours tell one another about neighbourhoods.

    Zhang et al., "Understanding Image Retrieval Re-Ranking: A Graph Neural Network Perspective",
    2020 (arXiv:2012.07620). All rows, queries and gallery, are ranked for each other by cosine s:

    1. A row's vector a has a one for each of its ``k1`` nearest rows, itself counted.
    2. Two times, A becomes ``A + Aᵀ``, then every a the sum of ``s² a`` over its ``k2`` nearest
       rows, itself counted, and is scaled to length one. With a ``k2`` of 1 this is left out.
    3. The result is one less the cosine between the vectors of a query and a gallery row.

    Use it where a GPU has the time to spare for ``k1`` times ``k2`` numbers and more for each row,
    or to compare with its figures; it has no share of the plain distance. It is transductive, as
    ``k_reciprocal_rerank`` is, and equal distances are ranked as there.

    Args:
        queries: Embeddings of any length, ``(Q, F)``, floating point, finite.
        gallery: Embeddings of any length, ``(G, F)``, of the same type and on the same device.
        k1: Neighbours of a row, itself counted; the defaults are the authors' for Market-1501.
        k2: Rows that are summed up.
        tile_rows: Rows of which distances are held at once, times four as many columns.
        progress: Show a progress bar.

    Returns:
        Distances, ``(Q, G)``, from 0 to 1, without gradient; smaller is nearer.

    Raises:
        TypeError: As ``k_reciprocal_rerank``.
        ValueError: As ``k_reciprocal_rerank``, or a row of zeros.

    Example:
        >>> import torch
        >>> queries = torch.tensor([[1.0, 0.0]])
        >>> gallery = torch.tensor([[1.0, 0.1], [1.0, 0.3], [0.0, 1.0], [0.1, 1.0]])
        >>> gnn_rerank(queries, gallery, k1=2, k2=1).round(decimals=4)
        tensor([[0.0000, 0.5000, 1.0000, 1.0000]])
    """
    check_parameters(0, k1=k1, k2=k2, tile_rows=tile_rows)
    distances = FeatureDistances(*unit_rows(queries, gallery))
    neighbours = find_neighbours(distances, max(k1, k2), None, tile_rows, progress)
    num_rows = distances.num_rows
    near = neighbours.indices[:, :k1]
    rows = torch.arange(num_rows, device=near.device)[:, None]
    ones = distances.new_full((near.numel(),), 1)
    graph = rows_from_keys((rows * num_rows + near).view(-1), ones, num_rows, num_rows)
    if k2 > 1:
        factors = (1 - neighbours.distances[:, :k2] / 2).square()
        for _ in range(_LAYERS):
            both = _with_transposed(graph)
            graph = _unit(weighted_sums(both, neighbours.indices[:, :k2], factors))
    return _cosine_distance(_unit(graph), len(queries), progress)


def _cosine_distance(graph: SparseRows, num_queries: int, progress: bool) -> Tensor:
    """Return the distance ``(Q, G)`` between rows of length one."""
    num_rows = len(graph.starts) - 1
    ahead, rows = int(graph.starts[num_queries]), _row_numbers(graph)
    gallery = torch.sparse_coo_tensor(
        torch.stack([rows[ahead:] - num_queries, graph.columns[ahead:]]),
        graph.values[ahead:],
        (num_rows - num_queries, num_rows),
        device=graph.values.device,
        is_coalesced=True,
        check_invariants=True,
    )
    result = graph.values.new_empty(num_queries, num_rows - num_queries)
    size = max(1, _BLOCK_ENTRIES // num_rows)
    with tqdm(total=num_queries, unit="query", disable=not progress) as bar:
        for first in range(0, num_queries, size):
            last = min(first + size, num_queries)
            entries = slice(int(graph.starts[first]), int(graph.starts[last]))
            # Vectors this full are faster to multiply than to look up: a block of queries is dense.
            block = graph.values.new_zeros(num_rows, last - first)
            block[graph.columns[entries], rows[entries] - first] = graph.values[entries]
            result[first:last] = torch.sparse.mm(gallery, block).T.neg_().add_(1).clamp_min_(0)
            bar.update(last - first)
    return result


def _with_transposed(matrix: SparseRows) -> SparseRows:
    num_rows = len(matrix.starts) - 1
    rows = _row_numbers(matrix)
    keys = torch.cat([rows * num_rows + matrix.columns, matrix.columns * num_rows + rows])
    return rows_from_keys(keys, matrix.values.repeat(2), num_rows, num_rows)


def _unit(matrix: SparseRows) -> SparseRows:
    """Scale each row to length one."""
    rows = _row_numbers(matrix)
    squares = matrix.values.new_zeros(len(matrix.starts) - 1)
    squares.index_add_(0, rows, matrix.values.square())
    return matrix._replace(values=matrix.values / squares.sqrt()[rows])


def _row_numbers(matrix: SparseRows) -> Tensor:
    return torch.repeat_interleave(matrix.starts[1:] - matrix.starts[:-1])
