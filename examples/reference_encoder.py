"""The release's way to encode clips, written down plainly: a rival of `benchmark_encode.py`.

Every token is projected, attention makes its matrix of weights, and nothing is fused or left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tfclip import TFCLIP


def reference(model: TFCLIP, frames: Tensor) -> Tensor:
    """Compute the test feature as the release does: whole batch, float32, unfused attention."""
    tower = model.backbone.tower
    x = tower.conv1(frames.flatten(0, 1)).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], dim=1)
    x = tower.ln_pre(x + tower.positional_embedding)
    for block in tower.transformer.resblocks:
        attention, mlp = block.attn, block.mlp
        joint = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        x = x + attention.out_proj(unfused_attention(joint, attention.num_heads))
        x = x + mlp.c_proj(quick_gelu(mlp.c_fc(block.ln_2(x))))
    x = tower.ln_post(x)
    projected = x @ tower.proj  # all tokens, although only the class token is read
    related = reference_diffusion(model, x.unflatten(0, frames.shape[:2]))
    parts = (x[:, 0], projected[:, 0], related.mean(1))
    return torch.cat([part.unflatten(0, frames.shape[:2]).mean(1) for part in parts], dim=-1)


def reference_diffusion(model: TFCLIP, tokens: Tensor) -> Tensor:
    """Relate the frames of each clip: (B, T, N, D) to (B * T, N + 1, D)."""
    head: Any = model.temporal.diffusion
    construct, diffuse = head.constructions[0], head.diffusions[0]
    messages = construct.message(tokens.mean(2))
    messages = messages + attend_plainly(construct.attention, construct.norm(messages))
    x = torch.cat([tokens, messages[:, :, None]], dim=2).flatten(0, 1)
    x = x + attend_plainly(diffuse.attention, diffuse.attention_norm(x))
    first, _, second = diffuse.mlp
    return x + second(quick_gelu(first(diffuse.mlp_norm(x))))


def attend_plainly(attention: Any, x: Tensor) -> Tensor:
    """Run one of the library's attentions without anything fused."""
    joint = attention.input_projection(x)
    return attention.output_projection(unfused_attention(joint, attention.num_heads))


def unfused_attention(joint: Tensor, num_heads: int) -> Tensor:
    """Attend by a matrix of weights: (M, N, 3 D) to (M, N, D)."""
    query, key, value = joint.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def quick_gelu(x: Tensor) -> Tensor:
    """Return ``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)
