"""What one drawn person looks like: body, hair, clothes and what they carry."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, TypeVar

import numpy as np

from tfclip.data.synthetic.paint import Floats, Ink, Pattern

Option = TypeVar("Option")
HairStyle = Literal["bald", "short", "bob", "long", "bun", "ponytail", "afro"]
Hat = Literal["none", "cap", "beanie", "brim"]
Bottom = Literal["trousers", "shorts", "skirt", "dress"]
Bag = Literal["none", "backpack", "shoulder", "hand"]


def palette(codes: str) -> list[Floats]:
    """Return the colours of a text of hexadecimal codes, each ``(3,)``, 0 to 255."""
    return [np.array(list(bytes.fromhex(code)), dtype=np.float32) for code in codes.split()]


SKIN = palette("f4d3b8 e8b894 cf9a72 b0764c 855233 5c3a24")
HAIR = palette("1d1816 3a251a 6b4428 a8703c d9b36c 8f8f92 a9442a e9e4da")
TOPS = palette(
    "c4453b e0873f e8c25f 6f9f4f 2c7263 3d7fb0 25376b 7d539b d985a6 f2ede3 "
    "8794a6 2f3138 ab7c52 7cc6be 9c2f45 b9c46a"
)
BOTTOMS = palette("32456b 6686ad 26272c 70757d b99b71 4d5642 6e4c3b e4dfd3 7b3140 3f6c66")
SHOES = palette("2b2523 f1f1ee 8b4c33 c23b3b 3c61a9 d8b04a")


# How often each is drawn, to one another.
HAIR_STYLES: dict[HairStyle, float] = {
    "short": 4, "bob": 2, "long": 2, "ponytail": 1.5, "bun": 1, "afro": 1, "bald": 0.6,
}  # fmt: skip
HATS: dict[Hat, float] = {"none": 6, "cap": 1.3, "beanie": 1.2, "brim": 0.8}
BOTTOM_KINDS: dict[Bottom, float] = {"trousers": 6, "shorts": 1.5, "skirt": 1.5, "dress": 1}
BAGS: dict[Bag, float] = {"none": 4, "backpack": 2.4, "shoulder": 2, "hand": 1.6}
PATTERNS: dict[Pattern, float] = {
    "plain": 3.4, "stripes": 1.6, "checks": 1.2, "block": 1.2, "dots": 0.9, "pinstripes": 0.8,
    "diagonal": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Everything that stays the same about a person, whatever the camera.

    Lengths are in body heights, colours 0 to 255.
    """

    build: float  # 0.85 slim to 1.25 stout
    shoulders: float
    hips: float
    head: float
    skin: Floats
    hair: Floats
    hair_style: HairStyle
    beard: bool
    hat: Hat
    hat_colour: Floats
    scarf: Floats | None
    top: Ink
    sleeves: float  # share of the arm that is covered
    hem: float  # height at which the top ends
    opening: Floats | None  # what an open jacket shows
    bottom: Bottom
    bottom_ink: Ink
    leg_width: float
    shoes: Floats
    bag: Bag
    bag_colour: Floats
    stride: float  # swing of the thigh in radians
    swing: float  # swing of the arm in radians
    lean: float  # how far the neck is before the hips

    @classmethod
    def draw(cls, random: np.random.Generator) -> Look:
        """Draw a person.

        Args:
            random: The only source of chance.
        """
        hair_style = weighted(random, HAIR_STYLES)
        bottom = weighted(random, BOTTOM_KINDS)
        top = _ink(random, TOPS)
        coat = bottom != "dress" and random.random() < 0.35
        legs = _vary(random, pick(random, BOTTOMS), 12)
        if bottom == "dress":
            legs_ink = top
        elif bottom == "skirt":
            legs_ink = _ink(random, TOPS + BOTTOMS)
        else:
            legs_ink = Ink(legs)
        return cls(
            build=uniform(random, 0.86, 1.22),
            shoulders=uniform(random, 0.92, 1.1),
            hips=uniform(random, 0.9, 1.1),
            head=uniform(random, 0.95, 1.12),
            skin=_vary(random, pick(random, SKIN), 8),
            hair=_vary(random, pick(random, HAIR), 8),
            hair_style=hair_style,
            beard=hair_style in ("bald", "short") and random.random() < 0.3,
            hat=weighted(random, HATS),
            hat_colour=_vary(random, pick(random, TOPS), 12),
            scarf=_vary(random, pick(random, TOPS), 12) if random.random() < 0.16 else None,
            top=top,
            sleeves=1.0 if coat or random.random() < 0.3 else 0.32,
            hem=uniform(random, 0.30, 0.47) if coat else uniform(random, 0.45, 0.49),
            opening=pick(random, TOPS) if coat and random.random() < 0.7 else None,
            bottom=bottom,
            bottom_ink=legs_ink,
            leg_width=uniform(random, 0.88, 1.3),
            shoes=_vary(random, pick(random, SHOES), 8),
            bag=weighted(random, BAGS),
            bag_colour=_vary(random, pick(random, TOPS + BOTTOMS), 12),
            stride=uniform(random, 0.3, 0.48),
            swing=uniform(random, 0.25, 0.7),
            lean=uniform(random, 0.0, 0.035),
        )

    def as_seen(self, tint: Tint) -> Look:
        """Return the same person in the colours of a camera."""
        return replace(
            self,
            skin=tint(self.skin),
            hair=tint(self.hair),
            hat_colour=tint(self.hat_colour),
            scarf=None if self.scarf is None else tint(self.scarf),
            top=tint.ink(self.top),
            opening=None if self.opening is None else tint(self.opening),
            bottom_ink=tint.ink(self.bottom_ink),
            shoes=tint(self.shoes),
            bag_colour=tint(self.bag_colour),
        )


@dataclass(frozen=True)
class Tint:
    """How a camera changes colours: contrast about mid-grey, then a gain for each channel.

    Args:
        gain: Red, green and blue, ``(3,)``.
        contrast: 1 leaves colours as they are.
    """

    gain: Floats
    contrast: float

    def __call__(self, colour: Floats) -> Floats:
        """Return ``(3,)`` or ``(3, ...)`` colours as the camera records them."""
        gain = self.gain.reshape(3, *[1] * (colour.ndim - 1))
        return np.clip(((colour - 120) * np.float32(self.contrast) + 120) * gain, 0, 255)

    def ink(self, ink: Ink) -> Ink:
        """Return an ink as the camera records it."""
        second = None if ink.second is None else self(ink.second)
        return replace(ink, colour=self(ink.colour), second=second)


def uniform(random: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between two others."""
    return low + (high - low) * random.random()


def pick(random: np.random.Generator, options: Sequence[Option]) -> Option:
    """Draw one of the options, all as likely."""
    return options[int(random.random() * len(options))]


def weighted(random: np.random.Generator, weights: Mapping[Option, float]) -> Option:
    """Draw a key, as likely as its value is large."""
    edges = list(accumulate(weights.values()))
    return list(weights)[bisect(edges, random.random() * edges[-1])]


def _vary(random: np.random.Generator, colour: Floats, amount: float) -> Floats:
    shift = (random.random(3) - 0.5) * 2 * amount
    return np.clip(colour + shift, 4, 251).astype(np.float32)


def _ink(random: np.random.Generator, colours: list[Floats]) -> Ink:
    """Draw a garment's two colours, well apart, and how they are laid out."""
    first = pick(random, colours)
    second = max((pick(random, colours) for _ in range(2)), key=lambda c: np.abs(c - first).sum())
    pattern = weighted(random, PATTERNS)
    if pattern != "plain" and np.abs(second - first).sum() < 120:
        second = np.float32(255) - first
    return Ink(
        _vary(random, first, 12),
        _vary(random, second, 12),
        pattern,
        uniform(random, 0.045, 0.085),
        uniform(random, 0.66, 0.76),
    )
