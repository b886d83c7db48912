"""Which crops are good enough to describe a person by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np


class Judgement(NamedTuple):
    """What a gate says of a crop."""

    reason: str | None
    """Why it does not pass, in a word; None when it does."""
    score: float
    """Larger is better; compares the crops of one track of which none passes."""


Gate: TypeAlias = Callable[[np.ndarray, Sequence[float] | None, tuple[int, int] | None], Judgement]
"""Takes a crop ``(h, w, 3)`` uint8 RGB, its box (left, top, width, height) and the height and width
of its frame, or None where they are not known."""


@dataclass(frozen=True, kw_only=True)
class QualityGate:
    """Stops crops that are small, cut off by the frame's edge, or blurred.

    A crop's score is the least of its height, width and sharpness, each divided by its limit; a
    crop that is cut off has at most half.

    Args:
        min_height: Least height in pixels.
        min_width: Least width in pixels.
        min_sharpness: Least ``sharpness``; 0 lets any pass. It depends on the camera: look at some.
        edge_margin: A box that comes nearer to its frame's edge than so many pixels is cut off;
            None lets it pass. Where boxes or the frame's size are not given, nothing is cut off.

    Raises:
        ValueError: A limit is negative or no finite number.

    Example:
        >>> gate = QualityGate(min_height=64)
        >>> gate(np.zeros((32, 16, 3), dtype=np.uint8))
        Judgement(reason='small', score=0.0)
    """

    min_height: int = 48
    min_width: int = 16
    min_sharpness: float = 25.0
    edge_margin: float | None = 1.0

    def __post_init__(self) -> None:
        for name in ("min_height", "min_width", "min_sharpness", "edge_margin"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number from 0, got {value}")

    def __call__(
        self,
        crop: np.ndarray,
        box: Sequence[float] | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Judgement:
        """Judge a crop.

        Args:
            crop: RGB, ``(h, w, 3)`` uint8.
            box: Left, top, width and height in pixels of its frame.
            frame_size: Height and width of its frame.
        """
        height, width = crop.shape[:2]
        shares = {
            "small": min(_share(height, self.min_height), _share(width, self.min_width)),
            "blurred": _share(sharpness(crop), self.min_sharpness) if self.min_sharpness else 1.0,
        }
        if box is not None and frame_size is not None and self._cuts(box, frame_size):
            shares["cut_off"] = 0.5
        failed = [reason for reason in ("small", "cut_off", "blurred") if shares.get(reason, 1) < 1]
        return Judgement(failed[0] if failed else None, min(shares.values()))

    def _cuts(self, box: Sequence[float], frame_size: tuple[int, int]) -> bool:
        if self.edge_margin is None:
            return False
        left, top, width, height = box
        frame_height, frame_width = frame_size
        distances = (left, top, frame_width - left - width, frame_height - top - height)
        return min(distances) < self.edge_margin


def sharpness(crop: np.ndarray) -> float:
    """Return the variance of the Laplacian of a picture's brightness; blurred ones have little.

    Args:
        crop: RGB, ``(h, w, 3)`` uint8.

    Returns:
        In squared levels of 255; 0 for fewer than 3 rows or columns.

    Example:
        >>> stripes = np.zeros((8, 8, 3), dtype=np.uint8)
        >>> stripes[:, ::2] = 100
        >>> sharpness(stripes)
        40000.0
    """
    if min(crop.shape[:2]) < 3:
        return 0.0
    # ITU-R 601's weights of red, green and blue, as Pillow's mode L has.
    grey = crop.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    centre = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return round(float(np.var(around - 4 * centre)), 2)


def _share(value: float, limit: float) -> float:
    return value / limit if limit else 1.0
