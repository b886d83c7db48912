"""CLIP's own towers, built by open_clip, so that official checkpoints load under their names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tfclip import speed
from tfclip.attention import QuickGELU
from tfclip.backbones.base import Backbone, Part, patch_grid, unknown_backbone
from tfclip.backbones.blocks import is_as_built, run_block
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError
from tfclip.merging import Merged

_TRANSFORMER_OPTIONS = ("width", "layers", "heads", "patch_size", "mlp_ratio", "output_dim")
_RESNET_OPTIONS = ("width", "layers", "heads", "output_dim")


class CLIPVisionTransformer(Backbone):
    """CLIP's vision transformer, built by open_clip, with overlapping patches when asked.

    Args:
        config: Frame size, stride and activation are read from it.
        sizes: open_clip's sizes of the tower, with ``output_dim``.
    """

    merges_tokens = True

    def __init__(self, config: TFCLIPConfig, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        from open_clip.transformer import VisionTransformer

        if sizes.get("attentional_pool"):
            raise ConfigError(
                f"backbone {config.backbone!r} pools by attention and has no class token; "
                "choose one that reads out its class token, such as 'ViT-B-16'"
            )
        patch, width = sizes["patch_size"], sizes["width"]
        stride = config.stride or patch
        self.grid = patch_grid(config.frame_size, patch, stride)
        activation = QuickGELU if config.activation == "quick_gelu" else nn.GELU
        sizes = {**sizes, "image_size": config.frame_size}
        tower: Any = VisionTransformer(**sizes, act_layer=activation)
        if stride != patch:
            tower.conv1 = nn.Conv2d(3, width, patch, stride=stride, bias=False)
        tower.positional_embedding = nn.Parameter(
            torch.randn(1 + math.prod(self.grid), width) / width**0.5
        )
        tower.grid_size = self.grid
        self.tower = tower
        self.has_class_token = sizes.get("pool_type", "tok") == "tok"
        self.width, self.projected_width = width, sizes["output_dim"]

    def forward(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames; see ``Backbone.forward``."""
        if not speed.is_inference(frames):
            return self._encode(frames, camera_code)
        return self._in_pieces(self._encode, frames, camera_code)

    def encode_class(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames to their class token alone; see ``Backbone.encode_class``."""
        if not self.has_class_token:
            return self(frames, camera_code)
        run = functools.partial(self._encode, only_class=True)
        if not speed.is_inference(frames):
            return run(frames, camera_code)
        return self._in_pieces(run, frames, camera_code)

    def _in_pieces(
        self, run: Callable[..., Tensor], frames: Tensor, camera_code: Tensor | None
    ) -> Tensor:
        size = speed.frames_at_once(frames, 4 * self.width, 1 + math.prod(self.grid))
        return speed.in_pieces(run, size, frames, camera_code)

    def _encode(
        self, frames: Tensor, camera_code: Tensor | None, only_class: bool = False
    ) -> Tensor:
        tower = self.tower
        tokens = self._run_blocks(self._embed(frames, camera_code), only_class)
        if self.has_class_token:
            return tower.ln_post(tokens)
        # CLIPA reads out the mean of its patches; some of its towers normalise it, not the tokens.
        normed = tower.ln_post(tokens[:, 1:])
        pooled = normed.mean(1)
        if tower.final_ln_after_pool:
            pooled = tower.ln_post(tokens[:, 1:].mean(1))
        return torch.cat([pooled[:, None], normed], dim=1)

    def _embed(self, frames: Tensor, camera_code: Tensor | None) -> Tensor:
        """Return what goes into the first block, (M, N, D)."""
        tower = self.tower
        patches = rearrange(tower.conv1(frames), "m d h w -> m (h w) d")
        class_token = tower.class_embedding.expand(frames.shape[0], -1)
        if camera_code is not None and self.has_class_token:
            class_token = class_token + camera_code
        elif camera_code is not None:
            patches = patches + camera_code[:, None]
        tokens = torch.cat([class_token[:, None].to(patches.dtype), patches], dim=1)
        return tower.ln_pre(tokens + tower.positional_embedding.to(tokens.dtype))

    def _run_blocks(self, tokens: Tensor, only_class: bool) -> Tensor:
        transformer = self.tower.transformer
        merging = self.merged_tokens > 0
        if not (merging or speed.is_inference(tokens)) or not all(
            map(is_as_built, transformer.resblocks)
        ):
            return transformer(tokens)[:, :1] if only_class else transformer(tokens)
        last = len(transformer.resblocks) - 1
        merged = Merged(tokens)
        for i, block in enumerate(transformer.resblocks):
            merged = run_block(
                block, merged, merge=self.merged_tokens, only_class=only_class and i == last
            )
        return merged.values if only_class else merged.unmerge()

    def project(self, tokens: Tensor) -> Tensor:
        """Multiply every token by the projection matrix."""
        return tokens @ self.tower.proj

    def stages(self) -> Iterator[Sequence[Part]]:
        """Yield the patch embedding with its tables, then each transformer block."""
        tower = self.tower
        yield [tower.conv1, tower.class_embedding, tower.positional_embedding, tower.ln_pre]
        yield from ([block] for block in tower.transformer.resblocks)


class CLIPResNet(Backbone):
    """CLIP's ResNet with last stride 1 and an attention pool that returns all positions.

    Its tokens are those the attention pool works on: the mean over the map, then every position of
    the map. The reference's ResNet does not run as a whole; only this encoder is compared with it.

    Args:
        config: The frame size is read from it.
        sizes: open_clip's sizes of the tower, with ``output_dim``.
    """

    accepts_camera = False  # the reference's ResNet never uses cameras
    projects_linearly = False

    def __init__(self, config: TFCLIPConfig, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet

        height, width = config.frame_size
        if height % 16 or width % 16 or config.stride not in (None, 16):
            raise ConfigError(
                f"a CLIP ResNet has stride 16 and frame sides that are multiples of 16, "
                f"got stride {config.stride} and frame_size {config.frame_size}"
            )
        self.width = sizes["width"] * 32
        self.projected_width = sizes["output_dim"]
        self.grid = (height // 16, width // 16)
        tower: Any = ModifiedResNet(
            layers=sizes["layers"],
            output_dim=self.projected_width,
            heads=sizes["heads"],
            width=sizes["width"],
        )
        # The last stage keeps its resolution, as in the reference.
        tower.layer4[0].avgpool = nn.Identity()
        tower.layer4[0].downsample[0] = nn.Identity()
        tower.attnpool.positional_embedding = nn.Parameter(
            torch.randn(1 + math.prod(self.grid), self.width) / self.width**0.5
        )
        self.tower = tower
        self.has_class_token = False
        self._checkpointing = False

    def forward(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames; ``camera_code`` must be None."""
        x = self.tower.stem(frames)
        for stage in self._layers():
            if self._checkpointing and self.training:
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
        positions = rearrange(x, "m d h w -> m (h w) d")
        return torch.cat([positions.mean(1, keepdim=True), positions], dim=1)

    def project(self, tokens: Tensor) -> Tensor:
        """Run the attention pool, every token a query."""
        return self._pool(tokens, slice(None))

    def project_class(self, tokens: Tensor) -> Tensor:
        """Run the attention pool with the mean as its only query, as CLIP does."""
        return self._pool(tokens, slice(0, 1))[:, 0]

    def _pool(self, tokens: Tensor, queries: slice) -> Tensor:
        pool = self.tower.attnpool
        leading = tokens.shape[:-2]
        x = tokens.flatten(0, -3) + pool.positional_embedding.to(tokens.dtype)
        query, key, value = (
            rearrange(y, "m n (h d) -> m h n d", h=pool.num_heads)
            for y in (pool.q_proj(x[:, queries]), pool.k_proj(x), pool.v_proj(x))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        projected = pool.c_proj(rearrange(attended, "m h n d -> m n (h d)"))
        return projected.unflatten(0, leading)

    def _layers(self) -> list[nn.Module]:
        tower = self.tower
        return [tower.layer1, tower.layer2, tower.layer3, tower.layer4]

    def stages(self) -> Iterator[Sequence[Part]]:
        """Yield the stem, then each of the four stages."""
        tower = self.tower
        yield [tower.conv1, tower.bn1, tower.conv2, tower.bn2, tower.conv3, tower.bn3]
        yield from ([layer] for layer in self._layers())

    def set_gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute each of the four stages in the backward pass.

        Their batch norms then see each batch twice, and their running statistics move faster.
        """
        self._checkpointing = enable


def open_clip_sizes(config: TFCLIPConfig) -> dict[str, Any]:
    """Return the sizes that open_clip records for a tower, changed by the config's options.

    Only those of a transformer have a ``patch_size``.
    """
    import open_clip

    # Only what open_clip has built in: it takes names with a prefix for files and addresses.
    if config.backbone not in open_clip.list_models():
        raise unknown_backbone(config.backbone, open_clip.list_models(), "")
    known: Any = open_clip.get_model_config(config.backbone)
    sizes = {**known["vision_cfg"], "output_dim": known["embed_dim"]}
    if "timm_model_name" in sizes:
        raise ConfigError(
            f"backbone {config.backbone!r} is a timm model; "
            f"name it 'timm:{sizes['timm_model_name']}'"
        )
    if is_resnet := isinstance(sizes["layers"], list):
        sizes.pop("patch_size", None)
    else:
        sizes.setdefault("mlp_ratio", 4.0)
    _check_options(config, is_resnet)
    sizes |= config.backbone_options
    for name in ("image_size", "output_tokens"):
        sizes.pop(name, None)
    width = sizes["width"] * (32 if is_resnet else 1)
    head_width = sizes.pop("head_width", 64)
    if width % sizes.setdefault("heads", max(1, width // head_width)):
        raise ConfigError(
            f"backbone_options heads must divide the width of the tokens, {width}, "
            f"got {sizes['heads']}"
        )
    return sizes


def _check_options(config: TFCLIPConfig, is_resnet: bool) -> None:
    """Refuse sizes that open_clip's towers of this kind do not have, or that are no sizes."""
    known = _RESNET_OPTIONS if is_resnet else _TRANSFORMER_OPTIONS
    unknown = sorted(set(config.backbone_options) - set(known))
    if unknown:
        raise ConfigError(
            f"backbone_options {unknown} are unknown for {config.backbone!r}; "
            f"known are {sorted(known)}"
        )
    for name, value in config.backbone_options.items():
        numbers, rule, kinds = [value], "a positive whole number", (int,)
        if name == "mlp_ratio":
            rule, kinds = "a positive number", (int, float)
        elif name == "layers" and is_resnet:
            rule = "four positive whole numbers"
            numbers = value if isinstance(value, (list, tuple)) and len(value) == 4 else [None]
        if not all(isinstance(n, kinds) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise ConfigError(f"backbone_options {name} must be {rule}, got {value!r}")
