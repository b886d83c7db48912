r"""Temporal Memory Diffusion (Yu et al., AAAI 2024): frames are related through one memory each.

Memory construction (TMC, Eq. 9-10) makes one memory token of every frame and lets the memories of a
clip attend to one another; memory diffusion (MD, Eq. 11) puts each memory back among the tokens of
its own frame. Cost grows linearly with the number of frames, but for one small T x T attention.

Every module takes an optional ``frame_mask``, ``(B, T)``: boolean, True for a real frame and False
for padding; or non-negative numbers, how many times each frame counts. A frame of weight 2 acts
exactly as the same frame given twice. At least one frame of each clip must count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tfclip import speed
from tfclip.attention import DropPath, SelfAttention, check_heads, feed_forward


class TemporalMemoryConstruction(nn.Module):
    r"""Build one memory per frame and let the memories of a clip attend to one another (TMC).

    .. math::
        s_t = W \, \mathrm{mean}_j \, z_{t,j} + b, \qquad
        S' = S + \mathrm{MHA}(\mathrm{LN}(S))

    Args:
        dim: Width of the tokens, ``D``.
        num_heads: Heads of the attention among memories; must divide ``dim``.
        temporal_position: Add a code of the frame's place, so that the order of the frames matters.
            Off, as in the paper, the frames are a set.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Example:
        >>> construction = TemporalMemoryConstruction(dim=64, num_heads=2)
        >>> construction(torch.zeros(2, 8, 129, 64)).shape
        torch.Size([2, 8, 64])
    """

    def __init__(self, dim: int, num_heads: int, *, temporal_position: bool = False) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = dim
        self.message = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        # The scale is learned because the size of the messages depends on the backbone.
        self.position_scale = nn.Parameter(torch.ones(dim)) if temporal_position else None

    def summarise(self, tokens: Tensor) -> Tensor:
        """Make one message of each frame (Eq. 9): the mean of its tokens, linearly mapped.

        Args:
            tokens: Tokens of each frame, class token included, ``(B, T, N, D)``.

        Returns:
            Messages, ``(B, T, D)``; each depends on its own frame alone.
        """
        return self.message(tokens.mean(2))

    def exchange(self, messages: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Let the messages of a clip attend to one another (Eq. 10).

        Args:
            messages: One message per frame, ``(B, T, D)``.
            frame_mask: See the module's documentation, ``(B, T)``.

        Returns:
            Memories, ``(B, T, D)``; those of padding frames mean nothing.
        """
        if self.position_scale is not None:
            messages = messages + self.position_scale * _position_code(messages)
        return messages + self.attention(self.norm(messages), as_weights(frame_mask, messages))

    def forward(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Return the memories, ``(B, T, D)``, of tokens, ``(B, T, N, D)``.

        Raises:
            ValueError: ``tokens`` or ``frame_mask`` has another shape.
        """
        check_tokens(tokens, self.dim, frame_mask)
        return self.exchange(self.summarise(tokens), frame_mask)


class MemoryDiffusion(nn.Module):
    r"""Let the tokens of each frame attend to the frame's memory (MD).

    .. math::
        x = [z_t; s'_t], \qquad x' = x + \mathrm{MHA}(\mathrm{LN}(x)), \qquad
        \mathrm{MD}(z_t, s'_t) = x' + \mathrm{MLP}(\mathrm{LN}(x'))

    Args:
        dim: Width of the tokens, ``D``.
        num_heads: Attention heads; must divide ``dim``.
        drop_path: Probability that a frame skips a residual branch, in training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or ``drop_path`` is not in [0, 1).

    Example:
        >>> diffusion = MemoryDiffusion(dim=64, num_heads=2)
        >>> diffusion(torch.zeros(2, 8, 129, 64), torch.zeros(2, 8, 64)).shape
        torch.Size([2, 8, 130, 64])
    """

    def __init__(self, dim: int, num_heads: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = dim
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = feed_forward(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Append each frame's memory to its tokens and run one transformer block over them.

        Args:
            tokens: Tokens of each frame, ``(B, T, N, D)``.
            memory: One memory per frame, ``(B, T, D)``.

        Returns:
            Tokens, the diffused memory last, ``(B, T, N + 1, D)``.

        Raises:
            ValueError: The shapes do not fit.
        """
        return self._by_frame(self._diffuse, tokens, memory)

    def mean(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Return the mean of each frame's diffused tokens, ``(B, T, D)``, its memory among them.

        Arguments as in ``forward``. In inference the mean is taken before the last linear layer.
        """
        if self.training or not speed.is_inference(tokens) or speed.is_watched(self):
            return self(tokens, memory).mean(2)
        return self._by_frame(self._diffuse_to_mean, tokens, memory)

    def _by_frame(
        self, run: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, memory: Tensor
    ) -> Tensor:
        """Run a function on frames as rows: a frame attends to nothing outside itself."""
        check_tokens(tokens, self.dim)
        if memory.shape != (*tokens.shape[:2], self.dim):
            raise ValueError(
                f"memory must be (B, T, D) = {(*tokens.shape[:2], self.dim)}, "
                f"got shape {tuple(memory.shape)}"
            )
        rows, memories = tokens.flatten(0, 1), memory.flatten(0, 1)
        if self.training or not speed.is_inference(tokens):
            return run(rows, memories).unflatten(0, tokens.shape[:2])
        size = speed.frames_at_once(rows, 4 * self.dim, tokens.shape[2] + 1)
        return speed.in_pieces(run, size, rows, memories).unflatten(0, tokens.shape[:2])

    def _diffuse(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self._attend(tokens, memory)
        if self.training or not speed.is_inference(x) or speed.is_watched(self.mlp):
            return x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return x.add_(speed.run(self.mlp[2], self._hidden(x)))

    def _diffuse_to_mean(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self._attend(tokens, memory)
        # The last layer is linear, so the mean may come before it: N times less work there.
        return x.mean(1) + self.mlp[2](self._hidden(x).mean(1))

    def _hidden(self, x: Tensor) -> Tensor:
        """Return what goes into the last linear layer, (M, N, 4 D), in inference."""
        return speed.run(self.mlp[0], self.mlp_norm(x), followed_by_quick_gelu=True)

    def _attend(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Append its memory to each frame, (M, N, D), and let its tokens attend to one another."""
        x = torch.cat([tokens, memory.unsqueeze(1)], dim=1)
        return x + self.drop_path(self.attention(self.attention_norm(x)))


class TemporalMemoryDiffusion(nn.Module):
    """Relate the frames of a clip (TMD): ``depth`` rounds of construction and diffusion.

    It has no parameter that knows the number of frames or tokens, and drops into any model that
    gives tokens per frame. Each round adds one token to every frame.

    Args:
        dim: Width of the tokens, ``D``.
        num_heads: Attention heads; must divide ``dim``. CLIP has one for 64 channels.
        depth: Rounds; the paper has one.
        drop_path: Probability that a frame skips a residual branch, in training.
        temporal_position: Make the order of the frames matter; see ``TemporalMemoryConstruction``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, ``depth`` is less than 1, or
            ``drop_path`` is not in [0, 1).

    Example:
        >>> diffusion = TemporalMemoryDiffusion(dim=64, num_heads=2)
        >>> diffusion(torch.zeros(2, 8, 129, 64)).shape
        torch.Size([2, 8, 130, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        depth: int = 1,
        *,
        drop_path: float = 0.0,
        temporal_position: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.dim = dim
        self.constructions = nn.ModuleList(
            TemporalMemoryConstruction(dim, num_heads, temporal_position=temporal_position)
            for _ in range(depth)
        )
        self.diffusions = nn.ModuleList(
            MemoryDiffusion(dim, num_heads, drop_path=drop_path) for _ in range(depth)
        )

    def forward(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Diffuse what the frames of a clip know of one another into their tokens.

        Args:
            tokens: Tokens of each frame, ``(B, T, N, D)``.
            frame_mask: See the module's documentation, ``(B, T)``.

        Returns:
            Tokens, one memory per round last, ``(B, T, N + depth, D)``; those of padding frames
            mean nothing.

        Raises:
            ValueError: ``tokens`` or ``frame_mask`` has another shape.
        """
        for construct, diffuse in zip(self.constructions, self.diffusions, strict=True):
            tokens = diffuse(tokens, construct(tokens, frame_mask))
        return tokens

    def mean(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Return the mean of each frame's diffused tokens (Eq. 12), ``(B, T, D)``.

        Arguments as in ``forward``; in inference it takes less work than the tokens do.
        """
        for construct, diffuse in zip(self.constructions, self.diffusions[:-1], strict=False):
            tokens = diffuse(tokens, construct(tokens, frame_mask))
        last: Any = self.diffusions[-1]
        return last.mean(tokens, self.constructions[-1](tokens, frame_mask))


def as_weights(frame_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a frame mask as floating-point weights on the device of ``like``, or None."""
    return None if frame_mask is None else frame_mask.to(like.device, torch.float32)


def mean_over_frames(x: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """Average over the frames that count (Eq. 13).

    Args:
        x: One value per frame, ``(B, T, ...)``.
        frame_mask: See the module's documentation, ``(B, T)``.

    Returns:
        Means, ``(B, ...)``.

    Example:
        >>> mean_over_frames(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([1.5000])
    """
    weights = as_weights(frame_mask, x)
    if weights is None:
        return x.mean(1)
    shares = (weights / weights.sum(1, keepdim=True)).to(x.dtype)
    return torch.einsum("bt,bt...->b...", shares, x)


def check_tokens(tokens: Tensor, dim: int, frame_mask: Tensor | None = None) -> None:
    """Refuse tokens that are not ``(B, T, N, D)`` or a mask that is not ``(B, T)``.

    Raises:
        ValueError: A shape is wrong.
    """
    if tokens.ndim != 4 or tokens.shape[-1] != dim or 0 in tokens.shape:
        raise ValueError(
            f"tokens must be (B, T, N, D) with D = {dim}, got shape {tuple(tokens.shape)}"
        )
    if frame_mask is not None and frame_mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"frame_mask must be (B, T) = {tuple(tokens.shape[:2])}, "
            f"got shape {tuple(frame_mask.shape)}"
        )


def _position_code(messages: Tensor) -> Tensor:
    """Return sines and cosines of each frame's place, ``(T, D)``, defined for any T and D."""
    num_frames, dim = messages.shape[1:]
    place = torch.arange(num_frames, device=messages.device, dtype=torch.float32)
    channel = torch.arange(dim, device=messages.device, dtype=torch.float32)
    # Wave lengths from 2 pi to 2 pi 1000 frames; each odd channel is the cosine of its left one.
    frequency = torch.exp(-math.log(1000.0) * (channel - channel % 2) / dim)
    phase = place[:, None] * frequency + (channel % 2) * (math.pi / 2)
    return phase.sin().to(messages.dtype)
