"""Numbers that the reference implementation gave; they lie in the folder ``golden``."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tfclip import convert

GOLDEN = Path(__file__).parent / "golden"


def read_golden(name: str) -> dict[str, Tensor]:
    """Read one file of recorded tensors."""
    return load_file(GOLDEN / f"{name}.safetensors")


def release_checkpoint() -> dict[str, Tensor]:
    """Read the recorded checkpoint, in the precision of the release."""
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_golden("state_dict").items()
    }


def shallow_checkpoint() -> dict[str, Tensor]:
    """Read the same with one block of its twelve: quick to build."""
    return {
        name: tensor
        for name, tensor in release_checkpoint().items()
        if "resblocks" not in name or ".resblocks.0." in name
    }


def our_names() -> dict[str, str]:
    """Map each name of the reference to ``model.`` or ``objective.`` and our own."""
    checkpoint = read_golden("state_dict")
    names = {}
    for prefix, table in (
        ("model.", convert._MODEL_NAMES),
        ("objective.", convert._OBJECTIVE_NAMES),
    ):
        new_names = convert._new_names(checkpoint, table)
        names |= {theirs: prefix + ours for theirs, ours in new_names.items()}
    return names
