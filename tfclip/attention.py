"""Attention and small layers that the temporal blocks and the prompt share."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from tfclip import speed


class QuickGELU(nn.Module):
    """Compute ``x * sigmoid(1.702 x)``, the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return x * torch.sigmoid(1.702 * x)


class DropPath(nn.Module):
    """Skip a residual branch for whole rows at random while training (stochastic depth).

    Args:
        probability: Chance that a row is skipped, in [0, 1).

    Raises:
        ValueError: The probability is out of its range.
    """

    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {probability}")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero some rows of ``x``, (M, ...), and scale the others so that the mean stays."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        rows = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * rows / keep

    def extra_repr(self) -> str:
        """Show the probability in ``print(module)``."""
        return f"probability={self.probability}"


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases, initialised as ``nn.MultiheadAttention`` is.

    Args:
        dim: Width of the tokens, ``D``.
        num_heads: Attention heads; must divide ``dim``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.input_projection = nn.Linear(dim, 3 * dim)
        self.output_projection = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.input_projection.weight)
        nn.init.zeros_(self.input_projection.bias)
        nn.init.zeros_(self.output_projection.bias)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Let the tokens of each row attend to one another.

        Args:
            x: Tokens, ``(M, N, D)``.
            weights: How often each token counts as a key, ``(M, N)``, 0 for one that must not be
                seen; None counts each once. A token of weight 2 acts as two equal tokens do.

        Returns:
            Attended tokens, ``(M, N, D)``.
        """
        joint = speed.run(self.input_projection, x)
        query, key, value = rearrange(
            joint, "m n (three h d) -> three m h n d", three=3, h=self.num_heads
        )
        bias = None if weights is None else rearrange(weights.log(), "m n -> m 1 1 n").to(x.dtype)
        attended = speed.attend(query, key, value, bias)
        return speed.run(self.output_projection, rearrange(attended, "m h n d -> m n (h d)"))


def feed_forward(dim: int) -> nn.Sequential:
    """Return CLIP's feed-forward network: ``D -> 4D``, QuickGELU, ``4D -> D``."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), QuickGELU(), nn.Linear(4 * dim, dim))


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a number of heads that does not divide the width.

    Raises:
        ValueError: ``num_heads`` is not a positive divisor of ``dim``.
    """
    if dim < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim, got num_heads {num_heads} and dim {dim}")


def default_num_heads(dim: int) -> int:
    """Return one head for 64 channels, as CLIP has it, and at least one.

    Example:
        >>> default_num_heads(768)
        12
    """
    return max(1, dim // 64)
