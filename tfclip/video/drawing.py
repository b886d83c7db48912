"""Boxes drawn into a picture, coloured by who is in them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
_Corners = tuple[int, int, int, int]  # left, top, right, bottom; inclusive

_GOLDEN = 0.618034  # of the circle of hues: neighbours in number are far apart in colour
_GAMMA = 2.2
_BRIGHTNESS = (0.2126, 0.7152, 0.0722)  # what red, green and blue add to it (Rec. 709)
_BRIGHTEST = 0.24  # of 1: white letters then have a contrast of 3.6 to 1
_LINE = 1 / 240  # width of a line, as a share of the picture's height
_TEXT = 1 / 32  # height of the letters, likewise
_LEAST_TEXT = 11  # pixels
_INK = (255, 255, 255)


def identity_colour(number: int) -> Colour:
    """Return the colour of a person: RGB, dark enough for white letters, always the same.

    Example:
        >>> identity_colour(0), identity_colour(1)
        ((39, 121, 217), (115, 144, 26))
    """
    hue = (0.59 + _GOLDEN * number) % 1
    saturation = 0.82 - 0.22 * (number // 5 % 2)
    linear = [value**_GAMMA for value in colorsys.hsv_to_rgb(hue, saturation, 0.85)]
    brightness = sum(share * value for share, value in zip(_BRIGHTNESS, linear, strict=True))
    darker = min(1.0, _BRIGHTEST / brightness)  # yellow and green are brighter than blue and red
    red, green, blue = (round(255 * (value * darker) ** (1 / _GAMMA)) for value in linear)
    return red, green, blue


def draw_boxes(
    pixels: np.ndarray,
    boxes: Any,
    labels: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """Return a copy of a picture with boxes drawn into it, and a text over each.

    Lines and letters grow with the picture. The box that stands lowest, as the nearest one does, is
    drawn last. A text stands on its box; where another stands already, or beyond the picture's
    edge, it is moved.

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
    edges = np.rint(np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)).astype(int)
    corners: list[_Corners] = [(x0, y0, x1 - 1, y1 - 1) for x0, y0, x1, y1 in edges.tolist()]
    shades = [identity_colour(row) for row in range(len(rows))] if colours is None else colours
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    line = max(2, round(_LINE * image.height))
    order = [int(row) for row in np.argsort(edges[:, 3], kind="stable")]
    for row in order:
        x0, y0, x1, y1 = corners[row]
        if x1 >= x0 and y1 >= y0:
            shape = corners[row]
            draw.rounded_rectangle(shape, radius=2 * line, outline=shades[row], width=line)
    taken: list[_Corners] = []
    for row in reversed(order) if labels is not None else ():  # the nearest take their place first
        if labels is not None and labels[row]:
            taken.append(_draw_label(draw, labels[row], corners[row], shades[row], taken))
    return np.array(image)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corners: _Corners,
    colour: Colour,
    taken: Sequence[_Corners],
) -> _Corners:
    """Draw a text on a plate of the box's colour; return where the plate is."""
    width, height = draw.im.size
    font = _font(max(_LEAST_TEXT, round(_TEXT * height)))
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    pad = max(2, round(y1 - y0) // 3)
    wide, high = round(x1 - x0) + 2 * pad, round(y1 - y0) + 2 * pad
    left = max(0, min(corners[0], width - wide))
    # On the box, then higher, then in the box from the top down.
    rows = [corners[1] + 1 - high * k for k in (1, 2, 3)] + [corners[1] + high * k for k in (0, 1)]
    plates = [(left, top, left + wide - 1, top + high - 1) for top in rows]
    inside = [plate for plate in plates if plate[1] >= 0 and plate[3] < height]
    free = [plate for plate in inside if not any(_overlap(plate, other) for other in taken)]
    lowest = max(0, height - high)
    top = min(max(0, rows[0]), lowest)
    plate = (free or inside or [(left, top, left + wide - 1, top + high - 1)])[0]
    draw.rounded_rectangle(plate, radius=pad, fill=colour)
    draw.text((plate[0] + pad - x0, plate[1] + pad - y0), text, font=font, fill=_INK)
    return plate


def _overlap(one: _Corners, other: _Corners) -> bool:
    across = one[0] <= other[2] and other[0] <= one[2]
    return across and one[1] <= other[3] and other[1] <= one[3]


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which is there wherever Pillow is."""
    return ImageFont.load_default(size)
