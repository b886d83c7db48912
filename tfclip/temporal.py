"""Temporal heads: frames of a clip to one temporal feature, in ways that can be exchanged.

``tmd`` is the method. ``tmc`` is its first half alone (the supplement's ablation A2; the readout is
our reading, the supplement does not state it). The others are the baselines of the supplement's
Table 5; they look at the projected class token of each frame only.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tfclip import speed
from tfclip.attention import SelfAttention, default_num_heads, feed_forward
from tfclip.config import TFCLIPConfig
from tfclip.diffusion import TemporalMemoryConstruction, TemporalMemoryDiffusion, as_weights
from tfclip.errors import ConfigError

# Rows of the baselines' position table: CLIP's text context, whose table they start from.
MAX_POSITIONS = 77

ReadTokens = Callable[[], Iterator[Tensor]]


class TemporalHead(nn.Module, abc.ABC):
    """What relates the frames of a clip.

    Attributes:
        width: Width of the feature it gives.
        order_free: Whether the frames are a set to it, so that a frame given twice and a frame of
            weight 2 are the same.
        reads_tokens: Whether it looks at all tokens, and not only at the projected class token.
        max_frames: The most frames that a clip may have; None is any number.
    """

    width: int
    order_free: bool = True
    reads_tokens: bool = False
    max_frames: int | None = None

    @abc.abstractmethod
    def forward(
        self, tokens: Tensor, projected: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Return one feature per frame.

        Args:
            tokens: Tokens of each frame without registers, ``(B, T, N, D)``.
            projected: Projected class token of each frame, ``(B, T, E)``.
            frame_mask: Which frames count, and how often, ``(B, T)``; see ``tfclip.diffusion``.

        Returns:
            Features, ``(B, T, width)``; their mean over frames is the temporal feature.
        """

    def stream(self, read_tokens: ReadTokens, weights: Tensor) -> Tensor:
        """Do the same for one clip whose tokens do not fit into memory at once.

        Only for heads that read tokens.

        Args:
            read_tokens: Gives the tokens of the clip in pieces, ``(t, N, D)``, each time anew.
            weights: How often each frame counts, ``(T,)``.

        Returns:
            Features, ``(T, width)``.
        """
        tokens = torch.cat(list(read_tokens()))
        return self(tokens[None], tokens[None, :, 0], weights[None])[0]


class DiffusionHead(TemporalHead):
    """Temporal Memory Diffusion; a frame's feature is the mean of its diffused tokens (Eq. 12)."""

    reads_tokens = True

    def __init__(self, config: TFCLIPConfig, dim: int) -> None:
        super().__init__()
        self.width = dim
        self.order_free = not config.temporal_position
        self.diffusion = TemporalMemoryDiffusion(
            dim,
            config.temporal_heads or default_num_heads(dim),
            config.temporal_depth or 1,
            drop_path=config.drop_path,
            temporal_position=config.temporal_position,
        )

    def forward(
        self, tokens: Tensor, projected: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Diffuse, then average the tokens of each frame."""
        if speed.is_watched(self.diffusion):
            return self.diffusion(tokens, frame_mask).mean(2)
        return self.diffusion.mean(tokens, frame_mask)

    def stream(self, read_tokens: ReadTokens, weights: Tensor) -> Tensor:
        """Read the tokens once for each round of messages and once for the result."""
        memories: list[Tensor] = []
        for construct in self.diffusion.constructions:
            assert isinstance(construct, TemporalMemoryConstruction)  # ModuleList forgets it
            messages = [
                construct.summarise(piece) for piece in self._diffused(read_tokens, memories)
            ]
            memories.append(construct.exchange(torch.cat(messages, dim=1), weights[None]))
        return torch.cat([piece.mean(2) for piece in self._diffused(read_tokens, memories)], 1)[0]

    def _diffused(self, read_tokens: ReadTokens, memories: list[Tensor]) -> Iterator[Tensor]:
        """Yield pieces, (1, t, n, D), after the rounds whose memories are known."""
        start = 0
        for piece in read_tokens():
            stop = start + len(piece)
            tokens = piece[None]
            for diffuse, memory in zip(self.diffusion.diffusions, memories, strict=False):
                tokens = diffuse(tokens, memory[:, start:stop])
            yield tokens
            start = stop


class ConstructionHead(TemporalHead):
    """Temporal memory construction alone; a frame's feature is its memory."""

    reads_tokens = True

    def __init__(self, config: TFCLIPConfig, dim: int) -> None:
        super().__init__()
        self.width = dim
        self.order_free = not config.temporal_position
        self.construction = TemporalMemoryConstruction(
            dim,
            config.temporal_heads or default_num_heads(dim),
            temporal_position=config.temporal_position,
        )

    def forward(
        self, tokens: Tensor, projected: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Return the memories."""
        return self.construction(tokens, frame_mask)

    def stream(self, read_tokens: ReadTokens, weights: Tensor) -> Tensor:
        """Read the tokens once, for the messages."""
        messages = [self.construction.summarise(piece[None]) for piece in read_tokens()]
        return self.construction.exchange(torch.cat(messages, dim=1), weights[None])[0]


class AverageHead(TemporalHead):
    """Temporal average pooling (TAP): nothing but the mean over frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.width = dim

    def forward(
        self, tokens: Tensor, projected: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Return the projected class tokens as they are."""
        return projected


class ConvolutionHead(TemporalHead):
    """Conv1D: a depthwise convolution of three frames, with a residual.

    It starts as a shift: a quarter of the channels takes the next frame, a half the same one and a
    quarter the one before.
    """

    order_free = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.width = dim
        self.convolution = nn.Conv1d(dim, dim, 3, padding=1, groups=dim, bias=False)
        quarter = dim // 4
        with torch.no_grad():
            taps = self.convolution.weight.zero_()
            taps[:quarter, 0, 2] = 1
            taps[quarter : dim - quarter, 0, 1] = 1
            taps[dim - quarter :, 0, 0] = 1

    def forward(
        self, tokens: Tensor, projected: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Convolve over time; frames that do not count are zero, as beyond the ends of a clip."""
        frames = projected
        if frame_mask is not None:
            frames = projected * (frame_mask > 0).to(projected)[..., None]
        # The released baseline views (B, T, E) as (B, E, T) and mixes both; this one transposes.
        return projected + self.convolution(frames.transpose(1, 2)).transpose(1, 2)


class _Block(nn.Module):
    """A pre-norm transformer block as in CLIP."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = feed_forward(dim)

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), weights)
        return x + self.mlp(self.mlp_norm(x))


class TransformerHead(TemporalHead):
    """Transf: positions and pre-norm transformer blocks over the frames, with a residual."""

    order_free = False
    max_frames = MAX_POSITIONS

    def __init__(self, config: TFCLIPConfig, dim: int) -> None:
        super().__init__()
        if config.clip_length > MAX_POSITIONS:
            raise ConfigError(
                f"clip_length must be at most {MAX_POSITIONS} for the temporal head 'transformer', "
                f"got {config.clip_length}"
            )
        self.width = dim
        self.positions = nn.Parameter(torch.randn(MAX_POSITIONS, dim) * 0.01)
        heads = config.temporal_heads or default_num_heads(dim)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(config.temporal_depth or 6))

    def forward(
        self, tokens: Tensor, projected: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Add what the frames know of one another to each.

        Raises:
            ValueError: The clip is longer than the position table.
        """
        _check_length(projected.shape[1], self.max_frames)
        x = projected + self.positions[: projected.shape[1]]
        weights = as_weights(frame_mask, x)
        for block in self.blocks:
            x = block(x, weights)
        return projected + x


class TransformerTokenHead(TemporalHead):
    """Transf_cls: an extra token and post-norm transformer layers; the extra token is the feature.

    It has no feature of a single frame: each frame is given the clip's.
    """

    order_free = False

    def __init__(self, config: TFCLIPConfig, dim: int) -> None:
        super().__init__()
        self.width = dim
        self.max_frames = config.clip_length
        self.token = nn.Parameter(torch.randn(dim) * 0.01)
        self.positions = nn.Parameter(torch.randn(1 + config.clip_length, dim) * 0.01)
        layer = nn.TransformerEncoderLayer(
            dim,
            config.temporal_heads or default_num_heads(dim),
            4 * dim,
            dropout=0.0,
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.temporal_depth or 6, nn.LayerNorm(dim), enable_nested_tensor=False
        )

    def forward(
        self, tokens: Tensor, projected: Tensor, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Let the extra token read the frames.

        Raises:
            ValueError: The clip is longer than ``clip_length``.
        """
        batch, length, _ = projected.shape
        _check_length(length, self.max_frames)
        token = self.token.expand(batch, 1, -1)
        x = torch.cat([token, projected], dim=1) + self.positions[: 1 + length]
        padding = None if frame_mask is None else F.pad(frame_mask <= 0, (1, 0), value=False)
        read = self.encoder(x, src_key_padding_mask=padding)[:, :1]
        return read.expand(-1, length, -1)


def _check_length(length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        raise ValueError(
            f"frames must be at most {longest} a clip for this temporal head, got {length}; "
            "use sampling='dense' or a longer clip_length"
        )


def build_temporal_head(config: TFCLIPConfig, dim: int, projected_dim: int) -> TemporalHead:
    """Build the head that ``config.temporal_head`` names.

    Args:
        config: The temporal options are read from it.
        dim: Width of the tokens, ``D``.
        projected_dim: Width of the projected tokens, ``E``.

    Raises:
        ConfigError: A clip is longer than the head's table of positions.
    """
    match config.temporal_head:
        case "tmd":
            return DiffusionHead(config, dim)
        case "tmc":
            return ConstructionHead(config, dim)
        case "average":
            return AverageHead(projected_dim)
        case "convolution":
            return ConvolutionHead(projected_dim)
        case "transformer":
            return TransformerHead(config, projected_dim)
        case "transformer_token":
            return TransformerTokenHead(config, projected_dim)


__all__ = [
    "AverageHead",
    "ConstructionHead",
    "ConvolutionHead",
    "DiffusionHead",
    "TemporalHead",
    "TransformerHead",
    "TransformerTokenHead",
    "build_temporal_head",
]
