"""Frames to what the model takes: resized by Pillow, normalised by the config's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from tfclip.config import Interpolation, TFCLIPConfig
from tfclip.errors import FrameError
from tfclip.images import Pixels, check_array

Resizer = Literal["pillow", "tensor"]

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resize_frame(
    frame: np.ndarray,
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    resizer: Resizer = "pillow",
) -> torch.Tensor:
    """Resize a frame as the reference does: by Pillow, which antialiases, without cropping.

    Args:
        frame: RGB pixels, ``(H, W, 3)`` uint8.
        size: The new height and width in pixels. A frame of that size is only copied.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        resizer: ``"pillow"``, or ``"tensor"``: the same filter by torch, several times faster on
            processors with AVX2, whose values differ by one step of 8 bits here and there.

    Returns:
        The pixels, ``(3, H, W)`` uint8.

    Raises:
        FrameError: The frame has another dtype or shape.
        TypeError: The frame is no ndarray.
        ValueError: ``interpolation`` or ``resizer`` is unknown.

    Example:
        >>> resize_frame(np.zeros((100, 40, 3), dtype=np.uint8), (256, 128)).shape
        torch.Size([3, 256, 128])
    """
    if interpolation not in _RESAMPLING:
        raise ValueError(f"interpolation must be one of {(*_RESAMPLING,)}, got {interpolation!r}")
    if resizer not in get_args(Resizer):
        raise ValueError(f"resizer must be one of {get_args(Resizer)}, got {resizer!r}")
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"frame must be an ndarray (H, W, 3), got {type(frame).__name__}")
    check_array(frame, "frame")
    return _resize(frame, size, interpolation, resizer)


def _resize(
    picture: Pixels, size: tuple[int, int], interpolation: Interpolation, resizer: Resizer
) -> torch.Tensor:
    """Resize pixels that were checked; see ``resize_frame``."""
    height, width = size
    shape = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
    if shape != (height, width):
        if resizer == "tensor":
            # Torch's own would start threads of its own in each thread that reads, were it given
            # many frames or floats; one frame of 8 bits it resizes where it is.
            pixels = torch.from_numpy(np.require(picture, np.uint8, ["C", "W"]))
            frames = pixels.permute(2, 0, 1)[None]
            return F.interpolate(frames, size, mode=interpolation, antialias=True)[0].contiguous()
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        picture = image.resize((width, height), _RESAMPLING[interpolation])
    channels_first = np.asarray(picture).transpose(2, 0, 1)
    return torch.from_numpy(np.array(channels_first, order="C"))  # never a view of the caller's


def normalize(
    frames: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation.

    Args:
        frames: RGB pixels, ``(..., 3, H, W)`` uint8.
        mean: Of each channel, for values in [0, 1].
        std: Of each channel, for values in [0, 1].
        dtype: Of the result; float16 and bfloat16 are rounded from float32.

    Returns:
        The normalised frames, of the same shape and on the same device.

    Raises:
        FrameError: The frames have another dtype or shape.
    """
    if frames.dtype != torch.uint8:
        raise FrameError(f"frames must be uint8 before they are normalised, got {frames.dtype}")
    if frames.ndim < 3 or frames.shape[-3] != 3:
        raise FrameError(f"frames must be (..., 3, H, W), got shape {tuple(frames.shape)}")
    precise = torch.promote_types(dtype, torch.float32)
    means, stds = (
        torch.tensor(tuple(values), dtype=precise, device=frames.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return frames.to(precise).div_(255).sub_(means).div_(stds).to(dtype)


class Preprocess:
    """Resize and normalise frames as the configuration of a model says.

    Args:
        config: Gives ``frame_size``, ``interpolation``, ``mean`` and ``std``.
        resizer: As in ``resize_frame``.

    Raises:
        ValueError: ``resizer`` is unknown.

    Example:
        >>> preprocess = Preprocess(TFCLIPConfig(frame_size=(64, 32)))
        >>> preprocess([np.zeros((90, 40, 3), dtype=np.uint8)] * 5).shape
        torch.Size([5, 3, 64, 32])
    """

    def __init__(self, config: TFCLIPConfig, resizer: Resizer = "pillow") -> None:
        if resizer not in get_args(Resizer):
            raise ValueError(f"resizer must be one of {get_args(Resizer)}, got {resizer!r}")
        self.resizer: Resizer = resizer
        self.size = config.frame_size
        self.interpolation: Interpolation = config.interpolation
        self.mean = config.mean
        self.std = config.std

    def __call__(self, frames: Iterable[np.ndarray]) -> torch.Tensor:
        """Return frames ``(H, W, 3)`` uint8, of any sizes, as one float32 ``(T, 3, H, W)``.

        Raises:
            FrameError: There is no frame, or one has another dtype or shape.
            TypeError: A frame is no ndarray.
        """
        resized = [self.resize(frame) for frame in frames]
        if not resized:
            raise FrameError("frames must have at least one frame, got none")
        return self.normalize(torch.stack(resized))

    def resize(self, frame: np.ndarray) -> torch.Tensor:
        """Return a frame ``(H, W, 3)`` as uint8 ``(3, H, W)`` of the model's size."""
        return resize_frame(frame, self.size, self.interpolation, self.resizer)

    def resize_picture(self, picture: Pixels) -> torch.Tensor:
        """Return what ``tfclip.images.open_picture`` gave as uint8 ``(3, H, W)``, as ``resize``."""
        return _resize(picture, self.size, self.interpolation, self.resizer)

    def normalize(self, frames: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return uint8 frames ``(..., 3, H, W)`` as normalised floats."""
        return normalize(frames, self.mean, self.std, dtype)
