"""A small model, drawn crops and windows for tracklets that grow."""

from __future__ import annotations

import numpy as np
import torch

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.tracking import Judgement

CLIP = 4


def build(**changes) -> TFCLIP:
    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 2, "heads": 2, "output_dim": 32}
    config = TFCLIPConfig(
        backbone_options=sizes, frame_size=(32, 16), clip_length=CLIP, num_cameras=3, **changes
    )
    return TFCLIP(config).eval()


def draw(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 24, 12, 3), dtype=np.uint8)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


WINDOWS = [
    {},
    {"max_frames": 1},
    {"max_frames": 3},
    {"max_frames": CLIP},
    {"max_frames": 2 * CLIP},
    {"max_frames": 2, "policy": "diverse"},
    {"max_frames": CLIP, "policy": "diverse"},
    {"max_frames": 3 * CLIP, "policy": "diverse"},
]


def grade(crop, box, frame_size):
    """Pass crops whose first value is 200 or more; their score is that value."""
    value = int(crop[0, 0, 0])
    return Judgement(None if value >= 200 else "dark", float(value))


def graded(*values: int) -> np.ndarray:
    crops = draw(len(values), seed=values[0])
    crops[:, 0, 0, 0] = values
    return crops
