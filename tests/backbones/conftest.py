"""Frames that every tower is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
