"""What the temporal memory looked at, drawn over the frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tfclip.visualize.style import DPI, EMPTY, INK, MUTED, check_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from tfclip.temporal_attention import Look

# From the least looked at to the most: lightness rises all along, so that grey print says the same.
_HEAT = ("#15173a", "#4b1f6f", "#a02c6b", "#e8553f", "#fca636", "#fff3a6")
_BAR = "#7d93ad"

# Inches.
_PICTURE = (0.95, 1.9)
_GAP = 0.12
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
    from matplotlib.figure import Figure

    heat = LinearSegmentedColormap.from_list("heat", _HEAT)
    relative = _relative(look.patch_shares)
    highest = max(float(relative.max()), 1.0)
    head = 0.6 if title else 0.2
    # Wide enough for the scale below, however few the frames are.
    width = max(_LEFT + count * (_PICTURE[0] + _GAP) - _GAP + _RIGHT, 4.7)
    height = head + 2 * (_PICTURE[1] + _GAP) + _BARS + 0.75
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

    def place(left: float, bottom: float, across: float, down: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, across / width, down / height))

    tops = [height - head - _PICTURE[1], height - head - 2 * _PICTURE[1] - _GAP]
    shares = look.frame_shares.tolist()
    tallest = max(*shares, 1 / count) * 1.25
    for number, picture in enumerate(look.pictures):
        left = _LEFT + number * (_PICTURE[0] + _GAP)
        fitted = _fit(picture)
        map_ = heat(_enlarge(relative[number] / highest, fitted.shape[:2]))[..., :3]
        mixed = 0.4 * _grey(fitted) / 255 + 0.6 * map_
        for bottom, pixels in zip(tops, (fitted / 255, mixed), strict=True):
            axes = place(left, bottom, *_PICTURE)
            axes.set_axis_off()
            axes.imshow(pixels, aspect="equal", interpolation="bicubic", vmin=0, vmax=1)
        bars = place(left, tops[1] - _GAP - _BARS, _PICTURE[0], _BARS)
        _draw_bar(bars, shares[number], tallest, 1 / count, look.indices[number])
    labels = ((tops[0] + _PICTURE[1] / 2, "frame"), (tops[1] + _PICTURE[1] / 2, "looked at"))
    for y, text in (*labels, (tops[1] - _GAP - _BARS / 2, "share of\nthe frame")):
        style = {"fontsize": 8, "color": MUTED, "ha": "right", "va": "center"}
        figure.text((_LEFT - 0.12) / width, y / height, text, **style)
    if title:
        figure.text(
            _LEFT / width, 1 - 0.32 / height, title, fontsize=12, weight="bold", color=INK,
            va="center", parse_math=False,
        )  # fmt: skip
    scale = place(_LEFT, 0.22, min(2.2, width - _LEFT - _RIGHT - 1.2), 0.1)
    _draw_scale(scale, heat, highest)
    return figure


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


def _draw_bar(axes: Axes, share: float, tallest: float, even: float, index: int) -> None:
    axes.bar([0], [share], width=0.34, color=_BAR)
    axes.axhline(even, color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.set_xlim(-0.5, 0.5)
    axes.set_ylim(0, tallest)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=EMPTY)
    axes.set_yticks([])
    axes.set_xticks([0], [f"{share:.1%}\nframe {index + 1}"])
    axes.tick_params(labelsize=7, colors=MUTED, length=0)


def _draw_scale(axes: Axes, heat: object, highest: float) -> None:
    axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=heat)  # pyright: ignore
    axes.set_yticks([])
    marks = [0.0, 1.0] if highest < 1.15 else [0.0, 1.0, highest]
    if highest > 9:  # "1" would touch "0"
        marks = [0.0, highest]
    axes.set_xticks(
        [mark / highest * 255 for mark in marks],
        ["0" if not mark else f"{mark:.2g}x" for mark in marks],
    )
    axes.tick_params(labelsize=7, colors=MUTED, length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.text(
        1.04, 0.5, "1x: the even share of a patch", transform=axes.transAxes, fontsize=7,
        color=MUTED, va="center",
    )  # fmt: skip
