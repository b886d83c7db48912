"""Re-ranking by k-reciprocal neighbours, exact, without a matrix among all rows."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from tfclip.functional.neighbours import (
    TILE_ROWS,
    Distances,
    FeatureDistances,
    find_neighbours,
)
from tfclip.functional.reciprocal import InvertedLists, encode

_BLOCK_ENTRIES = 2**22  # distances of one block of queries: 16 MiB in float32


def k_reciprocal_rerank(
    queries: Tensor,
    gallery: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> Tensor:
    """Return distances that count which neighbours a query and a gallery row share.

    k-reciprocal encoding (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
    Encoding", CVPR 2017), exactly as its authors' code computes it. All rows, queries and gallery,
    are ranked for each other by squared Euclidean distance d, which is divided by the row's
    greatest:

    1. The neighbours of a row are its ``k1 + 1`` nearest, **itself counted**. Its set holds those
       that have the row among their own neighbours.
    2. The set of a member, taken with ``round(k1 / 2) + 1`` neighbours (half rounded to even), is
       added whole if **more than two thirds** of it are in the row's set already.
    3. The members weigh ``exp(-d)``, normalised to sum 1; the weights are averaged over the ``k2``
       nearest rows, itself counted, unless ``k2`` is 1.
    4. The Jaccard distance J of two such vectors is one less the sum of their smaller over the sum
       of their greater entries. The result is ``(1 - lambda_value) * J + lambda_value * d``.

    Of equal distances the lower row comes first, queries before the gallery: so a row with more
    than ``k1`` earlier duplicates is not among its own neighbours, its set is empty and its J is 1.
    Where there are fewer rows than ``k1 + 1`` or ``k2``, all there are count. If all rows are
    equal, d is 0.

    It is transductive: a distance depends on all queries and the whole gallery, so what it scores
    is not comparable with scores without it. Report both.

    Memory beside the embeddings, of which it makes a copy, and the result: one tile of distances,
    and some numbers for each neighbour of each row.

    Args:
        queries: Embeddings, ``(Q, F)``, floating point, finite. Half precision is computed in
            float32. Normalise them first to re-rank cosine distances.
        gallery: Embeddings, ``(G, F)``, of the same type and on the same device.
        k1: Neighbours of a row, beside itself; at least 1.
        k2: Rows of which weights are averaged; at least 1.
        lambda_value: Share of the plain distance, from 0 to 1.
        tile_rows: Rows of which distances are held at once, times four as many columns.
        progress: Show a progress bar.

    Returns:
        Distances, ``(Q, G)``, from 0 to 1, without gradient; smaller is nearer.

    Raises:
        TypeError: Embeddings that are not floating point or of two types, or ``k1`` or ``k2`` is
            not an integer.
        ValueError: Embeddings of two widths, empty or not finite, or an argument out of range.

    Example:
        >>> queries, gallery = torch.tensor([[0.0]]), torch.tensor([[1.0], [-1.5], [9.0]])
        >>> k_reciprocal_rerank(queries, gallery, k1=1, k2=1)
        tensor([[0.0134, 0.7083, 1.0000]])
    """
    _check_parameters(k1, k2, lambda_value, tile_rows)
    distances = FeatureDistances(queries, gallery)
    return _rerank(distances, k1, k2, lambda_value, tile_rows, progress)


def _rerank(
    distances: Distances, k1: int, k2: int, lambda_value: float, tile_rows: int, progress: bool
) -> Tensor:
    result = distances.empty_across()
    neighbours = find_neighbours(distances, max(k1 + 1, k2), result, tile_rows, progress)
    lists = InvertedLists(encode(distances, neighbours, k1, k2), distances.num_queries)
    for block in _blocks(distances, progress):
        _mix(result[block], neighbours.farthest[block], lists.jaccard(block), lambda_value)
    return result


def _mix(plain: Tensor, farthest: Tensor, jaccard: Tensor, lambda_value: float) -> None:
    """Turn distances ``(B, G)`` into those of the result, in place."""
    plain.div_(farthest[:, None]).mul_(lambda_value)
    plain.add_(jaccard, alpha=1 - lambda_value)


def _blocks(distances: Distances, progress: bool) -> Iterator[slice]:
    num_queries = distances.num_queries
    size = max(1, _BLOCK_ENTRIES // (distances.num_rows - num_queries))
    with tqdm(total=num_queries, unit="query", desc="re-ranking", disable=not progress) as bar:
        for first in range(0, num_queries, size):
            block = slice(first, min(first + size, num_queries))
            yield block
            bar.update(block.stop - block.start)


def _check_parameters(k1: int, k2: int, lambda_value: float, tile_rows: int) -> None:
    for name, value in (("k1", k1), ("k2", k2), ("tile_rows", tile_rows)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value must be from 0 to 1, got {lambda_value}")
