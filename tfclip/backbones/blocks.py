"""CLIP's transformer blocks run the short way: for inference, and to merge tokens between them.

The blocks are open_clip's and keep their parameters; only their forward is written out again, with
what training needs left away. A block that somebody has changed, or watches by a hook, is run as it
is.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from tfclip import speed
from tfclip.attention import QuickGELU
from tfclip.merging import Merged


def is_as_built(block: nn.Module) -> bool:
    """Tell whether a block is open_clip's plain one, with nothing added, replaced or watching."""
    from open_clip.transformer import ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock:
        return False
    inner: Any = block
    plain = (
        isinstance(inner.attn, nn.MultiheadAttention)
        and inner.attn.in_proj_bias is not None
        and inner.attn.batch_first
        and isinstance(inner.mlp.c_fc, nn.Linear)
        and isinstance(inner.mlp.c_proj, nn.Linear)
        and not hasattr(inner, "ln_1_kv")
    )
    return plain and not speed.is_watched(block)


def run_block(block: Any, tokens: Merged, *, merge: int = 0, only_class: bool = False) -> Merged:
    """Run one block.

    Args:
        block: A block that ``is_as_built``.
        tokens: ``(M, N, D)``; in inference their values are overwritten.
        merge: How many tokens to merge away from each frame, after the attention.
        only_class: Compute the class token alone, ``(M, 1, D)``; it still reads all tokens.
    """
    x = tokens.values
    query, key, value = _project(block.attn, block.ln_1(x), only_class)
    attended = speed.attend(query, key, value, tokens.attention_bias())
    attended = rearrange(attended, "m h n d -> m n (h d)")
    attended = speed.linear(attended, block.attn.out_proj.weight, block.attn.out_proj.bias)
    if only_class:
        x = x[:, :1].clone()
    tokens = tokens.replace(speed.add(x, block.ls_1(attended)))
    if merge and not only_class:
        tokens = tokens.merge(key.mean(1), merge)
    return tokens.replace(_feed_forward(block, tokens.values))


def _project(
    attention: nn.MultiheadAttention, x: Tensor, only_class: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, (M, heads, N, d) each; one query if only the class asks."""
    weight, bias, heads = attention.in_proj_weight, attention.in_proj_bias, attention.num_heads
    if not only_class:
        joint = speed.linear(x, weight, bias)
        query, key, value = rearrange(joint, "m n (t h d) -> t m h n d", t=3, h=heads)
        return query, key, value
    width = x.shape[-1]
    query = nn.functional.linear(x[:, :1], weight[:width], bias[:width])
    joint = nn.functional.linear(x, weight[width:], bias[width:])
    key, value = rearrange(joint, "m n (t h d) -> t m h n d", t=2, h=heads)
    return rearrange(query, "m n (h d) -> m h n d", h=heads), key, value


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    mlp = block.mlp
    is_quick = type(mlp.gelu) is QuickGELU
    first = (block.ln_2(x), mlp.c_fc.weight, mlp.c_fc.bias)
    hidden = speed.linear(*first, followed_by_quick_gelu=is_quick)
    if not is_quick:
        hidden = mlp.gelu(hidden)
    return speed.add(x, block.ls_2(speed.linear(hidden, mlp.c_proj.weight, mlp.c_proj.bias)))
