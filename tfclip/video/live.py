"""Frames of a live source: a camera or server that may be slow, or die and come back."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NoReturn, Self, get_args

from tfclip.errors import FrameError
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
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

LiveClock = Literal["stream", "arrival"]

SCHEMES = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")

_LONGEST_DELAY = 30.0
_LEAST_STEP = 1e-6  # seconds; two frames never have one time

_logger = logging.getLogger(__name__)


class LiveVideo:
    """The frames of a live source, the newest first kept; to be iterated once.

    A thread of its own receives and decodes, from the first frame asked for until ``close``. What
    the consumer has not taken waits, at most ``max_waiting`` frames: then the oldest is dropped and
    counted, so memory is bounded and what comes is never older than that. When the source ends,
    fails, or gives no frame for ``timeout`` seconds, it is opened again: after ``retry_delay``
    seconds, then twice that, and so on up to 30. A frame that comes makes up for all failures.

    Times rise always, also across a break. Within a connection they follow the stamps of the
    stream; its first frame, and one whose stamp jumps by more than ``timeout`` seconds or back, is
    placed by this machine's clock.

    Use it in a ``with`` block: until ``close`` the thread goes on, whoever has forgotten it.

    Messages and ``name`` leave out what a URL holds of user, password and query.

    Args:
        url: Where, such as ``rtsp://user:password@camera/stream``; one of the schemes
            ``tfclip.video.live.SCHEMES``.
        timeout: Seconds to wait for a connection, or for a frame, before it counts as dead.
        max_waiting: Frames that may wait for the consumer.
        max_retries: How often in a row to open it again in vain before giving up; None is for ever.
        retry_delay: Seconds before the first attempt to open it again.
        clock: ``"stream"``, or ``"arrival"``: times are those of arrival here, for sources whose
            stamps mean nothing (pictures pushed over HTTP are stamped 25 a second, whatever they
            are).
        options: Options for FFmpeg, such as ``{"rtsp_transport": "udp"}``; RTSP goes over TCP
            unless said otherwise.

    Raises:
        MissingExtraError: PyAV is not installed.
        ValueError: The URL is of no such scheme, or a number out of its range.

    Example:
        >>> with LiveVideo("rtsp://camera/stream") as live:  # doctest: +SKIP
        ...     for frame in live:
        ...         print(frame.time, frame.pixels.shape)
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        max_waiting: int = 8,
        max_retries: int | None = 5,
        retry_delay: float = 0.5,
        clock: LiveClock = "stream",
        options: Mapping[str, str] | None = None,
    ) -> None:
        scheme = url.partition("://")[0].lower()
        if scheme not in SCHEMES or "://" not in url:
            raise ValueError(
                f"url must begin with one of {', '.join(SCHEMES)} and ://, got "
                f"{hide_secrets(url)!r}; a file is read by Video"
            )
        for name, value in (("timeout", timeout), ("retry_delay", retry_delay)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, in seconds, got {value}")
        if max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1, got {max_waiting}")
        if max_retries is not None and max_retries < 0:
            raise ValueError(f"max_retries must be at least 0, or None, got {max_retries}")
        if clock not in get_args(LiveClock):
            raise ValueError(f"clock must be one of {get_args(LiveClock)}, got {clock!r}")
        self._av = import_av()
        self.name = hide_secrets(url)
        self.num_received = 0
        """Frames that were decoded."""
        self.num_dropped = 0
        """Those of them that were dropped, because the consumer was slow."""
        self.num_skipped = 0
        """Packets that did not decode."""
        self.num_connections = 0
        """How often the source was opened with success."""
        self._source = _Source(self._av, url, timeout, _options(scheme, options))
        self._max_waiting = max_waiting
        self._max_retries = max_retries
        self._retry_delay = retry_delay
        self._by_arrival = clock == "arrival"
        self._waiting: deque[tuple[VideoFrame, Upright, float, int]] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None
        self._began: float | None = None  # when the first frame came
        self._clock = Clock(_LEAST_STEP)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LiveVideo cannot be pickled; open its URL in each process")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TimedFrame:
        """Return the oldest frame that waits, or the next that comes.

        Raises:
            FrameError: The source is gone for good.
            StopIteration: ``close`` was called.
        """
        if self._thread is None and not self._stopped.is_set():
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._failure or self._stopped.is_set())
            if self._stopped.is_set():
                raise StopIteration
            if not self._waiting:
                assert self._failure is not None
                raise self._failure
            frame, upright, seconds, index = self._waiting.popleft()
        return TimedFrame(upright(frame), seconds, index)

    def close(self) -> None:
        """Stop receiving. It returns at once; a connection that hangs ends with its timeout."""
        self._stopped.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        """Receive, open again, give up: the life of the thread."""
        try:
            retries = 0
            while not self._stopped.is_set():
                before = self.num_received
                why = self._receive()
                reached = self.num_received > before
                retries = 0 if reached else retries
                if self._stopped.is_set():
                    return
                if retries == self._max_retries:
                    self._give_up(why)
                    return
                delay = min(self._retry_delay * 2**retries, max(_LONGEST_DELAY, self._retry_delay))
                retries += 1
                _logger.warning("%s: %s; opened again in %.3g s", self.name, why, delay)
                self._stopped.wait(delay)
        except Exception as error:  # a thread that dies alone would leave the consumer waiting
            self._end(error)

    def _give_up(self, why: str) -> None:
        times = "once" if self._max_retries == 1 else f"{self._max_retries} times"
        state = "ended" if self.num_received else "gave no frame"
        self._end(FrameError(f"{self.name} {state} and was opened again {times}, in vain: {why}"))

    def _end(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _receive(self) -> str:
        """Receive the frames of one connection; return why it ended."""
        try:
            container = self._source.open()
        except (self._av.FFmpegError, OSError, ValueError) as error:
            return self._why(error)
        with container:
            if not container.streams.video:
                return "it has no video stream"
            self.num_connections += 1
            stream = container.streams.video[0]
            connection = _Connection(stream, self._source.timeout, self._by_arrival)
            last_frame = time.monotonic()
            try:
                # All streams: one that sends sound alone must not look alive for ever.
                for packet in container.demux():
                    if self._stopped.is_set():
                        return "closed"
                    is_ours = packet.stream.index == stream.index
                    frames = self._decode(packet) if is_ours else []
                    for frame in frames:
                        last_frame = time.monotonic()
                        self._put(frame, connection, last_frame)
                    if time.monotonic() - last_frame > self._source.timeout:
                        return f"no frame that decodes in {self._source.timeout:g} s"
            except (self._av.FFmpegError, OSError) as error:
                return self._why(error)
        return "the stream ended"

    def _why(self, error: Exception) -> str:
        if isinstance(error, self._av.error.ExitError):  # how PyAV's own timeout reads
            return f"nothing came for {self._source.timeout:g} s"
        return reason(error)

    def _decode(self, packet: object) -> list[VideoFrame]:
        try:
            return packet.decode()  # type: ignore[attr-defined]
        except self._av.FFmpegError:
            self.num_skipped += 1
            return []

    def _put(self, frame: VideoFrame, connection: _Connection, now: float) -> None:
        """Let a frame wait for the consumer, and drop the oldest where too many do."""
        if self._began is None:
            self._began = now
        seconds = connection.read(frame, now - self._began, self._clock)
        with self._changed:
            if len(self._waiting) == self._max_waiting:
                self._waiting.popleft()
                self.num_dropped += 1
                if self.num_dropped == 1:
                    _logger.warning(
                        "%s: frames come faster than they are used, the oldest are dropped",
                        self.name,
                    )
            assert connection.upright is not None
            self._waiting.append((frame, connection.upright, seconds, self.num_received))
            self.num_received += 1
            self._changed.notify()


class _Source:
    """Where the stream comes from; the URL, with its password, stays in here."""

    def __init__(self, av: ModuleType, url: str, timeout: float, options: dict[str, str]) -> None:
        self.timeout = timeout
        self._av, self._url, self._options = av, url, options

    def open(self) -> InputContainer:
        """Open the stream; what can be raised is PyAV's."""
        return self._av.open(
            self._url, options=dict(self._options), timeout=(self.timeout, self.timeout)
        )


class _Connection:
    """One connection: how its frames lie and what its stamps mean."""

    def __init__(self, stream: VideoStream, longest_gap: float, by_arrival: bool) -> None:
        self.upright: Upright | None = None
        self._time_base = stream.time_base
        self._step = seconds_per_frame(stream)
        self._longest_gap = longest_gap
        self._by_arrival = by_arrival
        self._last_stamp: float | None = None

    def read(self, frame: VideoFrame, arrival: float, clock: Clock) -> float:
        """Return the time of the next frame, in seconds since the first of the source."""
        if self.upright is None:
            self.upright = Upright(frame)
        time_base = frame.time_base or self._time_base
        seconds = stamp(frame, 0, time_base) if time_base and not self._by_arrival else None
        if seconds is None:
            # Here and below: never before the last frame, which the clock sees to.
            clock.jump(arrival, arrival)
            return clock.read(arrival)
        last = self._last_stamp
        if last is None or not 0 < seconds - last <= self._longest_gap:
            floor = -math.inf if clock.last is None else clock.last + self._step
            clock.jump(seconds, max(arrival, floor))
        self._last_stamp = seconds
        return clock.read(seconds)


def hide_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment, for messages.

    Example:
        >>> hide_secrets("rtsp://me:secret@10.0.0.7:554/live?token=1")
        'rtsp://10.0.0.7:554/live'
    """
    # First the password, which may hold what begins a query.
    return re.split(r"[?#]", re.sub(r"^([^:/]*://)[^/]*@", r"\1", url))[0]


def _options(scheme: str, given: Mapping[str, str] | None) -> dict[str, str]:
    usual = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    return {**usual, **(given or {})}
