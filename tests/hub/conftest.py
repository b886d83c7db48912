"""A model, the folder it is saved in, and a Hub on this machine; no other machine is asked."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.hub_server import taken_for_the_hub
from tests.hub.saved_models import make_model
from tfclip import hub
from tfclip.model import TFCLIP


@pytest.fixture(scope="module")
def model() -> TFCLIP:
    return make_model()


@pytest.fixture(scope="module")
def saved(model: TFCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save`` leaves it; not to be written to."""
    folder = tmp_path_factory.mktemp("saved")
    hub.save(model, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the same for one test's own use."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        assert address[0] in {"127.0.0.1", "::1"}, f"a test wants to connect to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local Hub that huggingface_hub takes for the real one, with an empty cache and no token."""
    with taken_for_the_hub(tmp_path, monkeypatch) as local:
        yield local


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client's pauses between attempts take no time."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
