"""Every tower that is not CLIP's own: timm's vision transformers and convolutional networks."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tfclip.backbones.base import (
    Backbone,
    Part,
    patch_grid,
    resize_position_table,
    unknown_backbone,
)
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError
from tfclip.untrusted import first_line

# timm models and tags whose last layer maps into a joint image-text space, unless the tag was tuned
# ("ft") on labels; the last layer of any other is a classifier.
_JOINT_EMBEDDING_NAMES = ("clip", "pe_core")
_TUNED_ON_LABELS = "_ft_"


class TimmBackbone(Backbone):
    """Any timm model that gives a sequence or a map of features.

    Token 0 is the model's own class token. A model without one has the vector that it pools there;
    so has a model that pools by attention (SigLIP, PE-core), because that vector, not its class
    token, was trained to stand for the image. Such a class token then counts as a register.

    Args:
        config: Backbone name, options, frame size and stride are read from it.
        pretrained: Whether timm fetches the weights of this name, ``timm:NAME.TAG``.
    """

    def __init__(self, config: TFCLIPConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.tower = tower = _create_timm(config, pretrained=pretrained).eval()
        if config.stride is not None:
            _overlap_patches(tower, config, config.stride)
        self.num_prefix = int(getattr(tower, "num_prefix_tokens", 0))
        has_class_token = getattr(tower, "cls_token", None) is not None and self.num_prefix > 0
        self.has_class_token = has_class_token and getattr(tower, "global_pool", "") != "map"
        self.num_registers = self.num_prefix - int(self.has_class_token)
        with torch.no_grad():  # the sizes are easier seen than worked out
            try:
                features = tower.forward_features(torch.zeros(1, 3, *config.frame_size))
                tokens = self._tokens(features)
            except Exception as error:  # each of timm's models refuses in its own way
                raise ConfigError(
                    f"{config.backbone!r} cannot encode frames of {config.frame_size} to tokens: "
                    f"{first_line(error)}"
                ) from error
            self.grid = _feature_grid(features, tower, self.num_prefix)
            self.accepts_camera = features.ndim == 3 and hasattr(tower, "norm_pre")
            self.width = tokens.shape[-1]
            self.projected_width = self.project(tokens).shape[-1]
        tower.train()

    def forward(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames; see ``Backbone.forward``."""
        if camera_code is None:
            return self._tokens(self.tower.forward_features(frames))

        # The first blocks' norm takes the tokens with the position table in them already, but the
        # sum is the same in either order. The tower itself is not changed, not even for a while:
        # other threads may be using it.
        tower = copy.copy(self.tower)
        tower._modules = {
            **tower._modules,
            "norm_pre": _AddCamera(tower.norm_pre, camera_code, self.has_class_token),
        }
        return self._tokens(tower.forward_features(frames))

    def _tokens(self, features: Tensor) -> Tensor:
        """Put the vector that stands for the image first."""
        if self.has_class_token:
            return features
        pooled = self.tower.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            features = _map_to_sequence(features, self.tower)
        return torch.cat([pooled[:, None], features], dim=1)

    def project(self, tokens: Tensor) -> Tensor:
        """Apply the model's last linear layer, if it maps into a joint space."""
        return _timm_projection(self.tower)(tokens)

    def stages(self) -> Iterator[Sequence[Part]]:
        """Yield what stands before the blocks, then each block or stage.

        Raises:
            ValueError: The tower has no blocks or stages under a name that is known.
        """
        embedding: list[Part] = list(self.tower.parameters(recurse=False))
        blocks: list[nn.Module] = []
        for name, part in self.tower.named_children():
            if name in ("blocks", "stages", "layers"):
                blocks += part.children()
            elif re.fullmatch(r"layer\d", name):
                blocks.append(part)
            elif not blocks:
                embedding.append(part)
        if not blocks:
            raise ValueError(
                f"num_blocks must be None for {type(self.tower).__name__}, whose blocks are not "
                "known by name"
            )
        yield embedding
        yield from ([block] for block in blocks)


class _AddCamera(nn.Module):
    """Adds a vector to the class token, or to every token, and goes on with the next layer."""

    def __init__(self, following: nn.Module, camera_code: Tensor, has_class_token: bool) -> None:
        super().__init__()
        self.following = following
        self.camera_code = camera_code[:, None]
        self.has_class_token = has_class_token

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.has_class_token:
            return self.following(tokens + self.camera_code)
        class_token = tokens[:, :1] + self.camera_code
        return self.following(torch.cat([class_token, tokens[:, 1:]], dim=1))


def _create_timm(config: TFCLIPConfig, *, pretrained: bool) -> Any:
    """Let timm build a model for this frame size."""
    import timm

    name = config.backbone.removeprefix("timm:")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_backbone(config.backbone, timm.list_models(), "timm:")
    tags = timm.list_pretrained(f"{architecture}.*")
    if "." in name and name not in tags:
        raise ConfigError(
            f"backbone {config.backbone!r} has a tag that timm does not know; "
            f"its tags are {[known.partition('.')[2] for known in tags]}"
        )
    options = {"num_classes": _joint_width(name, tags), **config.backbone_options}
    num_classes = options.pop("num_classes")

    def create(**size: Any) -> Any:
        return timm.create_model(name, pretrained=pretrained, **size, **options)

    try:
        tower = _with_size_if_taken(create, config.frame_size)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{config.backbone!r} cannot be built with frame_size {config.frame_size} and "
            f"backbone_options {dict(config.backbone_options)}: {first_line(error)}"
        ) from error
    # timm loads strictly only with the last layer that the weights have, so it goes afterwards.
    if tower.num_classes != num_classes:
        tower.reset_classifier(num_classes)
    return tower


def _with_size_if_taken(create: Callable[..., Any], frame_size: tuple[int, int]) -> Any:
    try:
        return create(img_size=frame_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return create()  # it takes frames of any size


def _joint_width(name: str, tags: list[str]) -> int:
    """Return the width of the image-text space that a timm model maps into; 0 is none.

    timm calls it the number of classes.
    """
    import timm

    if not any(part in name for part in _JOINT_EMBEDDING_NAMES):
        return 0
    candidates = [name] if name in tags else tags
    for known in candidates:
        settings = timm.get_pretrained_cfg(known)
        if settings is not None and _TUNED_ON_LABELS not in known:
            return settings.num_classes
    return 0


def _timm_projection(tower: Any) -> nn.Module:
    """Return the last linear layer of a timm model, or an identity."""
    head: Any = tower.head if hasattr(tower, "head") else nn.Identity()
    for name in ("proj", "fc"):  # attention pools and classifier heads of convolutional models
        head = getattr(head, name, head)
    return head


def _feature_grid(features: Tensor, tower: Any, num_prefix: int) -> tuple[int, int]:
    """Return rows and columns of the places that a timm model has features for."""
    if features.ndim == 4:
        sides = features.shape[1:3] if _channels_last(features, tower) else features.shape[2:]
        return sides[0], sides[1]
    grid = getattr(getattr(tower, "patch_embed", None), "grid_size", None)
    if features.ndim != 3 or grid is None or features.shape[1] != num_prefix + math.prod(grid):
        raise ConfigError(
            f"{type(tower).__name__} gives features of shape {tuple(features.shape)}, "
            "which are neither tokens of a grid of patches nor a map"
        )
    return grid[0], grid[1]


def _channels_last(features: Tensor, tower: Any) -> bool:
    return features.shape[1] != tower.num_features


def _map_to_sequence(features: Tensor, tower: Any) -> Tensor:
    if _channels_last(features, tower):
        return rearrange(features, "m h w d -> m (h w) d")
    return rearrange(features, "m d h w -> m (h w) d")


def _overlap_patches(tower: Any, config: TFCLIPConfig, stride: int) -> None:
    """Give a timm vision transformer a stride smaller than its patch."""
    embed: Any = getattr(tower, "patch_embed", None)
    table = getattr(tower, "pos_embed", None)
    projection = getattr(embed, "proj", None)
    # A rotary tower computes its positions from the patch size, which is the stride no longer.
    rotary = getattr(tower, "rope", None) is not None
    if not isinstance(projection, nn.Conv2d) or not isinstance(table, nn.Parameter) or rotary:
        raise ConfigError(
            f"stride must be None for {config.backbone!r}, which has no plain table of positions, "
            f"got {stride}"
        )
    grid = patch_grid(config.frame_size, projection.kernel_size[0], stride)
    projection.stride = (stride, stride)
    resized = resize_position_table(
        table.detach()[0], grid, config.position_resize, source_grid=embed.grid_size
    )
    tower.pos_embed = nn.Parameter(resized[None])
    embed.grid_size, embed.num_patches = grid, math.prod(grid)
