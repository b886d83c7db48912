"""What is fuzzed: every file that tfclip parses, small valid samples of it, what may be raised."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save

from tests import data_trees
from tfclip import TFCLIP, Gallery, TFCLIPConfig, convert
from tfclip.checkpoints import read_checkpoint
from tfclip.data import (
    EmbeddingTable,
    Tracklet,
    read_folder,
    read_lsvid,
    read_market1501,
    read_mars,
    read_mat,
    read_mot,
    read_msmt17,
    read_prid2011,
    read_table,
)
from tfclip.errors import ConfigError, FrameError, GalleryError, TableError, WeightsError
from tfclip.frames import open_frames
from tfclip.jobs import encode_cached
from tfclip.memory_building import build_memory
from tfclip.tensors import read_safetensors

MIB = 2**20
Samples = dict[str, bytes]
Finish = Callable[[random.Random, bytes], bytes]


def _leave(_: random.Random, data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        make: Write what the reader needs into a folder; return the files to change, by name.
        read: Call the reader; it is given the folder and the name of the changed file.
        raises: What the reader's documentation says it raises.
        finish: Repair checksums, so that changes reach what lies behind them.
        memory: MiB by which the process may grow.
    """

    make: Callable[[Path], Samples]
    read: Callable[[Path, str], object]
    raises: tuple[type[Exception], ...]
    finish: Finish = _leave
    memory: int = 384


TINY = TFCLIPConfig(
    backbone_options={"width": 64, "layers": 1, "heads": 1, "patch_size": 16, "output_dim": 8},
    frame_size=(32, 16),
    clip_length=2,
    calibration={
        "threshold": 0.5,
        "asked_false_match_rate": 0.01,
        "false_match_rate": 0.01,
        "false_non_match_rate": 0.1,
        "num_same": 10,
        "num_different": 100,
        "prior": 0.5,
        "kind": "isotonic",
        "distances": [0.1, 0.9],
        "probabilities": [0.9, 0.1],
        "slope": -1.0,
        "intercept": 0.5,
        "fitted_on": "drawn people",
        "fingerprint": "0" * 16,
        "sampling": "dense",
        "cameras": False,
    },
)


@cache
def tiny_model() -> TFCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TFCLIP(TINY).eval()


# Configuration and weights


def _make_config(folder: Path) -> Samples:
    timm = TFCLIPConfig(
        backbone="timm:vit_tiny_patch16_224", backbone_options={"depth": 1}, frame_size=(32, 16)
    )
    resnet = TFCLIPConfig(backbone="RN50", num_cameras=2, provenance={"weights": "random"})
    return {
        f"{number}.json": config.to_json().encode()
        for number, config in enumerate((TINY, timm, resnet))
    }


def _read_config(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8", errors="replace")
    config = TFCLIPConfig.from_json(text)
    assert TFCLIPConfig.from_json(config.to_json()) == config


def _make_model(folder: Path) -> Samples:
    tiny_model().save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


def _make_timm_model(folder: Path) -> Samples:
    options = {"depth": 1, "embed_dim": 64, "num_heads": 1}
    config = TFCLIPConfig(
        backbone="timm:vit_tiny_patch16_224",
        backbone_options=options,
        frame_size=(32, 16),
        descriptor=("appearance",),
    )
    TFCLIP(config).eval().save_pretrained(folder)
    return {"config.json": (folder / "config.json").read_bytes()}


def _load_model(folder: Path, name: str) -> None:
    model = TFCLIP.from_pretrained(folder)
    with contextlib.suppress(ConfigError):  # of a calibration that the reader cannot use
        _ = model.calibration


def _make_safetensors(folder: Path) -> Samples:
    tensors = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3), "bias": _halves()}
    return {
        "plain.safetensors": save(tensors, metadata={"format": "pt"}),
        "empty.safetensors": save({}),
    }


def _halves() -> torch.Tensor:
    return torch.tensor([0.5, -1], dtype=torch.bfloat16)


def _make_checkpoints(folder: Path) -> Samples:
    state = {
        "module.a": torch.arange(6.0).view(2, 3),
        "module.b": _halves(),
        "c": torch.ones(3).view(3, 1).expand(3, 2),
    }
    new, old, nested = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, nested)
    return {
        "new.pth.tar": new.getvalue(),
        "old.pth": old.getvalue(),
        "nested.pt": nested.getvalue(),
        "scripted.pt": _scripted(),
    }


def _scripted() -> bytes:
    import warnings

    root = torch.nn.Module()
    root.add_module("visual", torch.nn.Linear(2, 3))
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(root), stream)
    return stream.getvalue()


def _stored_again(rng: random.Random, data: bytes) -> bytes:
    """Give the entries of a damaged zip archive the checksums of what is there now, sometimes."""
    if rng.random() < 0.3 or data[:4] != b"PK\3\4":
        return data
    changed = bytearray(data)
    place = changed.find(b"PK\1\2")
    while place >= 0 and place + 46 <= len(changed):
        size, length = struct.unpack_from("<I4xH", changed, place + 20)
        (start,) = struct.unpack_from("<I", changed, place + 42)
        if start + 30 <= len(changed):
            head = struct.unpack_from("<HH", changed, start + 26)
            content = bytes(changed[start + 30 + sum(head) :][:size])
            struct.pack_into("<I", changed, place + 16, zlib.crc32(content))
        place = changed.find(b"PK\1\2", place + 46 + length)
    return bytes(changed)


def _make_reference(folder: Path) -> Samples:
    golden = load_file(Path(__file__).with_name("golden") / "state_dict.safetensors")
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in golden.items()
        if "resblocks" not in name or ".resblocks.0." in name
    }
    return {"best_model.safetensors": save(state)}


def _convert(folder: Path, name: str) -> None:
    convert.from_reference(folder / name, frame_size=(64, 32))


# Tables


def _make_images(folder: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        data_trees.draw(folder / name)


_ROWS = [
    ("7/door", "a/1.png", 1, "ann", 0, 1.5, 0, 2, 3),
    ("7/door", "a/2.png", 2, "ann", 0, 1, 1, 2.25, 3),
    ("8/hall", "b/1.png", 12, "", 1, 0, 0, 4, 8),
]
_COLUMNS = ("tracklet", "path", "frame", "person", "camera", "left", "top", "width", "height")


def _make_csv(folder: Path) -> Samples:
    _make_images(folder)
    rows = [",".join(map(str, row)) for row in (_COLUMNS, *_ROWS)]
    quoted = "tracklet,path\r\n\"a\"\"b\",a/1.png\r\n'c','a/2.png'\r\n".replace("'", '"')
    return {"full.csv": ("\n".join(rows) + "\n").encode(), "short.csv": quoted.encode()}


def _make_parquet(folder: Path) -> Samples:
    import pyarrow
    import pyarrow.parquet

    _make_images(folder)
    samples = {}
    columns = {name: [row[i] for row in _ROWS] for i, name in enumerate(_COLUMNS)}
    columns["left"] = [float(value) for value in columns["left"]]  # pyright: ignore
    columns["width"] = [float(value) for value in columns["width"]]  # pyright: ignore
    for name, options in {
        "plain": {"compression": "none", "use_dictionary": False},
        "snappy": {"compression": "snappy"},
        "zstd": {"compression": "zstd", "version": "1.0"},
    }.items():
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), stream, **options)
        samples[f"{name}.parquet"] = stream.getvalue()
    return samples


def _read_table(folder: Path, name: str) -> None:
    read_table(folder / name)


def _make_mat(folder: Path) -> Samples:
    table = np.array([[1, 16, 1, 1], [17, 96, 1, 2], [97, 110, -1, 6]])
    parts = [data_trees.variable("x", table), data_trees.variable("ls", table / 1.0, stored="u1")]
    big = [data_trees.variable("y", table.astype(">i2"), order=">")]
    return {
        "plain.mat": data_trees.mat_file(*parts),
        "packed.mat": data_trees.mat_file(*parts, compress=True),
        "big.mat": data_trees.mat_file(*big, order=">"),
    }


def _make_mat73(folder: Path) -> Samples:
    import h5py

    samples = {}
    for name, options in {"plain": {}, "packed": {"compression": "gzip", "chunks": (1, 2)}}.items():
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            file.create_dataset("query", data=np.array([[1.0, 4.0]]), **options)
            file.create_dataset("ids", data=np.arange(6).reshape(2, 3), **options)
            file.create_group("#refs#")
        samples[f"{name}.mat"] = stream.getvalue()
    return samples


def _make_mot(folder: Path) -> Samples:
    _make_images(folder)
    lines = "1,1,10,20,30,40,1,1,1\n2,1,11,20,30,40,0.5\n2,2,1.5,2,3,4,-1,-1,-1,-1\n"
    return {"gt.txt": lines.encode(), "spaces.txt": lines.replace(",", " ").encode()}


# Frames


def _make_pictures(folder: Path) -> Samples:
    ramp = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)
    rgb = Image.fromarray(ramp)
    samples = {}
    for name, image, options in (
        ("rgb.png", rgb, {}),
        ("palette.png", rgb.quantize(8), {"transparency": 0}),
        ("deep.png", Image.fromarray(ramp[..., 0].astype(np.uint16) * 257), {}),
        ("rgb.jpg", rgb, {"exif": _turned(), "quality": 70}),
        ("progressive.jpeg", rgb.convert("L"), {"progressive": True}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("rgb.bmp", rgb, {}),
        ("rgb.gif", rgb, {}),
        ("rgb.ppm", rgb, {}),
        ("grey.pgm", rgb.convert("L"), {}),
        ("rgb.tif", rgb, {}),
        ("packed.tiff", rgb, {"compression": "tiff_lzw"}),
        ("rgb.webp", rgb, {"lossless": True}),
    ):
        stream = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(name.rpartition(".")[2])
        image.save(stream, kind or name.rpartition(".")[2].upper(), **options)
        samples[name] = stream.getvalue()
    return samples


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _png_again(rng: random.Random, data: bytes) -> bytes:
    """Give the chunks of a damaged PNG the checksums of what is there now, sometimes."""
    if rng.random() < 0.3 or data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    changed, place = bytearray(data), 8
    while place + 12 <= len(changed):
        (size,) = struct.unpack_from(">I", changed, place)
        end = place + 8 + size
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)


def _make_videos(folder: Path) -> Samples:
    import av

    samples = {}
    for name, codec in (
        ("short.mp4", "mpeg4"),
        ("short.mkv", "libx264"),
        ("short.avi", "mjpeg"),
        ("short.webm", "libvpx"),
    ):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=5)
            stream.width, stream.height = 48, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number in range(3):
                pixels = np.full((32, 48, 3), 60 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())
        samples[name] = (folder / name).read_bytes()
    return samples


def _read_frames(folder: Path, name: str) -> None:
    for frame in open_frames(folder / name):
        assert frame.dtype == np.uint8
        assert frame.ndim == 3


# Galleries and embeddings


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
    _make_images(folder)
    encode_cached(tiny_model(), _drawn_tracklets(folder), folder / "cache", fingerprint="0" * 16)
    return {f"cache/{path.name}": path.read_bytes() for path in (folder / "cache").iterdir()}


def _read_job(folder: Path, name: str) -> None:
    tracklets = _drawn_tracklets(folder)
    table = encode_cached(tiny_model(), tracklets, folder / "cache", fingerprint="0" * 16)
    assert table.names == ("a", "b")
    assert len(list((folder / "cache").iterdir())) == 1


def _make_memory(folder: Path) -> Samples:
    _make_images(folder)
    _build_memory(folder, "memory.safetensors")
    return {"memory.safetensors": (folder / "memory.safetensors").read_bytes()}


def _build_memory(folder: Path, name: str) -> None:
    identities = torch.tensor([0, 1])
    memory = build_memory(tiny_model(), _drawn_tracklets(folder), identities, cache=folder / name)
    assert memory.centroids.shape == (2, 8)


# Data sets


def _make_mars(folder: Path) -> Samples:
    info = data_trees.mars_tree(folder, images=False) / "info"
    return {f"info/{path.name}": path.read_bytes() for path in sorted(info.iterdir())}


def _make_lsvid(folder: Path) -> Samples:
    data_trees.lsvid_tree(folder)
    return {
        f"info/list_sequence/{path.name}": path.read_bytes()
        for path in sorted((folder / "info" / "list_sequence").iterdir())
    }


def _make_msmt17(folder: Path) -> Samples:
    data_trees.msmt17_tree(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def _make_prid(folder: Path) -> Samples:
    persons = [f"person_{number:04d}" for number in range(1, 5)]
    splits = [
        {"train": persons[:2], "test": persons[2:]},
        {"trainval": [0, 2], "query": [1, 3], "gallery": [1, 3]},
    ]
    data_trees.prid_tree(folder, persons, json.dumps(splits))
    return {"splits_prid2011.json": (folder / "splits_prid2011.json").read_bytes()}


def _make_names(folder: Path) -> Samples:
    return {
        "folders.txt": b"1/cam0/3/0001.png\n1/cam1/4/0009.png\n\xc3\xa9/c2/t/x9.jpg\n",
        "mars.txt": b"0015/0015C1T0002F003.jpg\n00-1/00-1C2T0001F010.jpg\n",
        "market.txt": b"0002_c1s1_000451_03.jpg\n0002_c2s1_000452_01.jpg\n-1_c1s1_000401_03.jpg\n",
    }


def _read_names(folder: Path, name: str) -> None:
    """Make files of the names in a text, and list them as a folder and as Market-1501."""
    root = folder / "named"
    parts = ["query", "bounding_box_train", "bounding_box_test"] if "market" in name else [""]
    try:
        for line in (folder / name).read_bytes().split(b"\n")[:20]:
            relative = line.decode("utf-8", "surrogateescape").replace("\0", "").lstrip("/")
            for part in parts:
                if part == "bounding_box_train" and relative.startswith("-1"):
                    continue
                with contextlib.suppress(OSError):  # no file can have such a name
                    path = root / part / relative
                    if ".." not in path.parts:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.touch()
        if "market" in name:
            read_market1501(root)
        elif "mars" in name:
            read_folder(root, "mars")
        else:
            read_folder(root)
            read_folder(root, "{person}/{camera}/{tracklet}")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _in_folder(read: Callable[[Path], object]) -> Callable[[Path, str], object]:
    return lambda folder, _: read(folder)


def _of_file(read: Callable[[Path], object]) -> Callable[[Path, str], object]:
    return lambda folder, name: read(folder / name)


TARGETS: Mapping[str, Target] = {
    "config": Target(_make_config, _read_config, (ConfigError,)),
    "model": Target(_make_model, _load_model, (ConfigError, WeightsError)),
    "timm-model": Target(_make_timm_model, _load_model, (ConfigError, WeightsError)),
    "safetensors": Target(_make_safetensors, _of_file(read_safetensors), (WeightsError,)),
    "checkpoint": Target(
        _make_checkpoints, _of_file(read_checkpoint), (WeightsError,), _stored_again
    ),
    "reference": Target(_make_reference, _convert, (WeightsError, ConfigError)),
    "csv": Target(_make_csv, _read_table, (TableError,)),
    "parquet": Target(_make_parquet, _read_table, (TableError,)),
    "mat": Target(_make_mat, _of_file(read_mat), (TableError,)),
    "mat73": Target(_make_mat73, _of_file(read_mat), (TableError,)),
    "mot": Target(_make_mot, lambda folder, name: read_mot(folder, folder / name), (TableError,)),
    "image": Target(_make_pictures, _read_frames, (FrameError,), _png_again, memory=1024),
    "video": Target(_make_videos, _read_frames, (FrameError,), memory=1024),
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
    "mars": Target(_make_mars, _in_folder(read_mars), (TableError,)),
    "lsvid": Target(_make_lsvid, _in_folder(read_lsvid), (TableError,)),
    "msmt17": Target(_make_msmt17, _in_folder(read_msmt17), (TableError,)),
    "prid": Target(_make_prid, _in_folder(read_prid2011), (TableError,)),
    "names": Target(_make_names, _read_names, (TableError,)),
}
