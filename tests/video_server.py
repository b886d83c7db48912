"""A camera on the loopback: a server that sends what a test tells it, and dies when told to."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")

SIZE = (32, 48)


class Act(NamedTuple):
    """What the server does with one connection."""

    content: bytes
    hang: bool = False  # keep the connection open when all is sent
    pause: float = 0.0  # seconds between pieces of 1316 bytes


class Camera:
    """A server that plays one act for each connection, and afterwards refuses any."""

    def __init__(self, acts: Sequence[Act], header: bytes) -> None:
        self.connections = 0
        self._acts, self._header = list(acts), header
        self._done = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self) -> None:
        with suppress(OSError):
            for act in self._acts:
                connection, _ = self._socket.accept()
                self.connections += 1
                with connection, suppress(OSError):
                    self._play(connection, act)
        with suppress(OSError):  # else the kernel would still greet whoever comes
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _play(self, connection: socket.socket, act: Act) -> None:
        if self._header:
            connection.recv(4096)
            connection.sendall(self._header)
        for start in range(0, len(act.content), 1316):
            if self._done.wait(act.pause) if act.pause else self._done.is_set():
                return
            connection.sendall(act.content[start : start + 1316])
        if act.hang:
            self._done.wait(30)


HTTP_TS = b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n"
HTTP_MJPEG = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"


@contextmanager
def camera(*acts: Act, header: bytes = HTTP_TS) -> Iterator[Camera]:
    served = Camera(acts, header)
    try:
        yield served
    finally:
        served.close()


def draw(index: int) -> np.ndarray:
    """Return a picture that tells its number by its grey."""
    return np.full((*SIZE, 3), 10 * (index % 25), dtype=np.uint8)


def number(pixels: np.ndarray) -> int:
    return round(float(pixels.mean()) / 10)


def stream(length: int, *, first: int = 0, rate: int = 25, format: str = "mpegts") -> bytes:
    """Return pictures as MPEG-4 in a stream; each is a key frame."""
    memory = io.BytesIO()
    with av.open(memory, "w", format=format) as container:
        video = container.add_stream("mpeg4", rate=rate)
        video.width, video.height, video.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        video.codec_context.gop_size = 1
        for index in range(length):
            frame = av.VideoFrame.from_ndarray(draw(first + index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return memory.getvalue()


def pushed_pictures(length: int) -> bytes:
    """Return pictures as cheap cameras push them: JPEGs in parts of one answer."""
    parts = []
    for index in range(length):
        context = av.CodecContext.create("mjpeg", "w")
        context.width, context.height, context.pix_fmt = SIZE[1], SIZE[0], "yuvj420p"
        context.time_base = Fraction(1, 25)
        frame = av.VideoFrame.from_ndarray(draw(index), format="rgb24")
        packets = [*context.encode(frame), *context.encode(None)]
        picture = b"".join(bytes(packet) for packet in packets)
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        parts.append(head.encode() + picture + b"\r\n")
    return b"".join(parts)


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
