"""Frames of a track and the clips they make, described by a model in batches over many tracks.

What the model's descriptor needs of a frame is kept, and nothing else. A clip whose frames are at
hand is described at any time without the tower.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tfclip.diffusion import mean_over_frames
from tfclip.encoding import eval_mode
from tfclip.frames import sample_dense
from tfclip.preprocess import Preprocess

if TYPE_CHECKING:
    from tfclip.model import TFCLIP


class FrameFeatures(NamedTuple):
    """What is kept of one frame."""

    class_token: Tensor
    """``(D,)``."""
    projected: Tensor
    """Projected class token, ``(E,)``."""
    tokens: Tensor | None
    """Tokens without registers, ``(N, D)``; None where the descriptor does not need them."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(part.nbytes for part in self if part is not None)


@dataclass(eq=False)  # a clip is itself, whatever it holds
class Clip:
    """At most ``clip_length`` frames that are described together.

    Args:
        numbers: Which crops of the track they are, counted from 0.
        frames: Their features; empty when the clip is finished and only its embedding is needed.
        embedding: ``(F,)`` float32 on the CPU, not normalised; None while it is out of date.
    """

    numbers: list[int] = field(default_factory=list)
    frames: list[FrameFeatures] = field(default_factory=list)
    embedding: Tensor | None = None

    def append(self, frame: FrameFeatures, number: int) -> None:
        """Add a frame; the embedding is out of date."""
        self.frames.append(frame)
        self.numbers.append(number)
        self.embedding = None

    def remove(self, place: int) -> None:
        """Take a frame out; the embedding is out of date."""
        del self.frames[place], self.numbers[place]
        self.embedding = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        own = 0 if self.embedding is None else self.embedding.nbytes
        return own + sum(frame.num_bytes for frame in self.frames)


class ClipDescriber:
    """Runs the parts of a model: the tower over crops, and its temporal head over clips.

    Args:
        model: The encoder; used in eval mode, and left in the mode it was in.
        batch_frames: Frames that go through the tower, or the temporal head, at once.
        token_dtype: Floating type in which tokens are kept; None is the model's.
    """

    def __init__(
        self, model: TFCLIP, batch_frames: int, token_dtype: torch.dtype | None = None
    ) -> None:
        self.model = model
        self.batch_frames = batch_frames
        self.token_dtype = token_dtype
        self.preprocess = Preprocess(model.config)
        self.uses_head = "temporal" in model.config.descriptor
        self.keeps_tokens = self.uses_head and model.temporal.reads_tokens

    def read(self, crops: Sequence[np.ndarray], cameras: Sequence[int]) -> list[FrameFeatures]:
        """Run the tower once over crops ``(h, w, 3)`` uint8 RGB, at most ``batch_frames``.

        Each result has memory of its own, so that it goes when its track does.
        """
        model = self.model
        resized = torch.stack([self.preprocess.resize(crop) for crop in crops])
        with torch.inference_mode(), eval_mode(model), model.computing():
            pixels = self.preprocess.normalize(resized.to(model.device), dtype=model.dtype)
            codes = model.camera_codes(torch.tensor(cameras), len(cameras))
            tokens = model.backbone(pixels, codes)
            class_tokens, projected = tokens[:, 0], model.backbone.project_class(tokens)
            kept: Iterable[Tensor | None] = [None] * len(crops)
            if self.keeps_tokens:
                kept = model.backbone.without_registers(tokens).to(self.token_dtype or tokens.dtype)
            return [
                FrameFeatures(c.clone(), p.clone(), None if t is None else t.clone())
                for c, p, t in zip(class_tokens, projected, kept, strict=True)
            ]

    def describe(self, clips: Iterable[Clip]) -> None:
        """Compute the embeddings of clips that are out of date."""
        # Clips of one length share a batch: then hardly any padding is computed.
        waiting = sorted(
            (clip for clip in clips if clip.embedding is None), key=lambda clip: len(clip.frames)
        )
        batch: list[Clip] = []
        for clip in waiting:
            if batch and len(clip.frames) * (len(batch) + 1) > self.batch_frames:
                self._describe_batch(batch)
                batch = []
            batch.append(clip)
        if batch:
            self._describe_batch(batch)

    def _describe_batch(self, clips: Sequence[Clip]) -> None:
        model = self.model
        chosen, counts = zip(*(self._fill_up(clip.frames) for clip in clips), strict=True)
        mask = None
        if any(count != 1 for each in counts for count in each) or len(set(map(len, counts))) > 1:
            weights = [torch.tensor(each, dtype=torch.float32) for each in counts]
            mask = pad_sequence(weights, batch_first=True).to(model.device)
        with torch.inference_mode(), eval_mode(model), model.computing():
            frames = {
                "appearance": _pad([[frame.class_token for frame in clip] for clip in chosen]),
                "projected": _pad([[frame.projected for frame in clip] for clip in chosen]),
            }
            if self.uses_head:
                tokens = frames["appearance"][:, :, None]  # for heads that do not read them
                if self.keeps_tokens:
                    tokens = _pad([[frame.tokens for frame in clip] for clip in chosen])  # type: ignore[misc]
                frames["temporal"] = model.temporal(
                    tokens.to(model.dtype), frames["projected"], mask
                )
            embeddings = model.assemble(
                {part: mean_over_frames(frames[part], mask) for part in model.config.descriptor}
            )
        for clip, embedding in zip(clips, embeddings.float().cpu(), strict=True):
            clip.embedding = embedding.clone()

    def _fill_up(self, frames: list[FrameFeatures]) -> tuple[list[FrameFeatures], list[int]]:
        """Return the frames of a clip and how often each counts, cycled as encoding does."""
        (indices,) = sample_dense(len(frames), self.model.config.clip_length)
        if self.model.temporal.order_free:
            return frames, list(Counter(indices).values())
        return [frames[index] for index in indices], [1] * len(indices)


def crop_key(crop: np.ndarray) -> bytes:
    """Return what stands for the pixels of a crop, ``(h, w, 3)``."""
    digest = hashlib.blake2b(str(crop.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(crop).data)
    return digest.digest()


def _pad(rows: list[list[Tensor]]) -> Tensor:
    return pad_sequence([torch.stack(row) for row in rows], batch_first=True)
