"""Embeddings moved towards their neighbours before they are compared."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from tfclip.functional.distance import DistanceStrips, cosine_distance
from tfclip.functional.neighbours import find_neighbours, smallest
from tfclip.functional.pairwise import TILE_ROWS, FeatureDistances
from tfclip.functional.reranking import check_parameters

_STRIP_ENTRIES = 2**22  # distances of one block of queries: 16 MiB in float32


def alpha_query_expansion(
    queries: Tensor,
    gallery: Tensor,
    k: int = 5,
    alpha: float = 3.0,
    *,
    progress: bool = False,
) -> Tensor:
    """Return cosine distances of queries to which their nearest gallery rows were added.

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018: a
    query becomes its own unit vector plus those of its ``k`` nearest gallery rows, each times its
    cosine to the power ``alpha`` (a negative cosine counts as zero). An ``alpha`` of 0 is plain
    average query expansion. Use it where a query must not depend on other queries, or the gallery
    is served by an index: it costs a second search, and looks at no pair of gallery rows.

    Args:
        queries: Embeddings of any length, ``(Q, F)``, floating point, finite.
        gallery: Embeddings of any length, ``(G, F)``, of the same type and on the same device.
        k: Gallery rows added; all where there are fewer.
        alpha: From 0 on; the greater, the less far rows weigh.
        progress: Show a progress bar.

    Returns:
        Distances, ``(Q, G)``, from 0 to 2, without gradient; smaller is nearer.

    Raises:
        TypeError: Embeddings that are not floating point or of two types, or ``k`` is not an
            integer.
        ValueError: Embeddings of two widths, empty, not finite or without direction, or an
            argument out of range.

    Example:
        >>> import torch
        >>> queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
        >>> alpha_query_expansion(queries, gallery, k=1, alpha=1.0)
        tensor([[0.0637, 0.7191]])
    """
    check_parameters(0, k=k)
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha must be finite and not negative, got {alpha}")
    queries, gallery = unit_rows(queries, gallery)
    strips = DistanceStrips(queries, gallery, "cosine")
    expanded = queries.clone()
    size = max(1, _STRIP_ENTRIES // len(gallery))
    with tqdm(total=len(queries), unit="query", disable=not progress) as bar:
        for first in range(0, len(queries), size):
            block = slice(first, min(first + size, len(queries)))
            distance, places = (each[:, :k] for each in smallest(strips.of(block), k))
            cosines = 1 - distance
            weights = torch.where(cosines > 0, cosines.pow(alpha), 0)
            for column in range(weights.shape[1]):  # no (B, k, F) copy of gallery rows
                expanded[block] += weights[:, column, None] * gallery[places[:, column]]
            bar.update(block.stop - block.start)
    return cosine_distance(expanded, gallery)


def neighbour_average(
    queries: Tensor,
    gallery: Tensor,
    k1: int = 2,
    k2: int = 2,
    *,
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> Tensor:
    """Return cosine distances of embeddings to which their mutual neighbours were added.

    Neighbour Feature Centralization, the second part of Pose2ID (Yuan et al., "From Poses to
    Identity: Training-Free Person Re-Identification via Feature Centralization", CVPR 2025), after
    its authors' code: all rows, queries and gallery, look for neighbours among each other; to a
    row's unit vector those of its ``k1`` nearest others are added that have it among their own
    ``k2`` nearest others. Use it where vectors are noisy (few frames each) and a person has a few
    rows. Where a vector and its neighbours cancel, it is at distance 1. It is transductive, as
    ``k_reciprocal_rerank`` is, and equal distances are ranked as there.

    Args:
        queries: Embeddings of any length, ``(Q, F)``, floating point, finite.
        gallery: Embeddings of any length, ``(G, F)``, of the same type and on the same device.
        k1: Neighbours that may be added, not counting itself; the defaults are the authors'.
        k2: Neighbours among which the row has to be.
        tile_rows: Rows of which distances are held at once, times four as many columns.
        progress: Show a progress bar.

    Returns:
        Distances, ``(Q, G)``, from 0 to 2, without gradient; smaller is nearer.

    Raises:
        TypeError: As ``k_reciprocal_rerank``.
        ValueError: As ``k_reciprocal_rerank``, or a row of zeros.

    Example:
        >>> import torch
        >>> queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
        >>> neighbour_average(queries, gallery, k1=1, k2=1)
        tensor([[0.0000, 0.6838]])
    """
    check_parameters(0, k1=k1, k2=k2, tile_rows=tile_rows)
    queries, gallery = unit_rows(queries, gallery)
    rows = torch.cat([queries, gallery])
    distances = FeatureDistances(queries, gallery)
    nearest = find_neighbours(distances, max(k1, k2) + 1, None, tile_rows, progress).indices
    # Itself goes to the end; with many duplicates before it, it is not in the list at all.
    own = nearest == torch.arange(len(rows), device=rows.device)[:, None]
    order = own.long().sort(dim=1, stable=True)[1]
    others = nearest.gather(1, order)[:, : max(k1, k2)]
    others = others[:, : len(rows) - 1]
    averaged = rows.clone()
    everyone = torch.arange(len(rows), device=rows.device)
    for column in range(min(k1, others.shape[1])):
        other = others[:, column]
        mutual = (others[other, :k2] == everyone[:, None]).any(1)
        averaged[mutual] += rows[other[mutual]]
    return cosine_distance(averaged[: len(queries)], averaged[len(queries) :])


def unit_rows(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Return both scaled to length one, without gradient, in float32 where they are shorter.

    Raises:
        TypeError: They are not floating point, or their types differ.
        ValueError: Widths that differ, an entry that is not finite, or a row of zeros.
    """
    DistanceStrips(queries, gallery, "squared_euclidean")  # says what is wrong with them
    units = []
    for name, rows in (("queries", queries.detach()), ("gallery", gallery.detach())):
        rows = rows.float() if rows.dtype.itemsize < 4 else rows
        zero = (rows == 0).all(1).nonzero()
        if len(zero):
            raise ValueError(f"{name} must have a direction, got only zeros in row {int(zero[0])}")
        units.append(normalize(rows, dim=1))
    return units[0], units[1]
