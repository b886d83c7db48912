"""Frames of one tracklet, from anything a user holds, and which of them make clips."""

from __future__ import annotations

import itertools
import operator
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, get_args

import numpy as np
import torch
from PIL import Image

from tfclip.boxes import check_boxes, crop_frame
from tfclip.errors import FrameError
from tfclip.images import (
    IMAGE_SUFFIXES,
    Channels,
    Picture,
    Pixels,
    check_array,
    check_picture,
    check_tensor,
    is_folder,
    is_image,
    list_images,
    open_picture,
    read_picture,
)
from tfclip.remote import is_address
from tfclip.video import VIDEO_SUFFIXES, Video

FrameSource: TypeAlias = "Picture | Sequence[Picture] | Frames"


class FrameSequence(Protocol):
    """What gives frames ``(H, W, 3)`` in order, all or some, any number of times.

    One whose frames can be had singly, from any thread, is an ``IndexedSequence``; others are
    iterated, by one thread at a time.
    """

    @property
    def known_length(self) -> int | None:
        """The number of frames, or None where it takes a pass over them to know."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def select(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames of strictly ascending indices."""
        ...


class IndexedSequence(FrameSequence, Protocol):
    """A sequence that reads any frame by itself, if ``is_indexed``, in several threads at once."""

    @property
    def is_indexed(self) -> bool:
        """Whether ``read`` can be used; crops can if the frames they are cut from can."""
        ...

    def read(self, index: int, draft: tuple[int, int] | None = None) -> Pixels:
        """Read one frame; ``draft`` as in ``tfclip.images.open_picture``."""
        ...


def open_frames(source: FrameSource, *, boxes: Any = None, channels: Channels = "rgb") -> Frames:
    """Open the frames of one tracklet; they are decoded when they are iterated, one at a time.

    Types, shapes, dtypes, ranges, boxes and the existence of files are checked here; a damaged file
    is found when its turn comes.

    Args:
        source: A folder of images (its image files, ``frame2`` before ``frame10``; not its
            sub-folders), a list of image paths, an image, a video file, one or a list of PIL
            images, ndarrays ``(T, H, W, 3)`` or ``(H, W, 3)`` of uint8, a list of ndarrays
            ``(H, W, 3)`` of any sizes, tensors ``(T, 3, H, W)`` or ``(3, H, W)`` of uint8 or of
            floats in [0, 1] (rounded to 8 bits), a list of tensors ``(3, H, W)``, or ``Frames``.
        boxes: Left, top, width and height in pixels of the crop of each frame, ``(T, 4)``. Edges
            are rounded to whole pixels and clipped to the frame. None takes whole frames.
        channels: The order of ndarray channels, ``"rgb"`` or ``"bgr"`` (OpenCV's). Everything else
            is RGB by itself.

    Returns:
        The frames, which can be iterated any number of times.

    Raises:
        FrameError: There is no frame, a file is missing or of no known kind, an array or tensor is
            of a wrong dtype, shape or range, or the boxes do not fit the frames.
        MissingExtraError: The source is a video and PyAV is not installed.
        TypeError: The source is of none of these types.
        ValueError: ``channels`` is unknown, or ``"bgr"`` where there is no ndarray.

    Example:
        >>> frames = open_frames(np.zeros((12, 256, 128, 3), dtype=np.uint8))
        >>> len(frames), next(iter(frames)).shape
        (12, (256, 128, 3))
    """
    if channels not in get_args(Channels):
        raise ValueError(f"channels must be one of {get_args(Channels)}, got {channels!r}")
    if isinstance(source, Frames):
        _refuse_bgr(channels, source)
        frames = source
    elif isinstance(source, (str, os.PathLike)):
        _refuse_bgr(channels, source)
        frames = Frames(_open_path(source), str(source))
    else:
        frames = Frames(_open_pictures(source, channels), "frames")
    if boxes is None:
        return frames
    return Frames(_BoxedFrames(frames, frames.name, check_boxes(boxes)), frames.name)


class Frames:
    """The frames of one tracklet; ``open_frames`` makes them.

    Iteration gives each frame as ``(H, W, 3)`` uint8 RGB and can be repeated. Only the frame at
    hand is in memory, besides what the caller holds anyway. A frame may be a view of the caller's
    array: do not write into it.

    The length of a video is known after a pass over it: ``len`` makes one, and ``list`` asks for
    ``len``, so ``[*iter(frames)]`` is the way to hold a whole video without decoding it twice.
    Its frames are numbered as they decode, so ``enumerate(frames, 1)`` gives the frame numbers of
    a table in the MOT format.

    Args:
        source: Where the frames come from.
        name: What messages call them.
    """

    def __init__(self, source: FrameSequence, name: str) -> None:
        self.name = name
        self._source = source

    @property
    def known_length(self) -> int | None:
        """The number of frames, or None for a video that was not counted yet."""
        return self._source.known_length

    @property
    def is_indexed(self) -> bool:
        """Whether ``read`` gives any frame; a video can only be decoded from its beginning."""
        return getattr(self._source, "is_indexed", False)

    def read(self, index: int, draft: tuple[int, int] | None = None) -> Pixels:
        """Read one frame of indexed frames; several threads may do so at once.

        Args:
            index: Number of the frame, from 0.
            draft: As in ``tfclip.images.open_picture``; a frame with a box is always decoded whole.

        Returns:
            RGB pixels, ``(H, W, 3)`` uint8, or Pillow's image of them.

        Raises:
            FrameError: The picture is damaged, or its box lies outside of it.
        """
        return cast("IndexedSequence", self._source).read(index, draft)

    def __len__(self) -> int:
        """Return the number of frames; of a video, by decoding it once.

        Raises:
            FrameError: A video has no frames, or not as many as boxes.
        """
        return len(self._source)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._source)

    def select(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """Return an iterator of some frames; each is decoded once, however often it is asked for.

        Args:
            indices: Frame numbers from 0, ascending; a number may be repeated.

        Raises:
            ValueError: The indices are negative, not ascending or beyond the last frame; of a video
                that was not counted yet, the last is found when it ends.
        """
        indices = [operator.index(index) for index in indices]
        if indices != sorted(indices) or (indices and indices[0] < 0):
            raise ValueError(
                f"indices must be ascending and not negative, got {reprlib.repr(indices)}"
            )
        length = self.known_length
        if indices and length is not None and indices[-1] >= length:
            raise ValueError(
                f"indices must be below the {length} frames of {self.name}, got {indices[-1]}"
            )
        return self._select(Counter(indices))

    def _select(self, counts: Counter[int]) -> Iterator[np.ndarray]:
        indices = list(counts)  # a Counter keeps the order in which they came
        for index, frame in zip(indices, self._source.select(indices), strict=True):
            yield from itertools.repeat(frame, counts[index])


def sample_dense(num_frames: int, clip_length: int) -> list[list[int]]:
    """Return the frames of consecutive clips, which hold every frame.

    The last clip has the remaining frames, and repeats them in their order up to its length.

    Args:
        num_frames: Frames of the tracklet, at least 1.
        clip_length: Frames of a clip, at least 1.

    Raises:
        ValueError: Either number is below 1.

    Example:
        >>> sample_dense(6, 4)
        [[0, 1, 2, 3], [4, 5, 4, 5]]
    """
    _check_counts(num_frames, clip_length)
    clips = []
    for start in range(0, num_frames, clip_length):
        remaining = min(clip_length, num_frames - start)
        clips.append([start + index % remaining for index in range(clip_length)])
    return clips


def sample_restricted(
    num_frames: int, clip_length: int, generator: torch.Generator | None = None
) -> list[int]:
    """Return the frames of one clip, one from each of ``clip_length`` equal chunks (RRS).

    A chunk has ``ceil(num_frames / clip_length)`` frames; beyond the tracklet's end it repeats the
    last one, as the reference does: 9 frames in a clip of 8 give 4 different frames and 4 times
    the last.

    Args:
        num_frames: Frames of the tracklet, at least 1.
        clip_length: Frames of the clip, at least 1.
        generator: Draws the frame of each chunk, uniformly, for training; None takes each chunk's
            first, for a test that can be repeated.

    Raises:
        ValueError: Either number is below 1.

    Example:
        >>> sample_restricted(100, 8)
        [0, 13, 26, 39, 52, 65, 78, 91]
    """
    _check_counts(num_frames, clip_length)
    chunk = -(-num_frames // clip_length)
    offsets = [0] * clip_length
    if generator is not None:
        drawn = torch.randint(chunk, (clip_length,), generator=generator, device=generator.device)
        offsets = drawn.tolist()
    return [min(i * chunk + offset, num_frames - 1) for i, offset in enumerate(offsets)]


def _check_counts(num_frames: int, clip_length: int) -> None:
    for name, value in (("num_frames", num_frames), ("clip_length", clip_length)):
        if operator.index(value) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class _Pictures:
    """Pictures that can be read in any order: a tuple of any kinds, or one array or tensor."""

    is_indexed = True

    def __init__(
        self, pictures: Sequence[Picture] | np.ndarray | torch.Tensor, channels: Channels = "rgb"
    ) -> None:
        self._pictures = pictures
        self._channels: Channels = channels
        self.known_length: int | None = len(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.select(range(len(self)))

    def select(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        for index in indices:
            yield read_picture(self._pictures[index], f"frames[{index}]", self._channels)

    def read(self, index: int, draft: tuple[int, int] | None = None) -> Pixels:
        name = f"frames[{index}]"
        return open_picture(self._pictures[index], name, self._channels, draft=draft)


class _BoxedFrames:
    """Frames cropped to one box each.

    Args:
        frames: The whole frames.
        name: What messages call the frames.
        boxes: What ``check_boxes`` returned.

    Raises:
        FrameError: There are more or fewer boxes than frames. A video tells only when its frames
            are counted or have all been given.
    """

    def __init__(self, frames: Frames, name: str, boxes: np.ndarray) -> None:
        self._frames = frames
        self._name = name
        self._boxes = boxes
        if frames.known_length is not None:
            self._check_length(frames.known_length)

    @property
    def known_length(self) -> int | None:
        """The number of frames, or None where it takes a pass over them to know."""
        return self._frames.known_length

    def __len__(self) -> int:
        length = len(self._frames)
        self._check_length(length)
        return length

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        for count, frame in enumerate(self._frames, start=1):
            if count > len(self._boxes):
                self._check_length(len(self._frames))
            yield self._crop(frame, count - 1)
        self._check_length(count)

    def select(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the crops of strictly ascending indices."""
        len(self)  # a video whose frames and boxes differ in number must not give a single crop
        for index, frame in zip(indices, self._frames.select(indices), strict=True):
            yield self._crop(frame, index)

    @property
    def is_indexed(self) -> bool:
        return self._frames.is_indexed

    def read(self, index: int, draft: tuple[int, int] | None = None) -> np.ndarray:
        """Read the crop of one index, never as a draft: boxes count the pixels of whole frames."""
        return self._crop(np.asarray(self._frames.read(index)), index)

    def _crop(self, frame: np.ndarray, index: int) -> np.ndarray:
        return crop_frame(frame, self._boxes[index], f"boxes[{index}]")

    def _check_length(self, length: int) -> None:
        if len(self._boxes) != length:
            raise FrameError(
                "boxes must have one row for each frame, "
                f"got {len(self._boxes)} rows and {length} frames in {self._name}"
            )


def _open_pictures(source: object, channels: Channels) -> FrameSequence:
    if isinstance(source, np.ndarray):
        check_array(source, "frames", stacked=source.ndim != 3)
        return _Pictures(source if source.ndim == 4 else source[None], channels)
    if isinstance(source, torch.Tensor):
        _refuse_bgr(channels, source)
        check_tensor(source, "frames", stacked=source.ndim != 3)
        return _Pictures(source if source.ndim == 4 else source[None])
    if isinstance(source, Image.Image):
        _refuse_bgr(channels, source)
        return _Pictures((source,))
    if not isinstance(source, (list, tuple)):
        raise TypeError(
            "frames must be a path, a PIL image, an ndarray, a tensor or a list of these, "
            f"got {type(source).__name__}"
        )
    if not source:
        raise FrameError("frames must have at least one frame, got an empty list")
    for index, picture in enumerate(source):
        check_picture(picture, f"frames[{index}]")
        if not isinstance(picture, np.ndarray):
            _refuse_bgr(channels, picture)
    return _Pictures(tuple(source), channels)  # a copy: the caller's list may change


def _refuse_bgr(channels: Channels, source: object) -> None:
    if channels == "bgr":
        raise ValueError(
            f"channels='bgr' is for ndarrays; {type(source).__name__} frames are RGB always"
        )


def _open_path(source: str | os.PathLike[str]) -> FrameSequence:
    if source == "":
        raise FrameError("frames must be a path, got an empty string")
    if is_address(source):
        return _Pictures((source,))
    path = Path(source)
    if is_folder(path):
        return _Pictures(list_images(path))
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return Video(path)
    if suffix in IMAGE_SUFFIXES or is_image(path):
        return _Pictures((path,))
    raise FrameError(
        f"{path} must be a folder of images, an image, or a video with one of the suffixes "
        f"{' '.join(sorted(VIDEO_SUFFIXES))}"
    )
