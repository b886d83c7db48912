"""Whoever is killed, nothing that was acknowledged is lost, and nothing is there twice."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.milvus_server import LiteServer, RealServer, drop, new_name
from tests.milvus_worker import STEP, STEP_BYTES, WIDTH, vector_of
from tfclip import Gallery
from tfclip.data import EmbeddingTable
from tfclip.errors import GalleryError
from tfclip.gallery import tables

pytest.importorskip("milvus_lite", reason="needs milvus-lite")
pytest.importorskip("pyarrow", reason="needs pyarrow")
pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("milvus_worker.py")
COUNT = 20 * STEP


@pytest.fixture(params=["lite", "lite server", "server"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """None for Milvus Lite in the process that uses it; Milvus Lite as a server; a real one."""
    if request.param == "lite":
        yield None
        return
    server = LiteServer(tmp_path / "server") if request.param == "lite server" else RealServer()
    yield server
    server.close()


@pytest.fixture
def name(server: Any) -> Iterator[str]:
    chosen = new_name()
    yield chosen
    if isinstance(server, RealServer):
        drop(server.uri, chosen)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of embeddings of twenty steps."""
    path = tmp_path / "day.parquet"
    names = tuple(map(str, range(COUNT)))
    vectors = np.stack([vector_of(id_) for id_ in names]).astype(np.float32)
    cameras = tuple(i % 3 for i in range(COUNT))
    EmbeddingTable(
        embeddings=torch.from_numpy(vectors), names=names, cameras=cameras, model="m"
    ).save(path)
    return path


def killed_after(steps: int, *arguments: object) -> list[str]:
    """Start the worker, kill it when it has acknowledged some steps; return the ids it named."""
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(steps)]
        worker.kill()
        lines += worker.stdout.readlines()  # acknowledged before it died
    return [id_ for line in lines if line.endswith("\n") for id_ in json.loads(line)]


def check(gallery: Gallery, acknowledged: list[str]) -> None:
    entries = gallery.entries()
    assert len(set(entries.ids)) == len(entries) == len(gallery)
    assert set(acknowledged) <= set(entries.ids)
    assert len(entries) - len(acknowledged) <= STEP  # what was under way
    expected = np.stack([vector_of(id_) for id_ in entries.ids])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(entries.vectors, expected, atol=1e-6)
    some = acknowledged[:: max(1, len(acknowledged) // 20)]
    found = gallery.search(np.stack([vector_of(id_) for id_ in some]), 2)
    assert [ids[0] for ids in found.ids] == some
    assert all(ids[1] != ids[0] for ids in found.ids)


def test_what_was_acknowledged_before_a_kill_is_found_after_it(
    server: Any, name: str, tmp_path: Path
) -> None:
    address = tmp_path / "m" if server is None else server.uri
    acknowledged = killed_after(4, "add", address, name)
    if server is not None:
        server.restart()
    with Gallery.open(address, storage="milvus", collection=name) as gallery:
        check(gallery, acknowledged)
        assert gallery.forget(camera=1) > 0
        assert {int(id_) % 3 for id_ in gallery.entries().ids} == {0, 2}


def test_an_import_that_was_killed_goes_on_without_loss_or_doubles(
    server: Any, name: str, file: Path, tmp_path: Path
) -> None:
    address = tmp_path / "m" if server is None else server.uri
    for steps in (3, 5):  # the second goes on where the first was killed
        acknowledged = killed_after(steps, "import", address, name, file)
        assert len(acknowledged) >= steps * STEP
    with Gallery.open(address, storage="milvus", collection=name) as gallery:
        held = len(gallery)
        assert 8 * STEP <= held < COUNT
        done = gallery.import_file(file)
        assert done == (COUNT - held, held)
        assert len(gallery) == COUNT
        check(gallery, list(map(str, range(COUNT))))


def test_a_server_restarted_between_add_and_search_has_everything(server: Any, name: str) -> None:
    if server is None:
        pytest.skip("Milvus Lite in this process cannot be killed without the test")
    ids = list(map(str, range(3 * STEP)))
    vectors = np.stack([vector_of(id_) for id_ in ids])
    options: dict[str, Any] = {"collection": name, "partition": "camera"}
    gallery = Gallery.open(server.uri, dim=WIDTH, **options)
    gallery.add(vectors, ids, [int(id_) % 3 for id_ in ids])
    server.restart()
    with Gallery.open(server.uri, **options) as again:
        check(again, ids)
    gallery.close()


def test_a_server_restarted_in_the_middle_of_an_import(
    server: Any, name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server is None:
        pytest.skip("Milvus Lite in this process cannot be killed without the test")
    monkeypatch.setattr(tables, "_BATCH_BYTES", STEP_BYTES)
    add, steps = Gallery.add, []

    def restarting(self: Gallery, *arguments: Any, **options: Any) -> list[str]:
        ids = add(self, *arguments, **options)
        steps.append(ids)
        if len(steps) == 3:
            server.restart()
        return ids

    monkeypatch.setattr(Gallery, "add", restarting)
    options: dict[str, Any] = {"collection": name, "partition": "camera"}
    gallery = Gallery.open(server.uri, dim=WIDTH, **options)
    with contextlib.suppress(GalleryError):  # a real server loads the collection by itself
        gallery.import_file(file)
    gallery.close()
    with Gallery.open(server.uri, **options) as again:
        again.import_file(file)
        assert len(again) == COUNT
        check(again, list(map(str, range(COUNT))))
