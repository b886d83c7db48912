"""Who is where in a frame, from what a tracker returns; trackers are known by their attributes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch


class Tracked(NamedTuple):
    """Tracks that were seen in a frame."""

    ids: list[Hashable]
    """``M`` track ids."""
    boxes: np.ndarray
    """Left, top, width and height in pixels, ``(M, 4)``."""


def tracked_boxes(tracked: Any, detections: Iterable[Any] | None = None) -> Tracked:
    """Read the tracks that were seen in a frame out of a tracker's result.

    Predicted places of tracks that were not seen are left out, and so is what has no id.

    Args:
        tracked: One of

            - ``supervision.Detections`` with ``tracker_id`` (Roboflow ``trackers``);
            - an array ``(M, 5)`` or wider of left, top, right, bottom, id, ... (BoxMOT's trackers,
              and those of Ultralytics);
            - an Ultralytics ``Results``, or a list of one, of ``model.track``;
            - a list of deep-sort-realtime ``Track`` or norfair ``TrackedObject``.
        detections: The norfair ``Detection`` of this frame; without them, a norfair object stands
            where it was seen last.

    Raises:
        TypeError: It is of no such kind.
        ValueError: An array has another shape.

    Example:
        >>> tracked_boxes(np.array([[10, 20, 60, 160, 7, 0.9, 0, 0]])).ids
        [7]
    """
    if isinstance(tracked, (list, tuple)):
        if len(tracked) == 1 and hasattr(tracked[0], "boxes"):
            return tracked_boxes(tracked[0])
        seen = None if detections is None else {id(detection) for detection in detections}
        return _from_objects(tracked, seen)
    if isinstance(tracked, (np.ndarray, torch.Tensor)):
        return _from_rows(_numbers(tracked))
    if hasattr(tracked, "tracker_id"):
        return _from_columns(tracked.tracker_id, tracked.xyxy)
    if hasattr(tracked, "boxes"):
        boxes = tracked.boxes
        return _from_columns(None, None) if boxes is None else _from_columns(boxes.id, boxes.xyxy)
    raise TypeError(
        "tracked must be supervision Detections, an array (M, 5), Ultralytics Results, or a list "
        f"of deep-sort-realtime or norfair tracks, got {type(tracked).__name__}"
    )


def _from_columns(ids: Any, edges: Any) -> Tracked:
    if ids is None:  # nothing has an id yet
        return Tracked([], np.empty((0, 4)))
    numbers = _numbers(ids).astype(int)
    known = numbers >= 0  # Roboflow's trackers write -1 for what has none yet
    return Tracked(numbers[known].tolist(), _to_boxes(_numbers(edges)[known]))


def _from_rows(rows: np.ndarray) -> Tracked:
    if not rows.size:
        return Tracked([], np.empty((0, 4)))
    if rows.ndim != 2 or rows.shape[1] < 5:
        raise ValueError(
            "tracked must be rows of left, top, right, bottom, id, ... when it is an array, "
            f"got shape {rows.shape}"
        )
    return Tracked(rows[:, 4].astype(int).tolist(), _to_boxes(rows[:, :4]))


def _from_objects(objects: Iterable[Any], seen: set[int] | None) -> Tracked:
    ids: list[Hashable] = []
    edges: list[np.ndarray] = []
    for one in objects:
        if hasattr(one, "to_ltrb"):  # deep-sort-realtime
            if one.is_confirmed() and one.time_since_update == 0:
                ids.append(one.track_id)
                edges.append(np.asarray(one.to_ltrb(orig=True), dtype=np.float64))
        elif hasattr(one, "last_detection"):  # norfair
            if one.id is None or (seen is not None and id(one.last_detection) not in seen):
                continue
            points = np.asarray(one.last_detection.points, dtype=np.float64)
            ids.append(one.id)
            edges.append(np.concatenate([points.min(0), points.max(0)]))
        else:
            raise TypeError(
                "tracked must hold deep-sort-realtime or norfair tracks when it is a list, "
                f"got {type(one).__name__}"
            )
    return Tracked(ids, _to_boxes(np.array(edges).reshape(-1, 4)))


def _to_boxes(edges: np.ndarray) -> np.ndarray:
    corner = edges[:, :2].astype(np.float64)
    return np.concatenate([corner, edges[:, 2:4] - corner], axis=1)


def _numbers(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values)
