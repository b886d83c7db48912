"""Boxes in JSON: COCO, COCO results, and Ultralytics' results."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tfclip.data.box_files import Entry, parse_track
from tfclip.data.tables import parse_real, parse_whole
from tfclip.data.tracklets import Box
from tfclip.errors import FrameError, TableError
from tfclip.images import is_folder, list_images, natural_key
from tfclip.untrusted import MAX_DIGITS

_logger = logging.getLogger(__name__)

_FRAME_KEYS = ("frame_index", "frame_id", "mot_frame_id")  # in an image of a COCO file
_TRACK_KEYS = ("track_id", "instance_id")
_ID_KEYS = ("id", "image_id", "video_id", "category_id")


def read_json(path: Path, video: Path | None, first_frame: int | None) -> Iterator[Entry]:
    """Yield the boxes of a JSON file of any kind that is known.

    Args:
        path: The file.
        video: The video or folder of frames that they are of, if known.
        first_frame: What the file calls the first frame, 0 or 1; None finds out.

    Raises:
        TableError: It is of no such kind, or an entry is wrong; the message names the entry.
    """
    documents = _parse(path)
    only = documents[0] if len(documents) == 1 else None
    if isinstance(only, dict) and "annotations" in only:
        yield from _read_coco(path, only, video, first_frame)
    elif isinstance(only, list) and only and _is_coco_result(only[0]):
        yield from _read_coco_results(path, only, first_frame)
    else:
        yield from _read_ultralytics(path, documents)


def _parse(path: Path) -> list[Any]:
    """Return the JSON values of a file, which may follow one another."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"cannot read {path}: it is not a text in UTF-8") from error
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror or error}") from error
    documents, position = [], _skip_blanks(text, 0)
    while position < len(text):
        value, position = _decode(text, position, str(path))
        documents.append(value)
        position = _skip_blanks(text, position)
    if not documents:
        raise TableError(f"{path} has no box")
    return documents


def _decode(text: str, position: int, where: str) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise TableError(
            f"{where}: line {error.lineno}, column {error.colno} is not JSON: {error.msg}"
        ) from error
    except (RecursionError, ValueError) as error:  # nested, or a number, beyond all reason
        raise TableError(f"{where} is not JSON that can be read: {error}") from error


def _skip_blanks(text: str, position: int) -> int:
    found = re.compile(r"[ \t\r\n]*").match(text, position)
    return found.end() if found else position


# --- COCO ----------------------------------------------------------------------------------------


def _is_coco_result(value: Any) -> bool:
    return isinstance(value, dict) and "image_id" in value and "bbox" in value


def _read_coco(
    path: Path, content: Mapping[str, Any], video: Path | None, first_frame: int | None
) -> Iterator[Entry]:
    names = {
        category.get("id"): str(category["name"])
        for category in _records(path, content, "categories", optional=True)
        if category.get("name") is not None
    }
    frames = _number_images(path, content, video, first_frame)
    others = {image.get("id") for image in _records(path, content, "images")} - frames.keys()
    for position, annotation in enumerate(_records(path, content, "annotations")):
        where = f"{path}, annotation {annotation.get('id', position)}"
        image = annotation.get("image_id")
        if image in others:
            continue  # of another video
        if image not in frames:
            raise TableError(f"{where}: image_id must be that of an image, got {image!r}")
        entry = _coco_entry(annotation, frames[image], where)
        if entry is not None:
            name = names.get(annotation.get("category_id"))
            yield (
                entry if name in (None, "None") else entry._replace(classes=(*entry.classes, name))
            )


def _read_coco_results(path: Path, content: list[Any], first_frame: int | None) -> Iterator[Entry]:
    """Read annotations alone: their images are numbered as the frames are."""
    numbers = []
    for position, result in enumerate(content):
        where = f"{path}, entry {position}"
        if not _is_coco_result(result):
            raise TableError(f"{where} must have image_id and bbox, as the first has")
        numbers.append(parse_whole(str(result["image_id"]), "image_id", where, least=0))
    first = _first_number(path, "image_id", numbers, first_frame)
    for position, (result, number) in enumerate(zip(content, numbers, strict=True)):
        entry = _coco_entry(result, number - first, f"{path}, entry {position}")
        if entry is not None:
            yield entry


def _coco_entry(annotation: Mapping[str, Any], frame: int, where: str) -> Entry | None:
    if any(annotation.get(key) not in (None, 0, False) for key in ("iscrowd", "ignore")):
        return None
    track = next((annotation[key] for key in _TRACK_KEYS if annotation.get(key) is not None), None)
    if track is None:
        raise TableError(
            f"{where} has neither track_id nor instance_id, so these are detections and not yet "
            "tracks"
        )
    values = annotation.get("bbox")
    if not isinstance(values, list) or len(values) != 4:
        raise TableError(f"{where}: bbox must be [left, top, width, height], got {values!r:.80}")
    category, score = annotation.get("category_id"), annotation.get("score")
    return Entry(
        frame=frame,
        track=parse_track(str(track), where),
        box=_box(values, ("left", "top", "width", "height"), where),
        where=where,
        confidence=None if score is None else parse_real(str(score), "score", where),
        classes=() if category is None else (category,),
    )


def _number_images(
    path: Path, content: Mapping[str, Any], video: Path | None, first_frame: int | None
) -> dict[Any, int]:
    """Return the frame, from 0, of every image of the video, by the image's id."""
    images = _of_one_video(path, content, video)
    ids = [image.get("id") for image in images]
    if len(set(ids)) < len(ids) or None in ids:
        raise TableError(f"{path}: every image must have an id of its own")
    key = next((key for key in _FRAME_KEYS if images and key in images[0]), None)
    if key is not None:
        where = [f"{path}, image {image}" for image in ids]
        numbers = [
            parse_whole(str(image.get(key)), key, place, least=0)
            for image, place in zip(images, where, strict=True)
        ]
        first = _first_number(path, key, numbers, first_frame)
        return {image: number - first for image, number in zip(ids, numbers, strict=True)}
    names = [str(image.get("file_name") or "") for image in images]
    if "" in names:
        raise TableError(f"{path}: images must have a frame_id, frame_index or file_name")
    if video is not None and is_folder(video):
        return _match_files(path, dict(zip(names, ids, strict=True)), video)
    order = sorted(range(len(names)), key=lambda row: natural_key(names[row]))
    numbers = [_last_number(names[row]) for row in order]
    if any(late - early != 1 for early, late in pairwise(numbers)):
        raise TableError(
            f"{path}: images have no frame_id, and the numbers in their names have gaps, so their "
            "frames in the video are not known"
        )
    return {ids[row]: position for position, row in enumerate(order)}


def _of_one_video(
    path: Path, content: Mapping[str, Any], video: Path | None
) -> list[Mapping[str, Any]]:
    """Return the images of the video that is asked for, or of the only one."""
    images = _records(path, content, "images")
    found = {image.get("video_id") for image in images}
    if len(found) <= 1:
        return images
    names = {
        record.get("id"): str(record.get("name") or record.get("file_name") or "")
        for record in _records(path, content, "videos", optional=True)
    }
    wanted = None if video is None else (video.parent if video.name == "img1" else video).stem
    chosen = [key for key in found if wanted and Path(names.get(key, "")).stem == wanted]
    if len(chosen) != 1:
        known = ", ".join(sorted(names.get(key) or str(key) for key in found))
        asked = f"must have one called {wanted}" if wanted else "needs the name of one"
        raise TableError(f"{path} has boxes of several videos and {asked}, got {known}")
    return [image for image in images if image.get("video_id") == chosen[0]]


def _match_files(path: Path, images: Mapping[str, Any], folder: Path) -> dict[Any, int]:
    try:
        places = {file.name: place for place, file in enumerate(list_images(folder))}
    except FrameError as error:
        raise TableError(str(error)) from error
    frames = {}
    for name, image in images.items():
        if Path(name).name not in places:
            raise TableError(f"{path}: image {name!r} is not in {folder}")
        frames[image] = places[Path(name).name]
    return frames


def _first_number(path: Path, key: str, numbers: list[int], first_frame: int | None) -> int:
    """Return 0 or 1, from which the frames of a file count."""
    least = min(numbers, default=0)
    if first_frame is not None:
        if least < first_frame:
            raise TableError(f"{path}: {key} must be at least {first_frame}, got {least}")
        return first_frame
    if least > 1:
        raise TableError(
            f"{path}: the smallest {key} is {least}, so it is not known whether frames count from "
            "0 or from 1; say so with first_frame"
        )
    if least == 1:
        _logger.info("%s: no frame has the number 0, so they count from 1", path)
    return least


def _last_number(name: str) -> int:
    found = re.findall(r"\d+", Path(name).stem)
    return int(found[-1]) if found and len(found[-1]) <= MAX_DIGITS else -1


def _records(
    path: Path, content: Mapping[str, Any], key: str, *, optional: bool = False
) -> list[Mapping[str, Any]]:
    values = content.get(key, [] if optional else None)
    if not isinstance(values, list):
        raise TableError(f"{path} must have a list {key!r}, as COCO files do")
    for position, value in enumerate(values):
        where = f"{path}: {key}[{position}]"
        if not isinstance(value, dict):
            raise TableError(f"{where} must be an object, got {value!r:.80}")
        for name in _ID_KEYS:
            if isinstance(value.get(name), list | dict):
                raise TableError(f"{where}: {name} must be a number, got {value[name]!r:.80}")
    return values


# --- Ultralytics ---------------------------------------------------------------------------------


def _read_ultralytics(path: Path, documents: list[Any]) -> Iterator[Entry]:
    untracked = tracked = 0
    for frame, results in enumerate(_frames_of(path, documents)):
        for position, result in enumerate(results):
            where = f"{path}, frame {frame}, entry {position}"
            if not isinstance(result, dict) or not isinstance(result.get("box"), dict):
                raise TableError(
                    f"{where} must be an object with a box, as Ultralytics' to_json() writes, got "
                    f"{result!r:.80}"
                )
            if result.get("track_id") is None:
                untracked += 1  # not yet, or no more, confirmed by the tracker
                continue
            tracked += 1
            yield _ultralytics_entry(result, frame, where)
    if untracked and not tracked:
        raise TableError(
            f"{path} has no track_id, so these are detections and not yet tracks; use model.track"
        )
    if untracked:
        _logger.warning("%s: %d boxes without a track_id are left out", path, untracked)


def _frames_of(path: Path, documents: list[Any]) -> list[list[Any]]:
    """Return the results of each frame: a list of all, or one document for each."""
    if len(documents) == 1 and isinstance(documents[0], list):
        entries = documents[0]
        # The results of one frame are a list of objects; those of many a list of these.
        frames = entries if entries and not isinstance(entries[0], dict) else [entries]
    else:
        frames = documents
    decoded = []
    for frame, results in enumerate(frames):
        where = f"{path}, frame {frame}"
        if isinstance(results, str):  # json.dump of what to_json() gave
            results, _ = _decode(results.strip() or "[]", 0, where)
        if not isinstance(results, list):
            raise TableError(
                f"{where} must be a list of boxes, as in Ultralytics' to_json(), and the file is "
                f"no COCO JSON with annotations either; got {results!r:.80}"
            )
        decoded.append(results)
    return decoded


def _ultralytics_entry(result: Mapping[str, Any], frame: int, where: str) -> Entry:
    names = ("x1", "y1", "x2", "y2")
    edges = _box([result["box"].get(name) for name in names], names, where)
    left, top, right, bottom = edges
    if 0 < max(map(abs, edges)) <= 1:
        raise TableError(
            f"{where}: the box must be in pixels, got {list(edges)}; write to_json() without "
            "normalize=True"
        )
    sure, number, name = (result.get(key) for key in ("confidence", "class", "name"))
    return Entry(
        frame=frame,
        track=parse_track(str(result["track_id"]), where),
        box=(left, top, right - left, bottom - top),
        where=where,
        confidence=None if sure is None else parse_real(str(sure), "confidence", where),
        classes=tuple(kind for kind in (number, name) if kind is not None),
    )


def _box(values: list[Any], names: tuple[str, ...], where: str) -> Box:
    one, two, three, four = (
        parse_real(str(value), name, where) for value, name in zip(values, names, strict=True)
    )
    return one, two, three, four
