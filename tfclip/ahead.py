"""Reading frames ahead of whoever uses them: a few threads, in order, never more than was agreed.

Pillow decodes and resizes without holding Python's lock, so threads are enough. What is read, and
the order it comes in, is the same for every number of threads; only the time it takes is not.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from tfclip.frames import Frames
from tfclip.images import Pixels

Prepared = TypeVar("Prepared")
AnyRequest = TypeVar("AnyRequest", bound="Request[Any]")

# Frames that one thread reads before it looks for other work: handing over costs as much as a
# tenth of a small JPEG. A video hands over singly, since its frames are large and decode in turn.
_CHUNK = 8


@dataclass(frozen=True)
class Request(Generic[Prepared]):
    """Frames of one tracklet or recording that are to be read.

    Args:
        key: Whatever the reader wants back.
        frames: The frames.
        prepare: Makes of a frame what is wanted, in the thread that read it; it is given the
            position of the frame among those that are read, from 0, and its pixels.
        choose: Says which frames to read, in ascending order; None is every one. It may read
            frames itself, and is called in a thread.
        count: Says how many frames ``choose`` names, without reading any; only asked where any
            frame can be read by itself, and only if there is a ``choose``.
        draft: As in ``tfclip.images.open_picture``.
    """

    key: Any
    frames: Frames
    prepare: Callable[[int, Pixels], Prepared]
    choose: Callable[[], Sequence[int]] | None = None
    count: Callable[[], int] | None = None
    draft: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.frames) if self.count is None else self.count()

    def read(self, positions: Iterable[int]) -> Iterator[Prepared]:
        """Yield the prepared frames of some positions, each read by itself."""
        chosen = None if self.choose is None else self.choose()
        for position in positions:
            index = position if chosen is None else chosen[position]
            yield self.prepare(position, self.frames.read(index, self.draft))

    def iterate(self) -> Iterator[Pixels]:
        """Yield the frames in their order, as they can only be had."""
        yield from self.frames if self.choose is None else self.frames.select(self.choose())


class _Piece(NamedTuple, Generic[AnyRequest]):
    """Some frames of a request, as they are waited for."""

    request: AnyRequest
    future: Future[tuple[list[Any], Exception | None]] | None  # None: the request has no more
    size: int


def default_workers(device: str) -> int:
    """Return how many threads read frames unless it is said otherwise.

    Args:
        device: Type of the device that the model runs on.
    """
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    # Beside a model on the processor they take turns with the model's own; see docs/encoding.md.
    return min(processors, 4 if device == "cpu" else 8)


def check_workers(workers: int | None, device: str) -> int:
    """Return the number of threads that read frames; None is ``default_workers``.

    Raises:
        ValueError: It is negative.
    """
    if workers is None:
        return default_workers(device)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    return workers


@contextlib.contextmanager
def read_ahead(
    requests: Iterable[AnyRequest], *, workers: int, ahead: int
) -> Iterator[Iterator[tuple[AnyRequest, Iterator[Any]]]]:
    """Give each request, in order, with an iterator of its prepared frames.

    The threads are gone when the context is left, however it is. Requests are asked for while
    earlier ones are read; what is wrong with a request, and any error while its frames are read, is
    raised when its turn comes.

    Args:
        requests: What to read. Their iterator is used by the calling thread.
        workers: Threads; with 0 the calling thread reads, when it is asked for a frame.
        ahead: About how many frames are read, or being read, before they are asked for: at most
            16 more than this.

    Example:
        >>> import numpy as np
        >>> from tfclip.frames import open_frames
        >>> frames = open_frames(np.zeros((3, 4, 2, 3), dtype=np.uint8))
        >>> request = Request("a", frames, lambda position, picture: position)
        >>> with read_ahead([request], workers=2, ahead=4) as reading:
        ...     [(request.key, list(prepared)) for request, prepared in reading]
        [('a', [0, 1, 2])]
    """
    if workers == 0:
        yield ((request, _read_here(request)) for request in requests)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tfclip-read")
    try:
        yield iter(_Reader(requests, pool, ahead))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_here(request: Request[Prepared]) -> Iterator[Prepared]:
    if request.frames.is_indexed:
        yield from request.read(range(len(request)))
        return
    for position, picture in enumerate(request.iterate()):
        yield request.prepare(position, picture)


class _Reader(Generic[AnyRequest]):
    """Hand pieces of requests to threads, and give back what they made in the order of requests."""

    def __init__(
        self, requests: Iterable[AnyRequest], pool: ThreadPoolExecutor, ahead: int
    ) -> None:
        self._pool = pool
        self._ahead = ahead
        self._submissions = self._submit_all(requests)
        self._pending: deque[_Piece[AnyRequest]] = deque()
        self._num_pending = 0
        self._error: Exception | None = None  # of the requests themselves, after all that pends

    def __iter__(self) -> Iterator[tuple[AnyRequest, Iterator[Any]]]:
        self._fill()
        while self._pending:
            request, frames = self._pending[0].request, self._take_request()
            yield request, frames
            for _ in frames:  # whatever was not asked for
                pass
        if self._error is not None:
            raise self._error

    def _take_request(self) -> Iterator[Any]:
        """Yield the frames of the request whose turn it is."""
        while True:  # each request ends with a piece that says so
            piece = self._pending.popleft()
            if piece.future is None:
                self._fill()
                return
            frames, error = piece.future.result()
            self._num_pending -= piece.size
            self._fill()
            yield from frames
            if error is not None:
                raise error

    def _fill(self) -> None:
        while self._error is None and self._num_pending < self._ahead:
            try:
                piece = next(self._submissions, None)
            except Exception as error:
                self._error = error
                return
            if piece is None:
                return
            self._pending.append(piece)
            self._num_pending += piece.size

    def _submit_all(self, requests: Iterable[AnyRequest]) -> Iterator[_Piece[AnyRequest]]:
        for request in requests:
            if request.frames.is_indexed:
                count = len(request)
                for start in range(0, count, _CHUNK):
                    positions = range(start, min(start + _CHUNK, count))
                    future = self._pool.submit(_collect, request.read, positions)
                    yield _Piece(request, future, len(positions))
            else:
                turns = _Turns(request)
                while not turns.ended:
                    yield _Piece(request, self._pool.submit(turns.take, turns.ticket()), 1)
            yield _Piece(request, None, 0)


def _collect(
    read: Callable[[Iterable[int]], Iterator[Any]], positions: Iterable[int]
) -> tuple[list[Any], Exception | None]:
    """Return what was read, and what stopped it: frames before a damaged one still count."""
    frames = []
    try:
        for frame in read(positions):
            frames.append(frame)
    except Exception as error:
        return frames, error
    return frames, None


class _Turns:
    """An iterator of frames that threads advance in the order of their tickets.

    Whoever holds a ticket waits for those before: they were handed to the threads earlier, so one
    of them has every one, and none can be cancelled while a later one runs.
    """

    def __init__(self, request: Request[Any]) -> None:
        self.ended = False
        self._request = request
        self._frames = request.iterate()
        self._tickets = 0
        self._turn = 0
        self._changed = threading.Condition()

    def ticket(self) -> int:
        self._tickets += 1
        return self._tickets - 1

    def take(self, ticket: int) -> tuple[list[Any], Exception | None]:
        """Return the frame of a ticket in a list, which is empty after the last one."""
        with self._changed:
            self._changed.wait_for(partial(self._is_turn, ticket))
            try:
                pictures = [] if self.ended else [next(self._frames)]
            except StopIteration:
                pictures, self.ended = [], True
            except Exception as error:
                self.ended = True
                return [], error
            finally:
                self._turn += 1
                self._changed.notify_all()
        # Decoding takes turns, resizing does not.
        return _collect(partial(self._prepare, pictures), [ticket])

    def _is_turn(self, ticket: int) -> bool:
        return ticket == self._turn

    def _prepare(self, pictures: Sequence[Pixels], positions: Iterable[int]) -> Iterator[Any]:
        for picture, position in zip(pictures, positions, strict=False):
            yield self._request.prepare(position, picture)
