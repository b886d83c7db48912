"""Which frames of a track count, in clips that are described again only when they change.

The frames that a window keeps, in the order of ``numbers``, are those whose ``encode_sequence`` its
mean is.
"""

from __future__ import annotations

import abc
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tfclip.tracking.clips import Clip, FrameFeatures

Policy = Literal["newest", "diverse"]


class Window(abc.ABC):
    """The clips of a track: those that are kept, and the sum of those that were let go.

    Args:
        clip_length: Frames of a clip.
        max_frames: The most frames that count; None is any number.
    """

    def __init__(self, clip_length: int, max_frames: int | None) -> None:
        self.clip_length = clip_length
        self.max_frames = max_frames
        self.clips: list[Clip] = []
        self.total: Tensor | None = None
        self.num_summed = 0

    @abc.abstractmethod
    def add(self, frame: FrameFeatures, number: int) -> None:
        """Take a frame, and let others go when there are too many."""

    @abc.abstractmethod
    def tidy(self) -> None:
        """Let go what no later frame will need; every full clip is up to date."""

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The crops that count, in the order in which they make clips; None where all do."""
        if self.max_frames is None:
            return None
        return tuple(number for clip in self.clips for number in clip.numbers)

    def mean(self) -> Tensor:
        """Return the mean of the clips, ``(F,)``; every clip is up to date."""
        total = self.total
        for clip in self.clips:
            assert clip.embedding is not None  # the caller described it
            total = clip.embedding if total is None else total + clip.embedding
        assert total is not None  # a track has a frame
        return total / (self.num_summed + len(self.clips))

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        total = 0 if self.total is None else self.total.nbytes
        return total + sum(clip.num_bytes for clip in self.clips)


class NewestWindow(Window):
    """The newest frames. A full clip is kept as its embedding, so only the last one has tokens.

    With more than one clip the window moves by whole clips: it then holds ``max_frames -
    clip_length + 1`` to ``max_frames`` frames. With one, frames leave it one by one.
    """

    def add(self, frame: FrameFeatures, number: int) -> None:
        """Take a frame, and let the oldest go."""
        if not self.clips or (len(self.clips[-1].numbers) == self.clip_length and not self._slides):
            self.clips.append(Clip())
        self.clips[-1].append(frame, number)
        if self.max_frames is None:
            return
        if sum(len(clip.numbers) for clip in self.clips) > self.max_frames:
            if self._slides:
                self.clips[0].remove(0)
            else:
                del self.clips[0]

    @property
    def _slides(self) -> bool:
        return self.max_frames is not None and self.max_frames <= self.clip_length

    def tidy(self) -> None:
        """Drop the tokens of full clips; where all frames count, their embeddings make a sum."""
        if self._slides:
            return
        full = [clip for clip in self.clips if len(clip.numbers) == self.clip_length]
        for clip in full:
            clip.frames = []
            if self.max_frames is None:
                assert clip.embedding is not None  # the caller described it
                self.total = clip.embedding if self.total is None else self.total + clip.embedding
                self.num_summed += 1
        if self.max_frames is None:
            self.clips = self.clips[len(full) :]


class DiverseWindow(Window):
    """Frames that differ: of the two most alike, by the cosine of class tokens, one leaves.

    Of these two it is the one that is nearer to a third; so the least distance between two frames
    never gets smaller once the window is full. A frame that leaves gives its place to the new one
    at the end of the same clip, and no other clip changes.
    """

    def add(self, frame: FrameFeatures, number: int) -> None:
        """Take a frame, and let the most redundant go, which may be that very one."""
        assert self.max_frames is not None  # checked by the encoder
        frames = [kept for clip in self.clips for kept in clip.frames]
        if len(frames) < self.max_frames:
            if not self.clips or len(self.clips[-1].numbers) == self.clip_length:
                self.clips.append(Clip())
            self.clips[-1].append(frame, number)
            return
        leaving = most_redundant(torch.stack([kept.class_token for kept in [*frames, frame]]))
        if leaving == len(frames):
            return
        clip = self.clips[leaving // self.clip_length]  # every clip but the last is full
        clip.remove(leaving % self.clip_length)
        clip.append(frame, number)

    def tidy(self) -> None:
        """Keep everything: any frame may leave its clip later."""


def most_redundant(features: Tensor) -> int:
    """Return which of several vectors ``(M, D)`` says least that the others do not, by cosine.

    It is one of the nearest pair: the one whose second nearest is nearer too; of equals the later.

    Example:
        >>> most_redundant(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
        1
    """
    unit = F.normalize(features.float(), dim=1)
    likeness = unit @ unit.T
    likeness.fill_diagonal_(-torch.inf)
    pair = int(likeness.argmax())
    first, second = sorted(divmod(pair, len(unit)))
    likeness[first, second] = likeness[second, first] = -torch.inf
    return first if likeness[first].max() > likeness[second].max() else second


def check_window(policy: str, clip_length: int, max_frames: int | None) -> None:
    """Refuse a window that cannot be.

    Raises:
        ValueError: The policy is unknown, or ``max_frames`` does not fit it or the clip length.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be one of {get_args(Policy)}, got {policy!r}")
    if max_frames is None:
        if policy == "diverse":
            raise ValueError(
                f"max_frames must be given with policy='diverse', such as {clip_length}, a clip"
            )
    elif max_frames < 1 or (max_frames > clip_length and max_frames % clip_length):
        raise ValueError(
            f"max_frames must be 1 to {clip_length}, the model's clip_length, or a multiple of "
            f"it, got {max_frames}"
        )


def make_window(policy: Policy, clip_length: int, max_frames: int | None) -> Window:
    """Return an empty window."""
    kind = NewestWindow if policy == "newest" else DiverseWindow
    return kind(clip_length, max_frames)
