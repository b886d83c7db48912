"""iLIDS-VID and PRID2011: every person once in each of two cameras, and ten random halves.

Training and test persons differ from split to split. ``test`` holds the persons of all splits, and
the protocols say which of them one evaluation is about: ``split-0`` belongs to the training set of
``split=0`` and to no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tfclip.data.benchmarks.listing import find_root, folder_names, image_names
from tfclip.data.benchmarks.records import Dataset, Protocol, Split
from tfclip.data.mat import read_matrix, whole_numbers
from tfclip.data.readers import image_tracklet
from tfclip.data.tracklets import Tracklet
from tfclip.errors import TableError
from tfclip.untrusted import parse_json

NUM_SPLITS = 10
Half = Literal["train", "test"]


class _Halves(NamedTuple):
    train: list[str]
    test: list[str]


def read_ilidsvid(root: str | Path, *, split: int = 0, first_half: Half = "train") -> Dataset:
    """Read iLIDS-VID with one of its ten official splits; no optical flow is needed.

    Args:
        root: The folder that holds ``i-LIDS-VID/sequences/cam1`` and ``cam2`` and the official
            ``train-test people splits/train_test_splits_ilidsvid.mat``. A ``splits.json`` beside
            them, as other libraries write it, is taken where that is missing.
        split: Which of the ten splits trains and is tested, from 0.
        first_half: What the first 150 persons of a row of the official file are: ``"train"`` as in
            the released code, or ``"test"`` as in the first paper on iLIDS-VID and torchreid. The
            halves are random, but figures are only compared within one of the readings.

    Returns:
        300 training tracklets and all 600 as test tracklets, a person's two after one another.
        Persons are the names of their folders; cam1 is camera 0. Protocols: ``split-N``, cam1
        against cam2; ``union-gallery``, as the released code evaluates it; ``ten-splits``, all ten
        averaged, which is only fair to a model that was trained on none of these persons.

    Raises:
        TableError: A file is missing or damaged, or a person lacks one of the cameras.
        ValueError: ``split`` or ``first_half`` is unknown.
    """
    if first_half not in ("train", "test"):
        raise ValueError(f"first_half must be 'train' or 'test', got {first_half!r}")
    base = find_root(
        root, ["", "i-LIDS-VID"], ["i-LIDS-VID/sequences/cam1", "i-LIDS-VID/sequences/cam2"]
    )
    cameras = [base / "i-LIDS-VID" / "sequences" / camera for camera in ("cam1", "cam2")]
    persons = folder_names(cameras[0])
    matrix = base / "train-test people splits" / "train_test_splits_ilidsvid.mat"
    if not matrix.exists() and (base / "splits.json").exists():
        halves = _read_json(base / "splits.json", persons)
    else:
        halves = _read_halves(matrix, persons, first_half)
    return _pair_up("ilidsvid", root, cameras, halves, split, union=True)


def read_prid2011(root: str | Path, *, split: int = 0) -> Dataset:
    """Read the multi-shot part of PRID2011 with one of ten splits of 178 persons.

    The usual protocol takes the persons with more than 20 frames in both cameras, 178 of the 200,
    in ten random halves. The authors publish no file of splits; ``splits_prid2011.json``, which
    torchreid and others hand on, names the persons of each half and is what papers mean.

    Args:
        root: The folder that holds ``prid_2011/multi_shot/cam_a`` and ``cam_b`` (or ``multi_shot``
            itself) and ``splits_prid2011.json``.
        split: Which of the splits trains and is tested, from 0.

    Returns:
        178 training tracklets and all 356 as test tracklets, a person's two after one another.
        Persons are the names of their folders; cam_a is camera 0. Protocols: ``split-N``, cam_a
        against cam_b; ``ten-splits``, as for iLIDS-VID.

    Raises:
        TableError: A file is missing or damaged, or a person lacks one of the cameras.
        ValueError: ``split`` is unknown.
    """
    base = find_root(root, ["", "prid_2011"], ["multi_shot/cam_a", "multi_shot/cam_b"])
    cameras = [base / "multi_shot" / camera for camera in ("cam_a", "cam_b")]
    lists = [folder / "splits_prid2011.json" for folder in (base, Path(root))]
    path = next((path for path in lists if path.exists()), lists[-1])
    halves = _read_json(path, folder_names(cameras[0]))
    return _pair_up("prid2011", root, cameras, halves, split, union=False)


def _pair_up(
    name: str,
    root: str | Path,
    cameras: Sequence[Path],
    halves: Sequence[_Halves],
    split: int,
    *,
    union: bool,
) -> Dataset:
    if not 0 <= split < len(halves):
        raise ValueError(f"split must be from 0 to {len(halves) - 1}, got {split}")
    chosen = {person for half in halves for person in (*half.train, *half.test)}
    persons = [person for person in folder_names(cameras[0]) if person in chosen]
    lost = sorted(chosen - set(persons))
    if lost:
        raise TableError(f"{cameras[0]} has no folder {lost[0]}, which a split asks for")
    test = [
        _tracklet(folder, person, number)
        for person in persons
        for number, folder in enumerate(cameras)
    ]
    rows = {person: (2 * place, 2 * place + 1) for place, person in enumerate(persons)}
    pairs = [Split(*zip(*(rows[p] for p in half.test), strict=True)) for half in halves]
    protocols = [
        Protocol(
            name=f"split-{split}",
            query=pairs[split].query,
            gallery=pairs[split].gallery,
            description=f"{cameras[0].name} against {cameras[1].name}, split {split}",
        )
    ]
    if union:
        protocols.append(
            Protocol(
                name="union-gallery",
                query=pairs[split].query,
                gallery=pairs[split].gallery + pairs[split].query,
                description=f"split {split} with the queries in the gallery; not the usual one",
            )
        )
    protocols.append(
        Protocol(
            name="ten-splits",
            query=pairs[0].query,
            gallery=pairs[0].gallery,
            repeats=tuple(pairs[1:]),
            description=f"the mean of {len(pairs)} splits, for a model trained on none of them",
        )
    )
    return Dataset(
        name=name,
        root=str(root),
        train=tuple(test[row] for person in halves[split].train for row in rows[person]),
        test=tuple(test),
        protocols={protocol.name: protocol for protocol in protocols},
    )


def _tracklet(folder: Path, person: str, camera: int) -> Tracklet:
    place = folder / person
    if not place.is_dir():
        raise TableError(f"{folder} has no folder {person}; every person is in both cameras")
    images = [place / name for name in image_names(place)]
    return image_tracklet(f"{folder.name}/{person}", images, person=person, camera=camera)


def _read_halves(path: Path, persons: Sequence[str], first_half: Half) -> list[_Halves]:
    table = whole_numbers(read_matrix(path, ("ls_set",)), path)
    if table.ndim == 2 and table.shape[1] == NUM_SPLITS != table.shape[0]:
        table = table.T
    wanted = (NUM_SPLITS, len(persons))
    if table.shape != wanted:
        raise TableError(
            f"{path}: ls_set must be (splits, persons) = {wanted}, "
            f"as there are {len(persons)} folders of persons, got {table.shape}"
        )
    halves = []
    for number, row in enumerate(table.tolist()):
        if sorted(row) != list(range(1, len(persons) + 1)):
            raise TableError(
                f"{path}: split {number} must hold each number from 1 to {len(persons)} once"
            )
        middle = len(persons) // 2
        first = [persons[int(place) - 1] for place in sorted(row[:middle])]
        second = [persons[int(place) - 1] for place in sorted(row[middle:])]
        halves.append(_Halves(first, second) if first_half == "train" else _Halves(second, first))
    return halves


def _read_json(path: Path, persons: Sequence[str]) -> list[_Halves]:
    """Read splits written as names (``train``) or as places in order (``trainval``, ``query``)."""
    try:
        splits = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TableError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(splits, list) or not splits:
        raise TableError(f"{path} must be a list of splits")
    return [_half(split, persons, f"{path}, split {n}") for n, split in enumerate(splits)]


def _half(split: Any, persons: Sequence[str], where: str) -> _Halves:
    keys = (
        ("train", "test") if isinstance(split, dict) and "train" in split else ("trainval", "query")
    )
    if not isinstance(split, dict) or not all(isinstance(split.get(key), list) for key in keys):
        raise TableError(f"{where}: there must be lists 'train' and 'test', got {_keys(split)}")
    halves = _Halves(*([_person(entry, persons, where) for entry in split[key]] for key in keys))
    for half in halves:
        if not half or len(set(half)) != len(half):
            raise TableError(f"{where}: each half must have persons, and none of them twice")
    both = sorted(set(halves.train) & set(halves.test))
    if both:
        raise TableError(f"{where}: {both[0]} is in both halves")
    return halves


def _keys(split: Any) -> str:
    return ", ".join(sorted(map(str, split))) if isinstance(split, dict) else type(split).__name__


def _person(entry: Any, persons: Sequence[str], where: str) -> str:
    if isinstance(entry, bool) or not isinstance(entry, (str, int)):
        raise TableError(f"{where}: a person must be a name or a number, got {entry!r}")
    if isinstance(entry, str):
        return entry
    if not 0 <= entry < len(persons):
        raise TableError(f"{where}: there are persons 0 to {len(persons) - 1}, got {entry}")
    return persons[entry]
