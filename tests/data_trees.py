"""Small trees in the exact layouts of public data sets, drawn by the tests; and MATLAB files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_KINDS = {
    "i1": 1,
    "u1": 2,
    "i2": 3,
    "u2": 4,
    "i4": 5,
    "u4": 6,
    "f4": 7,
    "f8": 9,
    "i8": 12,
    "u8": 13,
}
_CLASSES = {
    "f8": 6, "f4": 7, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13, "i8": 14, "u8": 15,
}  # fmt: skip


def draw(path: Path, colour: int = 0) -> Path:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), (colour % 256, colour // 256, 0)).save(path)
    return path


def element(kind: int, data: bytes, order: str = "<", small: bool = False) -> bytes:
    """Return an element of a MATLAB file of version 5."""
    if small:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    padding = b"\0" * (-len(data) % 8)
    return struct.pack(f"{order}II", kind, len(data)) + data + padding


def variable(
    name: str,
    values: Any,
    *,
    stored: str | None = None,
    order: str = "<",
    flags: int | None = None,
    shape: Sequence[int] | None = None,
) -> bytes:
    """Return a matrix element; ``stored`` is the type of its bytes, ``flags`` its class."""
    array = np.asarray(values)
    code = array.dtype.str[1:]
    stored = stored or code
    shape = array.shape if shape is None else shape
    content = array.astype(f"{order}{stored}").tobytes(order="F")
    parts = [
        element(6, struct.pack(f"{order}II", _CLASSES[code] if flags is None else flags, 0), order),
        element(5, struct.pack(f"{order}{len(shape)}i", *shape), order),
        element(1, name.encode(), order, small=len(name) <= 4),
        element(_KINDS[stored], content, order, small=0 < len(content) <= 4),
    ]
    return element(14, b"".join(parts), order)


def mat_file(*variables: bytes, order: str = "<", compress: bool = False) -> bytes:
    """Return the bytes of a MATLAB file of version 5."""
    header = b"MATLAB 5.0 MAT-file, written by a test".ljust(124)
    header += struct.pack(f"{order}H", 0x0100) + {"<": b"IM", ">": b"MI"}[order]
    if compress:
        packed = [zlib.compress(one) for one in variables]
        variables = tuple(struct.pack(f"{order}II", 15, len(one)) + one for one in packed)
    return header + b"".join(variables)


def write_mat(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> Path:
    """Write a MATLAB file of version 5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [variable(name, values) for name, values in arrays.items()]
    path.write_bytes(mat_file(*parts, compress=compress))
    return path


MARS_TRAIN = ((1, 1, 1, 3), (1, 2, 1, 2), (7, 1, 1, 2))  # person, camera, tracklet, frames
MARS_TEST = (
    (-1, 1, 1, 2),
    (0, 2, 1, 1),
    (2, 1, 1, 2),
    (2, 2, 1, 1),
    (2, 2, 2, 3),
    (4, 1, 1, 1),
    (4, 2, 1, 1),
)
MARS_QUERY = (3, 4, 6, 7)  # rows from 1


def mars_tree(
    root: Path,
    train: Sequence[Sequence[int]] = MARS_TRAIN,
    test: Sequence[Sequence[int]] = MARS_TEST,
    query: Sequence[int] = MARS_QUERY,
    images: bool = True,
) -> Path:
    """Draw a tree as MARS and G2A-VReID are handed out."""
    for part, rows in (("train", train), ("test", test)):
        names: list[str] = []
        table = []
        (root / f"bbox_{part}").mkdir(parents=True, exist_ok=True)
        for person, camera, number, frames in rows:
            start = len(names) + 1
            folder = "00-1" if person == -1 else f"{person:04d}"
            for frame in range(1, frames + 1):
                names.append(f"{folder}C{camera}T{number:04d}F{frame:03d}.jpg")
                if images:
                    draw(root / f"bbox_{part}" / folder / names[-1], len(names))
            table.append((start, len(names), person, camera))
        (root / "info").mkdir(exist_ok=True)
        (root / "info" / f"{part}_name.txt").write_text("".join(f"{name}\n" for name in names))
        table_file = root / "info" / f"tracks_{part}_info.mat"
        write_mat(table_file, {f"track_{part}_info": np.array(table, np.int32)})
    write_mat(root / "info" / "query_IDX.mat", {"query_IDX": np.array([query], np.uint16)})
    return root


def g2a_tree(root: Path) -> Path:
    """Draw a tree of two persons as G2A-VReID is handed out."""
    test = ((2, 1, 1, 2), (2, 2, 1, 1), (4, 1, 1, 1), (4, 2, 1, 3))
    return mars_tree(root, MARS_TRAIN, test, query=(1, 3))


def lsvid_tree(root: Path, lengths: Mapping[str, int] | None = None, old: bool = False) -> Path:
    """Draw a tree as LS-VID is handed out; ``lengths`` of the training tracklets."""
    lists = root / ("list_sequence" if old else "info/list_sequence")
    data = root / ("test/data" if old else "info/data")
    lists.mkdir(parents=True)
    lengths = lengths or {"0000_0001_03": 3, "0000_0002_15": 2, "0001_0001_01": 2}
    test = {"0005_0001_03": 2, "0005_0002_04": 2, "0005_0003_04": 1, "0006_0001_01": 3}
    test["0006_0002_02"] = 1
    for part, tracklets in (("train", lengths), ("test", test)):
        lines = []
        for name, frames in tracklets.items():
            beginning = f"tracklet_{part}/{name[:4]}/{name}_"
            for frame in range(frames):
                draw(root / f"{beginning}{frame:04d}.jpg", frame)
            lines.append(f"{beginning} {int(name[:4])}\n")
        (lists / f"list_seq_{part}.txt").write_text("".join(lines))
    write_mat(data / "info_test.mat", {"query": np.array([[1.0, 4.0]])})
    return root


ILIDS_PERSONS = ("person001", "person002", "person005", "person010")


def ilidsvid_tree(root: Path) -> Path:
    """Draw a tree as iLIDS-VID is handed out, of four persons."""
    for camera in (1, 2):
        for place, person in enumerate(ILIDS_PERSONS):
            folder = root / "i-LIDS-VID" / "sequences" / f"cam{camera}" / person
            for frame in range(9, 9 + 2 + place):
                draw(folder / f"cam{camera}_{person}_{frame:05d}.png", frame)
    random = np.random.default_rng(0)
    splits = np.stack([random.permutation(4) + 1 for _ in range(10)]).astype(np.float64)
    splits[0] = (4, 1, 2, 3)
    write_mat(
        root / "train-test people splits" / "train_test_splits_ilidsvid.mat", {"ls_set": splits}
    )
    return root


def prid_tree(root: Path, persons: Sequence[str], splits: str, frames: int = 1) -> Path:
    """Draw a tree as PRID2011 is handed out, beside a file of splits."""
    for camera in ("cam_a", "cam_b"):
        for person in persons:
            for frame in range(1, frames + 1):
                path = root / "prid_2011" / "multi_shot" / camera / person / f"{frame:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    (root / "splits_prid2011.json").write_text(splits)
    return root


def market_tree(root: Path) -> Path:
    """Draw a tree as Market-1501 is handed out."""
    for name in (
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c2s1_000452_01.jpg",
        "bounding_box_train/0010_c6s3_000001_01.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "query/0003_c3s2_000001_00.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/0000_c1s1_000151_01.jpg",
        "bounding_box_test/0001_c2s1_000301_01.jpg",
        "bounding_box_test/0003_c3s2_000009_01.jpg",
        "bounding_box_test/0003_c4s2_000010_01.jpg",
    ):
        draw(root / name)
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"no image")
    return root


def msmt17_tree(root: Path, version: int = 1) -> Path:
    """Draw a tree as MSMT17 is handed out."""
    train, test = ("train", "test") if version == 1 else ("mask_train_v2", "mask_test_v2")
    for name, folder, images in (
        ("train", train, ("0000/0000_000_01_0303morning_0015_0.jpg 0",)),
        ("val", train, ("0000/0000_013_04_0303morning_0020_2_ex.jpg 0",)),
        ("query", test, ("0001/0001_019_07_0303morning_0020_1.jpg 1",)),
        (
            "gallery",
            test,
            (
                "0001/0001_001_15_0303noon_0021_1.jpg 1",
                "0002/0002_001_15_0304noon_0021_1.jpg 2",
            ),
        ),
    ):
        for line in images:
            draw(root / folder / line.split()[0])
        (root / f"list_{name}.txt").write_text("".join(f"{line}\n" for line in images))
    return root


def ag_vpreid_tree(root: Path) -> Path:
    """Draw a tree as the AG-VPReID challenge hands it out."""
    for part, tracklets in {
        "train": (("12", "0001", 0), ("12", "0002", 4), ("30", "0001", 2)),
        "case1_aerial_to_ground/query": (("7", "0001", 4), ("9", "0001", 5)),
        "case1_aerial_to_ground/gallery": (("7", "0001", 0), ("9", "0001", 3)),
        "case2_ground_to_aerial/query": (("7", "0002", 1),),
        "case2_ground_to_aerial/gallery": (("7", "0001", 5), ("8", "0001", 4)),
    }.items():
        for person, tracklet, camera in tracklets:
            for frame in range(1, 3):
                name = f"{int(person):04d}T{tracklet}C{camera}E1F{frame:03d}.jpg"
                draw(root / part / person / tracklet / name, frame)
    return root
