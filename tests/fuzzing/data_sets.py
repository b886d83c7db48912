"""Lists and file names of public data sets."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from tests import data_trees
from tests.fuzzing.target import Samples, Target, in_folder
from tfclip.data import (
    read_folder,
    read_lsvid,
    read_market1501,
    read_mars,
    read_msmt17,
    read_prid2011,
)
from tfclip.errors import TableError


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
                    named = path.parts[len(root.parts) :]
                    # Of no parts is the folder itself; 1,000 take the system longer than a reader.
                    if ".." not in named and 0 < len(named) <= 30:
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


TARGETS = {
    "mars": Target(_make_mars, in_folder(read_mars), (TableError,)),
    "lsvid": Target(_make_lsvid, in_folder(read_lsvid), (TableError,)),
    "msmt17": Target(_make_msmt17, in_folder(read_msmt17), (TableError,)),
    "prid": Target(_make_prid, in_folder(read_prid2011), (TableError,)),
    "names": Target(_make_names, _read_names, (TableError,)),
}
