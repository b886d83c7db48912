"""Image towers that give one token sequence per frame, behind one small interface.

open_clip builds CLIP's transformers and ResNets, so that the keys of official checkpoints load as
they are; timm builds the rest. The paper's encoder is CLIP's ViT-B/16 (section "Image encoder").
"""

from __future__ import annotations

import abc
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tfclip.attention import QuickGELU
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError, WeightsError

# timm models whose last layer maps into a joint image-text space; any other's is a classifier.
_JOINT_EMBEDDING_NAMES = ("clip", "pe_core")


class Backbone(nn.Module, abc.ABC):
    """Frames to tokens.

    The tokens of a frame are, in order: one class token (or, for a tower without one, the vector
    that the tower itself pools), ``num_registers`` tokens that stand for no place in the frame, and
    the patches, row by row.

    Attributes:
        tower: The network as its library builds it.
        width: Width of the tokens, ``D``.
        projected_width: Width of the projected tokens, ``E``; ``D`` for towers without projection.
        grid: Rows and columns of patches.
        num_registers: Register and other prefix tokens after the class token.
        has_class_token: Whether token 0 goes through the tower; if not, it is pooled at its end.
        accepts_camera: Whether a camera vector can be added.
        projects_linearly: Whether ``project`` treats each token alone and linearly.
    """

    tower: nn.Module
    width: int
    projected_width: int
    grid: tuple[int, int]
    num_registers: int = 0
    has_class_token: bool = True
    accepts_camera: bool = True
    projects_linearly: bool = True

    @abc.abstractmethod
    def forward(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames.

        Args:
            frames: Normalised frames, ``(M, 3, H, W)``.
            camera_code: Vector to add for each frame's camera, ``(M, D)``, or None. It is added to
                the class token alone, before the position table; a tower without a class token
                takes it on every patch.

        Returns:
            Tokens, ``(M, 1 + num_registers + patches, D)``.
        """

    @abc.abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Project tokens, ``(..., N, D)``, into the joint space, ``(..., N, E)``."""

    def project_class(self, tokens: Tensor) -> Tensor:
        """Project the class token alone: ``(M, N, D)`` to ``(M, E)``."""
        return self.project(tokens[:, :1])[:, 0]

    def without_registers(self, tokens: Tensor) -> Tensor:
        """Drop the register tokens, which never enter a frame's mean: ``(M, 1 + patches, D)``."""
        if not self.num_registers:
            return tokens
        return torch.cat([tokens[:, :1], tokens[:, 1 + self.num_registers :]], dim=1)

    @abc.abstractmethod
    def stages(self) -> Iterator[list[nn.Module | nn.Parameter]]:
        """Yield the parts of the tower from input to output: embedding, then each block."""

    def freeze(self, num_blocks: int | None = None) -> None:
        """Stop the learning of the whole tower, or of its embedding and first blocks.

        Args:
            num_blocks: Blocks to freeze after the embedding; None freezes everything.

        Raises:
            ValueError: There are not that many blocks.
        """
        stages = list(self.stages())
        if num_blocks is not None and not 0 <= num_blocks < len(stages):
            raise ValueError(f"num_blocks must be 0 to {len(stages) - 1}, got {num_blocks}")
        frozen = [[self.tower]] if num_blocks is None else stages[: num_blocks + 1]
        for part in (part for stage in frozen for part in stage):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def set_gradient_checkpointing(self, enable: bool = True) -> None:
        """Trade a second forward of each block for the memory of its activations, in training."""
        self.tower.set_grad_checkpointing(enable)  # type: ignore[operator]

    def load_tower(self, tensors: Mapping[str, Tensor], position_resize: str) -> None:
        """Load the visual tensors of a CLIP, resizing its position table to this grid.

        Args:
            tensors: Tensors under OpenAI's names without ``visual.``, any floating dtype.
            position_resize: ``"bilinear"`` or ``"bicubic"``.

        Raises:
            WeightsError: Tensors are missing, unexpected or of another shape.
        """
        from tfclip.hub import load_weights

        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        for name in ("positional_embedding", "attnpool.positional_embedding"):
            if name in tensors:
                tensors[name] = resize_position_table(tensors[name], self.grid, position_resize)
        load_weights(self.tower, tensors, "the CLIP weights")


class CLIPVisionTransformer(Backbone):
    """CLIP's vision transformer, built by open_clip, with overlapping patches when asked.

    Args:
        config: Frame size, stride and activation are read from it.
        sizes: open_clip's sizes of the tower, with ``output_dim``.
    """

    def __init__(self, config: TFCLIPConfig, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        from open_clip.transformer import VisionTransformer

        sizes = {name: value for name, value in sizes.items() if name != "output_tokens"}
        patch, width = sizes["patch_size"], sizes["width"]
        self.stride = config.stride or patch
        self.grid = patch_grid(config.frame_size, patch, self.stride)
        if "head_width" in sizes:
            sizes["heads"] = width // sizes.pop("head_width")
        sizes = {"heads": max(1, width // 64), "mlp_ratio": 4.0, "ls_init_value": None, **sizes}
        if sizes.get("attentional_pool"):
            raise ConfigError(
                f"backbone {config.backbone!r} pools by attention and has no class token; "
                "choose one that reads out its class token, such as 'ViT-B-16'"
            )
        activation = QuickGELU if config.activation == "quick_gelu" else nn.GELU
        tower = VisionTransformer(
            **{**sizes, "image_size": config.frame_size}, act_layer=activation
        )
        if self.stride != patch:
            tower.conv1 = nn.Conv2d(3, width, patch, stride=self.stride, bias=False)
        scale = width**-0.5
        tower.positional_embedding = nn.Parameter(
            scale * torch.randn(1 + math.prod(self.grid), width)
        )
        tower.grid_size = self.grid
        self.tower = tower
        self.has_class_token = sizes.get("pool_type", "tok") == "tok"
        self.width, self.projected_width = width, sizes["output_dim"]

    def forward(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames; see ``Backbone.forward``."""
        tower = self.tower
        patches = rearrange(tower.conv1(frames), "m d h w -> m (h w) d")
        class_token = tower.class_embedding.expand(len(frames), -1)
        if camera_code is not None and self.has_class_token:
            class_token = class_token + camera_code
        elif camera_code is not None:
            patches = patches + camera_code[:, None]
        tokens = torch.cat([class_token[:, None].to(patches.dtype), patches], dim=1)
        tokens = tower.ln_pre(tokens + tower.positional_embedding.to(tokens.dtype))
        tokens = tower.transformer(tokens)
        if self.has_class_token:
            return tower.ln_post(tokens)
        # CLIPA reads out the mean of its patches; some of its towers normalise it, not the tokens.
        normed = tower.ln_post(tokens[:, 1:])
        pooled = (
            tower.ln_post(tokens[:, 1:].mean(1)) if tower.final_ln_after_pool else normed.mean(1)
        )
        return torch.cat([pooled[:, None], normed], dim=1)

    def project(self, tokens: Tensor) -> Tensor:
        """Multiply every token by the projection matrix."""
        return tokens @ self.tower.proj

    def stages(self) -> Iterator[list[nn.Module | nn.Parameter]]:
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
        tower = ModifiedResNet(
            layers=sizes["layers"],
            output_dim=self.projected_width,
            heads=sizes.get("heads", self.width // 64),
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

    def stages(self) -> Iterator[list[nn.Module | nn.Parameter]]:
        """Yield the stem, then each of the four stages."""
        tower = self.tower
        yield [tower.conv1, tower.bn1, tower.conv2, tower.bn2, tower.conv3, tower.bn3]
        yield from ([layer] for layer in self._layers())

    def set_gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute each of the four stages in the backward pass."""
        self._checkpointing = enable


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
            _overlap_patches(tower, config)
        self.num_prefix = int(getattr(tower, "num_prefix_tokens", 0))
        has_class_token = getattr(tower, "cls_token", None) is not None and self.num_prefix > 0
        self.has_class_token = has_class_token and getattr(tower, "global_pool", "") != "map"
        self.num_registers = self.num_prefix - int(self.has_class_token)
        self._projection = [_timm_projection(tower)]  # in a list: it is the tower's, not ours
        with torch.no_grad():  # the sizes are easier seen than worked out
            features = tower.forward_features(torch.zeros(1, 3, *config.frame_size))
            self.accepts_camera = features.ndim == 3 and hasattr(tower, "norm_pre")
            self.grid = _feature_grid(features, tower, self.num_prefix)
            tokens = self._tokens(features)
            self.width = tokens.shape[-1]
            self.projected_width = self.project(tokens).shape[-1]
        tower.train()

    def forward(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames; see ``Backbone.forward``."""
        if camera_code is None:
            return self._tokens(self.tower.forward_features(frames))

        def add_camera(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            # The position table is in already; the sum is the same in either order.
            tokens = inputs[0]
            if not self.has_class_token:
                return (tokens + camera_code[:, None],)
            class_token = tokens[:, :1] + camera_code[:, None]
            return (torch.cat([class_token, tokens[:, 1:]], dim=1),)

        hook = self.tower.norm_pre.register_forward_pre_hook(add_camera)
        try:
            return self._tokens(self.tower.forward_features(frames))
        finally:
            hook.remove()

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
        return self._projection[0](tokens)

    def stages(self) -> Iterator[list[nn.Module | nn.Parameter]]:
        """Yield what stands before the blocks, then each block or stage."""
        tower = self.tower
        blocks = getattr(tower, "blocks", None) or getattr(tower, "stages", None) or []
        names = ("patch_embed", "stem", "cls_token", "reg_token", "pos_embed", "norm_pre")
        parts = (getattr(tower, name, None) for name in names)
        yield [part for part in parts if part is not None]
        yield from ([block] for block in blocks)


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
        sizes = _open_clip_sizes(config)
        kind = CLIPResNet if isinstance(sizes["layers"], (list, tuple)) else CLIPVisionTransformer
        backbone = kind(config, sizes)
    if config.num_cameras and not backbone.accepts_camera:
        raise ConfigError(
            f"num_cameras must be 0 for {config.backbone!r}, which has no token to add a camera "
            f"vector to, got {config.num_cameras}"
        )
    return backbone


def patch_grid(frame_size: tuple[int, int], patch_size: int, stride: int) -> tuple[int, int]:
    """Return the rows and columns of patches that a frame gives.

    Raises:
        ConfigError: The frame is smaller than a patch, or the stride passes over pixels.

    Example:
        >>> patch_grid((256, 128), 16, 12)
        (21, 10)
    """
    if stride > patch_size:
        raise ConfigError(f"stride must be at most the patch size {patch_size}, got {stride}")
    if min(frame_size) < patch_size:
        raise ConfigError(
            f"frame_size must be at least one patch of {patch_size} pixels, got {frame_size}"
        )
    height, width = ((side - patch_size) // stride + 1 for side in frame_size)
    return height, width


def resize_position_table(
    table: Tensor,
    grid: tuple[int, int],
    method: str = "bilinear",
    *,
    source_grid: tuple[int, int] | None = None,
) -> Tensor:
    """Resize a table of learned positions to another grid of patches.

    Args:
        table: Prefix rows (the class token's, say), then one row per patch, ``(P + h*w, D)``.
        grid: Rows and columns of the new grid.
        method: ``"bilinear"`` without antialiasing, as the reference resizes, or ``"bicubic"`` with
            antialiasing, as open_clip and timm do.
        source_grid: Rows and columns of the old grid; None is a square one with one prefix row.

    Returns:
        The table of the new grid, ``(P + rows*columns, D)``; the same one when the grid is.

    Raises:
        WeightsError: The table has no square grid and ``source_grid`` is not given.
    """
    if source_grid is None:
        if len(table) == 1 + math.prod(grid):
            return table
        side = math.isqrt(len(table) - 1)
        if side * side != len(table) - 1:
            raise WeightsError(
                f"the position table has {len(table)} rows, which is neither one and a square nor "
                f"one and the {grid[0]} x {grid[1]} patches of this model"
            )
        source_grid = (side, side)
    num_prefix = len(table) - math.prod(source_grid)
    prefix, patches = table[:num_prefix], table[num_prefix:]
    patches = rearrange(patches, "(h w) d -> 1 d h w", h=source_grid[0])
    bicubic = method == "bicubic"
    patches = F.interpolate(patches, size=grid, mode=method, align_corners=False, antialias=bicubic)
    return torch.cat([prefix, rearrange(patches, "1 d h w -> (h w) d")])


def _open_clip_sizes(config: TFCLIPConfig) -> dict[str, Any]:
    """Return the sizes that open_clip records for a tower, changed by the config's options."""
    import open_clip

    known = open_clip.get_model_config(config.backbone)
    if known is None or not isinstance(known.get("vision_cfg"), Mapping):
        raise _unknown_backbone(config.backbone, open_clip.list_models(), "")
    sizes = {**known["vision_cfg"], "output_dim": known["embed_dim"]}
    if "timm_model_name" in sizes:
        raise ConfigError(
            f"backbone {config.backbone!r} is a timm model; "
            f"name it 'timm:{sizes['timm_model_name']}'"
        )
    options = dict(config.backbone_options)
    unknown = sorted(set(options) - {*_OPEN_CLIP_OPTIONS})
    if unknown:
        raise ConfigError(
            f"backbone_options {unknown} are unknown for {config.backbone!r}; "
            f"known are {sorted(_OPEN_CLIP_OPTIONS)}"
        )
    if "heads" in options or "width" in options:
        sizes.pop("head_width", None)
    return {**sizes, **options}


_OPEN_CLIP_OPTIONS = ("width", "layers", "heads", "patch_size", "mlp_ratio", "output_dim")


def _unknown_backbone(name: str, known: list[str], prefix: str) -> ConfigError:
    near = difflib.get_close_matches(name.removeprefix(prefix), known, n=3, cutoff=0.4)
    nearest = ", ".join(repr(prefix + n) for n in near) or "none"
    return ConfigError(
        f"backbone {name!r} is unknown: it must be a model name of open_clip, or 'timm:' and a "
        f"model name of timm; the nearest are: {nearest}"
    )


def _create_timm(config: TFCLIPConfig, *, pretrained: bool) -> nn.Module:
    """Let timm build a model for this frame size."""
    import timm

    name = config.backbone.removeprefix("timm:")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown_backbone(config.backbone, timm.list_models(), "timm:")
    options: dict[str, Any] = dict(config.backbone_options)
    if not any(part in architecture for part in _JOINT_EMBEDDING_NAMES):
        options.setdefault("num_classes", 0)
    name = name if pretrained else architecture
    try:
        return timm.create_model(name, pretrained=pretrained, img_size=config.frame_size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise ConfigError(
                f"backbone_options {options} are not those of {config.backbone!r}: {error}"
            ) from error
    return timm.create_model(name, pretrained=pretrained, **options)  # it takes any frame size


def _timm_projection(tower: nn.Module) -> nn.Module:
    """Return the last linear layer of a timm model, or an identity."""
    head: Any = tower.head if hasattr(tower, "head") else nn.Identity()
    for name in ("proj", "fc"):  # attention pools and classifier heads of convolutional models
        head = getattr(head, name, head)
    return head


def _feature_grid(features: Tensor, tower: nn.Module, num_prefix: int) -> tuple[int, int]:
    """Return rows and columns of the places that a timm model has features for."""
    if features.ndim == 4:
        rows, columns = (
            features.shape[1:3] if _channels_last(features, tower) else features.shape[2:]
        )
        return rows, columns
    grid = getattr(getattr(tower, "patch_embed", None), "grid_size", None)
    if features.ndim != 3 or grid is None or features.shape[1] != num_prefix + math.prod(grid):
        raise ConfigError(
            f"{type(tower).__name__} gives features of shape {tuple(features.shape)}, "
            "which are neither tokens of a grid of patches nor a map"
        )
    return grid[0], grid[1]


def _channels_last(features: Tensor, tower: nn.Module) -> bool:
    return features.shape[1] != tower.num_features


def _map_to_sequence(features: Tensor, tower: nn.Module) -> Tensor:
    if _channels_last(features, tower):
        return rearrange(features, "m h w d -> m (h w) d")
    return rearrange(features, "m d h w -> m (h w) d")


def _overlap_patches(tower: nn.Module, config: TFCLIPConfig) -> None:
    """Give a timm vision transformer a stride smaller than its patch."""
    embed: Any = getattr(tower, "patch_embed", None)
    table = getattr(tower, "pos_embed", None)
    projection = getattr(embed, "proj", None)
    # A rotary tower computes its positions from the patch size, which is the stride no longer.
    rotary = getattr(tower, "rope", None) is not None
    if not isinstance(projection, nn.Conv2d) or not isinstance(table, nn.Parameter) or rotary:
        raise ConfigError(
            f"stride must be None for {config.backbone!r}, which has no plain table of positions, "
            f"got {config.stride}"
        )
    assert config.stride is not None
    grid = patch_grid(config.frame_size, projection.kernel_size[0], config.stride)
    projection.stride = (config.stride, config.stride)
    resized = resize_position_table(
        table.detach()[0], grid, config.position_resize, source_grid=embed.grid_size
    )
    tower.pos_embed = nn.Parameter(resized[None])
    embed.grid_size, embed.num_patches = grid, math.prod(grid)
