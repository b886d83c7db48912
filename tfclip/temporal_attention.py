"""What the temporal memory looked at: attention of frames and patches in Temporal Memory Diffusion.

Attention says from where a value was read, not what decided a distance: a patch may be read and
change nothing. Nothing here changes what the model computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tfclip.attention import SelfAttention
from tfclip.diffusion import (
    MemoryDiffusion,
    TemporalMemoryConstruction,
    TemporalMemoryDiffusion,
    _position_code,
    as_weights,
    check_tokens,
)

if TYPE_CHECKING:
    from tfclip.images import Channels
    from tfclip.model import TFCLIP


class TemporalAttention(NamedTuple):
    """Shares of attention in the last round of Temporal Memory Diffusion, the mean of its heads."""

    between_frames: Tensor
    """``(B, T, T)``: what the memory of a frame (row) reads in that of each; rows sum to 1."""
    frames: Tensor
    """``(B, T)``: what all memories together read in that of each frame; sums to 1."""
    tokens: Tensor
    """``(B, T, N)``: what a frame's memory reads in each token of its frame, class token first.
    The rest to 1 it reads in itself and in the memories of earlier rounds."""


def temporal_attention(
    diffusion: TemporalMemoryDiffusion, tokens: Tensor, frame_mask: Tensor | None = None
) -> TemporalAttention:
    """Return what the memories of clips attend to (Eq. 10 and 11).

    Args:
        diffusion: The module, in eval mode: its drop path is left out.
        tokens: What it is given, ``(B, T, N, D)``.
        frame_mask: See ``tfclip.diffusion``, ``(B, T)``. What is returned for frames that do not
            count means nothing, but in ``frames``, where it is 0.

    Raises:
        ValueError: ``tokens`` or ``frame_mask`` has another shape.

    Example:
        >>> attention = temporal_attention(TemporalMemoryDiffusion(64, 2), torch.zeros(1, 4, 9, 64))
        >>> attention.frames, attention.tokens.shape
        (tensor([[0.2500, 0.2500, 0.2500, 0.2500]]), torch.Size([1, 4, 9]))
    """
    check_tokens(tokens, diffusion.dim, frame_mask)
    num_tokens = tokens.shape[2]
    with torch.no_grad():
        rounds = list(zip(diffusion.constructions, diffusion.diffusions, strict=True))
        for construct, diffuse in rounds[:-1]:
            tokens = diffuse(tokens, construct(tokens, frame_mask))
        construct, diffuse = rounds[-1]
        assert isinstance(construct, TemporalMemoryConstruction)  # ModuleList forgets it
        assert isinstance(diffuse, MemoryDiffusion)
        between = _between_frames(construct, tokens, frame_mask)
        memory = construct(tokens, frame_mask)
        x = rearrange(torch.cat([tokens, memory[:, :, None]], dim=2), "b t n d -> (b t) n d")
        read = _shares(diffuse.attention, diffuse.attention_norm(x), last=True)
    read = rearrange(read, "(b t) 1 n -> b t n", b=len(tokens))
    return TemporalAttention(between, _column_means(between, frame_mask), read[..., :num_tokens])


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """Frames of a tracklet with what the temporal memory read in them; on the CPU.

    Args:
        pictures: The frames, each ``(H, W, 3)`` uint8 RGB of its own size.
        indices: Which frames of the tracklet these are, from 0.
        frame_shares: What all memories together read in the memory of each frame, ``(T,)``; sums
            to 1, so that 1 / T is an even share.
        patch_shares: What each frame's memory reads in each patch of its frame,
            ``(T, rows, columns)``; the sum of a frame is below 1, the rest is read elsewhere.
        between_frames: What the memory of a frame (row) reads in that of each frame, ``(T, T)``.
    """

    pictures: tuple[np.ndarray, ...]
    indices: tuple[int, ...]
    frame_shares: Tensor
    patch_shares: Tensor
    between_frames: Tensor


def look_at(
    model: TFCLIP,
    frames: Any,
    camera: int | None = None,
    *,
    boxes: Any = None,
    channels: Channels = "rgb",
    num_frames: int | None = None,
) -> Look:
    """Look at what a model's temporal memory reads in a tracklet.

    Some frames, evenly spread from the first to the last, are taken as one clip. Products are those
    of the parameters' type, also where ``quantize_dynamic`` has the model multiply 8-bit numbers;
    where ``merge_tokens`` has it merge tokens, patches that share a token have the same share.

    Args:
        model: With the temporal head ``"tmd"``; it stays in the mode it is in.
        frames: As in ``TFCLIP.encode_sequence``.
        camera: Number of the camera, from 0; None when it is not known.
        boxes: As in ``TFCLIP.encode_sequence``.
        channels: As in ``TFCLIP.encode_sequence``.
        num_frames: How many frames; fewer where there are no more. None is the model's
            ``clip_length``.

    Raises:
        FrameError: The frames cannot be used.
        ValueError: The model has another temporal head, or an argument is wrong.

    Example:
        >>> from tfclip import TFCLIP
        >>> from tfclip.data import SyntheticTracklets
        >>> model = TFCLIP.from_pretrained("tfclip-tiny")
        >>> look = look_at(model, SyntheticTracklets(1, 1, 1)[0].frames)
        >>> look.indices, look.patch_shares.shape
        ((0, 2, 4, 6, 9, 11, 13, 15), torch.Size([8, 8, 4]))
    """
    from tfclip.encoding import check_camera, eval_mode
    from tfclip.frames import open_frames
    from tfclip.preprocess import Preprocess
    from tfclip.temporal import DiffusionHead

    if not isinstance(model.temporal, DiffusionHead):
        raise ValueError(
            "the temporal head must be 'tmd' to show what its memory looked at, "
            f"got {model.config.temporal_head!r}"
        )
    num_frames = model.config.clip_length if num_frames is None else num_frames
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    number = check_camera(model, camera)
    opened = open_frames(frames, boxes=boxes, channels=channels)
    indices = spread(len(opened), num_frames)
    pictures = tuple(opened.select(indices))
    clip = Preprocess(model.config)(pictures).to(model.device, model.dtype)
    with eval_mode(model), torch.inference_mode():
        code = model.camera_codes(torch.tensor([number]), 1)
        codes = None if code is None else code.expand(len(clip), -1)
        tokens = model.backbone.without_registers(model.backbone(clip, codes))
        attention = temporal_attention(model.temporal.diffusion, tokens[None])
    rows, columns = model.backbone.grid
    patches = attention.tokens[0, :, 1:].float().cpu()
    return Look(
        pictures=pictures,
        indices=tuple(indices),
        frame_shares=attention.frames[0].float().cpu(),
        patch_shares=rearrange(patches, "t (r c) -> t r c", r=rows, c=columns),
        between_frames=attention.between_frames[0].float().cpu(),
    )


def spread(total: int, count: int) -> list[int]:
    """Return positions of at most ``count`` of ``total`` frames, evenly from the first to the last.

    Example:
        >>> spread(10, 4), spread(3, 8)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    if count >= total:
        return list(range(total))
    return np.rint(np.linspace(0, total - 1, count)).astype(int).tolist()


def _between_frames(
    construct: TemporalMemoryConstruction, tokens: Tensor, frame_mask: Tensor | None
) -> Tensor:
    """Return the attention within ``construct.exchange``, (B, T, T)."""
    messages = construct.summarise(tokens)
    if construct.position_scale is not None:
        messages = messages + construct.position_scale * _position_code(messages)
    return _shares(construct.attention, construct.norm(messages), as_weights(frame_mask, messages))


def _shares(
    attention: SelfAttention, x: Tensor, weights: Tensor | None = None, *, last: bool = False
) -> Tensor:
    """Return the mean over heads of what tokens read in each other, (M, N, N) or (M, 1, N).

    Args:
        attention: Whose forward would be given the same ``x`` and ``weights``.
        x: Tokens, (M, N, D).
        weights: How often each token counts as a key, (M, N).
        last: Of the last token alone.
    """
    projected = attention.input_projection(x)
    query, key, _ = rearrange(
        projected, "m n (three h d) -> three m h n d", three=3, h=attention.num_heads
    )
    scores = query[:, :, -1 if last else 0 :] @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if weights is not None:
        scores = scores + rearrange(weights.log(), "m n -> m 1 1 n").to(x.dtype)
    return scores.softmax(-1).mean(1)


def _column_means(between: Tensor, frame_mask: Tensor | None) -> Tensor:
    weights = as_weights(frame_mask, between)
    if weights is None:
        return between.mean(1)
    shares = (weights / weights.sum(1, keepdim=True)).to(between.dtype)
    return torch.einsum("bt,btu->bu", shares, between)
