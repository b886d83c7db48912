"""The record of one tracklet: where its frames are, who it shows, which camera saw it and when."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tfclip.errors import FrameError

if TYPE_CHECKING:
    import numpy as np

    from tfclip.frames import Frames
    from tfclip.images import Pixels

_logger = logging.getLogger(__name__)

Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height in pixels


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """Where a picture of a tracklet can be found, so that none has to be stored.

    Args:
        path: An image; or a video or a folder of images, and then ``frame`` says which.
        frame: Position in the video or folder, from 0; None for an image.
        box: ``(left, top, width, height)`` in pixels to cut out; None is the whole picture.
    """

    path: str
    frame: int | None = None
    box: Box | None = None


@dataclass(frozen=True, kw_only=True)
class Tracklet:
    """The frames of one person followed by one camera, and what is known about them.

    Only ``name`` and ``frames`` are needed; everything else may be unknown.

    Args:
        name: Unique within its data set; a reader takes it from the path.
        frames: Anything ``tfclip.frames.open_frames`` takes.
        boxes: ``(T, 4)`` left, top, width, height in pixels, one for each of the tracklet's frames.
        frame_indices: Which of ``frames`` belong to the tracklet, ascending, from 0; None is all.
            It is how many tracklets share one video.
        person: Identity, compared for equality only.
        camera: Number of the camera, from 0.
        first_frame: Number of the first frame in the recording, as its source counts.
        last_frame: Number of the last frame in the recording, inclusive.
        thumbnail: Where to find a picture of it.
        platform: What carries the camera, such as ``"ground"`` or ``"aerial"``.
        modality: What the pixels are, such as ``"visible"`` or ``"infrared"``.
        clothes: What the person wears, as the data set names it; compared for equality only.
        session: When or in which recording it was seen, as the data set names it.

    Raises:
        ValueError: The camera is negative, the frame range is turned round, or there is not one
            box for each frame index.

    Example:
        >>> tracklet = Tracklet(name="7/door", frames=["7/door/1.jpg"], person=7, camera=2)
        >>> tracklet.person, tracklet.camera
        (7, 2)
    """

    name: str
    frames: Any
    boxes: Any = None
    frame_indices: tuple[int, ...] | None = None
    person: str | int | None = None
    camera: int | None = None
    first_frame: int | None = None
    last_frame: int | None = None
    thumbnail: Thumbnail | None = None
    platform: str | None = None
    modality: str | None = None
    clothes: str | None = None
    session: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a text of at least one letter, got {self.name!r}")
        if self.camera is not None and self.camera < 0:
            raise ValueError(f"camera must be 0 or more, got {self.camera} for {self.name!r}")
        first, last = self.first_frame, self.last_frame
        if first is not None and last is not None and first > last:
            raise ValueError(
                f"first_frame must not come after last_frame, got {first} and {last} "
                f"for {self.name!r}"
            )
        indices, boxes = self.frame_indices, self.boxes
        if indices is not None and boxes is not None and len(indices) != len(boxes):
            raise ValueError(
                f"boxes must be one for each of the {len(indices)} frame_indices, "
                f"got {len(boxes)} for {self.name!r}"
            )

    def open(self) -> Frames:
        """Open the tracklet's own frames, cut to its boxes; they are decoded when iterated.

        Raises:
            FrameError: The frames cannot be used.
        """
        from tfclip.frames import Frames, open_frames

        frames = open_frames(self.frames)
        if self.frame_indices is not None:
            frames = Frames(_Selection(frames, self.frame_indices), f"{self.name} ({frames.name})")
        return open_frames(frames, boxes=self.boxes)


class _Selection:
    """Some of the frames of a longer sequence, as a sequence of its own."""

    def __init__(self, frames: Frames, indices: Sequence[int]) -> None:
        self._frames = frames
        self._indices = indices
        self.known_length: int | None = len(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.select(range(len(self)))

    def select(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        chosen = [self._indices[index] for index in indices]
        try:
            yield from self._frames.select(chosen)
        except FrameError:
            raise
        except ValueError as error:  # an index beyond the end of the recording
            raise self._beyond(chosen[-1]) from error

    @property
    def is_indexed(self) -> bool:
        return self._frames.is_indexed

    def read(self, index: int, draft: tuple[int, int] | None = None) -> Pixels:
        if self._indices[-1] >= len(self._frames):
            raise self._beyond(self._indices[-1])
        return self._frames.read(self._indices[index], draft)

    def _beyond(self, index: int) -> FrameError:
        return FrameError(
            f"{self._frames.name} has {len(self._frames)} frames, "
            f"but frame {index + 1} is asked for"
        )


def load_thumbnails(thumbnails: Sequence[Thumbnail | None]) -> list[np.ndarray | None]:
    """Read the pictures that thumbnails refer to; each video is decoded once.

    Args:
        thumbnails: References, or None where there is none.

    Returns:
        Pictures ``(H, W, 3)`` uint8 RGB; None where there is none or it cannot be read any more,
        which is logged.
    """
    pictures: list[np.ndarray | None] = [None] * len(thumbnails)
    recordings: dict[str, list[tuple[int, int]]] = {}
    for row, thumbnail in enumerate(thumbnails):
        if thumbnail is not None:
            place = (thumbnail.frame or 0, row)
            recordings.setdefault(thumbnail.path, []).append(place)
    for path, places in recordings.items():
        places.sort()
        try:
            for row, picture in _read_frames(path, places):
                pictures[row] = _crop(picture, thumbnails[row])
        except (FrameError, ValueError) as error:
            _logger.warning("no picture: %s", error)
    return pictures


def _read_frames(path: str, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
    from tfclip.frames import open_frames

    frames = open_frames(path).select([frame for frame, _ in places])
    for (_, row), picture in zip(places, frames, strict=True):
        yield row, picture


def _crop(picture: np.ndarray, thumbnail: Thumbnail | None) -> np.ndarray:
    from tfclip.boxes import crop_frame

    if thumbnail is None or thumbnail.box is None:
        return picture
    return crop_frame(picture, thumbnail.box, f"the box of {thumbnail.path}")
