"""Frames of a video file."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfclip.errors import FrameError
from tfclip.images import check_size
from tfclip.video.decoding import (
    Clock,
    TimedFrame,
    Upright,
    import_av,
    reason,
    seconds_per_frame,
    stamp,
)

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)

# How far before a time to look for a key frame, when the one that the file's index names is after
# it: seconds, then the whole file.
_LOOK_BACK = (0.0, 2.0, 16.0)

_logger = logging.getLogger(__name__)


class _Start(NamedTuple):
    """What the first frame tells."""

    ticks: int | None  # its stamp: the origin of all times
    time_base: Fraction
    step: float  # seconds from one frame to the next, where stamps are missing
    upright: Upright


class Video:
    """The frames of a video in the order they are shown, decoded anew in each pass.

    A packet that cannot be decoded is skipped and counted (``num_skipped``), and the first pass
    that meets some logs how many. A file that is cut short gives what is there. Frames are turned
    upright by the rotation that phones store in the file. Only the frame at hand is in memory,
    and the few that the codec needs.

    Args:
        path: A file of any format FFmpeg reads.

    Raises:
        FrameError: It is not a video, or has no video stream.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.num_skipped = 0
        """Packets that the latest pass skipped, because they did not decode."""
        self._length: int | None = None
        self._start: _Start | None = None
        self._warned: set[str] = set()
        self._open().close()  # a file that is no video fails here, not at its first frame

    @property
    def known_length(self) -> int | None:
        """The number of frames, or None before the first complete pass."""
        return self._length

    def __len__(self) -> int:
        """Count the frames: decodes the whole video, once, unless a pass has done so before."""
        if self._length is None:
            self._length = sum(1 for _ in self._decode())
        return self._length

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self._upright_rgb, self._decode())

    def select(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the frames of strictly ascending indices, decoding no further than the last.

        Raises:
            ValueError: An index is beyond the last frame.
        """
        wanted = iter(indices)
        target = next(wanted, None)
        if target is None:
            return
        for index, frame in enumerate(self._decode()):
            if index == target:
                yield self._upright_rgb(frame)
                target = next(wanted, None)
                if target is None:
                    return
        raise ValueError(f"indices must be below the {len(self)} frames of {self.path}: {target}")

    def timed(
        self, start: float = 0.0, stop: float = math.inf, *, step: int = 1
    ) -> Iterator[TimedFrame]:
        """Yield the frames of a span of time with their times, of constant rate or not.

        Times are seconds after the first frame, from the stamps in the file, and rise from frame
        to frame. A stamp that is missing or goes back is taken as one frame after the last, as are
        those that follow it; that is logged. A later start jumps to the last key frame before it
        and decodes forward, so the frames are those that a pass from the beginning gives.

        Args:
            start: Of the first frame to yield, at the earliest; at least 0.
            stop: Frames of this time and later are left out; above ``start``.
            step: Yield every so many frames, counted from the first one yielded; the others are
                decoded, but not turned into pixels.

        Yields:
            Frames, whose ``number`` is known if ``start`` is 0. None at all where the video ends
            before ``start``.

        Raises:
            ValueError: An argument out of its range.
            FrameError: No frame of the video decodes.
        """
        _check_time("start", start)
        if not stop > start:
            raise ValueError(f"stop must be above start {start:g}, got {stop}")
        if operator.index(step) < 1:
            raise ValueError(f"step must be at least 1, got {step}")
        return self._timed(start, stop, step)

    def times(self) -> list[float]:
        """Return the time of every frame in seconds; decodes the whole video once.

        Raises:
            FrameError: No frame of the video decodes.
        """
        return [time for _, time, _ in self._forward(0.0)]

    def frame_at(self, time: float) -> TimedFrame:
        """Return the frame that is on show at a time: the last that is not later.

        Args:
            time: Seconds after the first frame, at least 0; after the end, the last frame.

        Raises:
            ValueError: ``time`` is negative or not finite.
            FrameError: No frame of the video decodes.
        """
        _check_time("time", time)
        found = None
        for index, at, frame in self._forward(time):
            if found is not None and at > time:
                break
            found = index, at, frame
        if found is None:
            raise FrameError(f"{self.path} has no frame that decodes at {time:g} s")
        index, at, frame = found
        return TimedFrame(self._upright_rgb(frame), at, index)

    def _timed(self, start: float, stop: float, step: int) -> Iterator[TimedFrame]:
        count = 0
        for index, time, frame in self._forward(start):
            if time >= stop:
                return
            if time < start:
                continue
            if count % step == 0:
                yield TimedFrame(self._upright_rgb(frame), time, index)
            count += 1

    def _forward(self, time: float) -> Iterator[tuple[int | None, float, VideoFrame]]:
        """Yield number, time and frame from a key frame that is not after ``time``, or the first.

        What an index of key frames says is not trusted: where the frames begin after ``time``, it
        is looked for farther back.
        """
        start = self._start or self._learn_start()
        for back in _LOOK_BACK:
            if time <= back or start.ticks is None:
                break
            frames = self._jump(start, time - back)
            first = next(frames, None)
            if first is not None and first[1] <= time:
                yield first
                yield from frames
                return
            frames.close()
        clock = Clock(start.step)
        for index, frame in enumerate(self._decode()):
            yield index, clock.read(_stamp(frame, start)), frame
        if clock.corrections:
            self._warn("times", "times go back at %d frames and are continued", clock.corrections)

    def _jump(
        self, start: _Start, time: float
    ) -> Generator[tuple[None, float, VideoFrame], None, None]:
        """Yield the frames from the key frame on that the file gives for a time."""
        clock = Clock(start.step)
        with self._open() as container:
            stream = container.streams.video[0]
            try:
                target = (start.ticks or 0) + math.floor(time / start.time_base)
                container.seek(target, stream=stream)
            except (import_av().FFmpegError, OverflowError):
                return  # it cannot be jumped in
            whole = False  # a frame before the first key frame refers to what was jumped over
            for frame in self._frames(container):
                whole = whole or bool(frame.key_frame)
                if whole:
                    yield None, clock.read(_stamp(frame, start)), frame

    def _learn_start(self) -> _Start:
        frames = self._decode()
        next(frames)  # _decode refuses a video without any
        frames.close()
        assert self._start is not None
        return self._start

    def _open(self) -> InputContainer:
        av = import_av()
        try:
            # An absolute path: FFmpeg takes "a:b.mp4" for an address with the protocol "a".
            container = av.open(str(self.path.absolute()))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise FrameError(f"{self.path} is not a readable video: {reason(error)}") from error
        try:
            if not container.streams.video:
                raise FrameError(f"{self.path} must have a video stream, got none")
            stream = container.streams.video[0]
            # FFmpeg gives no sizes for a stream whose codec it does not know.
            width, height = (getattr(stream, side, None) or 0 for side in ("width", "height"))
            check_size(width, height, str(self.path))
        except FrameError:
            container.close()
            raise
        return container

    def _decode(self) -> Generator[VideoFrame, None, None]:
        """Yield the frames as FFmpeg holds them; a complete pass also learns their number."""
        count = 0
        with self._open() as container:
            for frame in self._frames(container):
                if self._start is None:
                    stream = container.streams.video[0]
                    self._start = _Start(
                        frame.pts if frame.pts is not None else frame.dts,
                        frame.time_base or stream.time_base or Fraction(1, 1000),
                        seconds_per_frame(stream),
                        Upright(frame),
                    )
                count += 1
                yield frame
        if count == 0:
            raise FrameError(f"{self.path} must have at least one frame that decodes, got none")
        self._length = count

    def _frames(self, container: InputContainer) -> Iterator[VideoFrame]:
        """Yield what decodes, skipping and counting the packets that do not."""
        failure = import_av().FFmpegError
        self.num_skipped = 0
        try:
            for packet in self._packets(container):
                try:
                    frames = packet.decode()
                except failure:
                    self.num_skipped += 1
                    continue
                yield from frames
        finally:
            if self.num_skipped:
                self._warn("packets", "skipped %d corrupt packets", self.num_skipped)

    def _packets(self, container: InputContainer) -> Iterator[Packet]:
        """Yield the packets up to the end, or to where a cut or damaged file ends early."""
        try:
            yield from container.demux(container.streams.video[0])
        except import_av().FFmpegError as error:
            self._warn("end", "ends early: %s", reason(error))

    def _upright_rgb(self, frame: VideoFrame) -> np.ndarray:
        assert self._start is not None  # the frame comes from _decode, or after it
        return self._start.upright(frame)

    def _warn(self, kind: str, text: str, value: object) -> None:
        """Log what is wrong with the file, once for each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            _logger.warning(f"%s: {text}", self.path, value)


def _stamp(frame: VideoFrame, start: _Start) -> float | None:
    return None if start.ticks is None else stamp(frame, start.ticks, start.time_base)


def _check_time(name: str, time: float) -> None:
    if not 0 <= time < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, in seconds, got {time}")
