"""Augmentation of training clips: 8-bit pixels in, 8-bit pixels out, all chance from a generator.

What a camera or a point of view does happens to the whole clip; what passes in front of the person
happens to single frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClipTransform:
    """Flip, colour jitter and random erasing, in this order; the reference has no jitter.

    Args:
        flip: Probability that a clip is mirrored.
        erasing: Of single frames; None leaves it out.
        jitter: Of colours; None, the reference, leaves it out.

    Example:
        >>> transform = ClipTransform()
        >>> clip = torch.zeros(8, 3, 64, 32, dtype=torch.uint8)
        >>> transform(clip, torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 64, 32])
    """

    flip: float = 0.5
    erasing: RandomErasing | None = None
    jitter: ColourJitter | None = None

    @classmethod
    def reference(cls, *, legacy: bool = False) -> ClipTransform:
        """Return what the reference does; ``legacy`` as in ``RandomErasing``."""
        return cls(erasing=RandomErasing(legacy=legacy))

    def __post_init__(self) -> None:
        _check_probability("flip", self.flip)

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Change a clip.

        Args:
            frames: RGB pixels, ``(T, 3, H, W)`` uint8; not written to.
            generator: The only source of chance, on the CPU.

        Raises:
            ValueError: The frames have another dtype or shape.
        """
        frames = flip_clip(frames, generator, self.flip)
        if self.jitter is not None:
            frames = self.jitter(frames, generator)
        return frames if self.erasing is None else self.erasing(frames, generator)


def flip_clip(frames: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Mirror all frames of a clip, or none.

    Args:
        frames: RGB pixels, ``(T, 3, H, W)`` uint8; not written to.
        generator: The source of chance.
        probability: That the clip is mirrored.

    Raises:
        ValueError: The frames have another dtype or shape.
    """
    _check_frames(frames)
    return frames.flip(-1) if _chance(generator) < probability else frames


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """Hide a rectangle of each frame behind one random colour (Zhong et al., 2020).

    Each frame decides for itself: where, how large, in which colour, and whether at all.

    Args:
        probability: That a frame is changed.
        area: Smallest and largest share of the frame.
        aspect: Smallest and largest ratio of the rectangle's height to its width.
        legacy: Do as the reference does, which forgets the place it has drawn: the corner of the
            rectangle is as far from the frame's corner as the rectangle is wide and high, and what
            juts out is cut off. For reproduction only.

    Raises:
        ValueError: A range or the probability is not possible.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.2)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    legacy: bool = False

    def __post_init__(self) -> None:
        _check_probability("probability", self.probability)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be (least, most) within (0, 1], got {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect must be (least, most), both positive, got {self.aspect}")

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Change some frames of a clip; arguments as for ``ClipTransform``."""
        _check_frames(frames)
        frames = frames.clone()
        for frame in frames:
            if _chance(generator) < self.probability:
                self._erase(frame, generator)
        return frames

    def _erase(self, frame: Tensor, generator: torch.Generator) -> None:
        """Write a rectangle into a frame; one that fits is drawn soon, or the frame is left."""
        height, width = frame.shape[1:]
        for _ in range(100):
            pixels = height * width * _uniform(self.area, generator)
            aspect = _uniform(self.aspect, generator)
            tall, wide = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if not (0 < tall < height and 0 < wide < width):
                continue
            top = _whole(height - tall + 1, generator)
            left = _whole(width - wide + 1, generator)
            if self.legacy:
                top, left = tall, wide
            colour = torch.randint(256, (3, 1, 1), generator=generator, dtype=torch.uint8)
            frame[:, top : top + tall, left : left + wide] = colour
            return


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Change brightness, contrast and saturation of a whole clip alike, and each channel's gain.

    Each is a factor drawn from [1 - x, 1 + x].

    Args:
        brightness: On all pixels.
        contrast: On the distance to the clip's mean grey.
        saturation: On the distance to the pixel's grey.
        gain: On each channel for itself, as cameras differ in colour balance.

    Raises:
        ValueError: A number is not in [0, 1].
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    gain: float = 0.1

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "gain"):
            _check_probability(name, getattr(self, name))

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Change all frames of a clip alike; arguments as for ``ClipTransform``."""
        _check_frames(frames)
        brightness, contrast, saturation = (
            _uniform((1 - x, 1 + x), generator)
            for x in (self.brightness, self.contrast, self.saturation)
        )
        gain = 1 + self.gain * (2 * torch.rand(3, generator=generator) - 1)
        pixels = frames.float() * (brightness * gain[:, None, None])
        grey = _grey(pixels)
        pixels = grey + saturation * (pixels - grey)
        mean = grey.mean()
        pixels = mean + contrast * (pixels - mean)
        return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """Return the luma of RGB pixels, ``(T, 3, H, W)`` to ``(T, 1, H, W)``."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


def _chance(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _uniform(bounds: tuple[float, float], generator: torch.Generator) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * _chance(generator)


def _whole(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames must be (T, 3, H, W) uint8, got {frames.dtype} of shape {tuple(frames.shape)}"
        )


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
