"""Re-ranking that looks for neighbours in a row's own camera and in all others apart."""

from __future__ import annotations

import torch
from torch import Tensor

from tfclip.functional.candidates import Labels, number_labels
from tfclip.functional.neighbours import find_neighbours_by_camera
from tfclip.functional.pairwise import TILE_ROWS, FeatureDistances
from tfclip.functional.reciprocal import encode_by_camera
from tfclip.functional.reranking import check_parameters, finish


def camera_aware_jaccard(
    queries: Tensor,
    gallery: Tensor,
    query_cameras: Labels,
    gallery_cameras: Labels,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 3,
    k2_inter: int = 3,
    lambda_value: float = 0.3,
    *,
    tile_rows: int = TILE_ROWS,
    progress: bool = False,
) -> Tensor:
    """Return distances that count shared neighbours, found in every row's own and other cameras.

    CA-Jaccard (Chen et al., "CA-Jaccard: Camera-aware Jaccard Distance for Person
    Re-identification", CVPR 2024). Rows of one camera look alike and crowd out the same person in
    other cameras; two lists keep room for both. It is ``k_reciprocal_rerank`` with these changes:

    1. A row's set joins the reciprocal ones of its ``k1_intra + 1`` nearest of its own camera,
       itself counted, and of its ``k1_inter + 1`` nearest of all other cameras.
    2. Sets are not expanded.
    3. Weights are averaged over the ``k2_intra`` nearest of its own camera, itself counted, and
       the ``k2_inter`` nearest of the others.

    Where a camera has too few rows its list is shorter; the authors' code fills it up with rows of
    the wrong kind. Their re-ranking also squares the squared distances before it weighs with
    them; this one follows the k-reciprocal encoding. Use it where cameras are known and differ
    much, with at least some people in more than one.

    Args:
        queries: Embeddings, ``(Q, F)``, floating point, finite.
        gallery: Embeddings, ``(G, F)``, of the same type and on the same device.
        query_cameras: ``(Q,)`` cameras: integers or strings.
        gallery_cameras: ``(G,)`` cameras.
        k1_intra: Neighbours in the own camera, beside itself; the defaults are the authors'.
        k1_inter: Neighbours in other cameras, one less than are taken.
        k2_intra: Rows of the own camera of which weights are averaged.
        k2_inter: Rows of other cameras of which weights are averaged.
        lambda_value: Share of the plain distance, from 0 to 1.
        tile_rows: Rows of which distances are held at once, times four as many columns.
        progress: Show a progress bar.

    Returns:
        Distances, ``(Q, G)``, from 0 to 1, without gradient; smaller is nearer.

    Raises:
        TypeError: As ``k_reciprocal_rerank``.
        ValueError: As ``k_reciprocal_rerank``, or cameras that are not one for each row.

    Example:
        >>> import torch
        >>> queries, gallery = torch.tensor([[0.0]]), torch.tensor([[1.0], [-1.5], [9.0]])
        >>> camera_aware_jaccard(queries, gallery, ["a"], ["b", "a", "b"], 1, 1, 1, 1).argmin()
        tensor(0)
    """
    check_parameters(
        lambda_value,
        k1_intra=k1_intra,
        k1_inter=k1_inter,
        k2_intra=k2_intra,
        k2_inter=k2_inter,
        tile_rows=tile_rows,
    )
    distances = FeatureDistances(queries, gallery)
    codes = number_labels(
        ("query_cameras", query_cameras, len(queries), "rows of queries"),
        ("gallery_cameras", gallery_cameras, len(gallery), "rows of gallery"),
    )
    cameras = torch.cat([torch.from_numpy(each) for each in codes]).to(queries.device)
    result = distances.new_full((len(queries), len(gallery)), 0)
    widths = max(k1_intra + 1, k2_intra), max(k1_inter + 1, k2_inter)
    own, others = find_neighbours_by_camera(distances, widths, cameras, result, tile_rows, progress)
    weights = encode_by_camera(own, others, (k1_intra, k1_inter), (k2_intra, k2_inter))
    return finish(distances, result, own.farthest, weights, lambda_value, progress)
