"""How the frames of a tracklet are read, where it need not be exact: faster, or fewer of them."""

from __future__ import annotations

import dataclasses
import operator
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from tfclip.ahead import Request
from tfclip.errors import FrameError
from tfclip.frames import Frames, sample_restricted
from tfclip.images import Pixels
from tfclip.preprocess import Preprocess, Resizer

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

Sampling = Literal["dense", "rrs", "all"]
Selection = Literal["spread", "diverse"]

# A draft of just the size that is wanted is shrunk by JPEG's own filter alone. On drawn people the
# cosine to the exact embedding was then 0.998 at least; with a margin of two, 0.9997.
_DRAFT_MARGIN = 2

_THUMBNAIL = (16, 8)  # height and width: pose and surroundings show, noise does not


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the frames of a tracklet are read: all that changes what a model sees of them.

    The defaults read every frame exactly. Anything else gives other embeddings, whose difference is
    measured in docs/encoding.md; compare only embeddings that were read alike.

    Args:
        draft: Decode JPEG files that are at least four times as high and wide as the model's
            frames at a half, quarter or eighth of their size, but at twice the model's at least,
            so that most of the shrinking is still done by the resizer. Frames that are cut to
            boxes or shared by tracklets, and everything but JPEG, are read as always.
        resizer: ``"pillow"`` or ``"tensor"``; see ``tfclip.preprocess.resize_frame``.
        max_frames: Read no more frames than this of a tracklet, chosen by ``selection``; None reads
            all. A multiple of the model's clip length is best, as the last clip is filled up.
        selection: ``"spread"`` takes the middle frames of equal parts; nothing else is read of
            files. ``"diverse"`` looks at small pictures of all frames, begins with the most
            average one and adds the one most unlike all it has, again and again.

    Raises:
        TypeError: ``max_frames`` is no whole number.
        ValueError: An argument is none of these.

    Example:
        >>> Reading(max_frames=32).settings()
        {'max_frames': 32, 'selection': 'spread'}
    """

    draft: bool = False
    resizer: Resizer = "pillow"
    max_frames: int | None = None
    selection: Selection = "spread"

    def __post_init__(self) -> None:
        for name, choices in (("resizer", Resizer), ("selection", Selection)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {get_args(choices)}, got {getattr(self, name)!r}"
                )
        if self.max_frames is None:
            return
        try:
            number = operator.index(self.max_frames)
        except TypeError as error:
            kind = type(self.max_frames).__name__
            raise TypeError(f"max_frames must be a whole number or None, got {kind}") from error
        if number < 1:
            raise ValueError(f"max_frames must be at least 1, got {number}")
        object.__setattr__(self, "max_frames", number)

    def draft_size(self, frame_size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the least size to decode at for frames of a model, or None for the file's own.

        Args:
            frame_size: Height and width in pixels.

        Example:
            >>> Reading(draft=True).draft_size((256, 128))
            (512, 256)
        """
        height, width = frame_size
        return (_DRAFT_MARGIN * height, _DRAFT_MARGIN * width) if self.draft else None

    def settings(self) -> dict[str, Any]:
        """Return what differs from the exact way, as a file of embeddings records it."""
        exact = Reading()
        changed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(exact, field.name)
        }
        if self.max_frames is None:
            changed.pop("selection", None)  # nothing is selected
        else:
            changed["selection"] = self.selection
        return changed


@dataclass(frozen=True)
class TrackletRequest(Request[Tensor]):
    """Resized frames of one tracklet, as its sampling wants them."""

    clip: Callable[[int], Sequence[int]] | None = None
    """Says which of so many frames that were read make the one clip; None is dense sampling."""


def request_tracklet(
    model: TFCLIP,
    preprocess: Preprocess,
    key: Hashable,
    frames: Frames,
    sampling: Sampling,
    reading: Reading,
) -> TrackletRequest:
    """Say which frames of a tracklet are to be read, and how.

    Args:
        model: For its clip length and temporal head.
        preprocess: Resizes the frames, in the threads that read them.
        key: The tracklet's key.
        frames: Its frames.
        sampling: As in ``TFCLIP.encode_sequence``.
        reading: As in ``TFCLIP.encode_sequence``; its resizer is ``preprocess``'s business.

    Raises:
        FrameError: It has more frames than the temporal head takes at once.
    """
    choice = _Choice(frames, sampling, model.config.clip_length, reading)
    if sampling == "all":
        _check_one_clip(model, frames, reading)
    return TrackletRequest(
        key,
        frames,
        prepare=lambda position, picture: preprocess.resize_picture(picture),
        choose=None if choice.is_all else choice.indices,
        count=None if choice.is_all else choice.count,
        draft=reading.draft_size(preprocess.size),
        clip={"dense": None, "rrs": choice.restricted_clip, "all": range}[sampling],
    )


def _check_one_clip(model: TFCLIP, frames: Frames, reading: Reading) -> None:
    """Refuse a tracklet that the temporal head has no positions for, before it is decoded."""
    longest = model.temporal.max_frames
    if longest is None or "temporal" not in model.config.descriptor:
        return
    if reading.max_frames is not None and reading.max_frames <= longest:
        return
    if len(frames) > longest:
        raise FrameError(
            f"{frames.name} must have at most {longest} frames with sampling='all' and the "
            f"temporal head {model.config.temporal_head!r}, got {len(frames)}; use "
            f"sampling='dense', or Reading(max_frames={longest})"
        )


class _Choice:
    """Which frames of a tracklet are read: first ``max_frames`` of them, then the sampling's."""

    def __init__(
        self, frames: Frames, sampling: Sampling, clip_length: int, reading: Reading
    ) -> None:
        self._frames = frames
        self._clip_length = clip_length
        self._is_restricted = sampling == "rrs"
        self._limit = reading.max_frames
        self._selection = reading.selection
        self._lock = threading.Lock()
        self._indices: Sequence[int] | None = None

    @property
    def is_all(self) -> bool:
        """Whether every frame is read, whatever their number."""
        return not self._is_restricted and self._limit is None

    def count(self) -> int:
        """Return how many frames are read, without looking at any."""
        return len(set(self._restricted())) if self._is_restricted else self._num_kept()

    def indices(self) -> Sequence[int]:
        """Return the frames to read, ascending; several threads may ask, one finds out."""
        with self._lock:
            if self._indices is None:
                kept = self._keep()
                if self._is_restricted:
                    kept = [kept[index] for index in sorted(set(self._restricted()))]
                self._indices = kept
            return self._indices

    def restricted_clip(self, num_read: int) -> list[int]:
        """Return which of the frames that were read make the clip of restricted sampling."""
        indices = self._restricted()
        places = {index: place for place, index in enumerate(sorted(set(indices)))}
        return [places[index] for index in indices]

    def _restricted(self) -> list[int]:
        return sample_restricted(self._num_kept(), self._clip_length)

    def _num_kept(self) -> int:
        length = len(self._frames)
        return length if self._limit is None else min(length, self._limit)

    def _keep(self) -> Sequence[int]:
        length, limit = len(self._frames), self._limit
        if limit is None or length <= limit:
            return range(length)
        if self._selection == "spread":
            return spread_frames(length, limit)
        return diverse_frames(_thumbnails(self._frames), limit)


def spread_frames(num_frames: int, max_frames: int) -> list[int]:
    """Return the middle frames of ``max_frames`` equal parts of a tracklet; all, if it has fewer.

    Args:
        num_frames: Frames of the tracklet, at least 1.
        max_frames: Frames to return, at least 1.

    Raises:
        ValueError: Either number is below 1.

    Example:
        >>> spread_frames(100, 4)
        [12, 37, 62, 87]
    """
    for name, value in (("num_frames", num_frames), ("max_frames", max_frames)):
        if operator.index(value) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if num_frames <= max_frames:
        return list(range(num_frames))
    return [(2 * part + 1) * num_frames // (2 * max_frames) for part in range(max_frames)]


def diverse_frames(thumbnails: np.ndarray, max_frames: int) -> list[int]:
    """Return frames that are unlike each other (farthest-point sampling), ascending.

    The first is the one nearest to the mean; each next one is the frame whose nearest chosen frame
    is farthest away, by the sum of squares. The earliest wins a tie.

    Args:
        thumbnails: A small picture of each frame, ``(T, ...)``; at least one.
        max_frames: Frames to return, at least 1; all, if there are fewer.

    Raises:
        ValueError: There is no thumbnail, or ``max_frames`` is below 1.

    Example:
        >>> diverse_frames(np.array([[0.0], [1.0], [2.0], [9.0], [9.5]]), 3)
        [0, 2, 4]
    """
    if operator.index(max_frames) < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    if len(thumbnails) < 1:
        raise ValueError("thumbnails must be at least one, got none")
    if len(thumbnails) <= max_frames:
        return list(range(len(thumbnails)))
    points = np.asarray(thumbnails, dtype=np.float64).reshape(len(thumbnails), -1)
    chosen = [int(_squares(points, points.mean(0)).argmin())]
    nearest = _squares(points, points[chosen[0]])
    while len(chosen) < max_frames:
        nearest[chosen[-1]] = -1  # frames that are all alike must not be chosen twice
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _squares(points, points[chosen[-1]]))
    return sorted(chosen)


def _squares(points: np.ndarray, point: np.ndarray) -> np.ndarray:
    return np.square(points - point).sum(1)


def _thumbnails(frames: Frames) -> np.ndarray:
    """Return a small picture of every frame, ``(T, H, W, 3)`` uint8; JPEG decodes small at once."""
    pictures: Iterable[Pixels] = (
        (frames.read(index, _THUMBNAIL) for index in range(len(frames)))
        if frames.is_indexed
        else frames
    )
    return np.stack([_thumbnail(picture) for picture in pictures])


def _thumbnail(picture: Pixels) -> np.ndarray:
    height, width = _THUMBNAIL
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))
