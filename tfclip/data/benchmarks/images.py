"""Market-1501 and MSMT17: image data sets, read as tracklets of one frame."""

from __future__ import annotations

import re
from pathlib import Path

from tfclip.data.benchmarks.listing import find_root, image_names
from tfclip.data.benchmarks.records import Dataset, ProtocolRule
from tfclip.data.tables import parse_whole, read_lines
from tfclip.data.tracklets import Thumbnail, Tracklet
from tfclip.errors import TableError
from tfclip.untrusted import MAX_DIGITS

MARKET_PROTOCOLS = (
    ProtocolRule(
        name="official",
        query={"part": ("query",)},
        gallery={"part": ("bounding_box_test",)},
        junk=(-1,),
        description="query against bounding_box_test, without junk, with distractors (person 0)",
    ),
)
MSMT17_PROTOCOLS = (
    ProtocolRule(
        name="official",
        query={"part": ("list_query",)},
        gallery={"part": ("list_gallery",)},
        description="list_query against list_gallery",
    ),
)
_MARKET_NAME = re.compile(r"(?P<person>-1|\d{4})_c(?P<camera>[1-6])(?P<session>s\d+)_")
_MSMT17_FOLDERS = {
    "MSMT17_V2": ("mask_train_v2", "mask_test_v2"),
    "MSMT17_V1": ("train", "test"),
}
_MSMT17_LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
_MSMT17_CAMERAS = 15


def read_market1501(root: str | Path) -> Dataset:
    """Read Market-1501: every image is a tracklet of one frame.

    Args:
        root: The folder that holds ``bounding_box_train``, ``bounding_box_test`` and ``query``, or
            that in which ``Market-1501-v15.09.15`` lies.

    Returns:
        The images in natural order of their names, ``query`` before ``bounding_box_test``. Persons
        are Market's own numbers: -1 is junk, 0 distractors. Cameras count from 0; ``session`` is
        the part of a name that says so, such as ``"s1"``.

    Raises:
        TableError: A folder is missing, or an image is not named like one of Market-1501.
    """
    parts = ("query", "bounding_box_test")
    base = find_root(root, ["", "Market-1501-v15.09.15"], ["bounding_box_train", *parts])
    train = [
        _market_image(base, "bounding_box_train", n) for n in _names(base, "bounding_box_train")
    ]
    for tracklet in train:
        if tracklet.person in (-1, 0):
            raise TableError(f"{tracklet.frames[0]} is junk or a distractor in the training set")
    named = [(part, name) for part in parts for name in _names(base, part)]
    test = [_market_image(base, part, name) for part, name in named]
    return Dataset(
        name="market1501",
        root=str(root),
        train=tuple(train),
        test=tuple(test),
        protocols={
            rule.name: rule.apply(test, [part for part, _ in named]) for rule in MARKET_PROTOCOLS
        },
    )


def read_msmt17(root: str | Path, *, with_val: bool = False) -> Dataset:
    """Read MSMT17, version 1 or 2, from its lists: every image is a tracklet of one frame.

    Args:
        root: The folder that holds ``list_train.txt``, ``list_val.txt``, ``list_query.txt``,
            ``list_gallery.txt`` and the folders of images (``train`` and ``test``, or
            ``mask_train_v2`` and ``mask_test_v2``), or that in which ``MSMT17_V1`` or ``MSMT17_V2``
            lies. A line of a list is a path and a person.
        with_val: Train on the validation images too: 32,621 images and not 30,248.

    Returns:
        The images in the order of the lists, queries before gallery; no image is looked at. Cameras
        count from 0; ``session`` is the day and time of day in a name, such as ``"0303morning"``.

    Raises:
        TableError: A file is missing, or a line is not as above; the message names the line.
    """
    base = find_root(root, ["", *_MSMT17_FOLDERS], _MSMT17_LISTS)
    choices = [pair for pair in _MSMT17_FOLDERS.values() if (base / pair[0]).is_dir()]
    if not choices:
        raise TableError(f"{base} has no folder train and no folder mask_train_v2")
    train_folder, test_folder = choices[0]
    lists = ["list_train", "list_val"] if with_val else ["list_train"]
    train = [t for name in lists for t in _msmt17_list(base, train_folder, name)]
    query = _msmt17_list(base, test_folder, "list_query")
    gallery = _msmt17_list(base, test_folder, "list_gallery")
    parts = ["list_query"] * len(query) + ["list_gallery"] * len(gallery)
    test = [*query, *gallery]
    return Dataset(
        name="msmt17",
        root=str(root),
        train=tuple(train),
        test=tuple(test),
        protocols={rule.name: rule.apply(test, parts) for rule in MSMT17_PROTOCOLS},
    )


def _names(base: Path, part: str) -> list[str]:
    return image_names(base / part)


def _market_image(base: Path, part: str, name: str) -> Tracklet:
    fit = _MARKET_NAME.match(name)
    path = f"{base / part}/{name}"
    if fit is None:
        raise TableError(f"{path} is not named like an image of Market-1501, 0002_c1s1_000451_03")
    return Tracklet(
        name=f"{part}/{Path(name).stem}",
        frames=(path,),
        person=int(fit["person"]),
        camera=int(fit["camera"]) - 1,
        session=fit["session"],
        thumbnail=Thumbnail(path=path),
    )


def _msmt17_list(base: Path, folder: str, name: str) -> list[Tracklet]:
    path = base / f"{name}.txt"
    images = [
        _msmt17_image(f"{base / folder}", line.split(), f"{path}, line {number}")
        for number, line in enumerate(read_lines(path), start=1)
        if line.strip()
    ]
    if not images:
        raise TableError(f"{path} has no image in it")
    return images


def _msmt17_image(folder: str, cells: list[str], where: str) -> Tracklet:
    if len(cells) != 2:
        raise TableError(f"{where}: there must be a path and a person, got {len(cells)} words")
    parts = cells[0].rpartition("/")[2].split("_")
    camera = parts[2] if len(parts) > 3 else ""
    known = camera.isdecimal() and len(camera) <= MAX_DIGITS
    if not known or not 1 <= int(camera) <= _MSMT17_CAMERAS:
        raise TableError(
            f"{where}: the third number of {cells[0]} must be its camera, 1 to {_MSMT17_CAMERAS}"
        )
    path, name = f"{folder}/{cells[0]}", cells[0].rpartition(".")[0]
    if not name:
        raise TableError(f"{where}: {cells[0]} is not the name of an image")
    return Tracklet(
        name=name,
        frames=(path,),
        person=parse_whole(cells[1], "person", where, least=0),
        camera=int(camera) - 1,
        session=parts[3],
        thumbnail=Thumbnail(path=path),
    )
