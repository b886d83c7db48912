"""Crops of frames: boxes are left, top, width and height in pixels, as trackers write them."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tfclip.errors import FrameError


def check_boxes(boxes: Any) -> np.ndarray:
    """Return boxes as a float64 array ``(T, 4)``.

    Raises:
        FrameError: They have another shape, are not finite numbers, or have no area.
    """
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().double().numpy()
    try:
        boxes = np.array(boxes, dtype=np.float64)  # a copy: the caller's may change
    except (TypeError, ValueError) as error:
        raise FrameError(f"boxes must be numbers (T, 4), got {reprlib.repr(boxes)}") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise FrameError(f"boxes must be (T, 4), got shape {boxes.shape}")
    bad = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
    if bad.size:
        raise FrameError(f"boxes must be finite, got {_row(boxes, bad[0])}")
    bad = np.flatnonzero((boxes[:, 2:] <= 0).any(axis=1))
    if bad.size:
        raise FrameError(
            f"boxes must have a width and height above zero, got {_row(boxes, bad[0])}"
        )
    return boxes


def crop_frame(frame: np.ndarray, box: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """Return a copy of the part of a frame that a box covers.

    The edges are rounded to whole pixels, as Pillow's crop does, and clipped to the frame.

    Args:
        frame: Pixels, ``(H, W, 3)``.
        box: Left, top, width, height in pixels; finite.
        name: What the message calls the box.

    Raises:
        FrameError: The box covers no pixel of the frame.

    Example:
        >>> crop_frame(np.zeros((10, 20, 3), dtype=np.uint8), (15, -2, 10, 6), "box").shape
        (4, 5, 3)
    """
    height, width = frame.shape[:2]
    left, top, box_width, box_height = (float(value) for value in box)
    edges = np.rint([left, top, left + box_width, top + box_height])
    x0, y0, x1, y1 = np.clip(edges, 0, [width, height, width, height]).astype(int)
    if x0 >= x1 or y0 >= y1:
        raise FrameError(
            f"{name} must cover at least a pixel of its frame, got left {left:g}, top {top:g}, "
            f"width {box_width:g}, height {box_height:g} in a frame {width} wide and {height} high"
        )
    return frame[y0:y1, x0:x1].copy()  # a view would keep the whole frame in memory


def _row(boxes: np.ndarray, index: int) -> str:
    return f"boxes[{index}] = {boxes[index].tolist()}"
