"""Writing frames to a video file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from tfclip.errors import SaveError
from tfclip.files import replace_when_done
from tfclip.video.decoding import TimedFrame, import_av, reason

_TICKS = 1000  # per second: fine enough for any camera, and MPEG-4 takes no more than 65,535
_CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that FFmpeg was built with


def write_video(
    path: str | Path, frames: Iterable[TimedFrame | np.ndarray], *, rate: float = 25.0
) -> int:
    """Write frames to an MP4 file that any player shows, whole or not at all.

    H.264 where FFmpeg has an encoder for it, else MPEG-4; 4:2:0 colours. An odd width or height
    gains a line, a copy of the last one. Only a few frames are in memory.

    Args:
        path: The file; its folder is made when it is missing.
        frames: At least one. ``TimedFrame`` keep their times, counted from the first, to the
            millisecond; arrays ``(H, W, 3)`` uint8 RGB, and frames without a time, come at
            ``rate``.
        rate: Frames a second, above 0 and at most 1000.

    Returns:
        How many frames were written.

    Raises:
        MissingExtraError: PyAV is not installed.
        SaveError: The file cannot be written.
        ValueError: There is no frame, one is of another size than the first, a time does not come
            after the one before, or ``rate`` is out of its range.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "grey.mp4"
        >>> write_video(path, np.full((3, 16, 16, 3), 127, dtype=np.uint8))
        3
    """
    av = import_av()
    if not 0 < rate <= _TICKS:
        raise ValueError(f"rate must be above 0 and at most {_TICKS}, got {rate}")
    codec = next(name for name in _CODECS if name in av.codecs_available)
    count, shape, last, origin = 0, None, -1, None
    with replace_when_done(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4") as container:
                stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
                stream.codec_context.time_base = Fraction(1, _TICKS)
                for given in frames:
                    pixels, time = _read(given, count / rate)
                    if shape is None:
                        shape, origin = pixels.shape, time
                        stream.height, stream.width = (side + side % 2 for side in shape[:2])
                        stream.pix_fmt = "yuv420p"
                    if pixels.shape != shape:
                        raise ValueError(
                            f"frames must be of one size, got {shape} and then {pixels.shape}"
                        )
                    tick = round((time - (origin or 0.0)) * _TICKS)
                    if tick <= last:
                        raise ValueError(
                            "times of frames must rise by a millisecond at least, got "
                            f"{time:g} s after {(origin or 0.0) + last / _TICKS:g} s"
                        )
                    frame = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")
                    frame.pts, frame.time_base = tick, Fraction(1, _TICKS)
                    container.mux(stream.encode(frame))
                    count, last = count + 1, tick
                if not count:
                    raise ValueError("frames must have at least one frame, got none")
                container.mux(stream.encode(None))
        except av.FFmpegError as error:
            raise SaveError(f"cannot write {path}: {reason(error)}") from error
    return count


def _read(given: TimedFrame | np.ndarray, usual: float) -> tuple[np.ndarray, float]:
    if isinstance(given, TimedFrame):
        return given.pixels, usual if math.isnan(given.time) else given.time
    return given, usual


def _even(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)
