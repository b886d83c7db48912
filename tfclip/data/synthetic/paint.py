"""Anti-aliased painting of the same shape onto many frames at once, in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]  # in the hot paths float32, which numpy keeps under plain numbers
Pattern = Literal["plain", "stripes", "pinstripes", "checks", "dots", "diagonal", "block"]


@dataclass(frozen=True)
class Ink:
    """What a shape is filled with: one colour, or two in a pattern.

    Args:
        colour: Red, green and blue, 0 to 255: ``(3,)``, or ``(3, T)`` when it differs by frame.
        second: The pattern's other colour, ``(3,)``.
        pattern: How the two are laid out.
        period: Length after which the pattern repeats, in body heights.
        level: Body height at which ``"block"`` changes colour.
    """

    colour: Floats
    second: Floats | None = None
    pattern: Pattern = "plain"
    period: float = 0.06
    level: float = 0.7

    def times(self, factor: float) -> Ink:
        """Return the same ink, darker or lighter."""
        second = None if self.second is None else self.second * np.float32(factor)
        return replace(self, colour=self.colour * np.float32(factor), second=second)

    def part(self, frames: slice) -> Ink:
        """Return the ink of some frames."""
        return self if self.colour.ndim == 1 else replace(self, colour=self.colour[:, frames])


@dataclass(frozen=True)
class Light:
    """How a rounded surface is shaded across its width.

    Args:
        slope: Gain from the left edge to the right one: where the light comes from.
        roundness: Loss at both edges.
    """

    slope: float = 0.0
    roundness: float = 0.25


@dataclass(frozen=True)
class Window:
    """Where a shape is painted: an area of one size, at another place in each frame.

    Args:
        top: First row in each frame, ``(T,)``.
        left: First column in each frame, ``(T,)``.
        height: Rows.
        width: Columns.
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: int
    width: int


@dataclass(frozen=True)
class Limbs:
    """Rounded sticks, each as thick as its radius at each end; all in pixels.

    Args:
        start: Column and row of one end, ``(2, P, T)``.
        end: Column and row of the other end, ``(2, P, T)``.
        radii: Radius at the start and at the end, ``(2, P, T)``.
        inks: Colours of each of the P limbs; a pattern runs along it.
        lights: Shading across each limb.
    """

    start: Floats
    end: Floats
    radii: Floats
    inks: Sequence[Ink]
    lights: Sequence[Light]

    def part(self, frames: slice) -> Limbs:
        """Return the limbs in some frames."""
        inks = [ink.part(frames) for ink in self.inks]
        start, end, radii = (v[:, :, frames] for v in (self.start, self.end, self.radii))
        return Limbs(start, end, radii, inks, self.lights)


@dataclass(frozen=True)
class Stroke:
    """One limb, ready to be painted; lengths are in widths of a soft edge.

    Args:
        window: Where it is.
        along: Place along the limb, 0 at its start and 1 at its end: at the window's first pixel,
            growth by column and by row, ``(T, 3)``.
        across: Distance from its axis, in the same form.
        length: From start to end, ``(T, 1)``.
        radius: At the start, ``(T, 1)``.
        taper: How much larger the radius is at the end, ``(T, 1)``.
        ink: Colours.
        light: Shading.
    """

    window: Window
    along: Floats
    across: Floats
    length: Floats
    radius: Floats
    taper: Floats
    ink: Ink
    light: Light


class Canvas:
    """Pixels of many frames, painted from back to front.

    A shape is given for every frame and painted in all of them by the same numpy calls, in windows
    just large enough; so a whole tracklet costs about as many calls as one picture. Values inside
    a window are ``(T, N)``, with ``N`` = height x width.

    Args:
        pixels: ``(3, T, H, W)``, 0 to 255, contiguous; painted in place.
        scale: Pixels of one body height in each frame, ``(T,)``.
        softness: Width of an edge in pixels, ``(T,)``: 1 is sharp, more is out of focus.
    """

    def __init__(self, pixels: Floats, scale: Floats, softness: Floats) -> None:
        self.pixels = pixels
        self.scale = scale[:, None]
        self.sharpness = 1 / softness[:, None]
        self._margin = softness * np.float32(0.5) + np.float32(0.5)
        self._frames = np.arange(pixels.shape[1])

    def _places(
        self, left: Floats, right: Floats, top: Floats, bottom: Floats
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[tuple[int, int, bool]]]:
        """Return first rows and columns of P windows, ``(P, T)``; height, width, whether seen."""
        height, width = self.pixels.shape[2:]
        seen = (right > -1) & (left < width + 1) & (bottom > -1) & (top < height + 1)
        margin = self._margin
        rows = np.minimum((bottom - top + 2 * margin).max(1).astype(int) + 2, height)
        columns = np.minimum((right - left + 2 * margin).max(1).astype(int) + 2, width)
        first_row = np.floor(top - margin).astype(int)
        first_column = np.floor(left - margin).astype(int)
        np.clip(first_row, 0, (height - rows)[:, None], out=first_row)
        np.clip(first_column, 0, (width - columns)[:, None], out=first_column)
        shapes = zip(rows.tolist(), columns.tolist(), seen.any(1).tolist(), strict=True)
        return first_row, first_column, list(shapes)

    def window(self, left: Floats, right: Floats, top: Floats, bottom: Floats) -> Window | None:
        """Return windows that hold a shape between its edges, each ``(T,)``; None is unseen."""
        rows, columns, shapes = self._places(left[None], right[None], top[None], bottom[None])
        height, width, seen = shapes[0]
        return Window(rows[0], columns[0], height, width) if seen else None

    def linear(self, window: Window, value: Floats, by_column: Floats, by_row: Floats) -> Floats:
        """Return ``value + by_column * column + by_row * row`` at each pixel's middle, ``(T, N)``.

        Args:
            window: Where.
            value: At column 0 and row 0, ``(T,)``.
            by_column: Growth from one column to the next, ``(T,)``.
            by_row: Growth from one row to the next, ``(T,)``.
        """
        slopes = np.empty((len(value), 3), dtype=np.float32)
        slopes[:, 0] = value + by_column * (window.left + 0.5) + by_row * (window.top + 0.5)
        slopes[:, 1] = by_column
        slopes[:, 2] = by_row
        return slopes @ _grid(window.height, window.width)

    def cover(self, distance: Floats) -> Floats:
        """Turn signed distances in pixels, inside positive, into coverage; in place."""
        distance *= self.sharpness
        distance += np.float32(0.5)
        return np.clip(distance, 0.0, 1.0, out=distance)

    def blend(
        self,
        window: Window,
        coverage: Floats,
        ink: Ink,
        shade: Floats | None = None,
        mix: Floats | None = None,
    ) -> None:
        """Lay ink over the pixels of a window.

        Args:
            window: Where.
            coverage: 0 to 1, ``(T, N)``.
            ink: The colours.
            shade: Factor on the colours, ``(T, N)``.
            mix: Share of the ink's second colour, ``(T, N)``.
        """
        views = self._views(window)
        where = (slice(None), self._frames, window.top, window.left)
        under = views[where].reshape(3, *coverage.shape)
        under *= 1 - coverage
        weight = coverage if shade is None else coverage * shade
        colour = ink.colour.reshape(3, -1, 1)
        under += colour * weight
        if mix is not None and ink.second is not None:
            under += (ink.second.reshape(3, 1, 1) - colour) * (weight * mix)
        views[where] = under.reshape(3, -1, window.height, window.width)

    def _views(self, window: Window) -> Floats:
        """Return the window at every place, ``(3, T, top, left, height, width)``, not copied."""
        channels, frames, height, width = self.pixels.shape
        height, width = height - window.height + 1, width - window.width + 1
        return np.ndarray(
            (channels, frames, height, width, window.height, window.width),
            dtype=np.float32,
            buffer=self.pixels.data,
            strides=(*self.pixels.strides, *self.pixels.strides[2:]),
        )

    def strokes(self, limbs: Limbs) -> list[Stroke | None]:
        """Return how to paint each limb; None is out of sight.

        All that needs no pixels is found for all limbs at once, which saves most of the calls.
        """
        reach = np.maximum(limbs.radii.max(0), 0)
        left, top = np.minimum(limbs.start, limbs.end) - reach
        right, bottom = np.maximum(limbs.start, limbs.end) + reach
        rows, columns, shapes = self._places(left, right, top, bottom)
        step = limbs.end - limbs.start
        length = np.sqrt(step[0] * step[0] + step[1] * step[1])
        step[1] = np.where(length < 1e-2, 1e-2, step[1])  # a ball has a direction too
        length = np.maximum(length, np.float32(1e-2))
        ux, uy = step / length
        # The middle of a window's first pixel, seen from the limb's start.
        x, y = columns + np.float32(0.5) - limbs.start[0], rows + np.float32(0.5) - limbs.start[1]
        sharpness = self.sharpness[:, 0]
        along = np.stack([x * ux + y * uy, ux, uy], axis=-1) / length[..., None]
        across = np.stack([x * uy - y * ux, uy, -ux], axis=-1) * self.sharpness
        along, across = along.astype(np.float32), across.astype(np.float32)
        radius, end = (limbs.radii * sharpness)[..., None]
        taper, stretch = end - radius, (length * sharpness)[..., None]
        return [
            Stroke(Window(rows[k], columns[k], height, width), along[k], across[k], stretch[k],
                   radius[k], taper[k], limbs.inks[k], limbs.lights[k]) if seen else None
            for k, (height, width, seen) in enumerate(shapes)
        ]  # fmt: skip

    def paint(self, stroke: Stroke) -> None:
        """Paint one limb."""
        grid = _grid(stroke.window.height, stroke.window.width)
        share = stroke.along @ grid  # 0 at the start, 1 at the end
        across = stroke.across @ grid
        inside = np.clip(share, 0.0, 1.0)
        mix = None
        if stroke.ink.pattern != "plain":
            unit = 1 / (self.scale * self.sharpness)
            mix = self.pattern(stroke.ink, inside * (stroke.length * unit), across * unit)
        distance = np.subtract(share, inside, out=share)
        distance *= stroke.length
        distance *= distance
        distance += across * across
        np.sqrt(distance, out=distance)
        inside *= stroke.taper
        inside += stroke.radius + np.float32(0.5)
        inside -= distance
        coverage = np.clip(inside, 0.0, 1.0, out=inside)
        # A limb that hangs down has its right side at positive ``across``, like a torso.
        across /= stroke.radius
        self.blend(stroke.window, coverage, stroke.ink, shade_across(across, stroke.light), mix)

    def pattern(self, ink: Ink, height: Floats, across: Floats) -> Floats:
        """Return the share of the second colour where the body is so high and so far across.

        Args:
            ink: The pattern.
            height: In body heights, ``(T, N)``.
            across: Distance from the axis in body heights, ``(T, N)``.
        """
        sharpness = self.scale * self.sharpness
        if ink.pattern == "block":
            return np.clip((height - ink.level) * sharpness + 0.5, 0, 1)
        if ink.pattern == "stripes":
            return _wave(height, ink.period, sharpness)
        if ink.pattern == "pinstripes":
            return _wave(across, ink.period, sharpness, share=0.3)
        if ink.pattern == "diagonal":
            return _wave(height + across, ink.period * 1.4, sharpness)
        if ink.pattern == "checks":
            mix = _wave(height, ink.period, sharpness) + _wave(across, ink.period, sharpness)
            return mix * np.float32(0.5)
        row = np.floor(height / ink.period)
        x = across / ink.period + row * np.float32(0.5)
        x = x - np.floor(x) - np.float32(0.5)
        y = height / ink.period - row - np.float32(0.5)
        distance = np.float32(0.27) - np.sqrt(x * x + y * y)
        return np.clip(distance * (sharpness * ink.period) + 0.5, 0, 1)


@lru_cache(maxsize=256)
def _grid(height: int, width: int) -> Floats:
    """Return 1, the column and the row of every pixel of a window, ``(3, N)``."""
    grid = np.ones((3, height, width), dtype=np.float32)
    grid[1] = np.arange(width)
    grid[2] = np.arange(height)[:, None]
    return grid.reshape(3, -1)


def _wave(position: Floats, period: float, sharpness: Floats, share: float = 0.5) -> Floats:
    """Return a square wave with soft edges: 1 in ``share`` of every period, else 0."""
    position = position / period
    position = position - np.floor(position) - np.float32(0.5)
    np.abs(position, out=position)
    # Stripes finer than a pixel fade into the average of both colours instead of flickering.
    gain = sharpness * np.float32(period)
    return np.clip((share / 2 - position) * gain + 0.5, 0, 1)


def shade_across(across: Floats, light: Light) -> Floats:
    """Return the factor on the colours at -1 (left edge) to 1 (right edge) of a rounded shape."""
    shade = across * np.float32(-light.roundness)
    shade += np.float32(light.slope)
    shade *= across
    shade += np.float32(1)
    return shade
