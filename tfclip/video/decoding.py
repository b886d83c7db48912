"""What files and live sources share: PyAV, upright RGB pixels, and times that always rise."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfclip.errors import MissingExtraError
from tfclip.images import check_size

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

_DEFAULT_STEP = 0.04  # seconds between frames where a stream does not tell its rate


class TimedFrame(NamedTuple):
    """A frame and when it was seen."""

    pixels: np.ndarray
    """``(H, W, 3)`` uint8 RGB, upright."""
    time: float
    """Seconds since the first frame."""
    number: int | None
    """Number of the frame from 0, or None where nobody counted, after a jump to a time."""


class Clock:
    """Times of frames, in seconds, each later than the one before whatever their stamps do.

    A stamp that is missing, or not later than the last, is taken as one frame after the last, and
    the stamps that follow go on from there.

    Args:
        step: Seconds from one frame to the next, above 0.
    """

    def __init__(self, step: float) -> None:
        self.corrections = 0
        self.last: float | None = None
        self._step = step
        self._shift = 0.0

    def read(self, stamp: float | None) -> float:
        """Return the time of the next frame from its stamp in seconds."""
        time = None if stamp is None else stamp + self._shift
        if self.last is None:
            time = 0.0 if time is None else time
        elif time is None or time <= self.last:
            self.corrections += time is not None
            time = self.last + self._step
            self.jump(stamp, time)
        self.last = time
        return time

    def jump(self, stamp: float | None, time: float) -> None:
        """Let this stamp, and those after it, mean this time."""
        if stamp is not None:
            self._shift = time - stamp


def stamp(frame: VideoFrame, origin: int, time_base: Fraction) -> float | None:
    """Return when a frame is shown, in seconds after ``origin``; None where it is not stamped."""
    ticks = frame.pts if frame.pts is not None else frame.dts
    return None if ticks is None else float((ticks - origin) * time_base)


def seconds_per_frame(stream: VideoStream) -> float:
    """Return what a stream says of its rate, or a usual value."""
    rate = stream.average_rate or stream.guessed_rate
    return float(1 / rate) if rate else _DEFAULT_STEP


class Upright:
    """Turn decoded frames into upright RGB pixels, as a player would show them.

    Of the first frame only it reads how the camera was held: asking for its side data ties a frame
    to itself, so that it stays in memory until the next garbage collection, hundreds of frames
    later.

    Args:
        first: The first frame.
    """

    def __init__(self, first: VideoFrame) -> None:
        self._matrix = _display_matrix(first)

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Return ``(H, W, 3)`` uint8 RGB.

        Raises:
            FrameError: The frame has far too many pixels; a stream may change their number.
        """
        check_size(frame.width, frame.height, "a frame of the video")
        pixels = frame.to_ndarray(format="rgb24")
        a, b, c, d = self._matrix
        if abs(b) > abs(a):  # a quarter turn: a and d are zero
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d): a player shows the pixel (x, y) at (a x + c y, b x + d y)."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return 1, 0, 0, 1
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(stored), np.int32).reshape(3, 3).tolist()
    return a, b, c, d


def import_av() -> ModuleType:
    """Return PyAV.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            "reading video needs PyAV; install it with: pip install 'tfclip[video]'"
        ) from error
    return av


def reason(error: Exception) -> str:
    """Return what a message should quote of an error: FFmpeg's own also hold number and path."""
    return getattr(error, "strerror", None) or str(error)
