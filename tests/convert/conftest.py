"""Recorded checkpoints, and no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from tests.recorded import read_golden, release_checkpoint, shallow_checkpoint


@pytest.fixture(scope="module")
def release() -> dict[str, Tensor]:
    """The recorded checkpoint, in the precision of the release."""
    return release_checkpoint()


@pytest.fixture(scope="module")
def shallow() -> dict[str, Tensor]:
    """The same with one block of its twelve: quick to build."""
    return shallow_checkpoint()


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    """A CLIP as OpenAI stores it: text tower, mixed precision and three numbers."""
    return read_golden("clip_tiny")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write anything as the authors do, ``best_model.pth.tar``."""

    def write(content: object, name: str = "best_model.pth.tar") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever wants to download fails, whether or not there is a network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
