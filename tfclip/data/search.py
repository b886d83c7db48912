"""Nearest rows of one table of embeddings to the rows of another, exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tfclip.data.embeddings import EmbeddingTable
from tfclip.errors import TableError
from tfclip.functional import squared_euclidean_distance

_BLOCK_ENTRIES = 4_000_000  # distances held at once


class Found(NamedTuple):
    """One result of a search."""

    row: int
    """Row of the gallery."""
    distance: float
    """Squared Euclidean distance to the query; smaller is nearer."""


def search_table(
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    *,
    top: int = 5,
    exclude_same_name: bool = True,
    exclude_same_camera: bool = False,
) -> list[list[Found]]:
    """Find the nearest gallery rows of each query.

    The distance is squared Euclidean; embeddings written by ``tfclip encode`` have length 1, and
    then it equals 2 - 2 cos and goes from 0 to 4. Equal distances keep the order of the gallery.

    Args:
        queries: What to look for.
        gallery: Where to look; made by the same model.
        top: Results for each query; fewer where the gallery has no more.
        exclude_same_name: Leave out the row with the query's own name: the tracklet itself, where
            the queries are also in the gallery.
        exclude_same_camera: Leave out what the query's camera saw.

    Returns:
        For each query its results, nearest first.

    Raises:
        TableError: The tables come from different models, or a camera is unknown and
            ``exclude_same_camera`` asks for it.
        ValueError: ``top`` is less than 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    queries.check_comparable(gallery)
    if exclude_same_camera:
        for kind, table in (("query", queries), ("gallery", gallery)):
            if None in table.cameras:
                name = table.names[table.cameras.index(None)]
                raise TableError(
                    f"the camera of the {kind} tracklet {name!r} is unknown, and the same camera "
                    "is to be left out"
                )
    rows_of_names = {name: row for row, name in enumerate(gallery.names)}
    gallery_cameras = _camera_codes(gallery)
    step = max(1, _BLOCK_ENTRIES // len(gallery))
    results: list[list[Found]] = []
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        distance = squared_euclidean_distance(queries.embeddings[block], gallery.embeddings)
        if exclude_same_camera:
            distance[_camera_codes(queries)[block, None] == gallery_cameras] = torch.inf
        if exclude_same_name:
            for position, name in enumerate(queries.names[block]):
                if name in rows_of_names:
                    distance[position, rows_of_names[name]] = torch.inf
        nearest, order = distance.sort(dim=1, stable=True)
        for values, rows in zip(nearest[:, :top], order[:, :top], strict=True):
            pairs = zip(rows.tolist(), values.tolist(), strict=True)
            results.append([Found(row, value) for row, value in pairs if value != torch.inf])
    return results


def _camera_codes(table: EmbeddingTable) -> Tensor:
    return torch.tensor([-1 if camera is None else camera for camera in table.cameras])
