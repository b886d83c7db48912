"""The geometry of a drawn person: viewpoint, joints of the gait, and solid parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfclip.data.synthetic.paint import Canvas, Floats, Ink, Light, Limbs, shade_across

# Lengths are in body heights. Places have three coordinates: forward (where the person walks),
# side (their left is positive) and up from the soles. Each is a number or one for each frame.
Coordinate = Floats | float
Position = tuple[Coordinate, Coordinate, Coordinate]

THIGH, SHIN = 0.235, 0.235
HIPS_UP = 0.505  # of someone who stands straight
SIDES = (-1, 1)  # right, left


@dataclass(frozen=True)
class View:
    """Where a person stands in each frame, and from where the camera sees them.

    Args:
        scale: Pixels of one body height, ``(T,)``.
        column: Column of the hips in pixels, ``(T,)``.
        ground: Row of the soles in pixels, ``(T,)``.
        yaw: Direction of walking in radians, ``(T,)``: 0 is towards the camera, a quarter turn is
            to the right of the picture.
        pitch: How far the camera looks down, in radians.
    """

    scale: Floats
    column: Floats
    ground: Floats
    yaw: Floats
    pitch: float

    def part(self, frames: slice) -> View:
        """Return the view of some frames."""
        return View(
            self.scale[frames],
            self.column[frames],
            self.ground[frames],
            self.yaw[frames],
            self.pitch,
        )

    @cached_property
    def sin(self) -> Floats:
        """Sine of the yaw, ``(T,)``."""
        return np.sin(self.yaw)

    @cached_property
    def cos(self) -> Floats:
        """Cosine of the yaw, ``(T,)``."""
        return np.cos(self.yaw)

    def project(self, places: Floats) -> Floats:
        """Return column and row in pixels, ``(2, ..., T)``, of places ``(3, ..., T)``."""
        forward, side, up = places
        column = self.column + self.scale * (forward * self.sin + side * self.cos)
        near = forward * self.cos - side * self.sin
        fall = near * np.float32(np.sin(self.pitch)) - up * np.float32(np.cos(self.pitch))
        return np.stack([column, self.ground + self.scale * fall])


class Pose:
    """The joints of a walking person at given phases of the gait.

    Args:
        stride: Swing of the thigh in radians.
        lean: How far the neck is before the hips.
        phase: Phase in radians, ``(T,)``; a period of 2 pi is two steps.
    """

    def __init__(self, stride: float, lean: float, phase: Floats) -> None:
        self.phase, self.lean = phase, lean / (0.85 - HIPS_UP)
        self.phases = {-1: phase + np.float32(np.pi), 1: phase}  # a leg and the other arm go along
        legs = {side: _leg(stride, phase) for side, phase in self.phases.items()}
        lowest = np.minimum(legs[-1][1, 3:].min(0), legs[1][1, 3:].min(0))
        # The lower foot stands on the ground, so the hips rise and fall as the legs open and close.
        hips_up = np.float32(0.02) - lowest
        self.bob = hips_up - np.float32(HIPS_UP)
        self.legs = {side: (leg[0], leg[1] + hips_up) for side, leg in legs.items()}

    def upper(self, forward: Coordinate, side: Coordinate, up: Coordinate) -> Position:
        """Return a place on the upper body, which leans forward and rises with the hips."""
        return forward + self.lean * (up - HIPS_UP), side, up + self.bob


def _leg(stride: float, phase: Floats) -> Floats:
    """Return forward and up of hip, knee, ankle, heel and toe, ``(2, 5, T)``, from the hip on."""
    thigh = np.float32(stride) * np.sin(phase) + np.float32(0.06)
    # The knee bends while the leg swings forward, most when it passes under the body.
    swing = np.maximum(np.cos(phase + np.float32(0.4)), 0)
    shin = thigh - np.float32(0.05) - np.float32(1.45 * stride) * swing * np.sqrt(swing)
    foot = np.sign(shin) * np.maximum(np.abs(shin) - np.float32(0.22), 0) * np.float32(0.9)
    joints = np.zeros((2, 5, len(phase)), dtype=np.float32)
    joints[:, 1] = THIGH * np.sin(thigh), -THIGH * np.cos(thigh)
    joints[:, 2] = joints[:, 1] + (SHIN * np.sin(shin), -SHIN * np.cos(shin))
    sin, cos = np.sin(foot), np.cos(foot)
    joints[:, 3] = joints[:, 2] + (0.025 * sin - 0.03 * cos, -0.025 * cos - 0.03 * sin)
    joints[:, 4] = joints[:, 2] + (0.025 * sin + 0.085 * cos, -0.025 * cos + 0.085 * sin)
    return joints


@dataclass(frozen=True)
class Limb:
    """A rounded stick: a bone with what is around it.

    Args:
        start: Position of one end.
        end: Position of the other end.
        first: Radius at the start; less than 0 hides the limb.
        last: Radius at the end.
        ink: Colours.
        light: Shading.
    """

    start: Position
    end: Position
    first: Coordinate
    last: Coordinate
    ink: Ink
    light: Light


def place_limbs(limbs: list[Limb], view: View) -> Limbs:
    """Return where limbs are in the picture."""
    ends = np.empty((3, 2, len(limbs), len(view.yaw)), dtype=np.float32)
    radii = np.empty(ends.shape[1:], dtype=np.float32)
    for k, limb in enumerate(limbs):
        radii[0, k], radii[1, k] = limb.first, limb.last
        for end, place in enumerate((limb.start, limb.end)):
            for axis, coordinate in enumerate(place):
                ends[axis, end, k] = coordinate
    points = view.project(ends)
    return Limbs(
        points[:, 0],
        points[:, 1],
        radii * view.scale,
        [limb.ink for limb in limbs],
        [limb.light for limb in limbs],
    )


@dataclass(frozen=True)
class Solid:
    """An upright body of elliptic slices: a torso, a skirt, a bag.

    Args:
        slices: Height, half extent sideways, half extent forwards and middle (forward) of each
            slice, from the lowest up, ``(K, 4)``.
        ink: Colours.
        side: How far the axis lies to the left.
    """

    slices: Floats
    ink: Ink
    side: float = 0.0

    @classmethod
    def through(cls, slices: list[tuple[float, float, float, float]], ink: Ink) -> Solid:
        """Return a smooth body through a few slices, in any order."""
        knots = np.array(sorted(slices), dtype=np.float32)
        table = np.empty((48, 4), dtype=np.float32)
        table[:, 0] = knots[0, 0] + (knots[-1, 0] - knots[0, 0]) * np.arange(48) / 47
        for i in (1, 2, 3):
            table[:, i] = np.interp(table[:, 0], knots[:, 0], knots[:, i])
        for _ in range(3):
            table[1:-1] = (table[:-2] + 2 * table[1:-1] + table[2:]) / 4
        return cls(table, ink)

    @classmethod
    def box(
        cls, rows: tuple[float, float], size: tuple[float, float], middle: tuple[float, float],
        ink: Ink,
    ) -> Solid:  # fmt: skip
        """Return a box with round corners.

        Args:
            rows: Height of its bottom and of its top.
            size: Half extent sideways and forwards.
            middle: Forward and side of its middle.
            ink: Colours.
        """
        v = np.arange(-16, 17, dtype=np.float32) / 16
        rounded = (1 - np.abs(v) ** 5) ** np.float32(0.25)
        up = sum(rows) / 2 + v * np.float32((rows[1] - rows[0]) / 2)
        slices = np.stack([up, rounded * size[0], rounded * size[1], 0 * v + middle[0]], axis=1)
        return cls(slices.astype(np.float32), ink, middle[1])

    def paint(self, canvas: Canvas, view: View, bob: Floats, lean: float, light: Light) -> None:
        """Paint it: slices are rows of the picture, so its edges are found row by row."""
        heights, *others = self.slices.T
        frames = len(view.yaw)
        edges = np.empty((3, 4, frames), dtype=np.float32)
        edges[0] = (lean * (heights[[0, -1, 0, -1]] - HIPS_UP))[:, None]
        edges[0] += [[others[2].min()], [others[2].min()], [others[2].max()], [others[2].max()]]
        edges[1] = self.side
        edges[2] = heights[[0, -1, 0, -1]][:, None] + bob
        columns, rows = view.project(edges)
        reach = view.scale * max(others[0].max(), others[1].max())
        window = canvas.window(
            columns.min(0) - reach, columns.max(0) + reach, rows.min(0), rows.max(0)
        )
        if window is None:
            return
        scale, sin, cos = view.scale[:, None], view.sin[:, None], view.cos[:, None]
        row = (window.top[:, None] + np.arange(window.height) + 0.5).astype(np.float32)
        nearer = self.side * sin * -np.float32(np.sin(view.pitch))
        up = ((view.ground[:, None] - row) / scale + nearer) / np.float32(np.cos(view.pitch))
        up = (up - bob[:, None]).astype(np.float32)
        across, deep, forward = (
            np.interp(up, heights, values).astype(np.float32) for values in others
        )
        forward += np.float32(lean) * (up - np.float32(HIPS_UP))
        half = np.sqrt((across * cos) ** 2 + (deep * sin) ** 2) * scale + np.float32(1e-6)
        middle = view.column[:, None] + scale * (forward * sin + np.float32(self.side) * cos)
        column = (window.left[:, None] + np.arange(window.width) + 0.5).astype(np.float32)
        x = column[:, None, :] - middle[:, :, None]
        # Distance is measured across the edge, not along the row, where the edge slants.
        slope = np.zeros_like(half)
        slope[:, 1:-1] = (half[:, 2:] - half[:, :-2]) / 2
        steep = canvas.sharpness / np.sqrt(1 + slope * slope)
        coverage = np.abs(x)
        coverage *= -steep[:, :, None]
        coverage += (half * steep + np.float32(0.5))[:, :, None]
        np.clip(coverage, 0.0, 1.0, out=coverage)
        sharpness = scale * canvas.sharpness
        ends = (heights[-1] - up) * sharpness, (up - heights[0]) * sharpness
        top, bottom = (np.clip(end + np.float32(0.5), 0, 1) for end in ends)
        coverage *= (top * bottom)[:, :, None]
        mix = None
        if self.ink.pattern != "plain":
            turn = view.yaw[:, None] * np.float32(0.08)
            mix = canvas.pattern(
                self.ink,
                np.repeat(up, window.width, axis=1),
                x.reshape(frames, -1) / scale + turn,
            )
        x /= half[:, :, None]
        np.clip(x, -1.0, 1.0, out=x)  # where a box ends, half its width is next to nothing
        shade = shade_across(x.reshape(frames, -1), light)
        canvas.blend(window, coverage.reshape(frames, -1), self.ink, shade, mix)


@dataclass(frozen=True)
class Shell:
    """The head, or a shell around it from a line upwards: hair, a hat, a beard.

    Args:
        middle: Position of the middle.
        size: Radius; 1 is an average head.
        ink: Colours.
        above: Where the shell begins: height at the ears and how much higher at the front (and
            lower at the back), in radii. None is all of it.
        below: The shell is below the line instead, and in front only.
    """

    middle: Position
    size: float
    ink: Ink
    above: tuple[float, float] | None = None
    below: bool = False

    def paint(self, canvas: Canvas, view: View, light: Light) -> None:
        """Paint the half of it that is seen."""
        column, row = view.project(np.stack(np.broadcast_arrays(*self.middle)))
        wide = view.scale * np.sqrt((0.055 * view.cos) ** 2 + (0.063 * view.sin) ** 2)
        wide = (wide * self.size).astype(np.float32)
        high = view.scale * np.float32(0.074 * self.size)
        window = canvas.window(column - wide, column + wide, row - high, row + high)
        if window is None:
            return
        still = np.zeros_like(wide)
        y = canvas.linear(window, row / high, still, -1 / high)
        x = canvas.linear(window, -column / wide, 1 / wide, still)
        x *= 1 + np.float32(0.16) * np.square(np.clip(y, -1.0, 0.0))  # the jaw is narrower
        distance = x * x + y * y
        coverage = canvas.cover((1 - np.sqrt(distance)) * wide[:, None])
        if self.above is not None:
            depth = np.sqrt(np.clip(1 - distance, 0.0, 1.0))
            front = x * view.sin[:, None] + depth * view.cos[:, None]
            start, rise = (np.float32(value) for value in self.above)
            over = y - np.clip(start + rise * front, -0.9, 0.5)
            if self.below:
                over = np.minimum(-over, front - np.float32(0.25))
            coverage *= canvas.cover(over * high[:, None])
        shade = shade_across(x, light)
        shade += np.float32(0.05) * y
        canvas.blend(window, coverage, self.ink, shade)
