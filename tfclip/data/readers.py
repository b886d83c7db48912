"""Reading tracklets from folders of crops, a table, or a video with a file of boxes.

A reader lists files and reads tables; it opens no image and writes nothing. Whatever the order in
which the disk lists its files, tracklets and frames come in natural order (``2`` before ``10``).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tfclip.data.box_files import read_mot as read_mot
from tfclip.data.tables import read_csv as read_csv
from tfclip.data.tracklets import Thumbnail, Tracklet
from tfclip.errors import TableError
from tfclip.images import IMAGE_SUFFIXES, natural_key

_logger = logging.getLogger(__name__)

_MARS_NAME = re.compile(r"(?P<person>\d{4}|00-1)C(?P<camera>\d)T(?P<tracklet>\d{4})F(?P<frame>\d+)")
_PLACEHOLDER = re.compile(r"\{(\w*)\}|(\*)")
_PLACEHOLDERS = ("person", "camera", "tracklet")


def read_folder(
    root: str | Path, layout: str = "auto", *, cameras: Sequence[str] | None = None
) -> list[Tracklet]:
    """List the tracklets below a folder of images.

    Args:
        root: The folder. A tracklet is named by its path below it.
        layout: How the folders are to be read.

            - ``"auto"``: ``"mars"`` if every image is named like one of MARS; otherwise every
              folder that holds images is a tracklet, of an unknown person and camera.
            - ``"mars"``: images are named like ``0015C1T0002F003.jpg`` - person, camera, tracklet,
              frame - and grouped by that name, in whatever folders they lie. The names count
              cameras from 1; ``Tracklet.camera`` counts from 0, so ``C1`` becomes 0.
            - A pattern of folder names, such as ``"{person}/{camera}/{tracklet}"`` or
              ``"{person}_{camera}/{tracklet}"`` or ``"*/{person}"``: every folder that holds images
              is a tracklet, and must fit. ``*`` is any text.
        cameras: The texts that ``{camera}`` can be, in the order of their numbers from 0. Without
            it the number at the end of the text is taken as it stands: ``"cam2"`` becomes 2.

    Returns:
        The tracklets in natural order of their names. Where all the image names of a tracklet end
        in a number, ``first_frame`` and ``last_frame`` tell the first and the last.

    Raises:
        TableError: No such folder, no image in it, or a name that does not fit the layout.
        ValueError: ``layout`` is not a layout.

    Example:
        >>> tracklets = read_folder("crops", "{person}/{camera}")  # doctest: +SKIP
    """
    pattern = None if layout in ("auto", "mars") else compile_layout(layout)
    folders = _list_images(Path(root))
    if pattern is not None:
        return [
            _folder_tracklet(name, paths, pattern.fullmatch(name), layout, cameras)
            for name, paths in folders.items()
        ]
    if layout == "mars" or all(_MARS_NAME.fullmatch(p.stem) for ps in folders.values() for p in ps):
        return _group_mars(path for paths in folders.values() for path in paths)
    own_name = Path(root).resolve().name  # of a root that holds images itself
    return [image_tracklet(name or own_name, paths) for name, paths in folders.items()]


def compile_layout(layout: str) -> re.Pattern[str]:
    """Return the expression that the path of a tracklet's folder must match.

    Raises:
        ValueError: An unknown placeholder, or one that occurs twice.

    Example:
        >>> compile_layout("{person}/{camera}").fullmatch("7/door")["camera"]
        'door'
    """
    names = [name for name, star in _PLACEHOLDER.findall(layout) if not star]
    unknown = [name for name in names if name not in _PLACEHOLDERS]
    literal = _PLACEHOLDER.sub("", layout)
    if unknown or not layout or len(set(names)) != len(names) or set("{}") & set(literal):
        raise ValueError(
            "layout must be 'auto', 'mars' or a pattern of folder names with "
            f"{{person}}, {{camera}}, {{tracklet}} at most once each, got {layout!r}"
        )
    expression, end = "", 0
    for found in _PLACEHOLDER.finditer(layout):
        expression += re.escape(layout[end : found.start()])
        expression += "[^/]*" if found[2] else f"(?P<{found[1]}>[^/]+?)"
        end = found.end()
    return re.compile(expression + re.escape(layout[end:]).rstrip("/"))


def _list_images(root: Path) -> dict[str, list[Path]]:
    """Return every folder that holds images, by its path below ``root``, in natural order."""
    if not os.path.isdir(root):  # noqa: PTH112 (a name no folder can have is none, and no error)
        raise TableError(f"cannot read {root}: there is no such folder")
    found, empty, seen = {}, [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_folder):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back up would never end
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = [
            name
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
        name = Path(folder).relative_to(root).as_posix()
        if images:
            key = "" if name == "." else name
            found[key] = [Path(folder, image) for image in sorted(images, key=natural_key)]
        elif not subfolders:
            empty.append(name)
    if not found:
        raise TableError(f"{root} has no image in it or below it")
    if empty:
        first = min(empty, key=natural_key)
        _logger.warning("folders of %s without an image: %d, such as %s", root, len(empty), first)
    return {name: found[name] for name in sorted(found, key=natural_key)}


def _refuse_folder(error: OSError) -> None:
    raise TableError(f"cannot read {error.filename}: {error.strerror}") from error


def image_tracklet(
    name: str,
    paths: Sequence[Path],
    numbers: tuple[int, ...] | None = None,
    person: str | int | None = None,
    camera: int | None = None,
    **notes: Any,
) -> Tracklet:
    """Return the tracklet of some image files, in the order given.

    Args:
        name: Of the tracklet.
        paths: At least one.
        numbers: Of the frames, rising; None takes them from the ends of the file names.
        person: Identity.
        camera: Number of the camera, from 0.
        notes: What else is known: ``platform``, ``modality``, ``clothes``, ``session``.
    """
    numbers = numbers or frame_numbers(paths)
    return Tracklet(
        name=name,
        frames=tuple(str(path) for path in paths),
        person=person,
        camera=camera,
        first_frame=numbers[0] if numbers else None,
        last_frame=numbers[-1] if numbers else None,
        thumbnail=Thumbnail(path=str(paths[len(paths) // 2])),
        **notes,
    )


def frame_numbers(paths: Sequence[Path]) -> tuple[int, ...] | None:
    """Return the numbers that end the file names, or None if they do not count the frames."""
    found = [re.search(r"\d+$", path.stem) for path in paths]
    numbers = tuple(int(match[0]) for match in found if match)
    rising = all(early < late for early, late in pairwise(numbers))
    return numbers if len(numbers) == len(paths) and rising else None


def _folder_tracklet(
    name: str,
    paths: Sequence[Path],
    fit: re.Match[str] | None,
    layout: str,
    cameras: Sequence[str] | None,
) -> Tracklet:
    if fit is None:
        raise TableError(f"folder {paths[0].parent} does not fit the layout {layout!r}")
    parts = fit.groupdict()
    camera = parts.get("camera")
    return image_tracklet(
        name,
        paths,
        person=parts.get("person"),
        camera=None if camera is None else _camera_number(camera, cameras, paths[0].parent),
    )


def _camera_number(text: str, cameras: Sequence[str] | None, folder: Path) -> int:
    if cameras is not None:
        if text not in cameras:
            raise TableError(f"folder {folder}: camera {text!r} is not among {list(cameras)}")
        return list(cameras).index(text)
    number = re.search(r"\d+$", text)
    if number is None:
        raise TableError(
            f"folder {folder}: camera {text!r} does not end in a number; "
            "name the cameras in their order"
        )
    return int(number[0])


def _group_mars(paths: Iterator[Path]) -> list[Tracklet]:
    groups: dict[str, dict[int, Path]] = {}
    for path in paths:
        fit = _MARS_NAME.fullmatch(path.stem)
        if fit is None:
            raise TableError(f"{path} is not named like an image of MARS, 0015C1T0002F003.jpg")
        name = path.stem[: fit.start("frame") - 1]
        frames = groups.setdefault(name, {})
        if int(fit["frame"]) in frames:
            raise TableError(f"{path} and {frames[int(fit['frame'])]} are the same frame of {name}")
        frames[int(fit["frame"])] = path
    return [_mars_tracklet(name, groups[name]) for name in sorted(groups, key=natural_key)]


def _mars_tracklet(name: str, frames: Mapping[int, Path]) -> Tracklet:
    person, camera = name.split("C")[0], int(name.split("C")[1].split("T")[0])
    if camera < 1:
        first = next(iter(frames.values()))
        raise TableError(f"{first} is of camera 0, and the cameras of MARS count from 1")
    numbers = tuple(sorted(frames))
    paths = [frames[number] for number in numbers]
    return image_tracklet(name, paths, numbers, person, camera - 1)
