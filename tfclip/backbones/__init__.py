"""Image towers that give one token sequence per frame, behind one small interface.

open_clip builds CLIP's transformers and ResNets, so that the keys of official checkpoints load as
they are; timm builds the rest. The paper's encoder is CLIP's ViT-B/16 (section "Image encoder").
"""

from __future__ import annotations

import importlib

from tfclip.backbones.base import Backbone, patch_grid, resize_position_table
from tfclip.backbones.clip import CLIPResNet, CLIPVisionTransformer, open_clip_sizes
from tfclip.backbones.timm_tower import TimmBackbone
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError

__all__ = [
    "Backbone",
    "CLIPResNet",
    "CLIPVisionTransformer",
    "TimmBackbone",
    "build_backbone",
    "import_library",
    "patch_grid",
    "resize_position_table",
]


def build_backbone(config: TFCLIPConfig, *, pretrained: bool = False) -> Backbone:
    """Build the tower that a configuration names, with random weights.

    Args:
        config: ``backbone``, ``backbone_options``, ``frame_size``, ``stride`` and ``activation``
            are read from it.
        pretrained: For ``timm:NAME.TAG``, let timm fetch the weights of that tag.

    Raises:
        ConfigError: The backbone is unknown, its options are not its own, or the frames do not fit.
    """
    if config.is_timm:
        backbone: Backbone = TimmBackbone(config, pretrained=pretrained)
    else:
        sizes = open_clip_sizes(config)
        kind = CLIPVisionTransformer if "patch_size" in sizes else CLIPResNet
        backbone = kind(config, sizes)
    if config.num_cameras and not backbone.accepts_camera:
        raise ConfigError(
            f"num_cameras must be 0 for {config.backbone!r}, which has no token to add a camera "
            f"vector to, got {config.num_cameras}"
        )
    return backbone


def import_library(config: TFCLIPConfig) -> None:
    """Import what builds the tower, which takes a while.

    To be done before a tower is built on the meta device or under any other torch function mode:
    timm asks for torch's compiler, which torch 2.6 cannot import under one.
    """
    importlib.import_module("timm" if config.is_timm else "open_clip")
