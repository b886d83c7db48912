"""Tracklets for a data loader: clips to train on, drawn anew every epoch; whole ones to test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tfclip.config import TFCLIPConfig
from tfclip.data.tracklets import Tracklet
from tfclip.encoding import Sampling
from tfclip.frames import sample_restricted
from tfclip.images import natural_key
from tfclip.preprocess import Preprocess

Transform: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


class Clip(NamedTuple):
    """One training sample, or a batch of them when a data loader has stacked them."""

    frames: Tensor
    """RGB pixels of the model's frame size, ``(T, 3, H, W)`` uint8; not yet normalised."""
    identity: int | Tensor
    """Number of the person among the training identities, 0 to K-1."""
    camera: int | Tensor
    """Number of the camera, -1 where it is not known."""


class ClipDataset(Dataset[Clip]):
    """One clip of every tracklet, by restricted random sampling (one frame of each part).

    What is drawn depends on the seed, the epoch and the key alone: not on the number of worker
    processes, nor on what was drawn before. So a training that is resumed sees what it would have
    seen.

    Args:
        tracklets: With known persons. Frames are read when a clip is asked for.
        config: Gives clip length, frame size and interpolation.
        transform: Changes a clip ``(T, 3, H, W)`` uint8 with a generator to draw from, such as
            ``tfclip.data.transforms.ClipTransform``.
        seed: Of everything that is drawn.

    Attributes:
        identities: Number of each tracklet's person, ``(M,)``, 0 to K-1.
        people: The person of each number, in natural order.

    Raises:
        ValueError: There is no tracklet, or the person of one is not known.

    Example:
        >>> from tfclip.data import SyntheticTracklets
        >>> people = SyntheticTracklets(2, 2, 1, frame_size=(64, 32))
        >>> clips = ClipDataset(people, TFCLIPConfig(frame_size=(64, 32)))
        >>> clips[3].frames.shape, clips[3].identity, clips[3].camera
        (torch.Size([8, 3, 64, 32]), 1, 1)
    """

    def __init__(
        self,
        tracklets: Sequence[Tracklet],
        config: TFCLIPConfig,
        transform: Transform | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.tracklets = tracklets
        self.clip_length = config.clip_length
        self.preprocess = Preprocess(config)
        self.transform = transform
        self.seed = seed
        self.epoch = 0
        self.identities, self.people = number_people(tracklets)

    def __len__(self) -> int:
        return len(self.tracklets)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, from 0, the next clips are for; before its data loader is iterated."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int]) -> Clip:
        """Return a clip.

        Args:
            key: Number of the tracklet, or that and a number that tells its draws of one epoch
                apart, as ``IdentitySampler(numbered=True)`` gives them.

        Raises:
            FrameError: The frames of the tracklet cannot be used.
        """
        index, draw = key if isinstance(key, tuple) else (key, 0)
        random = torch.Generator().manual_seed(_mix(self.seed, self.epoch, index, draw))
        tracklet = self.tracklets[index]
        frames = tracklet.open()
        chosen = sample_restricted(len(frames), self.clip_length, random)
        pixels = torch.stack([self.preprocess.resize(frame) for frame in frames.select(chosen)])
        if self.transform is not None:
            pixels = self.transform(pixels, random)
        camera = -1 if tracklet.camera is None else tracklet.camera
        return Clip(pixels, int(self.identities[index]), camera)


class TrackletFrames(NamedTuple):
    """The frames of one tracklet, or of several that ``collate_tracklets`` has put together."""

    frames: Any
    """RGB pixels of the model's frame size, ``(T, 3, H, W)`` uint8; a list of such for several."""
    row: Any
    """Number of the tracklet in the data set; a list for several."""
    camera: Any
    """Number of its camera, None where it is not known; a list for several."""


class TrackletDataset(Dataset[TrackletFrames]):
    """Whole tracklets, read and resized, so that a data loader's processes do the decoding.

    ``TFCLIP.encode_sequences`` takes what comes out, and gives what it gives for the tracklets
    themselves with the same ``sampling``.

    Args:
        tracklets: Their frames are read when asked for.
        config: Gives frame size, interpolation and, for ``"rrs"``, the clip length.
        sampling: Which frames are read: ``"dense"`` and ``"all"`` read every one, ``"rrs"`` one of
            each of ``clip_length`` chunks.

    Raises:
        ValueError: ``sampling`` is unknown.

    Example:
        >>> from tfclip.data import SyntheticTracklets
        >>> people = SyntheticTracklets(2, 2, 1, frame_size=(64, 32))
        >>> whole = TrackletDataset(people, TFCLIPConfig(frame_size=(64, 32)))
        >>> batch = collate_tracklets([whole[0], whole[3]])
        >>> batch.row, batch.camera, batch.frames[0].shape[1:]
        ([0, 3], [0, 1], torch.Size([3, 64, 32]))
    """

    def __init__(
        self, tracklets: Sequence[Tracklet], config: TFCLIPConfig, sampling: Sampling = "dense"
    ) -> None:
        if sampling not in get_args(Sampling):
            raise ValueError(f"sampling must be one of {get_args(Sampling)}, got {sampling!r}")
        self.tracklets = tracklets
        self.sampling = sampling
        self.clip_length = config.clip_length
        self.preprocess = Preprocess(config)

    def __len__(self) -> int:
        return len(self.tracklets)

    def __getitem__(self, row: int) -> TrackletFrames:
        """Return the frames of a tracklet.

        Raises:
            FrameError: They cannot be used.
        """
        tracklet = self.tracklets[row]
        frames: Any = tracklet.open()
        if self.sampling == "rrs":
            frames = frames.select(sample_restricted(len(frames), self.clip_length))
        pixels = torch.stack([self.preprocess.resize(frame) for frame in frames])
        return TrackletFrames(pixels, row, tracklet.camera)


def collate_tracklets(samples: Sequence[TrackletFrames]) -> TrackletFrames:
    """Put tracklets of any lengths into one batch; the ``collate_fn`` for ``TrackletDataset``.

    Args:
        samples: At least one.

    Returns:
        Lists of frames, rows and cameras, which ``TFCLIP.encode_sequences`` takes.
    """
    frames, rows, cameras = zip(*samples, strict=True)
    return TrackletFrames(list(frames), list(rows), list(cameras))


def number_people(tracklets: Sequence[Tracklet]) -> tuple[Tensor, list[str | int]]:
    """Number the persons of tracklets from 0 on, in natural order.

    Args:
        tracklets: With known persons. A data set that has ``identities``, as
            ``SyntheticTracklets`` does, is asked for these instead.

    Returns:
        The number of each tracklet's person, ``(M,)``, and the person of each number.

    Raises:
        ValueError: There is no tracklet, or the person of one is not known.

    Example:
        >>> from tfclip.data import Tracklet
        >>> persons = ["p10", "p9", "p10"]
        >>> number_people([Tracklet(name="x", frames=[], person=p) for p in persons])
        (tensor([1, 0, 1]), ['p9', 'p10'])
    """
    numbered = getattr(tracklets, "identities", None)
    persons: list[str | int] = [] if numbered is None else [int(number) for number in numbered]
    for tracklet in tracklets if numbered is None else ():
        if tracklet.person is None:
            raise ValueError(
                f"tracklets must have known persons to train on, got None for {tracklet.name!r}"
            )
        persons.append(tracklet.person)
    if not persons:
        raise ValueError("tracklets must have at least one to train on, got none")
    people = sorted(set(persons), key=lambda person: (natural_key(str(person)), str(type(person))))
    numbers = {person: number for number, person in enumerate(people)}
    return torch.tensor([numbers[person] for person in persons]), people


def _mix(*numbers: int) -> int:
    """Return a seed that differs in every bit when one number does."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
