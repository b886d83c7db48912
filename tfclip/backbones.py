"""Image towers that give one token sequence per frame, behind one small interface.

open_clip builds CLIP's transformers and ResNets, so that the keys of official checkpoints load as
they are; timm builds the rest. The paper's encoder is CLIP's ViT-B/16 (section "Image encoder").
"""

from __future__ import annotations

import abc
import copy
import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tfclip.attention import QuickGELU
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError, WeightsError

# timm models and tags whose last layer maps into a joint image-text space, unless the tag was tuned
# ("ft") on labels; the last layer of any other is a classifier.
_JOINT_EMBEDDING_NAMES = ("clip", "pe_core")
_TUNED_ON_LABELS = "_ft_"

_TRANSFORMER_OPTIONS = ("width", "layers", "heads", "patch_size", "mlp_ratio", "output_dim")
_RESNET_OPTIONS = ("width", "layers", "heads", "output_dim")

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)

Part = nn.Module | nn.Parameter


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

    tower: Any
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
    def stages(self) -> Iterator[Sequence[Part]]:
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

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BATCH_NORMS) and not any(
                weight.requires_grad for weight in module.parameters()
            ):
                module.eval()
        return self

    def set_gradient_checkpointing(self, enable: bool = True) -> None:
        """Trade a second forward of each block for the memory of its activations, in training."""
        self.tower.set_grad_checkpointing(enable)

    def load_tower(self, tensors: Mapping[str, Tensor], position_resize: str) -> None:
        """Load the visual tensors of a CLIP, resizing its position table to this grid.

        Args:
            tensors: Tensors under OpenAI's names without ``visual.``, any floating dtype.
            position_resize: ``"bilinear"`` or ``"bicubic"``.

        Raises:
            WeightsError: Tensors are missing, unexpected or of another shape.
        """
        from tfclip.hub import load_weights

        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        for name in ("positional_embedding", "attnpool.positional_embedding"):
            if name in tensors and tensors[name].ndim == 2:
                tensors[name] = resize_position_table(tensors[name], self.grid, position_resize)
        load_weights(self.tower, tensors, "the CLIP checkpoint")


class CLIPVisionTransformer(Backbone):
    """CLIP's vision transformer, built by open_clip, with overlapping patches when asked.

    Args:
        config: Frame size, stride and activation are read from it.
        sizes: open_clip's sizes of the tower, with ``output_dim``.
    """

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
        pooled = normed.mean(1)
        if tower.final_ln_after_pool:
            pooled = tower.ln_post(tokens[:, 1:].mean(1))
        return torch.cat([pooled[:, None], normed], dim=1)

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
                    f"{_first_line(error)}"
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
        kind = CLIPVisionTransformer if "patch_size" in sizes else CLIPResNet
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
        source_grid: Rows and columns of the old grid; None is one prefix row and a square, as in
            all of CLIP's files, or failing that the new grid.

    Returns:
        The table of the new grid, ``(P + rows*columns, D)``; the same one when the grid is.

    Raises:
        WeightsError: The table is for neither grid and ``source_grid`` is not given.
    """
    if source_grid is None:
        source_grid = _find_source_grid(len(table) - 1, grid)
    if source_grid == grid:
        return table
    num_prefix = len(table) - math.prod(source_grid)
    prefix, patches = table[:num_prefix], table[num_prefix:]
    patches = rearrange(patches, "(h w) d -> 1 d h w", h=source_grid[0])
    bicubic = method == "bicubic"
    patches = F.interpolate(patches, size=grid, mode=method, align_corners=False, antialias=bicubic)
    return torch.cat([prefix, rearrange(patches, "1 d h w -> (h w) d")])


def _find_source_grid(num_patches: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the grid that a table is for: CLIP's are square, others are for this model."""
    side = math.isqrt(max(num_patches, 0))
    if num_patches > 0 and side * side == num_patches:
        return side, side
    if num_patches == math.prod(grid):
        return grid
    raise WeightsError(
        f"the position table has {num_patches + 1} rows, which is neither one and a square nor "
        f"one and the {grid[0]} x {grid[1]} patches of this model"
    )


def _open_clip_sizes(config: TFCLIPConfig) -> dict[str, Any]:
    """Return the sizes that open_clip records for a tower, changed by the config's options.

    Only those of a transformer have a ``patch_size``.
    """
    import open_clip

    # Only what open_clip has built in: it takes names with a prefix for files and addresses.
    if config.backbone not in open_clip.list_models():
        raise _unknown_backbone(config.backbone, open_clip.list_models(), "")
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


def _unknown_backbone(name: str, known: list[str], prefix: str) -> ConfigError:
    near = difflib.get_close_matches(name.removeprefix(prefix), known, n=3, cutoff=0.4)
    nearest = ", ".join(repr(prefix + n) for n in near) or "none"
    return ConfigError(
        f"backbone {name!r} is unknown: it must be a model name of open_clip, or 'timm:' and a "
        f"model name of timm; the nearest are: {nearest}"
    )


def _create_timm(config: TFCLIPConfig, *, pretrained: bool) -> Any:
    """Let timm build a model for this frame size."""
    import timm

    name = config.backbone.removeprefix("timm:")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown_backbone(config.backbone, timm.list_models(), "timm:")
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
            f"backbone_options {dict(config.backbone_options)}: {_first_line(error)}"
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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


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
