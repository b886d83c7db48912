"""What a GPU does later than it is told to is waited for before anybody reads it.

Most of it is tested without one, on results that are not there until they have been waited for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tfclip import TFCLIP, precision
from tfclip.encoding import StreamEncoder
from tfclip.speed import frames_at_once

CUDA = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Result:
    """A tensor on a GPU, whose copy on the processor is NaN until the copying is done."""

    device = CUDA

    def __init__(self, values: Tensor, unfinished: list[Callable[[], object]]) -> None:
        self._values = values
        self._unfinished = unfinished

    def to(self, device: str, *, non_blocking: bool) -> Tensor:
        assert device == "cpu"
        copy = torch.full(self._values.shape, torch.nan)
        self._unfinished.append(lambda: copy.copy_(self._values))
        assert non_blocking
        return copy


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Callable[[], object]], list[str]]:
    """What a GPU has yet to do, and what it was told and waited for, in order."""
    unfinished: list[Callable[[], object]] = []
    told: list[str] = []

    class Event:
        def record(self, stream: object) -> None:
            assert stream == "the current one"
            self._before = list(unfinished)

        def synchronize(self) -> None:
            told.append("wait")
            for finish in self._before:
                finish()

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the current one")
    return unfinished, told


def encode(encoder: StreamEncoder, tracklets: dict[str, list[Any]]) -> dict[Any, Tensor]:
    for key, frames in tracklets.items():
        for frame in frames:
            encoder.push(key, frame)
        encoder.close(key)
    encoder.flush()
    return dict(encoder.finished())


@pytest.fixture
def tracklets() -> dict[str, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: list(torch.randint(256, (count, 40, 20, 3), generator=generator).byte().numpy())
        for name, count in {"a": 9, "b": 4, "c": 1, "d": 6}.items()
    }


def test_embeddings_are_read_after_they_have_arrived(tiny_model, tracklets, late):
    expected = encode(StreamEncoder(tiny_model, batch_frames=4), tracklets)
    encoder = StreamEncoder(tiny_model, batch_frames=4)
    embed, (unfinished, told) = encoder._embed, late
    encoder._embed = lambda clips: Result(embed(clips), unfinished)  # type: ignore[method-assign]
    found = encode(encoder, tracklets)
    assert told.count("wait") == len(unfinished) > 3
    assert found.keys() == expected.keys()
    for name, embedding in expected.items():
        torch.testing.assert_close(found[name], embedding)


def test_a_gpu_has_its_next_batch_before_the_last_one_is_waited_for(tiny_model, tracklets, late):
    encoder = StreamEncoder(tiny_model, batch_frames=4)
    embed, (unfinished, told) = encoder._embed, late

    def start(clips: list[Any]) -> Any:
        told.append("start")
        return Result(embed(clips), unfinished)

    encoder._embed = start  # type: ignore[method-assign]
    encode(encoder, tracklets)
    batches = told.count("start")
    assert told == ["start", *["start", "wait"] * (batches - 1), "wait"]


def test_frames_are_read_after_they_have_been_uploaded(tiny_model, monkeypatch):
    told: list[str] = []
    current = ["the current one"]

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "the one for uploads" if name == CUDA else str(name)

        def wait_stream(self, other: Stream) -> None:
            told.append(f"{self.name} waits for {other.name}")

    class Values:
        def pin_memory(self) -> Values:
            told.append("pinned")
            return self

        def to(self, device: torch.device, *, non_blocking: bool) -> Values:
            assert (device, non_blocking) == (CUDA, True)
            told.append(f"copied by {current[-1]}")
            return self

        def record_stream(self, stream: Stream) -> None:
            told.append(f"kept for {stream.name}")

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream.name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(current[-1]))
    encoder = StreamEncoder(tiny_model)
    encoder.model = SimpleNamespace(device=CUDA)  # type: ignore[assignment]
    values: Any = Values()
    assert encoder._upload(values) is values
    assert told == [
        "pinned",
        "copied by the one for uploads",
        "the current one waits for the one for uploads",
        "kept for the current one",
    ]
    stream = encoder._uploads
    encoder._upload(values)
    assert encoder._uploads is stream


def test_the_time_that_a_gpu_takes_is_that_of_the_work_and_not_of_giving_it(monkeypatch):
    clock, given = [0.0], [3.0]  # something is under way already

    def synchronize(device: torch.device) -> None:
        assert device == CUDA
        clock[0] += sum(given)
        given.clear()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    block: Any = SimpleNamespace(mean=lambda tokens, first: given.append(5.0))

    class Tokens:
        device = CUDA

        def __getitem__(self, key: object) -> Tokens:
            return self

    tokens: Any = Tokens()
    assert precision._time(block, tokens) == 5.0


def test_each_kind_of_gpu_is_measured_once(monkeypatch, tmp_path):
    measured: list[torch.device] = []

    def measure(device: torch.device, width: int, num_tokens: int) -> dict[str, float]:
        measured.append(device)
        return {"float32": 0.8, "bfloat16": 0.4, "float16": 0.1 + 0.5 * device.index}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "measure", measure)
    names = ["a new one", "an old one", "an old one"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])

    def choose(index: int) -> torch.dtype:
        backbone = SimpleNamespace(width=64, grid=(4, 2))
        model: Any = SimpleNamespace(device=torch.device("cuda", index), backbone=backbone)
        return precision.choose_dtype(model)

    chosen = [choose(index) for index in (0, 1, 2, 0)]
    assert chosen == [torch.float16, torch.bfloat16, torch.bfloat16, torch.float16]
    assert [device.index for device in measured] == [0, 1]


def test_only_a_processor_takes_frames_in_pieces():
    assert frames_at_once(torch.empty(5000, 3), 3072, 129) < 100
    assert frames_at_once(torch.empty(5000, 3, device="meta"), 3072, 129) == 5000


@needs_gpu
def test_a_gpu_gives_the_embeddings_of_a_processor(tiny_model: TFCLIP, tracklets):
    expected = tiny_model.encode_sequences(list(tracklets.values()), batch_frames=4)
    found = tiny_model.cuda().encode_sequences(list(tracklets.values()), batch_frames=4)
    assert (found * expected).sum(1).min() > 0.9999


@needs_gpu
def test_a_gpu_is_measured_in_three_types():
    seconds = precision.measure(torch.device("cuda"), 64, 9)
    assert list(seconds) == ["float32", "bfloat16", "float16"]
    assert all(0 < value < 60 for value in seconds.values())
