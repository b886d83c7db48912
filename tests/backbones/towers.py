"""One small image tower of each family."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.recorded import read_golden
from tfclip import TFCLIPConfig
from tfclip.backbones import build_backbone

TOLERANCE = {"atol": 5e-5, "rtol": 0}

VIT = {"embed_dim": 64, "depth": 2, "num_heads": 2}
TINY_RESNET = {"layers": [1, 2, 1, 1], "width": 8, "heads": 4, "output_dim": 32}
TINY_CLIP = {"width": 64, "layers": 2, "output_dim": 32}

# One of each family, small: options, prefix tokens that are no class token, whether a class token
# goes through the tower, and width of the projection.
FAMILIES: dict[str, tuple[dict[str, Any], int, bool, int]] = {
    "ViT-B-16": (TINY_CLIP, 0, True, 32),
    "ViT-L-14-CLIPA": ({**TINY_CLIP, "patch_size": 16}, 0, False, 32),
    "RN50": (TINY_RESNET, 0, False, 32),
    "timm:vit_base_patch16_clip_quickgelu_224.openai": (VIT, 0, True, 512),
    "timm:vit_base_patch16_siglip_256.v2_webli": (VIT, 0, False, 64),
    "timm:vit_small_patch14_reg4_dinov2.lvd142m": (VIT, 4, True, 64),
    "timm:vit_small_patch16_dinov3.lvd1689m": (VIT, 4, True, 64),
    "timm:eva02_base_patch16_clip_224.merged2b": (VIT, 0, True, 512),
    "timm:vit_pe_core_tiny_patch16_384.fb": (VIT, 1, False, 512),
    "timm:resnet50_clip.openai": ({"width_factor": 0.125}, 0, False, 1024),
}
WITH_CAMERAS = [name for name in FAMILIES if name not in ("RN50", "timm:resnet50_clip.openai")]
TIMM_VERSION = tuple(map(int, timm.__version__.split(".")[:3]))
TIMM = [name for name in FAMILIES if name.startswith("timm:")]


def read_single(name: str) -> dict[str, Tensor]:
    """Read recorded tensors in single precision; counters have no dimension."""
    return {
        key: x.float() if x.is_floating_point() else x.squeeze()
        for key, x in read_golden(name).items()
    }


def config_of(name: str, **changes: Any) -> TFCLIPConfig:
    if name == "timm:resnet50_clip.openai" and TIMM_VERSION < (1, 0, 31):
        pytest.skip("this tower takes frames that are not square from timm 1.0.31 on")
    return TFCLIPConfig(
        **{
            "backbone": name,
            "backbone_options": FAMILIES[name][0],
            "frame_size": (64, 32),
            "num_cameras": 3 if name in WITH_CAMERAS else 0,
            **changes,
        }
    )


def build(name: str, **changes: Any) -> Any:
    """A tower whose every parameter is random, so that none hides behind a zero."""
    torch.manual_seed(0)
    backbone = build_backbone(config_of(name, **changes)).eval()
    for parameter in backbone.parameters():
        if parameter.ndim < 2 or parameter.abs().sum() == 0:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return backbone


@cache
def shared(name: str) -> Any:
    """The same, built once; not to be changed."""
    return build(name)


def codes(width: int, count: int = 3) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))
