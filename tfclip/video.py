"""Frames of a video file, decoded by PyAV (extra ``video``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from tfclip.errors import FrameError, MissingExtraError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)

_logger = logging.getLogger(__name__)


class Video:
    """The frames of a video in the order they are shown, decoded anew in each pass.

    A packet that cannot be decoded is skipped, and each pass logs how many were. Frames are turned
    upright by the rotation that phones store in the file.

    Args:
        path: A file of any format FFmpeg reads.

    Raises:
        FrameError: It is not a video, or has no video stream.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length: int | None = None
        self._display: tuple[int, int, int, int] | None = None
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

    def _open(self) -> InputContainer:
        av = _import_av()
        try:
            # An absolute path: FFmpeg takes "a:b.mp4" for an address with the protocol "a".
            container = av.open(str(self.path.absolute()))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise FrameError(f"{self.path} is not a readable video: {_reason(error)}") from error
        if not container.streams.video:
            container.close()
            raise FrameError(f"{self.path} must have a video stream, got none")
        return container

    def _decode(self) -> Iterator[VideoFrame]:
        """Yield the frames as FFmpeg holds them; a complete pass also learns their number."""
        failure = _import_av().FFmpegError
        count = skipped = 0
        with self._open() as container:
            try:
                for packet in self._packets(container):
                    try:
                        frames = packet.decode()
                    except failure:
                        skipped += 1
                        continue
                    count += len(frames)
                    yield from frames
            finally:
                if skipped:
                    _logger.warning("%s: skipped %d corrupt packets", self.path, skipped)
        if count == 0:
            raise FrameError(f"{self.path} must have at least one frame that decodes, got none")
        self._length = count

    def _upright_rgb(self, frame: VideoFrame) -> np.ndarray:
        """Return a decoded frame as ``(H, W, 3)`` uint8 RGB, turned as a player would show it."""
        # Of one frame only: asking for its side data ties a frame to itself, so that it stays in
        # memory until the next garbage collection, hundreds of frames later.
        if self._display is None:
            self._display = _display_matrix(frame)
        pixels = frame.to_ndarray(format="rgb24")
        a, b, c, d = self._display
        if abs(b) > abs(a):  # a quarter turn: a and d are zero
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def _packets(self, container: InputContainer) -> Iterator[Packet]:
        """Yield the packets up to the end, or to where a cut or damaged file ends early."""
        try:
            yield from container.demux(container.streams.video[0])
        except _import_av().FFmpegError as error:
            _logger.warning("%s ends early: %s", self.path, _reason(error))


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return (a, b, c, d): a player shows the pixel (x, y) at (a x + c y, b x + d y)."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return 1, 0, 0, 1
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(stored), np.int32).reshape(3, 3).tolist()
    return a, b, c, d


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            "reading video needs PyAV; install it with: pip install 'tfclip[video]'"
        ) from error
    return av


def _reason(error: Exception) -> str:
    """Return what a message should quote of an error: FFmpeg's own also hold number and path."""
    return getattr(error, "strerror", None) or str(error)
