"""Reading ahead: the same frames in the same order for any number of threads, and none left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfclip.ahead import Request, check_workers, default_workers, read_ahead
from tfclip.errors import FrameError
from tfclip.frames import Frames, open_frames


class Recording:
    """Frames that can only be had in order, as a video's; the value of each is its number."""

    known_length = None

    def __init__(self, length: int, damaged: int | None = None) -> None:
        self.length = length
        self.damaged = damaged
        self.inside = threading.Lock()

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(self.length):
            assert self.inside.acquire(blocking=False), "two threads at once"
            time.sleep(1e-4)  # time for another to come
            self.inside.release()
            if number == self.damaged:
                raise FrameError(f"frame {number} is damaged")
            yield np.full((2, 2, 3), number, dtype=np.uint8)

    def select(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = set(indices)
        return (frame for number, frame in enumerate(self) if number in wanted)


class Pictures(Recording):
    """The same frames, any of which can be had by itself."""

    is_indexed = True

    def read(self, index: int, draft: tuple[int, int] | None = None) -> np.ndarray:
        if index == self.damaged:
            raise FrameError(f"frame {index} is damaged")
        return np.full((2, 2, 3), index, dtype=np.uint8)


def value(position: int, picture) -> tuple[int, int]:
    return position, int(np.asarray(picture)[0, 0, 0])


def ask(key, source, **options) -> Request:
    return Request(key, Frames(source, f"tracklet {key}"), value, **options)


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tfclip")]


def read_into(found: list, requests: Iterable[Request], workers: int, ahead: int) -> None:
    """Note the key and value of every frame as it comes."""
    with read_ahead(requests, workers=workers, ahead=ahead) as reading:
        for request, frames in reading:
            for frame in frames:
                found.append((request.key, frame[1]))


WORKERS = st.integers(0, 4)
SOURCES = st.lists(
    st.tuples(st.sampled_from([Recording, Pictures]), st.integers(1, 40)), max_size=8
)


@settings(max_examples=40, deadline=None)
@given(sources=SOURCES, workers=WORKERS, ahead=st.integers(1, 50), stride=st.integers(1, 3))
def test_every_frame_comes_once_and_in_order(sources, workers, ahead, stride):
    requests, expected = [], []
    for key, (kind, length) in enumerate(sources):
        chosen = list(range(0, length, stride))
        options = {} if stride == 1 else {"choose": chosen.copy, "count": chosen.__len__}
        requests.append(ask(key, kind(length), **options))
        expected.append((key, list(enumerate(chosen))))
    with read_ahead(requests, workers=workers, ahead=ahead) as reading:
        assert [(request.key, list(frames)) for request, frames in reading] == expected
    assert not reading_threads()


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(st.sampled_from([Recording, Pictures]), min_size=3, max_size=3),
    damaged=st.integers(0, 20),
    workers=WORKERS,
    ahead=st.integers(1, 80),
)
def test_a_damaged_frame_is_found_when_its_turn_comes(kinds, damaged, workers, ahead):
    sources = [kinds[0](21), kinds[1](21, damaged), kinds[2](21, 0)]
    found = []
    with pytest.raises(FrameError, match=f"frame {damaged} is damaged"):
        read_into(found, map(ask, "abc", sources), workers, ahead)
    assert found == [("a", i) for i in range(21)] + [("b", i) for i in range(damaged)]
    assert not reading_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tracklet_that_cannot_be_opened_is_found_when_its_turn_comes(workers):
    def requests() -> Iterator[Request]:
        yield ask("a", Pictures(5))
        raise FrameError("b is missing")

    found = []
    with pytest.raises(FrameError, match="b is missing"):
        read_into(found, requests(), workers, 100)
    assert found == [("a", number) for number in range(5)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_frames_that_nobody_asks_for_are_passed_over(workers):
    requests = [ask(key, kind(20)) for key, kind in enumerate([Pictures, Recording] * 2)]
    with read_ahead(requests, workers=workers, ahead=8) as reading:
        first = [(request.key, next(frames)) for request, frames in reading]
    assert first == [(key, (0, 0)) for key in range(4)]


@pytest.mark.parametrize("kind", [Recording, Pictures])
@pytest.mark.parametrize("ahead", [1, 16, 64])
def test_no_more_frames_are_read_ahead_than_agreed(kind, ahead):
    prepared, given_frames, most = [], 0, 0
    requests = [
        Request(key, Frames(kind(30), "x"), lambda position, picture: prepared.append(position))
        for key in range(12)
    ]
    with read_ahead(requests, workers=3, ahead=ahead) as reading:
        deadline = time.monotonic() + 30
        for _, frames in reading:
            for _ in frames:
                while len(prepared) < min(ahead, 8):  # nobody asked for them
                    assert time.monotonic() < deadline
                    time.sleep(1e-3)
                time.sleep(2e-4)  # the threads are faster
                most = max(most, len(prepared) - given_frames)
                given_frames += 1
    assert given_frames == len(prepared) == 360
    assert most <= ahead + 16  # a piece is of 8 frames: one more than agreed, one in hand
    assert most >= min(ahead, 8)


def test_a_loop_that_is_left_leaves_no_thread_and_reads_no_further():
    prepared = []
    requests = (
        Request(key, Frames(Pictures(8), "x"), lambda position, picture: prepared.append(position))
        for key in range(1000)
    )
    with read_ahead(requests, workers=2, ahead=32) as reading:
        next(reading)
    assert not reading_threads()
    assert len(prepared) <= 40


@pytest.mark.parametrize("kind", [Recording, Pictures])
def test_ctrl_c_ends_the_wait_for_a_frame(kind):
    def interrupt(position: int, picture) -> tuple[int, int]:
        if position == 10:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return position, 0

    start = time.monotonic()
    request = Request("a", Frames(kind(40), "x"), interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_into([], [request], 2, 16)
    # A thread that was being started when the signal came is not waited for, but ends by itself.
    while reading_threads() and time.monotonic() - start < 5:
        time.sleep(0.01)
    assert not reading_threads()
    assert time.monotonic() - start < 5


def test_an_error_of_whoever_uses_the_frames_passes_through():
    def use() -> None:
        with read_ahead([ask("a", Recording(30))], workers=2, ahead=8) as reading:
            next(reading)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        use()
    assert not reading_threads()


def test_one_image_in_several_tracklets_is_decoded_by_one_thread_at_a_time(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for _ in range(5):
        with Image.open(tmp_path / "a.png") as image:  # nothing is decoded yet
            requests = [
                Request(
                    key, open_frames([image] * 4), lambda position, picture: np.asarray(picture)
                )
                for key in range(4)
            ]
            with read_ahead(requests, workers=4, ahead=16) as reading:
                found = [frame for _, frames in reading for frame in frames]
        assert len(found) == 16
        assert all(np.array_equal(frame, pixels) for frame in found)


def test_workers_are_a_number_from_zero_and_some_by_default():
    assert check_workers(0, "cpu") == 0
    assert check_workers(3, "cuda") == 3
    assert check_workers(None, "cpu") == default_workers("cpu") >= 1
    assert default_workers("cpu") <= default_workers("cuda") <= 8
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        check_workers(-1, "cpu")
