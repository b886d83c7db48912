"""A small model, and what tests of saved models compare."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tfclip.config import TFCLIPConfig
from tfclip.model import TFCLIP

CONFIG = TFCLIPConfig(
    backbone="ViT-B-16",
    backbone_options={"width": 64, "layers": 2, "heads": 1, "output_dim": 32},
    frame_size=(32, 16),
    num_cameras=2,
    provenance={"weights": "random", "seed": "0"},
)


def make_model(seed: int = 0, config: TFCLIPConfig = CONFIG) -> TFCLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TFCLIP(config).eval()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert list(model.state_dict()) == list(theirs)
    for name, value in model.state_dict().items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def message_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message, "an error is one sentence"
    return message
