"""Places that drawn cameras look at: what stands behind a person, in which light and colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfclip.data.synthetic.look import Tint, palette, pick, uniform
from tfclip.data.synthetic.paint import Floats, Light
from tfclip.data.synthetic.place import LENGTH, Place


@dataclass(frozen=True)
class Scene:
    """What a camera adds to every picture it takes.

    Args:
        background: The place, ``(3, H + margins, W)``, tinted; it repeats in the width.
        tint: Gain and contrast of the camera.
        yaw: Direction in which most people walk here, in radians.
        pitch: How far the camera looks down, in radians.
        light: Shading of rounded surfaces.
        shadow: Column of a shadow's middle and its half width, in body heights; and its depth.
        softness: Width of a sharp edge in pixels, at a frame height of 256.
        noise: Standard deviation of the pixel noise, in levels.
    """

    background: Floats
    tint: Tint
    yaw: float
    pitch: float
    light: Light
    shadow: tuple[float, float, float]
    softness: float
    noise: float


def draw_scene(number: int, height: int, random: np.random.Generator) -> Scene:
    """Draw a camera: its place, viewpoint, light and colours.

    Args:
        number: Which kind of place and viewpoint; numbers in a row are different kinds.
        height: Frame height in pixels.
        random: The only source of chance.
    """
    draw, dark = PLACES[number % len(PLACES)]
    place = Place(height, random)
    draw(place, random)
    place.soften(uniform(random, 0.004, 0.012))
    cast = 1 + (random.random(3) - 0.5) * 0.16
    tint = Tint(
        (cast * uniform(random, 0.84, 1.06) * (0.86 if dark else 1)).astype(np.float32),
        uniform(random, 0.84, 1.06),
    )
    sun = uniform(random, -1, 1)
    yaw = VIEWPOINTS[number * 3 % len(VIEWPOINTS)] + uniform(random, -0.2, 0.2)
    return Scene(
        background=tint(place.pixels),
        tint=tint,
        yaw=yaw,
        pitch=uniform(random, 0.08, 0.26),
        light=Light(0.16 * sun, uniform(random, 0.14, 0.22)),
        shadow=(-0.09 * sun, 0.17 + 0.1 * abs(sun), uniform(random, 0.3, 0.5)),
        softness=uniform(random, 1.0, 2.4),
        noise=uniform(random, 1.5, 5.0),
    )


VIEWPOINTS = (1.45, 0.15, -0.75, 2.95, -1.5, 0.7, -2.45, 2.2)


def _street(place: Place, random: np.random.Generator) -> None:
    wall = pick(random, palette("d9c7a8 c98f74 b9c2a8 d8b27c a9b6c4 c7a6a0"))
    trim, glass = palette("f0e9dc 3c4f63")
    place.fill(1.0, wall)
    place.roughen(1.0, 5, 7)
    place.roughen(1.0, 40, 5)
    awning = pick(random, palette("b5443c 2f6b5f 35567f c98a2e"))
    for i in range(10):
        x = 0.4 * i + 0.2
        if i % 4 == 3:
            door = pick(random, palette("5a3b2c 2f4a44 703035 35475e"))
            place.box(x, 0.14, 0.25, 0.72, trim)
            place.box(x, 0.17, 0.19, 0.72, door)
            place.box(x, 0.21, 0.13, 0.38, glass)
        else:
            place.box(x, 0.08, 0.25, 0.5, trim)
            place.box(x, 0.11, 0.2, 0.47, glass)
            place.box(x - 0.05, 0.11, 0.04, 0.47, palette("b7cbd8")[0], 0.35)
            place.box(x, 0.28, 0.2, 0.292, trim)
            place.box(x, 0.5, 0.29, 0.525, trim * np.float32(0.9))
    stripes = 0.5 + 0.5 * np.sign(np.sin(place.x * 2 * np.pi * 10))
    place.fill(place.band(-0.2, 0.045), awning)
    place.fill(place.band(-0.2, 0.045) * stripes, trim)
    place.fill(place.band(0.63, 0.72), wall * np.float32(0.66))
    first, last, joint = palette("a7a39c c9c5bc 8b8780")
    place.gradient(0.72, 1.2, first, last)
    place.floor_lines(0.72, joint, 0.7)
    place.roughen(place.band(0.72, 1.2), 30, 5, 1.6)


def _park(place: Place, random: np.random.Generator) -> None:
    autumn = random.random() < 0.4
    leaves = palette("c9772f d9a23c b5502c a88a3a" if autumn else "4f7f3f 6c9a4a 3d6b40 86a857")
    sky, haze, hill, far, grass, lawn, path = palette(
        "a9cbe4 e6ecea 8fae9b 5f8a6c 7fa355 93b463 d6c4a0"
    )
    place.fill(1.0, sky)
    place.gradient(-0.2, 0.4, sky, haze)
    ridge = 0.26 + 0.05 * place.texture(2)[:1]
    place.fill(place.step(place.y - ridge), hill)
    ridge = 0.36 + 0.05 * place.texture(5)[:1]
    place.fill(place.step(place.y - ridge), far)
    place.gradient(0.47, 0.85, grass, lawn)
    place.roughen(place.band(0.47, 1.2), 24, 9, 2.5)
    for i in range(11):
        x, base = 0.36 * i + uniform(random, -0.1, 0.1), uniform(random, 0.5, 0.62)
        trunk = palette("5d4635 6f5541")[i % 2]
        place.box(x, 0.1, 0.035, base, trunk)
        place.disc(x, base, 0.09, palette("38502f")[0], 0.35, squash=0.15)
        for _ in range(9):
            spot = (x + uniform(random, -0.13, 0.13), uniform(random, -0.08, 0.24))
            leaf = pick(random, leaves) * np.float32(uniform(random, 0.8, 1.12))
            place.disc(*spot, uniform(random, 0.05, 0.1), leaf)
    edge = 0.8 + 0.012 * place.texture(3)[:1]
    place.fill(place.step(place.y - edge), path)
    place.roughen(place.band(0.8, 1.2), 30, 6, 2.0)


def _station(place: Place, random: np.random.Generator) -> None:
    tile, joint, floor, bright, yellow = palette("e3e2da c2c3bd 8d9093 b1b3b4 e3b93c")
    prints = palette("f3efe4 e0533f f0b73f 3f8fb0 35445f 6fae8f e79aa5")
    line = pick(random, palette("1f5fa8 b3322f 2d7d4f 6b3f8c"))
    place.fill(1.0, tile)
    place.roughen(1.0, 3, 8)
    place.fill(place.columns(64, 0.006) * 0.8, joint)
    rows = place.step(0.003 - np.abs(place.y % 0.05 - 0.025))
    place.fill(rows * 0.8, joint)
    place.fill(place.band(0.02, 0.085), line)
    place.fill(place.band(0.6, 0.7), line * np.float32(0.7))
    for i in range(6):
        x = 0.667 * i + 0.3
        paper, shape, other = (pick(random, prints) for _ in range(3))
        place.box(x, 0.13, 0.36, 0.57, palette("53575c")[0])
        place.box(x, 0.145, 0.33, 0.555, paper)
        place.disc(x + 0.04, 0.3, 0.1, shape)
        place.box(x, 0.43, 0.26, 0.47, other)
        place.box(x - 0.04, 0.49, 0.18, 0.51, other)
    place.gradient(0.7, 1.2, floor, bright)
    place.reflect(0.7, 0.16)
    place.fill(place.band(0.77, 0.815), yellow)
    place.fill(place.band(0.77, 0.815) * place.columns(100, 0.012) * 0.35, joint)
    place.roughen(place.band(0.7, 1.2), 50, 6)


def _shop(place: Place, random: np.random.Generator) -> None:
    frame, glow, shelf, floor, bright = palette("4a3b33 f7dca6 b98a55 b9a78f ddd0bb")
    place.fill(1.0, glow)
    place.gradient(-0.2, 0.7, palette("fbe8bd")[0], palette("e2b878")[0])
    for level in (0.2, 0.4, 0.58):
        place.fill(place.band(level, level + 0.018), shelf)
        for i in range(44):
            x, size = LENGTH * i / 44 + uniform(random, -0.02, 0.02), uniform(random, 0.03, 0.07)
            goods = pick(random, palette("c4574a e0a03f 4f8f8a 5b6ea6 efe6d6 8f5a7f 7d9f5a 3a3f4c"))
            place.box(x, level - uniform(random, 0.05, 0.13), size, level, goods)
    for i in range(8):
        lamp = place.away(0.5 * i + 0.25)
        shine = np.exp(-((lamp / 0.14) ** 2) - ((place.y + 0.02) / 0.12) ** 2)
        place.fill(shine * 0.7, palette("fff6df")[0])
    place.fill(place.columns(5, 0.05), frame)
    place.fill(place.band(0.66, 0.73), frame)
    place.gradient(0.73, 1.2, floor, bright)
    place.reflect(0.73, 0.3)
    place.floor_lines(0.73, floor * np.float32(0.8), 0.4, 12)


def _seaside(place: Place, random: np.random.Generator) -> None:
    sky, low, sea, near, plank, dark, rail = palette(
        "8fc3e6 f6e3c5 3f86a8 69b3b8 c9a67c 9b7a55 f4f1ea"
    )
    place.gradient(-0.2, 0.32, sky, low)
    for _ in range(9):
        x, y = uniform(random, 0, LENGTH), uniform(random, -0.05, 0.2)
        for _ in range(4):
            spot = (x + uniform(random, -0.12, 0.12), y + uniform(random, -0.015, 0.015))
            place.disc(*spot, uniform(random, 0.05, 0.11), rail, 0.6, squash=0.3)
    place.gradient(0.32, 0.66, sea, near)
    place.roughen(place.band(0.33, 0.66), 8, 16, 6.0)
    for i in range(3):
        x = LENGTH * (i + uniform(random, 0.2, 0.8)) / 3
        sail = np.abs(place.away(x)) * 2.2 - (place.y - 0.17)
        place.fill(place.step(-sail) * place.band(0.17, 0.31), rail)
        place.box(x, 0.315, 0.11, 0.335, palette("9b3b34")[0])
    place.gradient(0.66, 1.2, dark, plank)
    depth = place.y - 0.62
    place.fill(place.step(place.y - 0.66) * (np.abs((0.9 / depth) % 1 - 0.5) < 0.08) * 0.5, dark)
    place.roughen(place.band(0.66, 1.2), 6, 8, 8.0)
    for y in (0.44, 0.53, 0.62):
        place.fill(place.band(y, y + 0.014), rail)
    place.fill(place.columns(12, 0.026) * place.band(0.41, 0.69), rail)


def _night(place: Place, random: np.random.Generator) -> None:
    top, wall, road, wet = palette("161b33 262c48 23262f 3a3d49")
    place.fill(1.0, wall)
    place.gradient(-0.2, 0.66, top, wall)
    place.roughen(1.0, 4, 6)
    for i in range(32):
        for y in (0.03, 0.17, 0.31):
            lit = random.random()
            light = pick(random, palette("f3cf7a f0b45c a9c7e8 e8e0c0"))
            strength = 0.85 if lit < 0.4 else 0.12
            place.box(0.125 * i + 0.06, y, 0.06, y + 0.085, light, strength)
    for _ in range(26):
        spot = uniform(random, 0, LENGTH), uniform(random, 0.36, 0.6)
        glow = pick(random, palette("ffb84d ff6a4d 5fd0ff ffe7a3 ff8ad0 7dffb0"))
        place.disc(*spot, uniform(random, 0.02, 0.055), glow, 0.55)
    place.gradient(0.68, 1.2, road, wet)
    place.reflect(0.68, 0.55)
    place.roughen(place.band(0.68, 1.2), 10, 9, 4.0)


def _corridor(place: Place, random: np.random.Generator) -> None:
    wall, low, floor, bright, steel = palette("dfe3e0 9fb7b3 8fa09c c3cdc8 8b9498")
    door = pick(random, palette("3f6a8a a9683f 55795c 7a4a5a"))
    place.fill(1.0, wall)
    place.gradient(-0.2, 0.5, palette("f4f5f0")[0], wall)
    place.fill(place.band(0.45, 0.7), low)
    place.fill(place.band(0.44, 0.46), steel)
    for i in range(5):
        x = 0.8 * i + 0.4
        place.box(x, 0.08, 0.33, 0.7, steel)
        place.box(x, 0.1, 0.29, 0.7, door)
        place.box(x + 0.06, 0.17, 0.07, 0.36, palette("cfe0e6")[0])
        place.box(x - 0.1, 0.42, 0.045, 0.435, palette("e9e4d4")[0])
        place.box(x + 0.38, 0.18, 0.16, 0.3, palette("f2c14e d9574a 4b8fbf")[i % 3])
        place.box(x + 0.38, 0.205, 0.11, 0.275, palette("f7f5ee")[0])
    place.gradient(0.7, 1.2, floor, bright)
    place.fill(place.band(0.675, 0.705), palette("5b6664")[0])
    place.reflect(0.705, 0.3)
    place.floor_lines(0.705, floor * np.float32(0.85), 0.3, 8)


def _plaza(place: Place, random: np.random.Generator) -> None:
    sky, light, stone, shade, brick, joint = palette("b9c7d6 e9e6e0 d5cdbf a79f92 b98a72 95694f")
    place.gradient(-0.2, 0.68, sky, light)
    place.fill(place.band(0.1, 0.68), stone * np.float32(0.78))
    for i in range(8):
        x = 0.5 * i + 0.25
        depth = palette("6b6d74 7d6a5c")[i % 2]
        place.disc(x, 0.27, 0.16, depth)
        place.box(x, 0.27, 0.32, 0.68, depth)
        place.box(x, 0.5, 0.32, 0.68, palette("54565c")[0])
        place.box(x + 0.25, 0.0, 0.12, 0.69, stone)
        place.box(x + 0.29, 0.0, 0.04, 0.69, shade, 0.6)
        place.box(x + 0.25, 0.25, 0.16, 0.29, stone)
        if i % 2:
            place.box(x, 0.58, 0.15, 0.69, palette("8f5238")[0])
            for _ in range(7):
                spot = x + uniform(random, -0.08, 0.08), uniform(random, 0.46, 0.57)
                leaf = pick(random, palette("4f7a3f 6d9a50 7fa85f c65a6a"))
                place.disc(*spot, uniform(random, 0.03, 0.05), leaf)
    place.fill(place.band(-0.2, 0.09), stone)
    place.fill(place.band(0.085, 0.11), shade)
    place.roughen(place.band(-0.2, 0.68), 12, 5)
    place.gradient(0.68, 1.2, brick * np.float32(0.9), brick * np.float32(1.08))
    place.floor_lines(0.68, joint, 0.8, 40)
    place.roughen(place.band(0.68, 1.2), 22, 8, 2.0)


# Each kind of place, and whether it is night there.
PLACES: tuple[tuple[Callable[[Place, np.random.Generator], None], bool], ...] = (
    (_street, False),
    (_park, False),
    (_station, False),
    (_night, True),
    (_seaside, False),
    (_shop, False),
    (_plaza, False),
    (_corridor, False),
)
