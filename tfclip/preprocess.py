"""Frames to what the model takes: resized by Pillow, normalised by the config's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from tfclip.config import Interpolation, TFCLIPConfig
from tfclip.errors import FrameError
from tfclip.images import check_array

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resize_frame(
    frame: np.ndarray, size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> torch.Tensor:
    """Resize a frame as the reference does: by Pillow, which antialiases, without cropping.

    Args:
        frame: RGB pixels, ``(H, W, 3)`` uint8.
        size: The new height and width in pixels. A frame of that size is only copied.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        The pixels, ``(3, H, W)`` uint8.

    Raises:
        FrameError: The frame has another dtype or shape.
        TypeError: The frame is no ndarray.
        ValueError: ``interpolation`` is unknown.

    Example:
        >>> resize_frame(np.zeros((100, 40, 3), dtype=np.uint8), (256, 128)).shape
        torch.Size([3, 256, 128])
    """
    if interpolation not in _RESAMPLING:
        raise ValueError(f"interpolation must be one of {(*_RESAMPLING,)}, got {interpolation!r}")
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"frame must be an ndarray (H, W, 3), got {type(frame).__name__}")
    check_array(frame, "frame")
    if frame.shape[:2] != tuple(size):
        height, width = size
        image = Image.fromarray(frame).resize((width, height), _RESAMPLING[interpolation])
        frame = np.asarray(image)
    channels_first = np.array(frame.transpose(2, 0, 1), order="C")  # never a view of the caller's
    return torch.from_numpy(channels_first)


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

    Example:
        >>> preprocess = Preprocess(TFCLIPConfig(frame_size=(64, 32)))
        >>> preprocess([np.zeros((90, 40, 3), dtype=np.uint8)] * 5).shape
        torch.Size([5, 3, 64, 32])
    """

    def __init__(self, config: TFCLIPConfig) -> None:
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
        return resize_frame(frame, self.size, self.interpolation)

    def normalize(self, frames: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return uint8 frames ``(..., 3, H, W)`` as normalised floats."""
        return normalize(frames, self.mean, self.std, dtype)
