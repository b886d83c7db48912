"""What an encoder knows of each track, and what it is given of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tfclip.boxes import check_boxes
from tfclip.images import Channels, Picture, check_picture, read_picture
from tfclip.tracking.clips import Clip
from tfclip.tracking.windows import Window


class TrackState(NamedTuple):
    """What is known of a track."""

    num_crops: int
    """Crops it was given, those that did not pass the gate included."""
    num_used: int
    """Crops that passed."""
    gated: dict[str, int]
    """How many did not pass, for each reason."""
    kept: tuple[int, ...] | None
    """Which crops its embedding is made of, counted from 0, in the order of ``encode_sequence``;
    None is all that passed."""
    first_time: float
    last_time: float
    camera: int | None


@dataclass(eq=False)
class Track:
    """One track.

    Args:
        window: Its frames that passed.
        camera: Number of its camera, or -1.
        first_time: Of its first crop.
        last_time: Of its newest crop.
    """

    window: Window
    camera: int
    first_time: float
    last_time: float
    num_crops: int = 0
    num_used: int = 0
    gated: Counter[str] = field(default_factory=Counter)
    stand_in: Clip | None = None
    stand_in_score: float = -math.inf
    embedding: Tensor | None = None

    def clips(self) -> list[Clip]:
        """Return the clips that the embedding is made of."""
        return self.window.clips if self.stand_in is None else [self.stand_in]

    def mean(self) -> Tensor:
        """Return the mean of its clips, ``(F,)``, which are up to date."""
        if self.stand_in is None:
            return self.window.mean()
        assert self.stand_in.embedding is not None  # the caller described it
        return self.stand_in.embedding.clone()

    def state(self) -> TrackState:
        """Describe it to the user."""
        kept = self.window.numbers if self.stand_in is None else tuple(self.stand_in.numbers)
        return TrackState(
            self.num_crops,
            self.num_used,
            dict(self.gated),
            kept,
            self.first_time,
            self.last_time,
            None if self.camera < 0 else self.camera,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        own = 0 if self.embedding is None else self.embedding.nbytes
        stand_in = 0 if self.stand_in is None else self.stand_in.num_bytes
        return own + stand_in + self.window.num_bytes


@dataclass(frozen=True, eq=False)
class Given:
    """One crop as it came."""

    track_id: Hashable
    crop: np.ndarray
    time: float
    camera: int | None
    box: Sequence[float] | None
    frame_size: tuple[int, int] | None


def check_ids(track_ids: Iterable[Any]) -> list[Hashable]:
    """Return track ids as plain values that can be looked up.

    Raises:
        TypeError: They are no sequence, or one cannot be a key, such as a list.
    """
    if isinstance(track_ids, (str, bytes)) or not isinstance(track_ids, Iterable):
        raise TypeError(
            f"track_ids must be a sequence of ids, got {type(track_ids).__name__}; "
            "put a single one into a list"
        )
    return [check_id(track_id) for track_id in track_ids]


def check_id(track_id: Any) -> Any:
    """Return a track id as a plain value: a number of NumPy or torch is that number.

    Raises:
        TypeError: It cannot be a key, such as a list.
    """
    if isinstance(track_id, (torch.Tensor, np.ndarray, np.generic)) and not track_id.shape:
        return track_id.item()
    try:
        hash(track_id)
        if not isinstance(track_id, torch.Tensor):  # whose hash is its place in memory
            return track_id
    except TypeError:
        pass
    raise TypeError(f"track ids must be numbers or texts, got {type(track_id).__name__}")


def check_crops(crops: Iterable[Picture], count: int, channels: Channels) -> list[np.ndarray]:
    """Return crops as RGB arrays.

    Raises:
        FrameError: One is no picture ``(h, w, 3)`` of uint8.
        TypeError: They are no sequence, or one is of another type.
        ValueError: There are more or fewer than ids, or ``channels`` is unknown.
    """
    if channels not in ("rgb", "bgr"):
        raise ValueError(f"channels must be one of ('rgb', 'bgr'), got {channels!r}")
    if not isinstance(crops, Iterable):
        raise TypeError(f"crops must be a sequence of pictures, got {type(crops).__name__}")
    given = list(crops)
    check_count("crops", len(given), count)
    for place, crop in enumerate(given):
        check_picture(crop, f"crops[{place}]")
        if channels == "bgr" and not isinstance(crop, np.ndarray):
            raise ValueError(
                f"channels='bgr' is for ndarrays, got crops[{place}] of {type(crop).__name__}, "
                "which is RGB always"
            )
    return [read_picture(crop, f"crops[{i}]", channels) for i, crop in enumerate(given)]


def check_times(times: Any, count: int) -> list[float] | None:
    """Return one finite time for each crop; None stays None. A single one is that of all.

    Raises:
        TypeError: They are no numbers.
        ValueError: There are more or fewer than ids, or one is not finite.
    """
    if times is None:
        return None
    single = np.ndim(times) == 0
    try:
        numbers = [float(time) for time in ([times] * count if single else times)]
        extra = [float(times)] if single else []  # is checked where there is no crop, too
    except (TypeError, ValueError) as error:
        raise TypeError(f"times must be numbers, got {times!r}") from error
    check_count("times", len(numbers), count)
    bad = [time for time in [*numbers, *extra] if not math.isfinite(time)]
    if bad:
        raise ValueError(f"times must be finite, got {bad[0]}")
    return numbers


def spread(name: str, values: Any, count: int) -> list[Any]:
    """Return one value for each crop; a single one, or None, is that of all.

    Raises:
        ValueError: There are more or fewer than ids.
    """
    if values is None or np.ndim(values) == 0:
        return [values] * count
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    check_count(name, len(listed), count)
    return listed


def check_given_boxes(boxes: Any, count: int) -> list[Any]:
    """Return one box for each crop, or None for each.

    Raises:
        FrameError: They are no boxes ``(M, 4)`` with an area.
        ValueError: There are more or fewer than ids.
    """
    if boxes is None or not count:
        return [None] * count
    checked = check_boxes(boxes)
    check_count("boxes", len(checked), count)
    return checked.tolist()


def check_count(name: str, number: int, count: int) -> None:
    """Refuse another number of values than there are track ids.

    Raises:
        ValueError: The numbers differ.
    """
    if number != count:
        raise ValueError(f"{name} must have one entry for each of {count} track_ids, got {number}")
