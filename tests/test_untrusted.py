"""Files made to do harm: refused in a sentence, before memory is taken, and nothing is written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from tests.data_trees import element, mat_file, prid_tree, variable
from tests.fuzzing.weights import tiny_model as drawn_model
from tests.traps import Bomb
from tfclip import TFCLIP, Gallery, convert
from tfclip.checkpoints import read_checkpoint
from tfclip.data import (
    EmbeddingTable,
    Tracklet,
    read_boxes,
    read_csv,
    read_mat,
    read_prid2011,
)
from tfclip.data.shards import read_shards
from tfclip.errors import (
    FrameError,
    GalleryError,
    SnapshotError,
    TableError,
    TFCLIPError,
    WeightsError,
)
from tfclip.frames import open_frames
from tfclip.jobs import encode_cached
from tfclip.tensors import read_safetensors
from tfclip.tracking import TrackletEncoder

MIB = 2**20


@pytest.fixture
def refused(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Call a reader, which must refuse in one line without taking memory; return its words."""

    def call(read: Callable[[Path], object], path: Path, error: type[TFCLIPError]) -> str:
        before = _peak()
        with pytest.raises(error) as caught:
            read(path)
        assert _peak() - before < 64 * MIB
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    return call


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# Bombs


def _frames(path: Path) -> list[np.ndarray]:
    return [*iter(open_frames(path))]


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(MIB), 9)  # the decoder asks for more as it goes
    ends = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + ends


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (65_000, 65_000), (2**31 - 1, 1)])
@pytest.mark.parametrize("name", ["bomb.png", "bomb.ppm"])
def test_a_picture_of_absurd_size_is_not_decoded(
    tmp_path: Path, refused: Callable[..., str], size: tuple[int, int], name: str
) -> None:
    path = tmp_path / name
    header = f"P6 {size[0]} {size[1]} 255\n".encode()
    path.write_bytes(_png(*size) if name == "bomb.png" else header + bytes(1000))
    refused(_frames, path, FrameError)


def test_the_limit_on_pixels_is_pillows_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (10, 11)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 110)
    assert _frames(tmp_path / "a.png")[0].shape == (11, 10, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 109)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(FrameError, match="at most 109 pixels, got 10 x 11"),
    ):
        _frames(tmp_path / "a.png")


def test_a_video_of_more_pixels_than_pillow_trusts_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(_frames(tmp_path / "a.mp4")) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 32 - 1)
    with pytest.raises(FrameError, match="at most 1,535 pixels, got 48 x 32"):
        _frames(tmp_path / "a.mp4")


def test_a_checkpoint_that_unpacks_to_more_than_it_weighs_is_not_unpacked(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "bomb.pth"
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(4)}, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(path, "w") as bomb:
        for entry in whole.infolist():
            if not entry.filename.endswith("data/0"):
                bomb.writestr(entry.filename, whole.read(entry))
                continue
            packed = zipfile.ZipInfo(entry.filename)
            packed.compress_type = zipfile.ZIP_DEFLATED
            with bomb.open(packed, "w") as zeros:
                for _ in range(512):
                    zeros.write(bytes(MIB))
    assert path.stat().st_size < MIB
    assert "claims to unpack to 536," in refused(read_checkpoint, path, WeightsError)


def test_entries_that_share_their_bytes_are_counted_each(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(1000)}, stream)
    data = stream.getvalue()
    end = data.rindex(b"PK\5\6")
    size, start = struct.unpack_from("<II", data, end + 12)
    entries = data[start : start + size]
    count = struct.unpack_from("<H", data, end + 10)[0]
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 5 * count, 5 * count, 5 * size, start, 0)
    (tmp_path / "overlap.pth").write_bytes(data[:start] + 5 * entries + tail)
    assert "claims to unpack" in refused(read_checkpoint, tmp_path / "overlap.pth", WeightsError)


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 100_000_001, 0, 9])
def test_an_absurd_length_of_a_safetensors_header_is_refused(
    tmp_path: Path, refused: Callable[..., str], length: int
) -> None:
    content = struct.pack("<Q", length) + save({"a": torch.zeros(2)})[8:]
    for name, read, error in (
        ("a.safetensors", read_safetensors, WeightsError),
        ("b.safetensors", EmbeddingTable.load, TableError),
    ):
        (tmp_path / name).write_bytes(content)
        refused(read, tmp_path / name, error)


@pytest.mark.parametrize("shape", [(2**31 - 1, 2**31 - 1), (2**30, 4), (10**6, 10**6)])
def test_an_absurd_size_in_a_matlab_file_is_refused(
    tmp_path: Path, refused: Callable[..., str], shape: tuple[int, int]
) -> None:
    path = tmp_path / "absurd.mat"
    path.write_bytes(mat_file(variable("x", np.ones((2, 2)), shape=shape)))
    refused(read_mat, path, TableError)


def test_a_matlab_variable_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    packer, packed = zlib.compressobj(9), b""
    for _ in range(300):  # MiB of zeros, which need not be held to be packed
        packed += packer.compress(bytes(MIB))
    content = mat_file(element(15, packed + packer.flush()))
    (tmp_path / "bomb.mat").write_bytes(content)
    assert len(content) < MIB
    with pytest.raises(TableError, match="ends too early or is too large"):
        read_mat(tmp_path / "bomb.mat")


def test_a_matrix_that_was_never_written_takes_no_memory(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "empty.mat"
    with h5py.File(path, "w") as file:
        file.create_dataset("query", shape=(2**20, 2**20), dtype="f8", chunks=(1024, 1024))
    assert path.stat().st_size < MIB
    assert "more than 256 MiB" in refused(read_mat, path, TableError)


# Code


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("read", [read_checkpoint, convert.from_reference, convert.read_clip])
def test_a_pickle_that_would_write_a_file_is_refused_and_does_not(
    tmp_path: Path, refused: Callable[..., str], read: Callable[[Path], object], protocol: int
) -> None:
    path, mark = tmp_path / "best_model.pth.tar", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"weight": Bomb(mark)}, protocol))
    assert "a pickle can run any code" in refused(read, path, WeightsError)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the trap is a real one"


# Paths


def test_a_table_may_name_any_image_and_reading_it_writes_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    Image.new("RGB", (4, 8)).save(outside)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "link.png").symlink_to(outside)
    table = tmp_path / "tables" / "table.csv"
    table.write_text(f"tracklet,path\na,../outside.png\nb,{outside}\nc,link.png\n")
    before = sorted(tmp_path.rglob("*"))
    tracklets = read_csv(table)
    assert [next(iter(t.open())).shape for t in tracklets] == [(8, 4, 3)] * 3
    assert sorted(tmp_path.rglob("*")) == before


NAMES = ["../../escaped", "/escaped", "..", "a/../../b", "~/x", "CON", "a\\..\\b", "\u202egnp.exe"]


def test_names_out_of_tables_never_become_names_of_files(
    tiny_model: TFCLIP, tmp_path: Path
) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 64)).save(image)
    work = tmp_path / "work" / "deep"
    work.mkdir(parents=True)
    people = [
        Tracklet(name=name, frames=(str(image),), person=name, camera=0, session=name)
        for name in NAMES
    ]
    table = encode_cached(tiny_model, people, work / "cache")
    table.save(work / "table.safetensors")
    with Gallery.open(work / "people", model=tiny_model) as gallery:
        gallery.add(table.embeddings, NAMES, persons=NAMES, metadata=[{"coat": n} for n in NAMES])
        assert gallery.forget(person=NAMES[0]) == 1
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parts[:2] for path in written} == {("a.png",), ("work", "deep")}
    ours = r"([0-9a-f]{16}|table|segment-\d{8})\.safetensors|gallery\.json|lock"
    assert all(re.fullmatch(ours, path.name) for path in written if path.name != "a.png")


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "table.safetensors").symlink_to(precious)
    EmbeddingTable(embeddings=torch.eye(2), names=("a", "b")).save(tmp_path / "table.safetensors")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "table.safetensors").is_symlink()


def test_what_holds_personal_data_is_for_its_owner_alone(tmp_path: Path) -> None:
    table = EmbeddingTable(embeddings=torch.eye(2), names=("a", "b"))
    old = os.umask(0)
    try:
        table.save(tmp_path / "table.safetensors")
        with Gallery.open(tmp_path / "people", dim=2) as gallery:
            gallery.add(np.eye(2))
    finally:
        os.umask(old)
    private = [
        tmp_path / "table.safetensors",
        tmp_path / "people",
        *(tmp_path / "people").iterdir(),
    ]
    assert [path.stat().st_mode & 0o077 for path in private] == [0] * len(private)


# Galleries whose checksums somebody made fit


def _forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = folder / "gallery.json"
    gallery = json.loads(index.read_bytes())["gallery"]
    change(gallery)
    text = json.dumps(gallery, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    index.write_text(json.dumps({"sha256": digest, "gallery": gallery}))


FORGERIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a segment elsewhere": lambda g: g["segments"][0].__setitem__(0, "../elsewhere.safetensors"),
    "an absolute segment": lambda g: g["segments"][0].__setitem__(0, "/etc/passwd"),
    "another width": lambda g: g.update(width=3),
    "a width that is none": lambda g: g.update(width=[4]),
    "an endless time to live": lambda g: g.update(ttl=10**400),
    "a time to live that is none": lambda g: g.update(ttl={}),
    "more rows": lambda g: g["segments"][0].__setitem__(1, 7),
    "a negative number": lambda g: g.update(next_number=-1),
    "keys that are none": lambda g: g.update(fields=[1]),
    "a size that is none": lambda g: g["segments"][0].__setitem__(2, "1"),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_index_of_a_gallery_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "people"
    with Gallery.open(folder, dim=4) as gallery:
        gallery.add(np.eye(4), persons=["a", None, "b", "a"])
    _forge(folder, FORGERIES[kind])
    with pytest.raises(GalleryError, match="is damaged"):
        Gallery.open(folder)


def _texts(**changes: Any) -> torch.Tensor:
    texts = {"ids": ["0", "1", "2", "3"], "persons": ["a", "b"], "metadata": {}, **changes}
    return torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("persons", torch.tensor([0, 1, 2, 9], dtype=torch.int32), "beyond the 2 values"),
        ("persons", torch.tensor([0, 1], dtype=torch.int32), r"\(2,\) for 4 ids"),
        ("cameras", torch.zeros(4, 2, dtype=torch.int64), r"cameras are int64 \(4, 2\)"),
        ("times", torch.zeros(4, dtype=torch.int64), "times are int64"),
        ("numbers", torch.tensor([3, 2, 1, 0]), "do not ascend"),
        ("vectors", torch.zeros(3, 4), r"vectors are \(3, 4\) for 4 ids"),
        ("texts", _texts(ids=[1, 2, 3, 4]), "its ids are not texts"),
        ("texts", _texts(persons=["a", ["b"]]), "its values are not texts, numbers or bool"),
    ],
)
def test_columns_of_a_forged_segment_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, values: torch.Tensor, reason: str
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "people"
    with Gallery.open(folder, dim=4) as gallery:
        gallery.add(np.eye(4), persons=["a", None, "b", "a"])
    (segment,) = folder.glob("segment-*")
    save_file({**load_file(segment), name: values}, segment)
    data = segment.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    _forge(folder, lambda g: g["segments"][0].__setitem__(slice(2, 4), [len(data), digest]))
    with pytest.raises(GalleryError, match=f"is damaged: .*{reason}"):
        Gallery.open(folder)


# What a job finds of an earlier one


def test_a_cache_that_holds_other_names_is_encoded_anew(tiny_model: TFCLIP, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 64)).save(image)
    tracklets = [Tracklet(name=name, frames=(str(image),)) for name in "ab"]
    encode_cached(tiny_model, tracklets, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b'["a", "b"]', b'["a", "c"]'))
    assert path.read_bytes() != kept
    assert encode_cached(tiny_model, tracklets, tmp_path / "cache").names == ("a", "b")
    assert path.read_bytes() == kept


# Messages that quote what a file says


def _coco_file(folder: Path) -> Path:
    box = {"id": "8\nnote", "image_id": 1, "bbox": [0, 0, 1, 1]}  # of no track
    content = {"images": [{"id": 1, "frame_id": 0}], "annotations": [box]}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def _prid_folder(folder: Path) -> Path:
    splits = [{"train": ["ann\nbob"], "test": ["person_0001"]}]
    return prid_tree(folder, ["person_0001"], json.dumps(splits))


def _shard(folder: Path) -> Path:
    with tarfile.open(folder / "shard.tar", "w") as tar:
        notes = tarfile.TarInfo("a\nb.json")
        notes.size = 1
        tar.addfile(notes, io.BytesIO(b"{"))
    return folder / "shard.tar"


def _snapshot(folder: Path) -> Path:
    description = torch.tensor(list(b'{"fingerprint": "one\\ntwo"}'), dtype=torch.uint8)
    path = folder / "tracks.safetensors"
    save_file({"description": description}, path, metadata={"tfclip_tracks": "1"})
    return path


def _gallery(folder: Path) -> Path:
    with Gallery.open(folder / "people", dim=4):
        pass
    _forge(folder / "people", lambda gallery: gallery.__setitem__("more\nless", 1))
    return folder / "people"


@pytest.mark.parametrize(
    ("make", "read", "error"),
    [
        (_coco_file, read_boxes, TableError),
        (_prid_folder, read_prid2011, TableError),
        (_shard, lambda path: read_shards([str(path)]), TableError),
        (_snapshot, lambda path: TrackletEncoder.restore(path, drawn_model()), SnapshotError),
        (_gallery, Gallery.open, GalleryError),
    ],
)
def test_a_line_break_in_a_file_breaks_no_message(
    tmp_path: Path,
    refused: Callable[..., str],
    make: Callable[[Path], Path],
    read: Callable[[Path], object],
    error: type[TFCLIPError],
) -> None:
    assert r"\n" in refused(read, make(tmp_path), error)


@pytest.mark.parametrize("error", [TFCLIPError, *TFCLIPError.__subclasses__()])
def test_a_message_does_nothing_to_the_terminal_that_shows_it(error: type[TFCLIPError]) -> None:
    raised = error("né\x1b[2J\r\u202e\ud800")
    assert str(raised) == r"né\x1b[2J\r\u202e\ud800"
    assert str(pickle.loads(pickle.dumps(raised))) == str(raised)
