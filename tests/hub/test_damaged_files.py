"""Damaged and dangerous files are refused, and nothing in them runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from tests.hub.saved_models import message_of
from tests.traps import Bomb
from tfclip import hub
from tfclip.errors import WeightsError
from tfclip.model import TFCLIP
from tfclip.tensors import read_safetensors


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 5_000, -1])
def test_a_truncated_file_is_named(folder: Path, kept: int):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated, damaged") as error:
        hub.load(TFCLIP, folder)
    assert str(folder) in message_of(error)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"cannot read .*none\.safetensors: No such file"):
        read_safetensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "best_model.pth.tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path, name: str, zipped: bool):
    path, trace = tmp_path / name, tmp_path / "it ran"
    if zipped:
        torch.save({"weight": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Bomb(trace)}))
    with pytest.raises(WeightsError, match=r"is a pickle, .* only `tfclip convert` reads") as error:
        read_safetensors(path)
    assert str(path) in message_of(error)
    assert not trace.exists()
    with path.open("rb") as file:
        read = torch.load(file, weights_only=False) if zipped else pickle.load(file)
    assert read == {"weight": None}
    assert trace.exists(), "the trap is a real one"


def test_a_git_lfs_pointer_is_told_from_the_weights(folder: Path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(WeightsError, match="git lfs pull"):
        hub.load(TFCLIP, folder)
