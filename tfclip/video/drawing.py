"""Boxes drawn into a picture, coloured by who is in them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

_GOLDEN = 0.618034  # of the circle of hues: neighbours in number are far apart in colour
_LINE = 1 / 240  # width of a line, as a share of the picture's height
_TEXT = 1 / 32  # height of the letters, likewise
_LEAST_TEXT = 11  # pixels
_INK = (255, 255, 255)


def identity_colour(number: int) -> Colour:
    """Return the colour of a person: RGB, dark enough for white letters, always the same.

    Example:
        >>> identity_colour(0), identity_colour(1)
        ((39, 115, 204), (137, 171, 33))
    """
    hue = (0.59 + _GOLDEN * number) % 1
    # Yellow and green look brighter than blue and red of one value.
    value = 0.8 - 0.22 * max(0.0, 1 - abs(hue - 0.3) / 0.22)
    saturation = 0.81 - 0.2 * (number // 5 % 2)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    pixels: np.ndarray,
    boxes: Any,
    labels: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """Return a copy of a picture with boxes drawn into it, and a text over each.

    Lines and letters grow with the picture. A text that would leave the picture is moved into it;
    the box that stands lowest, as the nearest one does, is drawn last.

    Args:
        pixels: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)`` left, top, width and height in pixels.
        labels: A text for each box; None for none.
        colours: Of each box, RGB; None takes ``identity_colour`` of its place in the list.

    Raises:
        FrameError: Boxes of another shape, or not finite.
        ValueError: Not one label and colour for each box.

    Example:
        >>> picture = draw_boxes(np.zeros((48, 64, 3), dtype=np.uint8), [[8, 20, 20, 24]])
        >>> picture[20, 18].tolist() == list(identity_colour(0))
        True
    """
    from tfclip.boxes import FrameBoxes

    rows = FrameBoxes(frame=0, boxes=boxes, track_ids=np.arange(len(boxes))).boxes
    for name, values in (("labels", labels), ("colours", colours)):
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{name} must be one for each of {len(rows)} boxes, got {len(values)}")
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    line = max(2, round(_LINE * image.height))
    for row in map(int, np.argsort(rows[:, 1] + rows[:, 3], kind="stable")):
        colour = identity_colour(row) if colours is None else colours[row]
        left, top, width, height = rows[row]
        corners = (round(left), round(top), round(left + width) - 1, round(top + height) - 1)
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            draw.rounded_rectangle(corners, radius=2 * line, outline=colour, width=line)
        if labels is not None and labels[row]:
            _draw_label(draw, labels[row], corners, colour, image.size)
    return np.array(image)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corners: tuple[int, int, int, int],
    colour: Colour,
    size: tuple[int, int],
) -> None:
    """Draw a text on a plate of the box's colour, above the box or, at the edge, inside it."""
    width, height = size
    font = _font(max(_LEAST_TEXT, round(_TEXT * height)))
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    across, down = round(x1 - x0), round(y1 - y0)
    pad = max(2, down // 3)
    plate_width, plate_height = across + 2 * pad, down + 2 * pad
    left = max(0, min(corners[0], width - plate_width))
    top = max(0, min(corners[1] - plate_height + 1, height - plate_height))
    plate = (left, top, left + plate_width - 1, top + plate_height - 1)
    draw.rounded_rectangle(plate, radius=pad, fill=colour)
    draw.text((left + pad - x0, top + pad - y0), text, font=font, fill=_INK)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which is there wherever Pillow is."""
    return ImageFont.load_default(size)
