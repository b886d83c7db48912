"""Calling ``tfclip`` in this process, and small things to call it with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.cli import main

ROOT = Path(__file__).parents[2]

LAYOUT = ("--layout", "{person}/{camera}/{tracklet}")


def run(*arguments):
    return main([str(argument) for argument in arguments])


def usage_error(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    return caught.value.code == 2


def make_model(folder, seed=0, **changes):
    torch.manual_seed(seed)
    config = TFCLIPConfig(
        backbone_options={"width": 64, "layers": 2, "heads": 1, "output_dim": 32},
        frame_size=(32, 16),
        clip_length=4,
        provenance={"weights": "random"},
    )
    model = TFCLIP(config.replace(**changes)).eval()
    model.save_pretrained(folder)
    return model


def draw_frames(folder, count, seed, size=(16, 32), suffix=".png"):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}{suffix}")


def width_of(picture):
    with Image.open(picture) as image:
        return image.width
