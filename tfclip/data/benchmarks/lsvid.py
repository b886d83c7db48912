"""LS-VID: lists of tracklets as text, the queries as a MATLAB file."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tfclip.data.benchmarks.listing import find_root, image_names
from tfclip.data.benchmarks.records import Dataset, ProtocolRule
from tfclip.data.mat import read_matrix, whole_numbers
from tfclip.data.readers import image_tracklet
from tfclip.data.tables import parse_whole, read_lines
from tfclip.data.tracklets import Tracklet
from tfclip.errors import TableError
from tfclip.images import natural_key

PROTOCOLS = (
    ProtocolRule(
        name="official",
        query={"part": ("query",)},
        gallery={},
        description="the gallery is every test tracklet, the queries included",
    ),
    ProtocolRule(
        name="without-queries",
        query={"part": ("query",)},
        gallery={"part": ("gallery",)},
        description="the queries are not in the gallery",
    ),
)
NUM_CAMERAS = 15
LEGACY_LENGTH = 48  # frames of a piece into which the released code cuts its training tracklets
_LISTS = (("info/list_sequence", "info/data"), ("list_sequence", "test/data"))


def read_lsvid(root: str | Path, *, legacy_split: bool = False) -> Dataset:
    """Read LS-VID from its official lists; each tracklet is whole.

    Args:
        root: The folder that holds ``tracklet_train``, ``tracklet_test`` and ``info`` with
            ``list_sequence/list_seq_train.txt``, ``list_sequence/list_seq_test.txt`` and
            ``data/info_test.mat``; in older copies these are ``list_sequence`` and ``test/data``. A
            line of a list is the beginning of its images' paths, and the person. ``info_test.mat``
            is of MATLAB's version 7.3 and needs h5py, an extra.
        legacy_split: Cut the training tracklets into pieces of 48 frames as the released code does:
            the last piece takes the rest, and tracklets of fewer than 48 frames are left out.

    Returns:
        2,831 training tracklets (or more with ``legacy_split``) and 11,333 test tracklets, in the
        order of the lists. Cameras are the third number of an image's name, and count from 0.

    Raises:
        TableError: A file is missing or damaged, a line has no image, or lines share images.
        MissingExtraError: ``info_test.mat`` without h5py.
    """
    base = Path(root)
    lists, data = next((p for p in _LISTS if (base / p[0]).is_dir()), _LISTS[0])
    train_list, test_list = f"{lists}/list_seq_train.txt", f"{lists}/list_seq_test.txt"
    queries = f"{data}/info_test.mat"
    find_root(root, [""], [train_list, test_list, queries])
    train = _read_list(base, base / train_list)
    test = _read_list(base, base / test_list)
    if legacy_split:
        train = [piece for tracklet in train for piece in _cut(tracklet)]
    parts = ["gallery"] * len(test)
    numbers = whole_numbers(read_matrix(base / queries, ("query",)), base / queries).ravel()
    if not len(numbers) or numbers.min() < 1 or numbers.max() > len(test):
        raise TableError(
            f"{base / queries}: queries must be lines from 1 to {len(test)} of {test_list}, "
            f"got {len(numbers)} from {numbers.min(initial=0)} to {numbers.max(initial=0)}"
        )
    for number in numbers.tolist():
        if parts[number - 1] == "query":
            raise TableError(f"{base / queries} names query {number} twice")
        parts[number - 1] = "query"
    return Dataset(
        name="lsvid",
        root=str(root),
        train=tuple(train),
        test=tuple(test),
        protocols={rule.name: rule.apply(test, parts) for rule in PROTOCOLS},
    )


def _read_list(base: Path, path: Path) -> list[Tracklet]:
    folders: dict[Path, list[str]] = {}
    tracklets, owners = [], {}
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        cells = line.split()
        if len(cells) != 2:
            raise TableError(f"{where}: there must be a path and a person, got {len(cells)} words")
        person = parse_whole(cells[1], "person", where, least=0)
        beginning = base / cells[0]
        folder = beginning.parent
        if folder not in folders:
            folders[folder] = sorted(image_names(folder))
        names = _names_with(beginning.name, folders[folder])
        if not names:
            raise TableError(f"{where}: there is no image {beginning}*")
        images = [folder / name for name in names]
        for image in (images[0], images[-1]):
            if image in owners:
                raise TableError(f"{where}: {image} is of line {owners[image]} already")
        owners.update(dict.fromkeys(images, number))
        camera = _camera(images[0], where)
        tracklets.append(image_tracklet(cells[0], images, person=person, camera=camera))
    if not tracklets:
        raise TableError(f"{path} has no tracklet in it")
    return tracklets


def _names_with(beginning: str, names: Sequence[str]) -> Sequence[str]:
    """Return the names that begin so, of sorted ones."""
    start = bisect.bisect_left(names, beginning)
    end = bisect.bisect_left(names, beginning + chr(0x10FFFF))
    return sorted(names[start:end], key=natural_key)


def _camera(image: Path, where: str) -> int:
    cells = image.stem.split("_")
    if len(cells) < 3 or not cells[2].isdecimal() or not 1 <= int(cells[2]) <= NUM_CAMERAS:
        raise TableError(
            f"{where}: the third number of {image.name} must be its camera, 1 to {NUM_CAMERAS}"
        )
    return int(cells[2]) - 1


def _cut(tracklet: Tracklet) -> list[Tracklet]:
    count = len(tracklet.frames) // LEGACY_LENGTH
    starts = [piece * LEGACY_LENGTH for piece in range(count)]
    ends = [*starts[1:], len(tracklet.frames)]
    return [
        dataclasses.replace(
            tracklet,
            name=f"{tracklet.name}/{piece}",
            frames=tracklet.frames[start:end],
            first_frame=None,
            last_frame=None,
        )
        for piece, (start, end) in enumerate(zip(starts, ends, strict=False))
    ]
