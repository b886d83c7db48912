"""Servers that speak the protocol of Milvus, and can be killed and started again.

``LiteServer`` is Milvus Lite in a process of its own. With ``TFCLIP_TEST_MILVUS`` the tests use a
real one at that address too, and with ``TFCLIP_TEST_MILVUS_RESTART``, a command that kills and
starts it again, the tests of that as well.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import IO

import pytest

ADDRESS, RESTART = "TFCLIP_TEST_MILVUS", "TFCLIP_TEST_MILVUS_RESTART"


def wait_for(host: str, port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class LiteServer:
    """Milvus Lite behind an address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        options = ["--host", "127.0.0.1", "--port", str(self._port)]
        data = str(self._folder / "data")
        self._log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "milvus_lite", "server", "--data-dir", data, *options],
            stdout=self._log,
            stderr=self._log,
        )
        wait_for("127.0.0.1", self._port)

    def kill(self) -> None:
        assert self._process is not None
        assert self._log is not None
        self._process.kill()
        self._process.wait()
        self._log.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        self.kill()


class RealServer:
    """A Milvus that runs somewhere."""

    def __init__(self) -> None:
        self.uri = os.environ.get(ADDRESS, "")
        if not self.uri:
            pytest.skip(f"needs a Milvus server at {ADDRESS}, as in http://127.0.0.1:19530")

    def restart(self) -> None:
        command = os.environ.get(RESTART)
        if not command:
            pytest.skip(f"needs a command in {RESTART} that kills Milvus and starts it again")
        subprocess.run(command, shell=True, check=True)
        host, port = self.uri.rpartition("//")[2].split(":")
        wait_for(host, int(port))

    def close(self) -> None:
        pass


def new_name() -> str:
    """Return the name of a collection that no other test uses."""
    return f"tfclip_test_{uuid.uuid4().hex[:12]}"


def drop(uri: str, *names: str) -> None:
    """Remove what a test left on a server."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri=uri)
    for name in names:
        for collection in (name, f"{name}_about"):
            if client.has_collection(collection):
                client.drop_collection(collection)
    client.close()
