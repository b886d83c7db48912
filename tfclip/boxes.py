"""Boxes and the crops they make: left, top, width and height in pixels, as trackers write them."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import numpy as np
import torch

from tfclip.errors import FrameError
from tfclip.video.decoding import TimedFrame

Detector: TypeAlias = Callable[[np.ndarray], tuple[Any, Any]]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameBoxes:
    """The boxes of one frame, whatever they were read from; lists and tensors become arrays.

    Args:
        frame: Number of the frame, from 0.
        boxes: Left, top, width and height in pixels, ``(N, 4)``, finite.
        track_ids: ``(N,)`` whole numbers, each once: who is who from frame to frame.
        confidences: ``(N,)``, NaN where unknown; None is unknown for all.
        num_dropped: How many more there were of which no pixel lies in the picture.

    Raises:
        FrameError: Boxes of another shape or not finite.
        ValueError: Not one id and confidence for each box, or an id that occurs twice.

    Example:
        >>> found = FrameBoxes(frame=0, boxes=[[-2, 1, 6, 5], [50, 0, 4, 9]], track_ids=[7, 9])
        >>> inside = found.clip(width=20, height=10)
        >>> inside.boxes.tolist(), inside.track_ids.tolist(), inside.num_dropped
        ([[0.0, 1.0, 4.0, 5.0]], [7], 1)
    """

    frame: int
    boxes: np.ndarray
    track_ids: np.ndarray
    confidences: np.ndarray | None = None
    num_dropped: int = 0

    def __post_init__(self) -> None:
        boxes = _as_boxes(self.boxes)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "track_ids", _as_track_ids(self.track_ids, len(boxes)))
        if self.confidences is not None:
            confidences = _as_array(self.confidences, "confidences").astype(np.float64)
            if confidences.shape != (len(boxes),):
                raise ValueError(
                    f"confidences must be one for each of {len(boxes)} boxes, "
                    f"got shape {confidences.shape}"
                )
            object.__setattr__(self, "confidences", confidences)

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, rows: Any) -> Self:
        """Return some of the boxes; the others are not counted as dropped.

        Args:
            rows: What indexes the first axis of an ndarray: numbers, a mask or a slice.
        """
        confidences = None if self.confidences is None else self.confidences[rows]
        return replace(
            self, boxes=self.boxes[rows], track_ids=self.track_ids[rows], confidences=confidences
        )

    def clip(self, width: int, height: int) -> Self:
        """Return the parts of the boxes that lie in a picture; those without a pixel are dropped.

        What ``crop_frame`` cuts out stays the same: an edge inside the picture is not touched.
        """
        size = np.array([width, height])
        low, high = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        kept = (np.clip(np.rint(low), 0, size) < np.clip(np.rint(high), 0, size)).all(axis=1)
        left_top = np.maximum(low, 0)
        crossed = (low < 0) | (high > size)
        extent = np.where(crossed, np.minimum(high, size) - left_top, self.boxes[:, 2:])
        inside = replace(self, boxes=np.concatenate([left_top, extent], axis=1)).select(kept)
        return replace(inside, num_dropped=self.num_dropped + int((~kept).sum()))

    def crop(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Return a copy of what each box covers of ``(H, W, 3)`` pixels.

        Raises:
            FrameError: A box covers no pixel; ``clip`` drops these.
        """
        return [
            crop_frame(pixels, box, f"the box of track {track} in frame {self.frame}")
            for box, track in zip(self.boxes, self.track_ids.tolist(), strict=True)
        ]


BoxSource: TypeAlias = "Mapping[int, FrameBoxes] | Detector"


def pair_boxes(
    frames: Iterable[TimedFrame | np.ndarray], boxes: BoxSource
) -> Iterator[tuple[TimedFrame, FrameBoxes]]:
    """Yield each frame with its boxes, clipped to the picture.

    It works alike on files and live sources, and holds one frame. Boxes of which no pixel lies in
    the picture are dropped; ``FrameBoxes.num_dropped`` counts them frame by frame, and the end of
    the frames logs how many they were.

    Args:
        frames: ``Video.timed()``, a ``LiveVideo``, or pictures ``(H, W, 3)`` uint8 RGB, whose
            times are unknown (NaN).
        boxes: What ``tfclip.data.read_boxes`` returned, by frame number; a frame without an entry
            has no box. Or a detector that tracks: called with the pixels of each frame, it returns
            the boxes ``(N, 4)``, left, top, width and height, and the track ids ``(N,)``.

    Raises:
        FrameError: A detector's boxes are of another shape or not finite.
        ValueError: A detector's ids do not fit its boxes; or the boxes are a table, and the frames
            are not numbered, as after a jump to a time.

    Example:
        >>> frames = np.zeros((2, 10, 20, 3), dtype=np.uint8)
        >>> pairs = pair_boxes(frames, lambda pixels: ([[15, -2, 10, 6]], [7]))
        >>> [(found.frame, found.crop(frame.pixels)[0].shape) for frame, found in pairs]
        [(0, (4, 5, 3)), (1, (4, 5, 3))]
    """
    total = dropped = 0
    for position, given in enumerate(frames):
        frame = given
        if not isinstance(frame, TimedFrame):
            frame = TimedFrame(np.asarray(given), float("nan"), position)
        found = _boxes_of(frame, position, boxes)
        height, width = frame.pixels.shape[:2]
        inside = found.clip(width, height)
        total += len(found) + found.num_dropped
        dropped += inside.num_dropped
        yield frame, inside
    if dropped:
        _logger.warning(
            "%d of %d boxes have no pixel of the picture and are left out", dropped, total
        )


def _boxes_of(frame: TimedFrame, position: int, boxes: BoxSource) -> FrameBoxes:
    if isinstance(boxes, Mapping):
        if frame.number is None:
            raise ValueError(
                "frames must be numbered to be paired with a table of boxes, which they are not "
                "after a jump to a time; begin at the start"
            )
        nothing = FrameBoxes(frame=frame.number, boxes=np.empty((0, 4)), track_ids=np.empty(0))
        return boxes.get(frame.number, nothing)
    number = position if frame.number is None else frame.number
    rows, track_ids = boxes(frame.pixels)
    return FrameBoxes(frame=number, boxes=rows, track_ids=track_ids)


def check_boxes(boxes: Any) -> np.ndarray:
    """Return boxes as a float64 array ``(T, 4)``.

    Raises:
        FrameError: They have another shape, are not finite numbers, or have no area.
    """
    boxes = _as_boxes(boxes, length="T")
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


def _as_boxes(boxes: Any, length: str = "N") -> np.ndarray:
    """Return boxes as float64, ``(N, 4)``; FrameError where they are not that, or not finite."""
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().double().numpy()
    try:
        rows = np.array(boxes, dtype=np.float64)  # a copy: the caller's may change
    except (TypeError, ValueError) as error:
        message = f"boxes must be numbers ({length}, 4), got {reprlib.repr(boxes)}"
        raise FrameError(message) from error
    if length == "N" and rows.size == 0:  # a detector's empty list has no second axis
        return rows.reshape(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise FrameError(f"boxes must be ({length}, 4), got shape {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise FrameError(f"boxes must be finite, got {_row(rows, bad[0])}")
    return rows


def _as_array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.array(values)
    if array.size and array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be numbers, got {reprlib.repr(values)}")
    return array


def _as_track_ids(values: Any, length: int) -> np.ndarray:
    ids = _as_array(values, "track_ids")
    if ids.size == 0:
        ids = ids.reshape(-1)
    if ids.shape != (length,):
        raise ValueError(f"track_ids must be one for each of {length} boxes, got shape {ids.shape}")
    if not np.isfinite(ids).all() or (np.rint(ids) != ids).any():
        raise ValueError(f"track_ids must be whole numbers, got {reprlib.repr(ids.tolist())}")
    whole = ids.astype(np.int64)
    found, counts = np.unique(whole, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"track_ids must be unique, got {found[counts > 1][0]} twice")
    return whole


def _row(boxes: np.ndarray, index: int) -> str:
    return f"boxes[{index}] = {boxes[index].tolist()}"
