"""Crops of one frame by boxes that may lie outside it."""

from __future__ import annotations

import reprlib
from typing import Any, NamedTuple

import numpy as np
import torch

from tfclip.errors import FrameError
from tfclip.images import check_array


class CutCrops(NamedTuple):
    """Crops of a frame."""

    crops: list[np.ndarray | None]
    """Views of the frame, ``(h, w, 3)``; None for a box without a pixel in it."""
    boxes: np.ndarray
    """Left, top, width and height in pixels as given, ``(M, 4)``."""


def cut_crops(frame: np.ndarray, boxes: Any, count: int) -> CutCrops:
    """Cut boxes, left, top, width and height in pixels, out of a frame.

    Edges are rounded to whole pixels and clipped to the frame, as ``encode_sequence`` does.

    Args:
        frame: ``(H, W, 3)`` uint8.
        boxes: ``(M, 4)``.
        count: How many there must be.

    Raises:
        FrameError: The frame or the boxes cannot be used.
        TypeError: The frame is no ndarray.
    """
    check_frame(frame)
    rows = box_rows(boxes, count)
    edges = rows.copy()
    edges[:, 2:] += edges[:, :2]
    return CutCrops(
        [None if edge is None else _cut(frame, edge) for edge in clip_edges(frame, edges)], rows
    )


def cut_nearest(frame: np.ndarray, edges: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Cut boxes, left, top, right and bottom, out of a frame; each gives at least a pixel.

    A box without a pixel in the frame gives the pixel nearest to its centre.

    Returns:
        The crops, and how many boxes had no pixel.
    """
    height, width = frame.shape[:2]
    crops, outside = [], 0
    for row, edge in zip(edges, clip_edges(frame, edges), strict=True):
        if edge is None:
            outside += 1
            x = int(np.clip((row[0] + row[2]) / 2, 0, width - 1))
            y = int(np.clip((row[1] + row[3]) / 2, 0, height - 1))
            edge = (x, y, x + 1, y + 1)
        crops.append(_cut(frame, edge))
    return crops, outside


def check_frame(frame: np.ndarray) -> None:
    """Refuse what is no frame ``(H, W, 3)`` of uint8.

    Raises:
        FrameError: It has another dtype or shape.
        TypeError: It is no ndarray.
    """
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"frame must be an ndarray (H, W, 3), got {type(frame).__name__}")
    check_array(frame, "frame")


def box_rows(boxes: Any, count: int | None = None, *, more: bool = False) -> np.ndarray:
    """Return boxes as float64 ``(M, 4)``; no boxes may have any shape.

    Args:
        boxes: Array, tensor or lists.
        count: How many there must be; None is any number.
        more: Let rows go on after the box.

    Raises:
        FrameError: They have another shape or are not finite.
    """
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    try:
        rows = np.array(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FrameError(f"boxes must be numbers (M, 4), got {reprlib.repr(boxes)}") from error
    if not rows.size:
        rows = np.empty((0, 4))
    if rows.ndim != 2 or rows.shape[1] < 4 or (rows.shape[1] > 4 and not more):
        raise FrameError(f"boxes must be (M, 4), got shape {rows.shape}")
    if count is not None and len(rows) != count:
        raise FrameError(f"boxes must have one row for each of {count} track_ids, got {len(rows)}")
    rows = rows[:, :4]
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise FrameError(f"boxes must be finite, got boxes[{bad[0]}] = {rows[bad[0]].tolist()}")
    return rows


def clip_edges(frame: np.ndarray, edges: np.ndarray) -> list[tuple[int, int, int, int] | None]:
    """Return left, top, right and bottom in whole pixels of a frame; None where nothing is left."""
    height, width = frame.shape[:2]
    clipped = np.clip(np.rint(edges), 0, [width, height, width, height]).astype(int)
    return [
        (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None for x0, y0, x1, y1 in clipped.tolist()
    ]


def _cut(frame: np.ndarray, edge: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = edge
    return frame[top:bottom, left:right]
