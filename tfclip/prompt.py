r"""The Sequence-Specific Prompt (Yu et al., AAAI 2024): the memory looks at the clip.

The identity centroids of CLIP-Memory query the visual tokens of one clip; what they find is a
prompt that is added to them: ``updated memory = memory + prompt`` (Eq. 8). Used in training only.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tfclip.attention import QuickGELU, check_heads, default_num_heads

PromptVariant = Literal["released", "paper"]


class CrossAttention(nn.Module):
    """Multi-head attention with separate, bias-free projections of queries, keys and values.

    Args:
        dim: Width of queries and keys, ``E``.
        num_heads: Attention heads; must divide ``dim``.
        dropout: Probability of dropping an output value, in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def attend(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return what ``queries``, (B, K, E), find among ``keys``, (B, N, E): (B, K, E)."""
        query, key, value = (
            rearrange(x, "b n (h d) -> b h n d", h=self.num_heads)
            for x in (self.query(queries), self.key(keys), self.value(keys))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.output(rearrange(attended, "b h n d -> b n (h d)"))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attend and, in training, drop some values."""
        return self.dropout(self.attend(queries, keys))


class PromptLayer(nn.Module):
    """One decoder layer: attention among identities, attention to the clip, feed-forward.

    Args:
        dim: Width, ``E``.
        num_heads: Attention heads; must divide ``dim``.
        dropout: Dropout of attention outputs and of the feed-forward network.
        self_attention: Whether the identities attend to one another; the paper's do not.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, *, self_attention: bool) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.self_attention = CrossAttention(dim, num_heads, dropout) if self_attention else None
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, num_heads, dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), QuickGELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim)
        )
        self.mlp_dropout = nn.Dropout(dropout)

    def relate(self, queries: Tensor, batch_size: int) -> Tensor:
        """Let the identities attend to one another and give each clip its copy.

        Args:
            queries: ``(B, K, E)``, or ``(1, K, E)`` when they are the same for every clip: then the
                attention, whose cost grows with ``K * K``, is computed once.
            batch_size: ``B``.

        Returns:
            Queries, ``(B, K, E)``.
        """
        if self.self_attention is None or self.self_norm is None:
            return queries.expand(batch_size, -1, -1)
        normed = self.self_norm(queries)
        found = self.self_attention.attend(normed, normed).expand(batch_size, -1, -1)
        return queries + self.self_attention.dropout(found)  # each clip drops its own values

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Update queries, (B, K, E) or (1, K, E), with the clip's context, (B, N, E)."""
        queries = self.relate(queries, len(context))
        queries = queries + self.cross_attention(self.cross_norm(queries), context)
        return queries + self.mlp_dropout(self.mlp(self.mlp_norm(queries)))


class SequenceSpecificPrompt(nn.Module):
    r"""Make a prompt for each identity from the tokens of a clip (SSP, Eq. 7, Algorithm 2).

    The ``released`` variant is that of the authors' code: projections before and after, and
    attention among the identities in each layer. The ``paper`` variant is the one whose parameters
    the supplement counts: cross-attention and feed-forward only, scaled by a learned vector.

    Args:
        dim: Width of memory and tokens, ``E``.
        num_heads: Attention heads; None is one for 64 channels.
        depth: Decoder layers.
        variant: ``"released"`` or ``"paper"``.
        dropout: Dropout in the decoder layers, in training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, ``depth`` is less than 1, or the variant
            is unknown.

    Example:
        >>> prompt = SequenceSpecificPrompt(dim=64)
        >>> prompt(torch.zeros(5, 64), torch.zeros(2, 129, 64)).shape
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int | None = None,
        depth: int = 2,
        *,
        variant: PromptVariant = "released",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        num_heads = default_num_heads(dim) if num_heads is None else num_heads
        check_heads(dim, num_heads)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if variant not in ("released", "paper"):
            raise ValueError(f"variant must be 'released' or 'paper', got {variant!r}")
        self.dim = dim
        self.variant = variant
        released = variant == "released"
        self.layers = nn.ModuleList(
            PromptLayer(dim, num_heads, dropout, self_attention=released) for _ in range(depth)
        )
        if released:
            self.context_projection = nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, dim), nn.LayerNorm(dim)
            )
            self.memory_projection = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
            self.prompt_projection = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        else:
            self.context_projection = nn.LayerNorm(dim)
            self.memory_projection = nn.Identity()
            self.scale = nn.Parameter(torch.full((dim,), 0.1))
        self.apply(_initialise)

    def forward(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Return the prompt that each clip adds to the memory.

        Args:
            memory: Identity centroids, ``(K, E)``, or one set per clip, ``(B, K, E)``.
            tokens: What the identities look at in each clip, ``(B, N, E)``: the projected tokens
                averaged over frames (the default of the method), the projected class token of each
                frame (N = T), or the clip's feature alone (N = 1; attention then has one key and
                gives every identity the same vector).

        Returns:
            Prompts, ``(B, K, E)``; the updated memory is ``memory + prompt`` (Eq. 8).

        Raises:
            ValueError: The shapes do not fit.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.dim or 0 in tokens.shape:
            raise ValueError(
                f"tokens must be (B, N, E) with E = {self.dim}, got shape {tuple(tokens.shape)}"
            )
        shared = memory.ndim == 2
        fits = shared or (memory.ndim == 3 and len(memory) == len(tokens))
        if not fits or memory.shape[-1] != self.dim or 0 in memory.shape:
            raise ValueError(
                f"memory must be (K, E) or (B, K, E) with B = {len(tokens)} and E = {self.dim}, "
                f"got shape {tuple(memory.shape)}"
            )
        context = self.context_projection(tokens)
        queries = self.memory_projection(memory.unsqueeze(0) if shared else memory)
        for layer in self.layers:
            queries = layer(queries, context)
        if self.variant == "released":
            return self.prompt_projection(queries)
        return self.scale * queries


def _initialise(module: nn.Module) -> None:
    """Draw linear weights from a normal of standard deviation 0.02, with zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
