"""What every tower has in common: tokens, their projection, freezing, tables of positions."""

from __future__ import annotations

import abc
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tfclip.errors import ConfigError, WeightsError
from tfclip.tensors import load_weights

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
        merges_tokens: Whether tokens can be merged inside the tower.
        merged_tokens: How many tokens each block merges away; see ``TFCLIP.merge_tokens``.
    """

    tower: Any
    width: int
    projected_width: int
    grid: tuple[int, int]
    num_registers: int = 0
    has_class_token: bool = True
    accepts_camera: bool = True
    projects_linearly: bool = True
    merges_tokens: bool = False
    merged_tokens: int = 0

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

    def encode_class(self, frames: Tensor, camera_code: Tensor | None = None) -> Tensor:
        """Encode frames of which only the class token is wanted.

        Arguments as in ``forward``.

        Returns:
            Tokens, ``(M, 1, D)``, the same as the first that ``forward`` gives; or all of them,
            where a tower saves nothing by it.
        """
        return self(frames, camera_code)

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
        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        for name in ("positional_embedding", "attnpool.positional_embedding"):
            if name in tensors and tensors[name].ndim == 2:
                tensors[name] = resize_position_table(tensors[name], self.grid, position_resize)
        load_weights(self.tower, tensors, "the CLIP checkpoint")


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


def unknown_backbone(name: str, known: list[str], prefix: str) -> ConfigError:
    """Return the error that says so and names what may have been meant."""
    near = difflib.get_close_matches(name.removeprefix(prefix), known, n=3, cutoff=0.4)
    nearest = ", ".join(repr(prefix + n) for n in near) or "none"
    return ConfigError(
        f"backbone {name!r} is unknown: it must be a model name of open_clip, or 'timm:' and a "
        f"model name of timm; the nearest are: {nearest}"
    )
