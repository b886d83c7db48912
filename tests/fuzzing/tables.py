"""Tables of tracklets and boxes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from tests import data_trees
from tests.fuzzing.target import Samples, Target, of_file
from tfclip.data import read_mat, read_mot, read_table
from tfclip.errors import TableError


def draw_images(folder: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        data_trees.draw(folder / name)


_ROWS = [
    ("7/door", "a/1.png", 1, "ann", 0, 1.5, 0, 2, 3),
    ("7/door", "a/2.png", 2, "ann", 0, 1, 1, 2.25, 3),
    ("8/hall", "b/1.png", 12, "", 1, 0, 0, 4, 8),
]
_COLUMNS = ("tracklet", "path", "frame", "person", "camera", "left", "top", "width", "height")


def _make_csv(folder: Path) -> Samples:
    draw_images(folder)
    rows = [",".join(map(str, row)) for row in (_COLUMNS, *_ROWS)]
    quoted = "tracklet,path\r\n\"a\"\"b\",a/1.png\r\n'c','a/2.png'\r\n".replace("'", '"')
    return {"full.csv": ("\n".join(rows) + "\n").encode(), "short.csv": quoted.encode()}


def _make_parquet(folder: Path) -> Samples:
    import pyarrow
    import pyarrow.parquet

    draw_images(folder)
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
    draw_images(folder)
    lines = "1,1,10,20,30,40,1,1,1\n2,1,11,20,30,40,0.5\n2,2,1.5,2,3,4,-1,-1,-1,-1\n"
    return {"gt.txt": lines.encode(), "spaces.txt": lines.replace(",", " ").encode()}


TARGETS = {
    "csv": Target(_make_csv, _read_table, (TableError,)),
    "parquet": Target(_make_parquet, _read_table, (TableError,)),
    "mat": Target(_make_mat, of_file(read_mat), (TableError,)),
    "mat73": Target(_make_mat73, of_file(read_mat), (TableError,)),
    "mot": Target(_make_mot, lambda folder, name: read_mot(folder, folder / name), (TableError,)),
}
