"""Galleries, embeddings, and jobs that go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzzing.tables import draw_images
from tests.fuzzing.target import Samples, Target
from tests.fuzzing.weights import tiny_model
from tfclip import Gallery
from tfclip.data import EmbeddingTable, Tracklet
from tfclip.errors import GalleryError, TableError
from tfclip.jobs import encode_cached
from tfclip.memory_building import build_memory


def _make_gallery(folder: Path) -> Samples:
    rng = np.random.default_rng(0)
    with Gallery.open(folder / "people", dim=4, storage="faiss", index="flat") as gallery:
        gallery.add(
            rng.normal(size=(5, 4)),
            cameras=[0, 1, None, 1, 0],
            persons=["ann", None, "bob", "ann", None],
            times=[1.0, 2.5, None, 3.0, 4.0],
            metadata=[{"coat": "red"}, None, {"age": 3}, {"coat": "blue", "age": 4.5}, None],
        )
        gallery.add(rng.normal(size=(2, 4)))
        gallery.search(rng.normal(size=(1, 4)), k=2)
    names = [f"people/{path.name}" for path in sorted((folder / "people").iterdir())]
    return {name: (folder / name).read_bytes() for name in names if not name.endswith("lock")}


def _read_gallery(folder: Path, name: str) -> None:
    storage = "faiss" if "faiss" in name else "exact"
    people = folder / "people"
    with Gallery.open(people, storage=storage, index="flat", read_only=True) as gallery:
        width = gallery.info()["dim"] or 4
        gallery.search(np.ones((2, width)), k=3, where={"camera": 1})
        gallery.search(np.ones((1, width)), k=9)
        len(gallery)


def _read_forged_gallery(folder: Path, name: str) -> None:
    """Open a gallery whose checksums somebody made fit what was changed."""
    index = folder / "people" / "gallery.json"
    kept = index.read_bytes()
    try:
        gallery = json.loads(kept)["gallery"]
        for record in gallery["segments"]:
            if not record[0].startswith("segment-") or "/" in record[0]:
                continue  # such as /dev/zero, whose end the fuzzer itself would never see
            data = (folder / "people" / record[0]).read_bytes()
            record[2:] = [len(data), hashlib.sha256(data).hexdigest()]
        index.write_bytes(_forged(gallery))
    except (ValueError, KeyError, TypeError, RecursionError, IndexError, OSError, AttributeError):
        pass  # it is read as it stands
    try:
        _read_gallery(folder, name)
    finally:
        index.write_bytes(kept)


def _forged(gallery: Any) -> bytes:
    text = json.dumps(gallery, sort_keys=True)
    whole = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "gallery": gallery}
    return json.dumps(whole).encode()


def _make_forgeable(folder: Path) -> Samples:
    return {name: data for name, data in _make_gallery(folder).items() if "faiss" not in name}


def _make_embeddings(folder: Path, suffix: str) -> Samples:
    tracklets = [
        Tracklet(name="a", frames=("a.png",), person="7", camera=1, first_frame=3, last_frame=9),
        Tracklet(name="b", frames=("b.png",)),
    ]
    table = EmbeddingTable.from_tracklets(
        tracklets,
        torch.arange(6.0).view(2, 3),
        [4, None],
        model="tfclip-tiny",
        revision=None,
        fingerprint="0123456789abcdef",
        settings={"sampling": "dense"},
    )
    path = folder / f"table{suffix}"
    table.save(path)
    return {path.name: path.read_bytes()}


def _read_embeddings(folder: Path, name: str) -> None:
    EmbeddingTable.load(folder / name)


def _drawn_tracklets(folder: Path) -> list[Tracklet]:
    return [Tracklet(name=name, frames=str(folder / name)) for name in ("a", "b")]


def _make_job(folder: Path) -> Samples:
    draw_images(folder)
    encode_cached(tiny_model(), _drawn_tracklets(folder), folder / "cache", fingerprint="0" * 16)
    return {f"cache/{path.name}": path.read_bytes() for path in (folder / "cache").iterdir()}


def _read_job(folder: Path, name: str) -> None:
    tracklets = _drawn_tracklets(folder)
    table = encode_cached(tiny_model(), tracklets, folder / "cache", fingerprint="0" * 16)
    assert table.names == ("a", "b")
    assert len(list((folder / "cache").iterdir())) == 1


def _make_memory(folder: Path) -> Samples:
    draw_images(folder)
    _build_memory(folder, "memory.safetensors")
    return {"memory.safetensors": (folder / "memory.safetensors").read_bytes()}


def _build_memory(folder: Path, name: str) -> None:
    identities = torch.tensor([0, 1])
    memory = build_memory(tiny_model(), _drawn_tracklets(folder), identities, cache=folder / name)
    assert memory.centroids.shape == (2, 8)


TARGETS = {
    "gallery": Target(_make_gallery, _read_gallery, (GalleryError,)),
    "forged-gallery": Target(_make_forgeable, _read_forged_gallery, (GalleryError,)),
    "embeddings": Target(
        lambda folder: _make_embeddings(folder, ".safetensors"), _read_embeddings, (TableError,)
    ),
    "embeddings-parquet": Target(
        lambda folder: _make_embeddings(folder, ".parquet"), _read_embeddings, (TableError,)
    ),
    "job": Target(_make_job, _read_job, ()),
    "memory": Target(_make_memory, _build_memory, ()),
}
