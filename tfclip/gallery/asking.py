"""Checks of what a search is given, and the re-ranking of what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tfclip.gallery.conditions import Between
from tfclip.gallery.entries import UNKNOWN, make_cameras, seconds
from tfclip.gallery.query import Nearest

if TYPE_CHECKING:
    from torch import Tensor

Rerank: TypeAlias = "Literal['k_reciprocal'] | Callable[[Tensor, Tensor], Tensor]"


def check_counts(**counts: int) -> None:
    """Refuse counts that are none.

    Raises:
        TypeError: Not a whole number.
        ValueError: Less than 1.
    """
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be a whole number, got {number!r}")
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def within(window: Any) -> dict[str, Between]:
    """Return the condition of a time window."""
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise TypeError(f"time_window must be a start and an end, got {window!r}")
    ends = [None if end is None else seconds(end, "time_window") for end in window]
    return {"time": Between(*ends)}


def doomed(
    ids: str | Iterable[str] | None,
    person: str | int | None,
    camera: int | None,
    before: Any,
    added_before: Any,
) -> dict[str, Any]:
    """Return the conditions of what is to be forgotten; the arguments are those of ``forget``."""
    conditions: dict[str, Any] = {}
    if ids is not None:
        conditions["id"] = [ids] if isinstance(ids, str) else list(ids)
    if person is not None:
        conditions["person"] = person
    if camera is not None:
        conditions["camera"] = camera
    for field, moment in (("time", before), ("added", added_before)):
        if moment is not None:
            last = math.nextafter(seconds(moment, field), -math.inf)
            conditions[field] = Between(high=last)
    return conditions


def excluded_cameras(cameras: Iterable[int]) -> tuple[int, ...]:
    """Return the cameras whose entries are left out."""
    listed = list(cameras)
    column = make_cameras(listed, len(listed), "exclude_cameras")
    return tuple(camera for camera in column.tolist() if camera != UNKNOWN)


def own_cameras(cameras: Sequence[int | None] | None, count: int) -> np.ndarray:
    """Return the camera of each query, all of which must be known."""
    if cameras is None:
        raise ValueError("query_cameras must be given with exclude_same_camera, got None")
    column = make_cameras(cameras, count, "query_cameras")
    unknown = np.flatnonzero(column == UNKNOWN)
    if len(unknown):
        raise ValueError(
            "query_cameras must be known with exclude_same_camera, "
            f"got None at position {unknown[0]}"
        )
    return column


def own_ids(ids: Sequence[str | None] | None, count: int) -> tuple[str | None, ...]:
    """Return the id of each query; None has none."""
    if ids is None:
        raise ValueError("query_ids must be given with exclude_same_id, got None")
    if isinstance(ids, str) or len(ids) != count:
        raise ValueError(f"query_ids must have one entry for each of {count} queries, got {ids!r}")
    return tuple(ids)


def find_reranker(rerank: Rerank) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of a re-ranking."""
    if callable(rerank):
        return rerank
    if rerank != "k_reciprocal":
        raise ValueError(f"rerank must be 'k_reciprocal' or a function, got {rerank!r}")
    from tfclip import functional

    return getattr(functional, f"{rerank}_rerank")


def rerank_each(
    nearest: Nearest, queries: np.ndarray, k: int, reranker: Callable[[Tensor, Tensor], Tensor]
) -> Nearest:
    """Order the candidates of each query anew; equal distances keep their order."""
    import torch

    rows = np.full((len(queries), k), UNKNOWN, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf)
    for position, candidates in enumerate(nearest.rows):
        candidates = candidates[candidates != UNKNOWN]
        if not len(candidates):
            continue
        vectors = torch.from_numpy(nearest.entries.vectors[candidates])
        found = reranker(torch.from_numpy(queries[position : position + 1]), vectors)
        if tuple(found.shape) != (1, len(candidates)):
            raise ValueError(
                f"rerank must return distances (1, {len(candidates)}), "
                f"got shape {tuple(found.shape)}"
            )
        new = found[0].detach().cpu().double().numpy()
        order = np.argsort(new, kind="stable")[:k]
        rows[position, : len(order)] = candidates[order]
        distances[position, : len(order)] = new[order]
    return Nearest(nearest.entries, rows, distances)
