"""MARS, and G2A-VReID, which is published in the same layout.

``info/`` holds lists of image names and tables of tracklets as MATLAB files. A row of a table is
``first, last, person, camera``: the first and last line of the list that belong to the tracklet,
both inclusive and from 1, its person (-1 junk, 0 distractors) and its camera from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tfclip.data.benchmarks.records import Dataset, ProtocolRule
from tfclip.data.mat import read_matrix, whole_numbers
from tfclip.data.tracklets import Thumbnail, Tracklet
from tfclip.errors import TableError
from tfclip.untrusted import MAX_DIGITS

MARS_PROTOCOLS = (
    ProtocolRule(
        name="official",
        query={"part": ("query",)},
        gallery={},
        junk=(-1,),
        description="the gallery is every test tracklet, the queries included, without junk",
    ),
    ProtocolRule(
        name="without-queries",
        query={"part": ("query",)},
        gallery={"part": ("gallery",)},
        junk=(-1,),
        description="the queries are not in the gallery, as some libraries have it; not official",
    ),
)
G2A_PROTOCOLS = (
    ProtocolRule(
        name="official",
        query={"part": ("query",)},
        gallery={"part": ("gallery",)},
        description="the queries of query_IDX.mat against all other test tracklets",
    ),
    ProtocolRule(
        name="ground-to-aerial",
        query={"platform": ("ground",)},
        gallery={"platform": ("aerial",)},
        description="every ground tracklet is searched among the aerial ones",
    ),
    ProtocolRule(
        name="aerial-to-ground",
        query={"platform": ("aerial",)},
        gallery={"platform": ("ground",)},
        description="every aerial tracklet is searched among the ground ones",
    ),
)
_PLATFORMS = {0: "ground", 1: "aerial"}


def read_mars(root: str | Path) -> Dataset:
    """Read MARS from its official lists, without looking at a single image.

    Args:
        root: The folder that holds ``info``, ``bbox_train`` and ``bbox_test``. In ``info`` are
            ``train_name.txt``, ``test_name.txt``, ``tracks_train_info.mat``,
            ``tracks_test_info.mat`` and ``query_IDX.mat``, as published by its authors.

    Returns:
        8,298 training and 12,180 test tracklets, junk (person -1) and distractors (person 0)
        included, in the order of the tables. Persons are MARS's own numbers, cameras count from 0.

    Raises:
        TableError: A file is missing or damaged, or tables and lists contradict each other.

    Example:
        >>> dataset = read_mars("MARS")  # doctest: +SKIP
        >>> len(dataset.protocol("official").gallery)  # doctest: +SKIP
        11310
    """
    return _read_tables("mars", Path(root), MARS_PROTOCOLS)


def read_g2a_vreid(root: str | Path) -> Dataset:
    """Read G2A-VReID: people seen from the ground and from a drone.

    Its project page publishes no description of the files. What is known comes from the loaders of
    papers that use it: the layout is that of MARS, a camera number tells the platform. Assumed, as
    one of these loaders has it: camera 1 is the ground camera, camera 2 the drone.

    Args:
        root: The folder, as for ``read_mars``.

    Returns:
        Tracklets with ``platform`` ``"ground"`` or ``"aerial"``, in the order of the tables.

    Raises:
        TableError: As ``read_mars``; also a camera other than 1 and 2.
    """
    return _read_tables("g2a-vreid", Path(root), G2A_PROTOCOLS, _PLATFORMS)


def _read_tables(
    name: str,
    root: Path,
    rules: Sequence[ProtocolRule],
    platforms: Mapping[int, str] | None = None,
) -> Dataset:
    info = root / "info"
    for path in (info, root / "bbox_train", root / "bbox_test"):
        if not path.is_dir():
            raise TableError(
                f"{root} has no folder {path.name}; the root is the folder that holds "
                "info, bbox_train and bbox_test"
            )
    train_table = _read_table(info / "tracks_train_info.mat", "train")
    test_table = _read_table(info / "tracks_test_info.mat", "test")
    query = _read_query(info / "query_IDX.mat", test_table)
    train = _tracklets(root / "bbox_train", info / "train_name.txt", train_table, platforms)
    test = _tracklets(root / "bbox_test", info / "test_name.txt", test_table, platforms)
    parts = ["gallery"] * len(test)
    for row in query:
        parts[row] = "query"
    try:
        protocols = {rule.name: rule.apply(test, parts) for rule in rules}
    except ValueError as error:
        raise TableError(f"{info / 'tracks_test_info.mat'}: {error}") from error
    return Dataset(name=name, root=str(root), train=train, test=test, protocols=protocols)


def _read_table(path: Path, part: str) -> np.ndarray:
    """Return the table of tracklets, ``(M, 4)``, checked by itself."""
    names = (f"track_{part}_info", f"tracks_{part}_info")
    table = whole_numbers(read_matrix(path, names), path)
    if table.ndim == 2 and table.shape[0] == 4 != table.shape[1]:
        table = table.T  # as some programs write it
    if table.ndim != 2 or table.shape[1] != 4 or not len(table):
        raise TableError(f"{path}: the table must be (tracklets, 4), got {table.shape}")
    first, last, person, camera = table.T
    least_person = 0 if part == "train" else -1
    for bad, rule in (
        (first < 1, "its first image must be at least 1, for lines count from 1"),
        (last < first, "its last image must not come before its first"),
        (person < least_person, f"its person must be at least {least_person}"),
        (camera < 1, "its camera must be at least 1"),
    ):
        if bad.any():
            row = int(bad.argmax())
            raise TableError(f"{path}, row {row + 1}: {rule}, got {table[row].tolist()}")
    order = np.argsort(first, kind="stable")
    double = first[order][1:] <= last[order][:-1]
    if double.any():
        place = int(double.argmax())
        early, late = int(order[place]) + 1, int(order[place + 1]) + 1
        raise TableError(f"{path}: rows {early} and {late} share images; no tracklet comes twice")
    return table


def _read_query(path: Path, table: np.ndarray) -> list[int]:
    """Return the rows of the queries, from 0."""
    numbers = whole_numbers(read_matrix(path, ("query_IDX", "query_idx")), path).ravel()
    if not len(numbers):
        raise TableError(f"{path} names no query")
    if numbers.min() < 1 or numbers.max() > len(table):
        raise TableError(
            f"{path}: rows of the test table count from 1 to {len(table)}, "
            f"got {numbers.min()} to {numbers.max()}"
        )
    if len(np.unique(numbers)) != len(numbers):
        raise TableError(f"{path} names a query twice")
    rows = numbers - 1
    if (table[rows, 2] < 1).any():
        row = int(rows[(table[rows, 2] < 1).argmax()])
        raise TableError(f"{path}: row {row + 1} is no query, its person is {table[row, 2]}")
    return rows.tolist()


def _tracklets(
    folder: Path, names_path: Path, table: np.ndarray, platforms: Mapping[int, str] | None
) -> tuple[Tracklet, ...]:
    names = _read_names(names_path)
    last = int(table[:, 1].max())
    if last > len(names):
        raise TableError(f"{names_path} has {len(names)} names, and the table asks for name {last}")
    tracklets, seen = [], set()
    for first, last, person, camera in table.tolist():
        chunk = names[first - 1 : last]
        beginning = f"{'00-1' if person == -1 else f'{person:04d}'}C{camera}"
        # Names are one letter after another in order: if least and greatest begin alike, all do.
        for name in (min(chunk), max(chunk)):
            if not name.startswith(beginning):
                raise TableError(
                    f"{names_path}: {name} is among images {first} to {last}, whose names begin "
                    f"with {beginning}, as person and camera of the table say"
                )
        if platforms is not None and camera - 1 not in platforms:
            raise TableError(
                f"{names_path}: {chunk[0]} is of camera {camera}, known are 1 to {len(platforms)}"
            )
        name = chunk[0].partition("F")[0]
        if (
            name in seen
        ):  # one tracker's output in two pieces; the second is told by its first frame
            name = chunk[0].rpartition(".")[0] or chunk[0]
        seen.add(name)
        tracklets.append(_tracklet(folder, name, chunk, person, camera - 1, platforms))
    return tuple(tracklets)


def _read_names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not a list of image names: it is not plain ASCII") from error
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror or error}") from error


def _tracklet(
    folder: Path,
    name: str,
    images: Sequence[str],
    person: int,
    camera: int,
    platforms: Mapping[int, str] | None,
) -> Tracklet:
    prefix = f"{folder}/{images[0][:4]}/"  # the folders of MARS are the first four letters
    paths = tuple([prefix + image for image in images])
    first, last = _frame_number(images[0]), _frame_number(images[-1])
    counted = first is not None and last is not None and first <= last
    return Tracklet(
        name=name,
        frames=paths,
        person=person,
        camera=camera,
        first_frame=first if counted else None,
        last_frame=last if counted else None,
        thumbnail=Thumbnail(path=paths[len(paths) // 2]),
        platform=None if platforms is None else platforms[camera],
    )


def _frame_number(image: str) -> int | None:
    digits = image.rpartition("F")[2].partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) <= MAX_DIGITS else None
