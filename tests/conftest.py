"""Small models and the recorded numbers that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.recorded import read_golden
from tfclip import TFCLIP, TFCLIPConfig


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small spend more time on waking threads than on computing.

    Sums also round the same way in every process, here and in those that tests start.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Read one file of numbers recorded from the reference."""
    return read_golden


@pytest.fixture
def tiny_config() -> TFCLIPConfig:
    """A model that runs in milliseconds, with three cameras."""
    return TFCLIPConfig(
        backbone_options={"width": 64, "layers": 2, "heads": 2, "output_dim": 32},
        frame_size=(64, 32),
        clip_length=4,
        num_cameras=3,
    )


@pytest.fixture
def tiny_model(tiny_config: TFCLIPConfig) -> TFCLIP:
    """A model of ``tiny_config`` with seeded random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TFCLIP(tiny_config).eval()
