"""Re-ranking by k-reciprocal neighbours, exact, without a matrix among all rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from tfclip.functional.approximate import Search, check_search, find_approximately
from tfclip.functional.neighbour_lists import ListDistances
from tfclip.functional.neighbours import find_neighbours, smallest
from tfclip.functional.pairwise import (
    TILE_ROWS,
    Distances,
    FeatureDistances,
    MatrixDistances,
    PairDistances,
)
from tfclip.functional.reciprocal import InvertedLists, encode
from tfclip.functional.sparse import SparseRows

_BLOCK_ENTRIES = 2**22  # distances of one block of queries: 16 MiB in float32


def k_reciprocal_rerank(
    queries: Tensor,
    gallery: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    neighbours: Search = "exact",
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

    Memory beside the embeddings and the result: three tiles of distances, and some numbers for
    each neighbour of each row.

    Args:
        queries: Embeddings, ``(Q, F)``, floating point, finite. Half precision is computed in
            float32. Normalise them first to re-rank cosine distances.
        gallery: Embeddings, ``(G, F)``, of the same type and on the same device.
        k1: Neighbours of a row, beside itself; at least 1.
        k2: Rows of which weights are averaged; at least 1.
        lambda_value: Share of the plain distance, from 0 to 1.
        neighbours: ``"exact"``, or the index of FAISS that finds them, ``"hnsw"`` or ``"ivf"``, for
            very many rows: it misses some, and a row's greatest d is taken over 4,096 others.
        tile_rows: Rows of which distances are held at once, times four as many columns.
        progress: Show a progress bar.

    Returns:
        Distances, ``(Q, G)``, from 0 to 1, without gradient; smaller is nearer.

    Raises:
        TypeError: Embeddings that are not floating point or of two types, or ``k1`` or ``k2`` is
            not an integer.
        ValueError: Embeddings of two widths, empty or not finite, or an argument out of range.
        MissingExtraError: ``neighbours`` needs FAISS, which is not installed.

    Example:
        >>> import torch
        >>> queries, gallery = torch.tensor([[0.0]]), torch.tensor([[1.0], [-1.5], [9.0]])
        >>> k_reciprocal_rerank(queries, gallery, k1=1, k2=1)
        tensor([[0.0134, 0.7083, 1.0000]])
    """
    check_parameters(lambda_value, k1=k1, k2=k2, tile_rows=tile_rows)
    check_search(neighbours)
    distances = FeatureDistances(queries, gallery)
    if neighbours == "exact":
        return _rerank(distances, k1, k2, lambda_value, tile_rows, progress)
    result, done = distances.new_full((len(queries), len(gallery)), 0), 0
    for block in _rerank_blocks(
        distances, k1, k2, lambda_value, neighbours, None, tile_rows, progress
    ):
        result[done : done + len(block)] = block
        done += len(block)
    return result


def k_reciprocal_rerank_from_distance(
    distance_qq: Tensor,
    distance_qg: Tensor,
    distance_gg: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> Tensor:
    """Re-rank by distances that are there already; see ``k_reciprocal_rerank``.

    It equals that function where the distances are squared Euclidean ones. Of one matrix among
    queries and gallery, give ``d[:Q, :Q]``, ``d[:Q, Q:]`` and ``d[Q:, Q:]``: they are not copied.

    Args:
        distance_qq: Among the queries, ``(Q, Q)``, finite, not negative, symmetric.
        distance_qg: From queries to gallery, ``(Q, G)``.
        distance_gg: Among the gallery, ``(G, G)``, as among the queries.
        k1: As in ``k_reciprocal_rerank``, and so on.
        k2: Rows of which weights are averaged.
        lambda_value: Share of the plain distance, from 0 to 1.
        tile_rows: Rows looked at together.
        progress: Show a progress bar.

    Returns:
        Distances, ``(Q, G)``, from 0 to 1, without gradient; smaller is nearer.

    Raises:
        TypeError: Distances that are not floating point or of two types, or ``k1`` or ``k2`` is
            not an integer.
        ValueError: Shapes that do not fit, a distance that is not finite or negative, a matrix
            that is not symmetric, or an argument out of range.

    Example:
        >>> import torch
        >>> points = torch.tensor([[0.0], [1.0], [-1.5], [9.0]])
        >>> d = (points - points.T).square()
        >>> k_reciprocal_rerank_from_distance(d[:1, :1], d[:1, 1:], d[1:, 1:], k1=1, k2=1)
        tensor([[0.0134, 0.7083, 1.0000]])
    """
    check_parameters(lambda_value, k1=k1, k2=k2, tile_rows=tile_rows)
    distances = MatrixDistances(distance_qq, distance_qg, distance_gg)
    return _rerank(distances, k1, k2, lambda_value, tile_rows, progress)


def k_reciprocal_rerank_blocks(
    queries: Tensor,
    gallery: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    block_queries: int | None = None,
    neighbours: Search = "exact",
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Yield the rows of ``k_reciprocal_rerank`` a few queries at a time, never the whole matrix.

    The neighbours are found before the first block comes; then each block takes the product of its
    queries with the gallery once more.

    Args:
        queries: As in ``k_reciprocal_rerank``, and so on.
        gallery: Embeddings, ``(G, F)``.
        k1: Neighbours of a row, beside itself.
        k2: Rows of which weights are averaged.
        lambda_value: Share of the plain distance, from 0 to 1.
        block_queries: Queries of a block; by default as many as give 4 million distances.
        neighbours: As in ``k_reciprocal_rerank``.
        tile_rows: Rows of which distances are held at once.
        progress: Show a progress bar.

    Yields:
        Distances, ``(B, G)``, of the next queries.

    Raises:
        TypeError: As ``k_reciprocal_rerank``.
        ValueError: As ``k_reciprocal_rerank``, or ``block_queries`` is less than 1.

    Example:
        >>> import torch
        >>> queries, gallery = torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [-1.5], [8.0]])
        >>> blocks = k_reciprocal_rerank_blocks(queries, gallery, block_queries=1)
        >>> [block.argmin().item() for block in blocks]
        [0, 2]
    """
    check_parameters(lambda_value, k1=k1, k2=k2, tile_rows=tile_rows)
    if block_queries is not None:
        check_parameters(lambda_value, block_queries=block_queries)
    check_search(neighbours)
    distances = FeatureDistances(queries, gallery)
    return _rerank_blocks(
        distances, k1, k2, lambda_value, neighbours, block_queries, tile_rows, progress
    )


def k_reciprocal_rerank_topk(
    queries: Tensor,
    gallery: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    top: int,
    neighbours: Search = "exact",
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return only the nearest gallery rows of each query; see ``k_reciprocal_rerank``.

    Args:
        queries: As in ``k_reciprocal_rerank``, and so on.
        gallery: Embeddings, ``(G, F)``.
        k1: Neighbours of a row, beside itself.
        k2: Rows of which weights are averaged.
        lambda_value: Share of the plain distance, from 0 to 1.
        top: Gallery rows returned for each query; all where there are fewer.
        neighbours: As in ``k_reciprocal_rerank``.
        tile_rows: Rows of which distances are held at once.
        progress: Show a progress bar.

    Returns:
        Their distances, ``(Q, top)``, ascending, and their places in the gallery, ``(Q, top)``
        int64; of equal distances the lower row comes first.

    Raises:
        TypeError: As ``k_reciprocal_rerank``.
        ValueError: As ``k_reciprocal_rerank``, or ``top`` is less than 1.

    Example:
        >>> import torch
        >>> queries, gallery = torch.tensor([[0.0]]), torch.tensor([[9.0], [-1.5], [1.0]])
        >>> k_reciprocal_rerank_topk(queries, gallery, k1=1, k2=1, top=2)[1]
        tensor([[2, 1]])
    """
    check_parameters(lambda_value, top=top)
    blocks = k_reciprocal_rerank_blocks(
        queries,
        gallery,
        k1,
        k2,
        lambda_value,
        neighbours=neighbours,
        tile_rows=tile_rows,
        progress=progress,
    )
    return _first(blocks, top)


def k_reciprocal_rerank_from_topk(
    indices: Tensor,
    distances: Tensor,
    num_queries: int,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    farthest: Tensor | float,
    top: int,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Re-rank by lists of nearest rows, as an index returns them; see ``k_reciprocal_rerank``.

    What neither of two rows has in its list is as far as the last in the list of the first. So it
    equals that function where lists hold all rows, and nearly does where they are some times
    longer than ``k1``.

    Args:
        indices: ``(M, L)`` int64: for each row, queries and then gallery, its L nearest among all
            rows, itself included, from the nearest on. Of equal distances, the first in the list
            is the nearer one.
        distances: ``(M, L)`` their distances, floating point; squared Euclidean ones for the
            published result.
        num_queries: Q, from 1 to M - 1.
        k1: As in ``k_reciprocal_rerank``, and so on. L is at least ``k1 + 1``, or M.
        k2: Rows of which weights are averaged; at most L.
        lambda_value: Share of the plain distance, from 0 to 1.
        farthest: ``(M,)`` the greatest distance of each row, by which all others are divided, or
            one number for all. Greater distances count as this one.
        top: Gallery rows returned for each query; all where there are fewer.
        progress: Show a progress bar.

    Returns:
        Their distances, ``(Q, top)``, ascending, and their places in the gallery, ``(Q, top)``
        int64; of equal distances the lower row comes first.

    Raises:
        TypeError: ``indices`` are not int64 or ``distances`` not floating point, or a count is not
            an integer.
        ValueError: Shapes that do not fit, a row that does not exist or comes twice in a list,
            distances that are not finite, negative or not ascending, or an argument out of range.

    Example:
        >>> import torch
        >>> points = torch.tensor([[0.0], [1.0], [-1.5], [9.0]])
        >>> d, rows = (points - points.T).square().sort(dim=1, stable=True)
        >>> k_reciprocal_rerank_from_topk(rows, d, 1, k1=1, k2=1, farthest=d[:, -1], top=2)
        (tensor([[0.0134, 0.7083]]), tensor([[0, 1]]))
    """
    check_parameters(lambda_value, k1=k1, k2=k2, top=top, num_queries=num_queries)
    lists = ListDistances(indices, distances, num_queries, farthest, max(k1 + 1, k2))
    inverted = InvertedLists(encode(lists, lists.neighbours, k1, k2), num_queries)

    def blocks() -> Iterator[Tensor]:
        for block in _blocks(lists, progress):
            plain = lists.across(block)
            far = lists.neighbours.farthest[block]
            _mix(plain, far, inverted.jaccard(block), lambda_value)
            yield plain

    return _first(blocks(), top)


def check_parameters(lambda_value: float, **counts: int) -> None:
    """Say what is wrong with the parameters of a re-ranking.

    Raises:
        TypeError: A count is not an integer.
        ValueError: A count is less than 1, or ``lambda_value`` is not from 0 to 1.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value must be from 0 to 1, got {lambda_value}")


def finish(
    distances: PairDistances,
    result: Tensor,
    farthest: Tensor,
    weights: SparseRows,
    lambda_value: float,
    progress: bool,
) -> Tensor:
    """Turn distances ``(Q, G)`` into their mix with the Jaccard distance, in place."""
    lists = InvertedLists(weights, distances.num_queries)
    for block in _blocks(distances, progress):
        _mix(result[block], farthest[block], lists.jaccard(block), lambda_value)
    return result


def _rerank(
    distances: Distances, k1: int, k2: int, lambda_value: float, tile_rows: int, progress: bool
) -> Tensor:
    num_queries = distances.num_queries
    result = distances.new_full((num_queries, distances.num_rows - num_queries), 0)
    neighbours = find_neighbours(distances, max(k1 + 1, k2), result, tile_rows, progress)
    weights = encode(distances, neighbours, k1, k2)
    return finish(distances, result, neighbours.farthest, weights, lambda_value, progress)


def _rerank_blocks(
    distances: FeatureDistances,
    k1: int,
    k2: int,
    lambda_value: float,
    search: Search,
    block_queries: int | None,
    tile_rows: int,
    progress: bool,
) -> Iterator[Tensor]:
    num_queries, num_rows, width = distances.num_queries, distances.num_rows, max(k1 + 1, k2)
    if search == "exact":
        neighbours = find_neighbours(distances, width, None, tile_rows, progress)
    else:
        neighbours = find_approximately(distances, width, search, progress)
    lists = InvertedLists(encode(distances, neighbours, k1, k2), num_queries)
    for block in _blocks(distances, progress, block_queries):
        plain = distances.tile(block, slice(num_queries, num_rows)).clone()
        _mix(plain, neighbours.farthest[block], lists.jaccard(block), lambda_value)
        yield plain


def _first(blocks: Iterator[Tensor], top: int) -> tuple[Tensor, Tensor]:
    """Return the smallest of each row of some blocks, and where they stand."""
    parts = [[each[:, :top] for each in smallest(block, top)] for block in blocks]
    distances, places = (torch.cat(each) for each in zip(*parts, strict=True))
    return distances, places


def _mix(plain: Tensor, farthest: Tensor, jaccard: Tensor, lambda_value: float) -> None:
    """Turn distances ``(B, G)`` into those of the result, in place."""
    # Only a greatest distance that was looked for among some rows can be exceeded.
    plain.div_(farthest[:, None]).clamp_max_(1).mul_(lambda_value)
    plain.add_(jaccard, alpha=1 - lambda_value)


def _blocks(
    distances: PairDistances, progress: bool, block_queries: int | None = None
) -> Iterator[slice]:
    num_queries = distances.num_queries
    size = block_queries or max(1, _BLOCK_ENTRIES // (distances.num_rows - num_queries))
    with tqdm(total=num_queries, unit="query", desc="re-ranking", disable=not progress) as bar:
        for first in range(0, num_queries, size):
            block = slice(first, min(first + size, num_queries))
            yield block
            bar.update(block.stop - block.start)
