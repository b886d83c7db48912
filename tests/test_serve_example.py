"""The service: its embeddings are the model's own, however many ask, and it survives bad input."""

from __future__ import annotations

import http.client
import importlib
import io
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tfclip import TFCLIP
from tfclip.data import SyntheticTracklets, model_fingerprint
from tfclip.export import Pixels, export_model, parity
from tfclip.export.description import describe
from tfclip.preprocess import Preprocess

ROOT = Path(__file__).parents[1]
BOUNDARY = "frames"


class InTorch:
    """What an exported model is to the service, without the minutes that an export takes."""

    def __init__(self, model: TFCLIP, pixels: Pixels = "uint8") -> None:
        self.model, self.pixels = model, pixels
        self.description = describe(
            model,
            model_name="tfclip-tiny",
            fingerprint=model_fingerprint(model),
            pixels=pixels,
            camera_input=False,
            precision="float32",
            quantize=None,
            properties={},
        )

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(frames)
        if self.pixels == "uint8":
            given = Preprocess(self.model.config).normalize(given)
        with torch.inference_mode():
            return self.model(given).embedding.numpy()


class Held:
    """A model that stands still until it is let go, and remembers the sizes of its batches."""

    def __init__(self, model: Any) -> None:
        self.model, self.description = model, model.description
        self.free, self.asked = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.batches.append(len(frames))
        self.asked.set()
        assert self.free.wait(30)
        return self.model(frames)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield importlib.import_module("serve")


@pytest.fixture(scope="module")
def tiny() -> TFCLIP:
    return TFCLIP.from_pretrained("tfclip-tiny")


@pytest.fixture(scope="module")
def exported(tiny) -> InTorch:
    return InTorch(tiny)


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    """Drawn tracklets of 1 to 20 frames, none of the model's size."""
    drawn = SyntheticTracklets(8, 1, 1, num_frames=20, frame_size=(80, 36), seed=2**32)
    return [drawn[i].frames[:length] for i, length in enumerate((1, 5, 7, 8, 9, 16, 17, 20))]


@pytest.fixture
def start(script, exported) -> Iterator[Callable[..., Any]]:
    """Start services, which end with the test."""
    running = []

    def serve(model: Any = exported, **limits: Any) -> Any:
        service = script.Service(model, script.Limits(**limits))
        server = script.make_server(("127.0.0.1", 0), service)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        running.append((service, server, thread))
        return server

    yield serve
    for service, server, thread in running:
        if isinstance(service.model, Held):
            service.model.free.set()
        server.shutdown()
        thread.join()
        server.server_close()
        service.close()


def encode(frame: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, kind)
    return out.getvalue()


def body_of(pictures: Sequence[bytes]) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'
    parts = b"".join(head.encode() + picture + b"\r\n" for picture in pictures)
    return parts + f"--{BOUNDARY}--\r\n".encode()


def ask(
    server: Any,
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/embed",
    kind: str = f"multipart/form-data; boundary={BOUNDARY}",
    **headers: str,
) -> tuple[int, Any]:
    """Return the status of an answer and what was in it."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": kind, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def ask_for(server: Any, frames: np.ndarray) -> np.ndarray:
    status, answer = ask(server, body_of([encode(frame) for frame in frames]))
    assert status == 200, answer
    return np.array(answer["embedding"])


# --- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", ["uint8", "normalized"])
def test_an_embedding_is_that_of_encode_sequence_at_any_length(pixels, start, tiny, people):
    server = start(InTorch(tiny, pixels))
    for frames in people:
        expected = tiny.encode_sequence(frames).numpy()
        np.testing.assert_allclose(ask_for(server, frames), expected, rtol=0, atol=1e-5)


def test_it_says_whose_embeddings_they_are(start, exported, people):
    server = start(frames=99)
    _, answer = ask(server, body_of([encode(people[0][0])]))
    status, about = ask(server, method="GET", path="/model")
    assert status == 200
    assert (about["model"], about["fingerprint"]) == ("tfclip-tiny", answer["fingerprint"])
    assert about["limits"]["frames"] == 99
    assert about["embedding"]["width"] == len(answer["embedding"])
    assert ask(server, method="GET", path="/health") == (200, {"status": "ok"})


def test_jpeg_files_are_read_as_the_library_reads_them(start, tiny, people, tmp_path):
    pictures = [encode(frame, "JPEG") for frame in people[1]]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.jpg").write_bytes(picture)
    status, answer = ask(start(), body_of(pictures))
    assert status == 200
    expected = tiny.encode_sequence(tmp_path).numpy()
    np.testing.assert_allclose(answer["embedding"], expected, rtol=0, atol=1e-5)


def test_requests_that_wait_share_batches_and_get_what_they_get_alone(start, exported, people):
    alone = [ask_for(start(), frames) for frames in people]
    held = Held(exported)
    server = start(held, batch_clips=4)
    with ThreadPoolExecutor(len(people)) as pool:
        answers = [pool.submit(ask_for, server, frames) for frames in people]
        clips = sum(-(-len(frames) // 8) for frames in people)
        assert held.asked.wait(30)
        wait_until(lambda: held.batches[0] + server_queue(server).qsize() == clips)
        held.free.set()
        together = [answer.result() for answer in answers]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)
    assert sum(held.batches) == clips
    assert held.batches[1:-1] == [4] * (len(held.batches) - 2)  # full while enough wait
    assert max(held.batches) == 4


def server_queue(server: Any) -> Any:
    return server.RequestHandlerClass.service._clips


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it did not happen within 30 seconds"
        time.sleep(0.01)


# --- refusals ------------------------------------------------------------------------------------


def png_that_claims(width: int, height: int) -> bytes:
    """Return a few bytes that say they are a very large picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


NOISE = encode(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
DOT = encode(np.zeros((4, 4, 3), dtype=np.uint8))
BAD: dict[str, tuple[bytes, dict[str, Any], int, str]] = {
    "no picture": (body_of([]), {}, 400, "frames must be 1 to 4, got 0"),
    "too many": (body_of([DOT] * 5), {}, 400, "frames must be 1 to 4, got 5"),
    "no image": (body_of([DOT, b"hello"]), {}, 400, "frames[1] must be JPEG or PNG of"),
    "another format": (
        body_of([encode(np.zeros((4, 4, 3), dtype=np.uint8), "BMP")]),
        {},
        400,
        "frames[0] must be JPEG or PNG of",
    ),
    "half a file": (body_of([NOISE[:900]]), {}, 400, "frames[0] is not a readable image"),
    "a bomb": (body_of([png_that_claims(9000, 9000)]), {}, 400, "of at most 16,777,216 pixels"),
    "a larger bomb": (body_of([png_that_claims(90000, 90000)]), {}, 400, "16,777,216 pixels"),
    "no end": (body_of([DOT])[:-4], {}, 400, "must end with the boundary"),
    "another boundary": (
        body_of([DOT]),
        {"kind": "multipart/form-data; boundary=other"},
        400,
        "must end with the boundary",
    ),
    "no boundary": (body_of([DOT]), {"kind": "multipart/form-data"}, 415, "multipart/form-data"),
    "another type": (b"{}", {"kind": "application/json"}, 415, "multipart/form-data"),
    "another place": (body_of([DOT]), {"path": "/embed/7"}, 404, "pictures go to /embed"),
    "a wrong length": (body_of([DOT]), {"Content-Length": "-1"}, 411, "Content-Length"),
    "an absurd length": (b"", {"Content-Length": "9" * 5000}, 413, "at most 20,000 bytes"),
    "too large": (b"x" * 20_001, {}, 413, "at most 20,000 bytes, got 20001"),
    "far too large": (b"x" * 2_000_000, {}, 413, "at most 20,000 bytes, got 2000000"),
    "nothing to get": (b"", {"method": "GET", "path": "/x"}, 404, "not found"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_in_one_sentence(name, start, people, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4096 * 4096)
    body, options, wanted, sentence = BAD[name]
    server = start(bytes=20_000, frames=4)
    status, answer = ask(server, body, **options)
    assert (status, list(answer)) == (wanted, ["error"])
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert ask_for(server, people[0]).shape == (352,)  # and goes on


def test_more_requests_than_places_are_told_to_come_again(start, exported, people):
    held = Held(exported)
    server = start(held, waiting=1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask_for, server, people[0])
        assert held.asked.wait(30)
        status, answer = ask(server, body_of([DOT]))
        assert status == 503
        assert "try again later" in answer["error"]
        held.free.set()
        assert first.result().shape == (352,)
    wait_until(lambda: server.RequestHandlerClass.service.places._value == 1)
    assert ask_for(server, people[0]).shape == (352,)


def test_a_model_that_fails_is_an_answer_and_not_the_end(start, exported, people, caplog):
    class Failing:
        description = exported.description
        failed = False

        def __call__(self, frames):
            if not self.failed:
                self.failed = True
                raise RuntimeError("out of memory at 0x7f")
            return exported(frames)

    server = start(Failing())
    status, answer = ask(server, body_of([DOT]))
    assert status == 500
    assert answer == {"error": "the model failed; the log of the service says more"}
    assert "out of memory" in caplog.text
    assert ask_for(server, people[0]).shape == (352,)


def test_a_client_that_leaves_takes_no_place_with_it(start, people):
    server = start(waiting=1)
    for sent in (b"POST /embed HTTP/1.1\r\n", b"GET /heal", b""):
        with socket.create_connection(server.server_address) as client:
            client.sendall(sent)
    with socket.create_connection(server.server_address) as client:
        head = f"POST /embed HTTP/1.0\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        client.sendall(head.encode() + b"Content-Length: 100\r\n\r\nhalf")
    body = body_of([encode(frame) for frame in people[0]])
    wait_until(lambda: ask(server, body)[0] == 200)  # the one place is free again
    assert ask_for(server, people[0]).shape == (352,)


# --- privacy and the end -------------------------------------------------------------------------


def test_the_log_holds_no_embedding_no_picture_and_no_line_break_of_a_client(start, caplog):
    caplog.set_level(logging.INFO)
    server = start()
    _, answer = ask(server, body_of([DOT]))
    with socket.create_connection(server.server_address) as client:
        client.sendall(b"GET /x\x1b[31m HTTP/1.0\r\n\r\n")
        client.makefile("rb").read()
    assert caplog.text.count('"POST /embed HTTP/1.1" 200') == 1
    assert not any(str(value)[:6] in caplog.text for value in answer["embedding"])
    assert "\x1b" not in caplog.text
    assert "PNG" not in caplog.text


def test_shutting_down_finishes_what_is_in_hand(script, exported, people):
    held = Held(exported)
    service = script.Service(held)
    server = script.make_server(("127.0.0.1", 0), service)
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(ask_for, server, frames) for frames in people[:3]]
        assert held.asked.wait(30)
        clips = 3
        wait_until(lambda: held.batches[0] + service._clips.qsize() == clips)
        server.shutdown()
        serving.join()
        closing = pool.submit(lambda: (server.server_close(), service.close()))
        time.sleep(0.1)
        assert not closing.done()  # it waits for them
        held.free.set()
        assert [answer.result().shape for answer in answers] == [(352,)] * 3
        closing.result(30)
    assert not service._worker.is_alive()
    with pytest.raises(ConnectionError):
        ask(server, method="GET", path="/health")


def test_a_service_that_closes_does_what_waits_first(script, exported, people):
    held = Held(exported)
    service = script.Service(held, script.Limits(batch_clips=2))
    with ThreadPoolExecutor() as pool:
        found = [pool.submit(service.embed, iter(frames)) for frames in people[:4]]
        wait_until(lambda: bool(held.batches) and held.batches[0] + service._clips.qsize() == 4)
        closing = pool.submit(service.close)
        held.free.set()
        assert [one.result().shape for one in found] == [(352,)] * 4
        closing.result(30)


@pytest.mark.slow
def test_the_command_serves_an_exported_file_until_it_is_told_to_end(
    tiny, people, tmp_path, monkeypatch
):
    monkeypatch.setattr(parity, "SHAPES", ((1, 1), (3, 2)))  # the gate is not what is tested
    monkeypatch.setattr(parity, "ROUNDS", 1)
    file = tmp_path / "person.pt2"
    export_model(tiny, file)
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), str(file), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--threads", "1", "--frames", "20"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        port = int(line.split("http://127.0.0.1:")[1].split()[0])

        class There:
            server_address = ("127.0.0.1", port)

        expected = tiny.encode_sequence(people[4]).numpy()
        np.testing.assert_allclose(ask_for(There, people[4]), expected, rtol=0, atol=1e-5)
        assert ask(There, method="GET", path="/model")[1]["limits"]["frames"] == 20
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_file_that_is_no_model_is_one_sentence(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([str(tmp_path / "none.xml")])
    assert stopped.value.code == 2
    assert "there is no exported model" in capsys.readouterr().err
