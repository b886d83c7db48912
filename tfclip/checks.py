"""What a model's forward refuses, each wrong argument in one sentence."""

from __future__ import annotations

import reprlib

import torch
from torch import Tensor


def check_frames(frames: Tensor, frame_size: tuple[int, int], dtype: torch.dtype) -> None:
    """Refuse frames that are not ``(B, T, 3, H, W)`` of this size and type.

    Raises:
        ValueError: The shape or the type of numbers is wrong.
        TypeError: They are no tensor.
    """
    size = (3, *frame_size)
    _check_tensor("frames", frames)
    if frames.ndim != 5 or frames.shape[2:] != size or 0 in frames.shape:
        hint = "; add a time axis with frames[:, None]" if frames.ndim == 4 else ""
        raise ValueError(
            f"frames must be (B, T, 3, H, W) with (3, H, W) = {size}, "
            f"got shape {tuple(frames.shape)}{hint}"
        )
    if not frames.is_floating_point():
        raise ValueError(
            f"frames must be normalised floating point, got {frames.dtype}; "
            "encode_sequence takes images as they are"
        )
    if frames.dtype != dtype and not torch.is_autocast_enabled(frames.device.type):
        raise ValueError(
            f"frames must be {dtype} as the model's weights are, got {frames.dtype}; "
            "change either with .to(dtype)"
        )


def check_frame_mask(frame_mask: Tensor, num_clips: int, num_frames: int) -> None:
    """Refuse a mask that is not ``(B, T)``, or that counts no frame of a clip.

    Raises:
        ValueError: The shape or a value is wrong.
        TypeError: It is no tensor.
    """
    _check_tensor("frame_mask", frame_mask)
    if frame_mask.shape != (num_clips, num_frames):
        raise ValueError(
            f"frame_mask must be (B, T) = {(num_clips, num_frames)}, "
            f"got shape {tuple(frame_mask.shape)}"
        )
    if not ((frame_mask >= 0) & (frame_mask < torch.inf)).all():  # nor NaN
        raise ValueError(
            f"frame_mask must be True or False, or finite numbers from 0, "
            f"got {reprlib.repr(frame_mask.tolist())}"
        )
    if not (frame_mask > 0).any(1).all():
        raise ValueError("frame_mask must count at least one frame of each clip, got none")


def check_cameras(cameras: Tensor, num_clips: int, num_cameras: int) -> None:
    """Refuse cameras that are not ``(B,)`` numbers from -1 to below ``num_cameras``.

    Raises:
        ValueError: The shape, the type of numbers or a camera is wrong.
        TypeError: They are no tensor.
    """
    _check_tensor("cameras", cameras)
    if not num_cameras:
        if (cameras >= 0).any():
            raise ValueError(
                "cameras must be None for a model without a camera table (num_cameras 0), "
                f"got {cameras.tolist()}"
            )
        return
    is_whole = not (cameras.is_floating_point() or cameras.dtype == torch.bool)
    if cameras.shape != (num_clips,) or not is_whole:
        raise ValueError(
            f"cameras must be whole numbers (B,) = ({num_clips},), got {cameras.dtype} of shape "
            f"{tuple(cameras.shape)}"
        )
    if cameras.min() < -1 or cameras.max() >= num_cameras:
        raise ValueError(
            f"cameras must be 0 to {num_cameras - 1}, or -1 where not known, got {cameras.tolist()}"
        )


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
