"""What a drawn person consists of, from what is far to what is near."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from tfclip.data.synthetic.body import (
    SIDES,
    Coordinate,
    Limb,
    Pose,
    Position,
    Shell,
    Solid,
    View,
    place_limbs,
)
from tfclip.data.synthetic.look import Look
from tfclip.data.synthetic.paint import Canvas, Floats, Ink, Light, Limbs

UPPER_ARM, FOREARM = 0.165, 0.14  # lengths, in body heights
WHITE = np.full(3, 245, dtype=np.float32)
DARK = np.array([38, 28, 26], dtype=np.float32)


class Figure:
    """One person in all frames of a tracklet, as parts in the order of painting.

    Args:
        look: The person, in the camera's colours.
        view: Position and viewpoint in each frame.
        phase: Phase of the gait in radians, ``(T,)``.
        light: Shading of this camera.
        badge: Colour of a round badge in each frame, ``(3, T)``; None is no badge.
    """

    def __init__(
        self, look: Look, view: View, phase: Floats, light: Light, badge: Floats | None = None
    ) -> None:
        self.look, self.view, self.light = look, view, light
        self.pose = Pose(look.stride, look.lean, phase)
        self.parts: list[Limb | Solid | Shell] = []
        self._largest = float(view.scale.max())
        self.facing = float(view.cos.mean())  # 1 towards the camera, -1 away from it
        aside = float(view.sin.mean())
        self.near = -1 if aside > 0 else 1  # the side that the camera sees
        self.profile = min(abs(aside) * 1.4, 1.0)  # 1 when seen from the side
        self._assemble()
        if badge is not None:
            self._badge(badge)

    def paint(self, canvas: Canvas, frames: slice) -> None:
        """Paint some of the frames onto a canvas that holds just those."""
        view, bob = self.view.part(frames), self.pose.bob[frames]
        strokes = iter(canvas.strokes(self._limbs.part(frames)))
        for part in self.parts:
            if isinstance(part, Solid):
                part.paint(canvas, view, bob, self.pose.lean, self.light)
            elif isinstance(part, Shell):
                middle = tuple(np.broadcast_to(c, len(self.view.yaw))[frames] for c in part.middle)
                replace(part, middle=middle).paint(canvas, view, self.light)
            elif (stroke := next(strokes)) is not None:
                canvas.paint(stroke)

    @cached_property
    def _limbs(self) -> Limbs:
        return place_limbs([part for part in self.parts if isinstance(part, Limb)], self.view)

    def _assemble(self) -> None:
        """List the parts, what is far first."""
        look, far = self.look, -self.near
        from_front, from_side = self.facing > 0.2, self.profile > 0.5
        bag_is_far = from_side and self.near < 0
        if from_front:
            self._backpack()
            self._back_hair()
        if bag_is_far:
            self._shoulder_bag()
        if from_side:
            self._arm(far)
        self._leg(far)
        self._leg(self.near)
        self._limb(self._up(0.005, 0, 0.90), self._up(0, 0, 0.84), 0.029, 0.032,
                   Ink(look.skin * np.float32(0.82)))  # fmt: skip
        self._lower_body()
        self._torso()
        if from_front or from_side:
            self._straps()
        if not from_side:
            self._arm(far)
        self._head()
        if not from_front:
            self._back_hair()
            self._backpack()
        if not bag_is_far:
            self._shoulder_bag()
        self._arm(self.near)

    def _up(self, forward: Coordinate, side: Coordinate, up: Coordinate) -> Position:
        return self.pose.upper(forward, side, up)

    def _limb(
        self, start: Position, end: Position, first: Coordinate, last: Coordinate, ink: Ink,
        light: Light | None = None,
    ) -> None:  # fmt: skip
        # What is less than a third of a pixel thick is not worth its calls.
        thickest = first.max() if isinstance(first, np.ndarray) else first
        if thickest * self._largest > 0.35:
            self.parts.append(Limb(start, end, first, last, ink, light or self.light))

    def _leg(self, side: int) -> None:
        look = self.look
        dim = 1.0 if side == self.near else 1 - 0.24 * self.profile
        aside = side * 0.046 * look.hips * look.build
        forward, up = self.pose.legs[side]
        hip, knee, ankle, heel, toe = (
            (forward[k], aside * taper, up[k]) for k, taper in enumerate((1, 0.85, 0.7, 0.7, 0.95))
        )
        width = look.build * 0.5 + 0.5
        trousers = look.bottom == "trousers"
        skin = Ink(look.skin * np.float32(dim))
        ink = look.bottom_ink.times(dim) if trousers else skin
        ease = look.leg_width if trousers else 0.88
        if not trousers:
            self._limb(ankle, heel, 0.022, 0.02, skin.times(0.9))
        self._limb(heel, toe, 0.021, 0.017, Ink(look.shoes * np.float32(dim)))
        thick = 0.04 * width * (0.5 + 0.5 * ease)
        self._limb(knee, ankle, thick, 0.028 * ease if trousers else 0.021, ink)
        self._limb(hip, knee, 0.056 * width * (0.7 + 0.3 * ease), thick, ink)
        if look.bottom == "shorts":
            end = _between(hip, knee, 0.8)
            self._limb(hip, end, 0.057 * width, 0.048 * width, look.bottom_ink.times(dim))

    def _lower_body(self) -> None:
        look = self.look
        width = look.hips * look.build
        if look.bottom in ("trousers", "shorts"):
            slices = [(0.455, 0.07 * width, 0.052 * width, 0.0),
                      (0.48, 0.088 * width, 0.064 * width, -0.006),
                      (0.58, 0.08 * width, 0.058 * width, 0.0)]  # fmt: skip
        else:
            slices = [(0.29, 0.125 * width, 0.115 * width, 0.0),
                      (0.46, 0.1 * width, 0.078 * width, -0.006),
                      (0.60, 0.076 * width, 0.056 * width, 0.0)]  # fmt: skip
        self.parts.append(Solid.through(slices, look.bottom_ink))

    def _torso(self) -> None:
        look = self.look
        k, s = look.build, look.shoulders * (0.6 + 0.4 * look.build)
        hips = look.hips * k
        hem = 0.5 if look.bottom == "dress" else look.hem
        flare = max(0.49 - hem, 0)
        slices = [
            (hem, (0.094 + 0.12 * flare) * hips, (0.07 + 0.15 * flare) * hips, -0.004),
            (0.52, 0.093 * hips, 0.07 * hips, -0.004),
            (0.61, 0.082 * k, 0.061 * k, 0.006 * k),
            (0.70, 0.096 * k, 0.07 * k, 0.008),
            (0.755, 0.105 * s, 0.068 * k, 0.004),
            (0.79, 0.112 * s, 0.058 * k, 0.0),
            (0.812, 0.104 * s, 0.05, 0.0),
            (0.832, 0.078 * s, 0.042, 0.0),
            (0.845, 0.042, 0.034, 0.0),
            (0.852, 0.034, 0.03, 0.0),
        ]
        self.parts.append(Solid.through(slices, look.top))
        if look.opening is not None and self.facing > 0.3:
            inner = [(hem, 0.02, 0.02, 0.06), (0.7, 0.03, 0.02, 0.06),
                     (0.83, 0.036, 0.02, 0.03), (0.85, 0.03, 0.02, 0.03)]  # fmt: skip
            self.parts.append(Solid.through(inner, Ink(look.opening)))
        if look.scarf is not None:
            ink = Ink(look.scarf)
            self._limb(
                self._up(0.012, -0.028, 0.85), self._up(0.012, 0.028, 0.85), 0.032, 0.032, ink
            )
            if self.facing > 0.3:
                end = self._up(0.07, 0.03, 0.71)
                self._limb(self._up(0.05, 0.02, 0.84), end, 0.02, 0.024, ink.times(0.9))

    def _arm(self, side: int) -> None:
        look = self.look
        dim = 1.0 if side == self.near else 1 - 0.22 * self.profile
        k = 0.6 + 0.4 * look.build
        aside = side * 0.094 * look.shoulders * k
        angle = np.float32(0.06) - np.float32(look.swing) * np.sin(self.pose.phases[side])
        fore = angle + np.float32(0.22) + np.maximum(angle, 0) * np.float32(0.7)
        sin, cos = np.sin(fore), np.cos(fore)
        forward, up = UPPER_ARM * np.sin(angle), 0.782 - UPPER_ARM * np.cos(angle)
        shoulder = self._up(0.0, aside, 0.78)
        elbow = self._up(forward, aside + side * 0.022, up)
        wrist = self._up(forward + FOREARM * sin, aside + side * 0.024, up - FOREARM * cos)
        reach = FOREARM + 0.03
        palm = self._up(forward + reach * sin, aside + side * 0.022, up - reach * cos)
        skin, cloth = Ink(look.skin * np.float32(dim)), look.top.times(dim)
        if look.bag == "hand" and side > 0:
            low, lower = ((palm[0], palm[1], palm[2] - drop) for drop in (0.055, 0.095))
            bag = Ink(look.bag_colour * np.float32(dim))
            self._limb(palm, low, 0.007, 0.007, bag.times(0.7))
            self._limb(low, lower, 0.036, 0.05, bag)
        self._limb(wrist, palm, 0.018, 0.016, skin)
        if look.sleeves == 1.0:
            self._limb(elbow, wrist, 0.027 * k, 0.021 * k, cloth)
            self._limb(shoulder, elbow, 0.035 * k, 0.03 * k, cloth)
        else:
            self._limb(elbow, wrist, 0.027 * k, 0.018, skin)
            self._limb(shoulder, elbow, 0.03 * k, 0.026 * k, skin)
            self._limb(shoulder, _between(shoulder, elbow, 0.62), 0.035 * k, 0.035 * k, cloth)

    def _head(self) -> None:
        look = self.look
        size, up, hair = look.head, 0.922, Ink(look.hair)
        middle = self._up(0.004, 0, up)
        self.parts.append(Shell(middle, size, Ink(look.skin)))
        for angle in (-0.42, 0.42):
            seen = np.cos(self.view.yaw + np.float32(angle)) > 0.1
            radius = np.where(seen, np.float32(0.0075), np.float32(-0.1))
            forward, side = 0.058 * size * np.cos(angle), 0.054 * size * np.sin(angle)
            eye = self._up(forward, side, up), self._up(forward, side, up - 0.006)
            self._limb(*eye, radius, radius, Ink(DARK), Light(0, 0))
        nose = self._up(0.06 * size, 0, up - 0.004), self._up(0.066 * size, 0, up - 0.018)
        self._limb(*nose, 0.006, 0.009, Ink(look.skin * np.float32(0.94)))
        if look.beard:
            self.parts.append(Shell(middle, 1.03 * size, hair, (-0.32, 0.0), below=True))
        if look.hair_style != "bald":
            shell, line = {
                "short": (1.1, (-0.02, 1.0)),
                "bob": (1.17, (-0.5, 1.35)),
                "long": (1.14, (-0.5, 1.35)),
                "afro": (1.42, (-0.62, 1.0)),
            }.get(look.hair_style, (1.09, (-0.02, 1.0)))
            self.parts.append(Shell(self._up(0.004, 0, up + 0.004), shell * size, hair, line))
        self._hat(up)

    def _hat(self, up: float) -> None:
        look = self.look
        if look.hat == "none":
            return
        ink = Ink(look.hat_colour)
        self.parts.append(Shell(self._up(0.004, 0, up + 0.012), 1.2 * look.head, ink, (0.22, 0.0)))
        if look.hat == "cap" and self.facing > -0.5:
            left, right = (self._up(0.088, side * 0.032, up + 0.04) for side in SIDES)
            self._limb(left, right, 0.014, 0.014, ink.times(0.72))
            start, end = self._up(0.05, 0, up + 0.044), self._up(0.092, 0, up + 0.038)
            self._limb(start, end, 0.018, 0.014, ink.times(0.72))
        elif look.hat == "beanie":
            self._level(0.05, up + 0.033, 0.018, ink.times(0.8))
            top = self._up(0, 0, up + 0.1)
            self._limb(top, top, 0.02, 0.02, ink.times(1.15))
        elif look.hat == "brim":
            self._level(0.085, up + 0.036, 0.014, ink.times(0.85))

    def _level(self, half: float, up: float, radius: float, ink: Ink) -> None:
        """Add a bar that is as wide from everywhere: something round that lies flat."""
        left, right = (
            self._up(side * half * self.view.sin, side * half * self.view.cos, up) for side in SIDES
        )
        self._limb(left, right, radius, radius, ink)

    def _back_hair(self) -> None:
        """Add the hair that hangs behind the head."""
        look = self.look
        ink = Ink(look.hair * np.float32(0.88 if self.facing > 0.2 else 1.0))
        if look.hair_style in ("bob", "long"):
            end = 0.855 if look.hair_style == "bob" else 0.755
            slices = [(end, 0.045, 0.02, -0.045), (end + 0.03, 0.056, 0.026, -0.045),
                      (0.92, 0.058, 0.036, -0.026), (0.96, 0.05, 0.036, -0.022)]  # fmt: skip
            self.parts.append(Solid.through(slices, ink))
        elif look.hair_style == "ponytail":
            sway = np.float32(0.012) * np.sin(self.pose.phase * 2)
            end = self._up(-0.095 + sway, 0, 0.82)
            self._limb(self._up(-0.06, 0, 0.955), end, 0.024, 0.012, ink)
        elif look.hair_style == "bun":
            bun = self._up(-0.05, 0, 0.985)
            self._limb(bun, bun, 0.03, 0.03, ink)

    def _backpack(self) -> None:
        if self.look.bag == "backpack":
            ink = Ink(self.look.bag_colour)
            self.parts.append(Solid.box((0.56, 0.815), (0.088, 0.05), (-0.1, 0.0), ink))
            if self.facing < 0.2:
                pocket = Solid.box((0.575, 0.67), (0.062, 0.02), (-0.145, 0.0), ink.times(0.8))
                self.parts.append(pocket)

    def _straps(self) -> None:
        """Add the backpack's straps over the chest."""
        if self.look.bag == "backpack":
            ink = Ink(self.look.bag_colour * np.float32(0.7))
            for side in SIDES if self.profile < 0.8 else (self.near,):
                front = self._up(0.066, side * 0.062, 0.76)
                self._limb(self._up(-0.01, side * 0.062, 0.838), front, 0.013, 0.013, ink)
                self._limb(front, self._up(0.03, side * 0.085, 0.63), 0.013, 0.011, ink)

    def _shoulder_bag(self) -> None:
        """Add a bag at the left hip and its strap from the right shoulder."""
        if self.look.bag == "shoulder":
            ink = Ink(self.look.bag_colour)
            forward = 0.068 if self.facing > 0 else -0.068
            top, low = self._up(forward * 0.4, -0.05, 0.838), self._up(forward, 0.088, 0.56)
            self._limb(top, low, 0.0095, 0.0095, ink.times(0.72))
            self.parts.append(Solid.box((0.44, 0.56), (0.035, 0.07), (0.0, 0.115), ink))
            flap = Solid.box((0.505, 0.56), (0.037, 0.072), (0.0, 0.116), ink.times(0.82))
            self.parts.append(flap)

    def _badge(self, colour: Floats) -> None:
        """Add a round badge where chest, back or sleeve faces the camera."""
        middle, flat = self._up(0, 0, 0.70), Light(0, 0.08)
        self._limb(middle, middle, 0.068, 0.068, Ink(WHITE), flat)
        self._limb(middle, middle, 0.055, 0.055, Ink(colour), flat)


def _between(start: Position, end: Position, share: float) -> Position:
    """Return a place on the way from one to another."""
    forward, side, up = (s + (e - s) * share for s, e in zip(start, end, strict=True))
    return forward, side, up


def cast_shadow(canvas: Canvas, view: View, shadow: tuple[float, float, float]) -> None:
    """Darken the ground under someone.

    Args:
        canvas: Where.
        view: Where they stand.
        shadow: How far to the right the shadow's middle lies and half its width, in body heights;
            and the share of the light that is lost.
    """
    aside, half, depth = shadow
    column = view.column + view.scale * np.float32(aside)
    wide, high = view.scale * np.float32(half), view.scale * np.float32(0.04)
    window = canvas.window(column - wide, column + wide, view.ground - high, view.ground + high)
    if window is not None:
        still = np.zeros_like(wide)
        x = canvas.linear(window, -column / wide, 1 / wide, still)
        y = canvas.linear(window, -view.ground / high, still, 1 / high)
        dark = np.clip(1 - x * x - y * y, 0.0, 1.0) * np.float32(depth)
        canvas.blend(window, dark, Ink(DARK * np.float32(0.3)))
