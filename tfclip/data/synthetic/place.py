"""A picture of a place, painted in frame heights, whose right end continues at its left one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfclip.data.synthetic.paint import Floats

LENGTH = 4  # of a place, in frame heights; then it repeats
MARGIN = 0.15  # above and below a frame, in frame heights: room for a crop that is off


class Place:
    """A picture under construction, four frame heights long, whose ends fit together.

    Positions are in frame heights: ``x`` from 0 to 4, ``y`` from 0 at the top of a frame to 1 at
    its bottom.

    Args:
        height: Frame height in pixels.
        random: Source of the texture.
    """

    def __init__(self, height: int, random: np.random.Generator) -> None:
        margin = int(np.ceil(MARGIN * height))
        self.height, self.random = height, random
        self.pixels = np.zeros((3, height + 2 * margin, LENGTH * height), dtype=np.float32)
        self.x = ((np.arange(LENGTH * height, dtype=np.float32) + 0.5) / height)[None, :]
        self.y = ((np.arange(height + 2 * margin, dtype=np.float32) + 0.5 - margin) / height)[
            :, None
        ]

    def fill(self, mask: Floats | float, colour: Floats) -> None:
        """Lay a colour over the picture where the mask, 0 to 1, says."""
        self.pixels += (colour[:, None, None] - self.pixels) * mask

    def gradient(self, top: float, bottom: float, first: Floats, last: Floats) -> None:
        """Fill the rows between two heights, from one colour to another."""
        share = np.clip((self.y - top) / (bottom - top), 0, 1)
        colour = first[:, None, None] + (last - first)[:, None, None] * share
        self.pixels += (colour - self.pixels) * self.band(top, bottom)

    def away(self, x: float) -> Floats:
        """Return each column's signed distance from a column, the short way round, ``(1, W)``."""
        return (self.x - x + LENGTH / 2) % LENGTH - LENGTH / 2

    def step(self, distance: Floats) -> Floats:
        """Return 1 where a distance in frame heights is positive, else 0, with a soft edge."""
        return np.clip(distance * self.height + 0.5, 0, 1)

    def band(self, top: float, bottom: float) -> Floats:
        """Return the mask of the rows between two heights, ``(H, 1)``."""
        return self.step(np.minimum(self.y - top, bottom - self.y))

    def box(
        self, x: float, top: float, width: float, bottom: float, colour: Floats, strength: float = 1
    ) -> None:
        """Fill an upright box around column ``x``."""
        rows, columns, away = self._around(x, top, bottom, width / 2)
        mask = self.step(width / 2 - np.abs(away)) * self.band(top, bottom)[rows]
        self._lay(rows, columns, mask * np.float32(strength), colour)

    def disc(
        self,
        x: float,
        y: float,
        radius: float,
        colour: Floats,
        strength: float = 1,
        squash: float = 1,
    ) -> None:
        """Fill a disc, or an ellipse ``squash`` times as high as wide."""
        rows, columns, away = self._around(x, y - radius * squash, y + radius * squash, radius)
        distance = np.hypot(away, (self.y[rows] - y) / np.float32(squash))
        self._lay(rows, columns, self.step(radius - distance) * np.float32(strength), colour)

    def _around(
        self, x: float, top: float, bottom: float, half: float
    ) -> tuple[slice, NDArray[np.int64], Floats]:
        """Return the rows and columns of a small area, and how far each column is from ``x``."""
        first, last = np.searchsorted(
            self.y[:, 0], (top - 1 / self.height, bottom + 1 / self.height)
        )
        middle, reach = int(x * self.height), int(half * self.height) + 2
        columns = np.arange(middle - reach, middle + reach + 1)
        away = ((columns + 0.5) / self.height - x).astype(np.float32)
        return slice(int(first), int(last)), columns % self.pixels.shape[2], away[None, :]

    def _lay(self, rows: slice, columns: NDArray[np.int64], mask: Floats, colour: Floats) -> None:
        under = self.pixels[:, rows, columns]
        self.pixels[:, rows, columns] = under + (colour[:, None, None] - under) * mask

    def columns(self, count: int, width: float, offset: float = 0.0) -> Floats:
        """Return the mask of evenly spread upright bars, ``(1, W)``."""
        period = LENGTH / count
        return self.step(width / 2 - np.abs((self.x - offset) % period - period / 2))

    def texture(self, cells: int, flat: float = 1.0) -> Floats:
        """Return smooth noise from -1 to 1, ``(H, W)``.

        Args:
            cells: Grains to a frame height.
            flat: How much lower than wide the grains are.
        """
        rows, columns = int(cells * flat * 1.4) + 3, cells * LENGTH
        grid = self.random.random((rows, columns), dtype=np.float32) * 2 - 1
        y = (self.y[:, 0] - self.y[0, 0]) * (cells * flat)
        x = self.x[0] * cells
        return _between(_between(grid, y, 0), x, 1)

    def roughen(self, mask: Floats | float, cells: int, amount: float, flat: float = 1.0) -> None:
        """Make the brightness uneven where the mask says."""
        self.pixels += self.texture(cells, flat) * (np.float32(amount) * mask)

    def floor_lines(self, top: float, colour: Floats, strength: float, count: int = 16) -> None:
        """Draw the joints of a paved floor: rows that close up with distance, and slanted lines."""
        depth = np.clip(self.y - top, 1e-3, None)
        floor = self.step(self.y - top)
        rows = np.abs((0.55 / (depth + 0.12)) % 1 - 0.5)
        self.fill(floor * np.clip(1 - rows * depth * 60, 0, 1) * strength, colour)
        period = LENGTH / count
        slant = (self.x + 0.35 * depth) % period - period / 2
        lines = self.step(0.004 - np.abs(slant))
        self.fill(floor * lines * strength, colour)

    def reflect(self, top: float, strength: float) -> None:
        """Mirror what is above a height in the floor below it."""
        start = int(np.searchsorted(self.y[:, 0], top))
        rows = self.pixels.shape[1] - start
        mirrored = self.pixels[:, start - rows : start][:, ::-1] if rows <= start else None
        if mirrored is not None:
            fade = np.linspace(1, 0.2, rows, dtype=np.float32)[:, None] * np.float32(strength)
            self.pixels[:, start:] += (mirrored - self.pixels[:, start:]) * fade

    def soften(self, radius: float) -> None:
        """Blur the picture; the place is out of focus behind the person."""
        size = int(radius * self.height)
        for axis in (1, 2) if size else ():
            total = sum(np.roll(self.pixels, shift, axis) for shift in range(-size, size + 1))
            self.pixels = np.asarray(total, dtype=np.float32) / np.float32(2 * size + 1)


def _between(grid: Floats, position: Floats, axis: int) -> Floats:
    """Read a grid between its points, smoothly and around its end."""
    first = np.floor(position).astype(np.int64)
    share = position - first
    share = share * share * (3 - 2 * share)
    share = share[:, None] if axis == 0 else share[None, :]
    size = grid.shape[axis]
    low, high = (np.take(grid, (first + step) % size, axis) for step in (0, 1))
    return (low + (high - low) * share).astype(np.float32)
