"""Distances between every query and every gallery embedding; smaller is always nearer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
