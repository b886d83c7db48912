"""Where a drawn person is in each frame, in which posture, and what gets in the way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfclip.data.synthetic.body import View
from tfclip.data.synthetic.figure import Figure
from tfclip.data.synthetic.look import Look, uniform, weighted
from tfclip.data.synthetic.paint import Canvas, Floats, Ink, Limbs
from tfclip.data.synthetic.place import LENGTH, MARGIN
from tfclip.data.synthetic.scene import Scene

Kind = Literal["person", "post", "bush"]
KINDS: dict[Kind, float] = {"person": 5, "post": 2, "bush": 2}


@dataclass(frozen=True)
class Walk:
    """Where a person is in each frame and in which posture; every field is ``(T,)``.

    Args:
        view: Size, place and viewpoint.
        phase: Phase of the gait in radians.
        step: Radians of the gait from one frame to the next.
        place: Column of the background at the frame's left edge.
        height: Row of the background at the frame's top.
        gain: Brightness of the exposure.
        softness: Width of a sharp edge in pixels.
        grain: Where in the sheet of noise the frame lies, ``(T, 2)``, each 0 to 1.
    """

    view: View
    phase: Floats
    step: float
    place: NDArray[np.int64]
    height: NDArray[np.int64]
    gain: Floats
    softness: Floats
    grain: NDArray[np.float64]

    @classmethod
    def draw(
        cls, random: np.random.Generator, scene: Scene, length: int, size: tuple[int, int]
    ) -> Walk:
        """Draw a walk through a scene, with the unsteady box of a detector around it."""
        height, width = size
        time = np.arange(length) - (length - 1) / 2
        jitter = random.random((length, 5)) * 2 - 1
        drift = random.random(4) * 2 - 1
        turn = np.pi if random.random() < 0.35 else 0.0
        yaw = scene.yaw + turn + 0.2 * drift[0] + 0.006 * drift[1] * time
        size_drift = 1 + 0.03 * drift[2] + 0.02 * jitter[:, 0]
        scale = min(0.87 * height, 1.74 * width) * uniform(random, 0.93, 1.03) * size_drift
        shift = 0.045 * width * jitter[:, 1] + 0.03 * width * drift[3]
        sink = 0.012 * height * jitter[:, 2]
        step = 2 * np.pi / uniform(random, 9, 15)
        phase = random.random() * 2 * np.pi + step * np.arange(length)
        # Two steps, a whole period of the gait, carry a person by about 0.8 of their height.
        travel = 0.8 * np.mean(scale) * step / (2 * np.pi) * np.sin(yaw) * np.arange(length)
        start = random.random() * LENGTH * height
        blur = scene.softness * height / 256
        return cls(
            view=View(
                scale=scale.astype(np.float32),
                column=(width / 2 + shift).astype(np.float32),
                ground=(height / 2 + 0.475 * scale + sink).astype(np.float32),
                yaw=yaw.astype(np.float32),
                pitch=scene.pitch,
            ),
            phase=phase.astype(np.float32),
            step=step,
            place=np.floor(start + travel - shift).astype(np.int64),
            height=np.round(np.ceil(MARGIN * height) - sink).astype(np.int64),
            gain=(1 + 0.04 * jitter[:, 3]).astype(np.float32),
            softness=np.maximum(1, blur * (1 + 0.3 * jitter[:, 4])).astype(np.float32),
            grain=random.random((length, 2)),
        )

    def nearly_still(self, random: np.random.Generator) -> Walk:
        """Return the same walk with the legs near one phase, which is drawn from the whole circle.

        At each frame the phase is uniform on the circle, as it is for the whole walk.
        """
        middle, sway = random.random(2) * 2 * np.pi
        phase = middle + 0.2 * np.sin(sway + self.step * np.arange(len(self.phase)))
        return replace(self, phase=phase.astype(np.float32))

    def part(self, frames: slice) -> Walk:
        """Return some frames of the walk."""
        cut = {name: values[frames] for name, values in vars(self).items()
               if isinstance(values, np.ndarray)}  # fmt: skip
        return replace(self, view=self.view.part(frames), **cut)


@dataclass(frozen=True)
class Obstacle:
    """Something that passes between the camera and the person.

    Args:
        kind: What it is.
        column: Its middle in pixels, ``(T,)``.
        look: What a passer-by looks like; other kinds take their colours from it.
        phase: Gait phase of a passer-by, ``(T,)``.
        size: Height in frame heights of a passer-by or a bush, thickness of a post.
        leftwards: Whether a passer-by walks to the left.
    """

    kind: Kind
    column: Floats
    look: Look
    phase: Floats
    size: float
    leftwards: bool

    @classmethod
    def draw(
        cls, random: np.random.Generator, length: int, frame_size: tuple[int, int]
    ) -> Obstacle:
        """Draw an obstacle and how it crosses the picture.

        It comes round and round, so that it is as likely at every place at every time.
        """
        width = frame_size[1]
        kind = weighted(random, KINDS)
        around = uniform(random, 2.2, 3.4)  # in frame widths
        speed = uniform(random, 0.06, 0.2) * (1 if random.random() < 0.5 else -1)
        place = (random.random() * around + speed * np.arange(length)) % around
        phase = random.random() * 2 * np.pi + 0.5 * np.arange(length)
        return cls(
            kind=kind,
            column=((place - (around - 1) / 2) * width).astype(np.float32),
            look=Look.draw(random),
            phase=phase.astype(np.float32),
            size=uniform(random, 0.95, 1.1),
            leftwards=speed < 0,
        )

    def part(self, frames: slice) -> Obstacle:
        """Return the obstacle in some frames."""
        return replace(self, column=self.column[frames], phase=self.phase[frames])

    def paint(self, pixels: Floats, scene: Scene, softness: Floats) -> None:
        """Paint the obstacle, a little out of focus, onto ``(3, T, H, W)`` pixels."""
        height, width = pixels.shape[2:]
        reach = 0.32 * height
        seen = np.flatnonzero((self.column > -reach) & (self.column < width + reach))
        if not len(seen):
            return
        some = np.take(pixels, seen, axis=1)
        scale = np.full(len(seen), self.size * height, dtype=np.float32)
        canvas = Canvas(some, scale, softness[seen] * np.float32(1.5))
        column, look = self.column[seen], self.look.as_seen(scene.tint)
        if self.kind == "person":
            turn = np.full_like(column, -1.5 if self.leftwards else 1.5)
            ground = np.full_like(column, 1.02 * height)
            view = View(scale, column, ground, turn, scene.pitch)
            Figure(look, view, self.phase[seen], scene.light).paint(canvas, slice(None))
        else:
            self._paint_thing(canvas, column, scene, look.shoes)
        pixels[:, seen] = some

    def _paint_thing(self, canvas: Canvas, column: Floats, scene: Scene, paint: Floats) -> None:
        """Paint a post of one stick or a bush of many round ones."""
        if self.kind == "post":
            sticks, radius, inks = np.array([[0.0, -0.1, 1.1]]), 0.028, [Ink(paint)]
        else:
            sticks, radius = np.array([(x, 1 - up, 1.0 - up) for x, up in _LEAVES]), 0.075
            green = scene.tint(np.array([74, 112, 62], dtype=np.float32))
            inks = [Ink(green * np.float32(0.8 + 0.09 * (k * 5 % 7))) for k in range(len(sticks))]
        height = canvas.pixels.shape[2]
        x, top, bottom = (sticks.T[:, :, None] * height + 0 * column).astype(np.float32)
        radii = np.full((2, *x.shape), radius * self.size * height, dtype=np.float32)
        limbs = Limbs(
            np.stack([column + x, top]),
            np.stack([column + x, bottom]),
            radii,
            inks,
            [scene.light] * len(inks),
        )
        for stroke in canvas.strokes(limbs):
            if stroke is not None:
                canvas.paint(stroke)


# Column and height of the parts of a bush, in frame heights.
_LEAVES = ((-0.1, 0.0), (0.1, 0.01), (0.0, 0.05), (-0.14, 0.06), (0.14, 0.07), (-0.06, 0.12),
           (0.07, 0.13), (0.0, 0.19), (-0.1, 0.02), (0.03, 0.0))  # fmt: skip
