"""Checkpoints as others write them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.recorded import read_golden
from tfclip import TFCLIP

TOLERANCE = {"atol": 5e-5, "rtol": 0}

# Golden sizes of CLIP, with the options that make a tower of them.
TINY_CLIP = {"width": 64, "layers": 2, "output_dim": 64}
TINY_TIMM = {"embed_dim": 64, "depth": 2, "num_heads": 2}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def features(model: TFCLIP, *, cameras: bool = True) -> Tensor:
    inputs = read_golden("inputs")
    with torch.inference_mode():
        return model(inputs["frames"], inputs["cam_label"] if cameras else None).embedding


def save_scripted(tensors: dict[str, Tensor], path: Path) -> Path:
    """Write tensors as OpenAI publishes them: in the modules of a scripted archive."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    with scripting():
        torch.jit.script(root).save(str(path))
    return path


@contextmanager
def scripting() -> Iterator[None]:
    """Scripting is deprecated, but the format lives on in OpenAI's files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def one_sentence(error: pytest.ExceptionInfo[Exception], path: Path) -> bool:
    return str(path) in str(error.value) and "\n" not in str(error.value)
