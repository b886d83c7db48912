"""What the temporal memory looked at, drawn over the frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tfclip.visualize.lists import Canvas
from tfclip.visualize.style import DPI, EMPTY, INK, MUTED, check_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tfclip.temporal_attention import Look

# From the least looked at to the most: lightness rises all along, so that grey print says the same.
_HEAT = ("#15173a", "#4b1f6f", "#a02c6b", "#e8553f", "#fca636", "#fff3a6")
_BAR = "#7d93ad"

# Inches.
_PICTURE = (0.95, 1.9)
_GAP = 0.12
_STEP = _PICTURE[0] + _GAP  # from one frame to the next
_LEFT = 0.85
_RIGHT = 0.3
_BARS = 0.5


def attention_overlay(look: Look, *, title: str | None = None) -> Figure:
    """Draw frames, what the memory of each read in its patches, and how much all read of each.

    Patches are compared with the even share of a patch, on one scale for all frames: dark has
    hardly been looked at, yellow the most. The bars are the shares of frames; a dashed line is the
    even share.

    Args:
        look: What ``tfclip.temporal_attention.look_at`` returns.
        title: Text above; None for none.

    Raises:
        ValueError: There is no frame, or the shares are not of as many frames as the pictures.
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> from tfclip import TFCLIP
        >>> from tfclip.data import SyntheticTracklets
        >>> from tfclip.temporal_attention import look_at
        >>> model = TFCLIP.from_pretrained("tfclip-tiny")
        >>> look = look_at(model, SyntheticTracklets(1, 1, 1)[0].frames)
        >>> attention_overlay(look).savefig("looked_at.png")  # doctest: +SKIP
    """
    count = len(look.pictures)
    if not count or len(look.patch_shares) != count or len(look.frame_shares) != count:
        raise ValueError(
            f"look must have shares of its {count} frames, at least one, got "
            f"{len(look.patch_shares)} of patches and {len(look.frame_shares)} of frames"
        )
    check_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    heat = LinearSegmentedColormap.from_list("heat", _HEAT)
    relative = _relative(look.patch_shares)
    highest = max(float(relative.max()), 1.0)
    head = 0.6 if title else 0.2
    # Wide enough for the scale below, however few the frames are.
    width = max(_LEFT + count * _STEP - _GAP + _RIGHT, 4.7)
    height = head + 2 * (_PICTURE[1] + _GAP) + _BARS + 0.75
    canvas = Canvas(width, height)
    if title:
        canvas.write(_LEFT, height - 0.32, title, size=12, weight="bold")
    tops = [height - head, height - head - _PICTURE[1] - _GAP]
    floor = tops[1] - _PICTURE[1] - _GAP - _BARS  # on which the bars stand
    shares = look.frame_shares.tolist()
    scale = _BARS / (max(*shares, 1 / count) * 1.25)
    for number, picture in enumerate(look.pictures):
        left = _LEFT + number * _STEP
        fitted = _fit(picture)
        map_ = heat(_enlarge(relative[number] / highest, fitted.shape[:2]))[..., :3]
        mixed = 0.4 * _grey(fitted) / 255 + 0.6 * map_
        for top, drawn in zip(tops, (fitted, (mixed * 255).astype(np.uint8)), strict=True):
            canvas.place(drawn, left, top, "none")
        _draw_bar(canvas, left, floor, shares[number] * scale, scale / count)
        middle = left + _PICTURE[0] / 2
        text = f"{shares[number]:.1%}\nframe {look.indices[number] + 1}"
        canvas.write(middle, floor - 0.05, text, size=7, color=MUTED, ha="center", va="top")
    style = {"size": 8, "color": MUTED, "ha": "right"}
    canvas.write(_LEFT - 0.12, tops[0] - _PICTURE[1] / 2, "frame", **style)
    canvas.write(_LEFT - 0.12, tops[1] - _PICTURE[1] / 2, "looked at", **style)
    canvas.write(_LEFT - 0.12, floor + _BARS / 2, "share of\nthe frame", **style)
    _draw_scale(canvas, heat, highest)
    return canvas.figure


def _relative(patch_shares: Tensor) -> np.ndarray:
    """Return shares as multiples of what a patch has when all patches of a frame are alike."""
    shares = patch_shares.double().numpy()
    return shares * shares[0].size / shares.sum((1, 2), keepdims=True)


def _fit(picture: np.ndarray) -> np.ndarray:
    """Return a picture as large as it may be drawn, (H, W, 3)."""
    height, width = (round(side * DPI) for side in (_PICTURE[1], _PICTURE[0]))
    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _grey(picture: np.ndarray) -> np.ndarray:
    """Return the lightness of a picture as one of three equal channels."""
    return np.repeat(picture @ np.array([0.299, 0.587, 0.114]), 3).reshape(picture.shape)


def _enlarge(patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return patches as pixels, (H, W): each keeps its value in its middle, and blends between."""
    image = Image.fromarray(patches.astype(np.float32))
    enlarged = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return enlarged.clip(0, 1)


def _draw_bar(canvas: Canvas, left: float, floor: float, share: float, even: float) -> None:
    """Draw the bar of a frame, and where it would end if all frames had the same."""
    from matplotlib.patches import Rectangle

    across = _PICTURE[0]
    bar = Rectangle((left + across / 3, floor), across / 3, share, color=_BAR, linewidth=0)
    canvas.axes.add_patch(bar)
    ends = [left, left + across]
    canvas.axes.plot(ends, [floor, floor], color=EMPTY, linewidth=1)
    level = [floor + even, floor + even]
    canvas.axes.plot(ends, level, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))


def _draw_scale(canvas: Canvas, heat: Any, highest: float) -> None:
    """Draw what the colours mean, as multiples of the even share."""
    left, bottom, across, down = _LEFT, 0.22, 2.2, 0.1
    extent = (left, left + across, bottom, bottom + down)
    ramp = heat(np.linspace(0, 1, 256))[None, :, :3]
    canvas.axes.imshow(ramp, extent=extent, aspect="auto", zorder=1)
    canvas.axes.axis(canvas.limits)  # imshow moves them
    marks = [0.0, 1.0] if highest < 1.15 else [0.0, 1.0, highest]
    if highest > 9:  # "1x" would touch "0"
        marks = [0.0, highest]
    style = {"size": 7, "color": MUTED}
    for mark in marks:
        text = f"{mark:.2g}x" if mark else "0"
        place = left + across * mark / highest
        canvas.write(place, bottom - 0.04, text, ha="center", va="top", **style)
    note = "1x: the even share of a patch"
    canvas.write(left + across + 0.12, bottom + down / 2, note, **style)
