"""Serve an exported model over HTTP: pictures of a tracklet go in, its embedding comes out.

    tfclip export person.xml --dtype bfloat16
    python examples/serve.py person.xml
    curl -F f=@1.jpg -F f=@2.jpg http://127.0.0.1:8000/embed

Clips of requests that wait share a batch, which changes no embedding. docs/serving.md says how to
size it, and what belongs before it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image

from tfclip.errors import TFCLIPError
from tfclip.export import ExportedModel
from tfclip.frames import sample_dense
from tfclip.images import check_size, read_picture
from tfclip.preprocess import normalize, resize_frame
from tfclip.untrusted import one_line, printable

FORMATS = ("JPEG", "PNG")  # WebP takes the memory of its size before that is known
LOG = logging.getLogger("serve")


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """A request that is answered with a status and one sentence."""


class Limits(NamedTuple):
    """What the service takes."""

    bytes: int = 16 * 2**20  # of one body
    frames: int = 512  # of one tracklet
    pixels: int = 4096 * 4096  # of one picture
    waiting: int = 32  # requests in hand
    batch_clips: int = 8  # that go through the model at once


class Service:
    """Embeds tracklets of many threads with one model, which one thread runs."""

    def __init__(self, model: ExportedModel, limits: Limits | None = None) -> None:
        self.model, self.about, self.limits = model, model.description, limits or Limits()
        self.places = threading.BoundedSemaphore(self.limits.waiting)
        self._clips: queue.SimpleQueue[tuple[np.ndarray, Future] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work)
        self._worker.start()

    def embed(self, frames: Iterator[np.ndarray]) -> np.ndarray:
        """Return the embedding of frames, (H, W, 3) each, as ``encode_sequence`` has it: (F,)."""
        wanted, length = self.about["frames"], self.about["tracklet"]["clip_length"]
        size, method = (wanted["height"], wanted["width"]), wanted["resize"]
        pixels = torch.stack([resize_frame(frame, size, method) for frame in frames])
        if wanted["normalize"]:
            pixels = normalize(pixels, wanted["mean"], wanted["std"])
        embeddings = []
        for rows in sample_dense(len(pixels), length):
            embeddings.append(Future())
            self._clips.put((pixels[rows].numpy(), embeddings[-1]))
        mean = np.mean([embedding.result() for embedding in embeddings], axis=0)
        return mean / np.linalg.norm(mean)

    def close(self) -> None:
        """End when everything that waits is done."""
        self._clips.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (clip := self._clips.get()) is not None:
            batch = [clip]
            with contextlib.suppress(queue.Empty):  # nobody else waits: go on with these
                while len(batch) < self.limits.batch_clips:
                    clip = self._clips.get_nowait()
                    if clip is None:
                        self._clips.put(None)
                        break
                    batch.append(clip)
            try:
                found = self.model(np.stack([frames for frames, _ in batch]))
                for (_, embedding), row in zip(batch, found, strict=True):
                    embedding.set_result(row)
            except Exception as error:  # for whoever asked; the next batch may go well
                for _, embedding in batch:
                    embedding.set_exception(error)


class Handler(BaseHTTPRequestHandler):
    """Answers one request; what is in it, and what becomes of it, is never logged."""

    service: ClassVar[Service]
    timeout = 30  # seconds in which a client must send or take something
    server_version, sys_version = "tfclip", ""

    def do_GET(self) -> None:
        """Answer /health and /model."""
        about = {**self.service.about, "limits": self.service.limits._asdict()}
        answers = {"/health": {"status": "ok"}, "/model": about}
        known = self.path in answers
        self._send(200 if known else 404, answers.get(self.path, {"error": "not found"}))

    def do_POST(self) -> None:
        """Answer /embed."""
        if not self.service.places.acquire(blocking=False):
            return self._refuse(503, "too many requests are waiting; try again later")
        try:
            frames = decode(self._read_parts(), self.service.limits)
            embedding = self.service.embed(frames).tolist()
            fingerprint = self.service.about["fingerprint"]
            self._send(200, {"embedding": embedding, "fingerprint": fingerprint})
        except Refused as refusal:
            self._refuse(*refusal.args)
        except TFCLIPError as error:
            self._refuse(400, one_line(error))
        except ConnectionError:
            self.log_message("the client has left")
        except TimeoutError:
            raise  # http.server closes the connection
        except Exception:
            LOG.exception("the model failed")
            self._refuse(500, "the model failed; the log of the service says more")
        finally:
            self.service.places.release()

    def _read_parts(self) -> list[bytes]:
        """Return the contents of the body's parts; their names and types do not matter."""
        header, most = Message(), self.service.limits.bytes
        header["Content-Type"] = self.headers.get("Content-Type", "")
        boundary, length = header.get_boundary(), self.headers.get("Content-Length", "")
        if self.path != "/embed":
            raise Refused(404, "pictures go to /embed")
        if header.get_content_type() != "multipart/form-data" or not boundary:
            raise Refused(415, "the body must be multipart/form-data, a picture in each part")
        if not (length.isascii() and length.isdecimal()):
            raise Refused(411, "the request must say its Content-Length")
        if len(length) > 18 or int(length) > most:
            raise Refused(413, f"the body must have at most {most:,} bytes, got {length[:18]}")
        body = b"\r\n" + self.rfile.read(int(length))
        pieces = body.split(b"\r\n--" + boundary.encode("ascii", "replace"))
        if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
            raise Refused(400, "the body must end with the boundary that its type names")
        return [piece.partition(b"\r\n\r\n")[2] for piece in pieces[1:-1]]

    def _refuse(self, status: int, sentence: str) -> None:
        with contextlib.suppress(OSError):  # the client may have left
            self._send(status, {"error": sentence})
            self.connection.settimeout(0.5)
            self.connection.shutdown(1)  # what still comes would take the answer away again
            for _ in range(64):
                if not self.rfile.read1(65536):
                    break

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log in one line, whatever a client wrote."""
        LOG.info("%s", printable(format % args))


def make_server(address: tuple[str, int], service: Service) -> ThreadingHTTPServer:
    """Return a server with a thread for each connection; closing it waits for all of them."""
    server = ThreadingHTTPServer(address, type("Bound", (Handler,), {"service": service}))
    server.daemon_threads = False
    return server


def decode(pictures: Sequence[bytes], limits: Limits) -> Iterator[np.ndarray]:
    """Yield frames, (H, W, 3) uint8 RGB, each when its turn comes and measured before it opens."""
    if not 1 <= len(pictures) <= limits.frames:
        raise Refused(400, f"frames must be 1 to {limits.frames}, got {len(pictures)}")
    for number, data in enumerate(pictures):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            check_size(*image.size, f"frames[{number}]")
        except Exception as error:  # Pillow's own, or what a damaged file made it stumble over
            kind = f"{' or '.join(FORMATS)} of at most {Image.MAX_IMAGE_PIXELS:,} pixels"
            raise Refused(400, f"frames[{number}] must be {kind}") from error
        with image:
            yield read_picture(image, f"frames[{number}]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, then finish what is in hand."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a file of tfclip export")
    parser.add_argument("--host", default="127.0.0.1", help="(127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="(8000)")
    parser.add_argument("--threads", type=int, help="the model computes with")
    for name, most in Limits()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=most, help=f"({most})")
    options = parser.parse_args(arguments)
    limits = Limits(*(getattr(options, name) for name in Limits._fields))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Image.MAX_IMAGE_PIXELS = limits.pixels
    try:
        model = ExportedModel(options.model, threads=options.threads)
    except TFCLIPError as error:
        parser.error(one_line(error))
    with (
        contextlib.closing(Service(model, limits)) as service,
        make_server((options.host, options.port), service) as server,
    ):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        LOG.info("http://%s:%s serves %s", *server.server_address[:2], options.model)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
