"""Tracklets in tar shards and behind addresses are those of a folder."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from tfclip.data import SyntheticTracklets, encode_dataset, read_shards, read_table, read_tracklets
from tfclip.errors import FrameError, GalleryError, MissingExtraError, TableError
from tfclip.frames import open_frames
from tfclip.gallery import Gallery
from tfclip.remote import read_address


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def people() -> list:
    return list(SyntheticTracklets(3, 2, 1, num_frames=4, frame_size=(32, 16)))


@pytest.fixture
def shards(tmp_path: Path, people: list) -> list[Path]:
    """Two shards with three tracklets each, frames out of order."""
    paths = []
    for number in (0, 1):
        members = {}
        for tracklet in people[3 * number : 3 * number + 3]:
            key = f"{tracklet.person}/cam{tracklet.camera}"
            for i in (2, 0, 3, 1):
                members[f"{key}.{i + 8}.png"] = png(tracklet.frames[i])
            notes = {"person": tracklet.person, "camera": tracklet.camera}
            members[f"{key}.json"] = json.dumps(notes).encode()
        paths.append(write_tar(tmp_path / f"{number}.tar", members))
    return paths


def test_a_shard_holds_the_tracklets_that_were_put_in(shards, people):
    tracklets = read_shards(map(str, shards))
    assert [(t.person, t.camera) for t in tracklets] == [(t.person, t.camera) for t in people]
    for tracklet, original in zip(tracklets, people, strict=True):
        frames = [*tracklet.open()]
        assert len(frames) == 4
        for frame, truth in zip(frames, original.frames, strict=True):
            np.testing.assert_array_equal(frame, truth)


def test_a_pattern_names_shards_in_order(shards, tmp_path):
    by_pattern = read_tracklets(str(tmp_path / "*.tar"))
    one_by_one = read_tracklets([str(path) for path in shards])
    assert [t.name for t in by_pattern] == [t.name for t in one_by_one]
    for left, right in zip(by_pattern, one_by_one, strict=True):
        assert left.frames == right.frames
    with pytest.raises(TableError, match=r"none-\*\.tar names no file"):
        read_tracklets(str(tmp_path / "none-*.tar"))


def test_many_threads_read_the_members_of_one_shard_unmixed(shards, people):
    frames = [address for t in read_shards([str(shards[0])]) for address in t.frames] * 20
    truths = [frame for t in people[:3] for frame in t.frames] * 20

    def read(address: str) -> np.ndarray:
        return next(iter(open_frames([address])))

    with ThreadPoolExecutor(8) as pool:
        for frame, truth in zip(pool.map(read, frames), truths, strict=True):
            np.testing.assert_array_equal(frame, truth)


def test_shards_of_an_object_store_are_those_of_the_disk(shards, people):
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/0.tar", shards[0].read_bytes())
    try:
        (first, *_) = read_shards(["memory://bucket/0.tar"])
        np.testing.assert_array_equal(next(iter(first.open())), people[0].frames[0])
    finally:
        store.rm("/bucket", recursive=True)


def test_a_table_of_an_object_store_names_pictures_beside_it_and_elsewhere(tmp_path, people):
    store = fsspec.filesystem("memory")
    elsewhere = tmp_path / "1.png"
    elsewhere.write_bytes(png(people[0].frames[1]))
    store.pipe("/bucket/crops/0.png", png(people[0].frames[0]))
    rows = f"tracklet,path\na,crops/0.png\na,file://{elsewhere}\n"
    store.pipe("/bucket/table.csv", rows.encode())
    try:
        (tracklet,) = read_tracklets("memory://bucket/table.csv")
        for frame, truth in zip(tracklet.open(), people[0].frames, strict=False):
            np.testing.assert_array_equal(frame, truth)
    finally:
        store.rm("/bucket", recursive=True)


def test_addresses_in_a_table_are_paths_unless_said_otherwise(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("tracklet,path\na,http://example.invalid/0.png\n")
    with pytest.raises(TableError, match="line 2: there is no file"):
        read_table(table)
    (tracklet,) = read_table(table, remote=True)
    assert tracklet.frames == ("http://example.invalid/0.png",)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b""}, "has no image"),
        ({"a.1.png": b"", "a.json": b"["}, r"a\.json: not JSON"),
        ({"a.1.png": b"", "a.json": b"[]"}, "there must be an object, got list"),
        ({"a.1.png": b"", "a.json": b'{"camera": "x"}'}, "camera must be a whole number, got 'x'"),
        ({"a.1.png": b"", "a.json": b'{"camera": -1}'}, "camera must be 0 or more"),
        ({"a.1.png": b"", "a.json": b'{"person": []}'}, "person must be a text or a number"),
        ({"a.1.png": b"", "a.json": b'{"boxes": [1, 2]}'}, "boxes must be one for each of the 1"),
        ({"a.1.png": b"", "a.json": b"[" * 100_000}, "not JSON"),
    ],
)
def test_a_wrong_shard_is_one_sentence(tmp_path, members, message):
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(TableError, match=message):
        read_shards([str(path)])


def test_what_is_no_shard_or_is_there_twice_is_said(tmp_path, shards):
    (tmp_path / "bad.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(TableError, match=r"bad\.tar is damaged or not a tar file"):
        read_shards([str(tmp_path / "bad.tar")])
    with pytest.raises(TableError, match="there is no such file"):
        read_shards([str(tmp_path / "missing.tar")])
    with pytest.raises(TableError, match="has tracklet '0/cam0', and so has"):
        read_shards([str(shards[0]), str(shards[0])])
    with pytest.raises(TableError, match=r"must end in \.csv, \.parquet or \.tar"):
        read_tracklets("memory://bucket/folder")


def test_what_an_address_cannot_give_is_one_sentence(shards):
    with pytest.raises(FrameError, match="cannot read memory://nothing: there is no such file"):
        read_address("memory://nothing")
    with pytest.raises(FrameError, match="cannot read nonsense://x: Protocol not known"):
        read_address("nonsense://x")
    with pytest.raises(FrameError, match="not a readable image"):
        next(iter(open_frames([f"bytes://0-10/a.jpg::file://{shards[0]}"])))
    try:
        import s3fs  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(MissingExtraError, match="cannot read s3://x/y: Install s3fs"):
            read_address("s3://x/y")


def test_a_dataset_goes_into_a_file_and_a_gallery_once(
    tiny_model, shards, people, tmp_path, monkeypatch
):
    gallery, out = (
        Gallery.open(tmp_path / "gallery", dim=tiny_model.embedding_dim),
        tmp_path / "out.safetensors",
    )
    sources = [str(path) for path in shards]
    table = encode_dataset(tiny_model, sources, out, gallery=gallery)
    expected = tiny_model.encode_sequences([tracklet.frames for tracklet in people])
    torch.testing.assert_close(table.embeddings, expected, atol=1e-5, rtol=0)
    assert len(gallery) == len(people)
    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "entries", None)  # what is there is looked up, not read
        encode_dataset(tiny_model, sources, out, gallery=gallery)
    assert gallery.entries().ids == table.names
    other = type(tiny_model)(tiny_model.config)
    with pytest.raises(GalleryError, match="encode both with one model"):
        encode_dataset(other, sources, tmp_path / "other.safetensors", gallery=gallery)
    assert not (tmp_path / "other.safetensors").exists()
