"""Tracklets in tar files, the way webdataset has samples: what is before the first dot is the key.

    a/0001.000001.jpg  a/0001.000002.jpg  a/0001.json  a/0002.000001.jpg ...

The files of one key are one tracklet: its images in natural order, and a ``.json`` with what is
known: ``person``, ``camera``, ``first_frame``, ``last_frame``, and ``boxes`` to cut out.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from tfclip.data.tracklets import Tracklet
from tfclip.errors import TableError, TFCLIPError
from tfclip.images import IMAGE_SUFFIXES, natural_key
from tfclip.remote import as_address, open_address, part_of
from tfclip.untrusted import one_line, parse_json

_NOTES = ("person", "camera", "first_frame", "last_frame", "platform", "modality", "clothes",
          "session")  # fmt: skip
_MAX_NOTES = 2**20  # bytes of a .json


def read_shards(paths: Iterable[str]) -> list[Tracklet]:
    """List the tracklets of tar files without decoding an image.

    Only the headers and the small ``.json`` files are read, over the network where a shard is
    there. The frames are addresses of the images' bytes.

    Args:
        paths: ``.tar`` files, as paths or addresses.

    Returns:
        The tracklets, shard by shard in the order given, and within one in natural order of their
        keys. A name is the key; it must be unique over all shards.

    Raises:
        TableError: A shard cannot be read, is compressed, has no image, or a ``.json`` in it is
            wrong; or a key is in two shards.
        MissingExtraError: fsspec needs a package for this kind of address.

    Example:
        >>> read_shards([])
        []
    """
    tracklets, seen = [], {}
    for path in paths:
        for tracklet in _read_shard(str(path)):
            if tracklet.name in seen:
                raise TableError(
                    f"{path} has tracklet {tracklet.name!r}, and so has {seen[tracklet.name]}"
                )
            seen[tracklet.name] = path
            tracklets.append(tracklet)
    return tracklets


def _read_shard(path: str) -> list[Tracklet]:
    groups: dict[str, dict[str, str]] = {}  # of each key, the address of every image by its name
    notes: dict[str, dict[str, Any]] = {}
    try:
        with (
            open_address(as_address(path), TableError) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            for member in tar:
                key, ending = _split(member.name)
                if not member.isreg() or member.issparse() or not key:
                    continue
                if PurePosixPath(ending).suffix in IMAGE_SUFFIXES:
                    images = groups.setdefault(key, {})
                    images[member.name] = part_of(
                        path, member.offset_data, member.size, member.name
                    )
                elif ending == ".json":
                    notes[key] = _read_notes(tar, member, path)
    except TFCLIPError:
        raise
    except Exception as error:  # tarfile trusts the numbers and texts of a header
        raise TableError(f"{path} is damaged or not a tar file: {one_line(error)}") from error
    if not groups:
        raise TableError(f"{path} has no image")
    return [
        _tracklet(path, key, groups[key], notes.get(key, {}))
        for key in sorted(groups, key=natural_key)
    ]


def _split(name: str) -> tuple[str, str]:
    """Return the key of a member and its ending, the first dot of the file's name included."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return (folder + slash + stem if stem else ""), (dot + ending).lower()


def _read_notes(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> dict[str, Any]:
    where = f"{path}, {member.name}"
    if member.size > _MAX_NOTES:
        raise TableError(f"{where}: a .json must be at most {_MAX_NOTES} bytes, got {member.size}")
    file = tar.extractfile(member)
    try:
        notes = parse_json(file.read()) if file else None
    except ValueError as error:
        raise TableError(f"{where}: not JSON: {error}") from error
    if not isinstance(notes, dict):
        raise TableError(f"{where}: there must be an object, got {type(notes).__name__}")
    return notes


def _tracklet(path: str, key: str, images: Mapping[str, str], notes: dict[str, Any]) -> Tracklet:
    where = f"{path}, {key}.json"
    for name, kinds in (("camera", int), ("first_frame", int), ("last_frame", int)):
        value = notes.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise TableError(f"{where}: {name} must be a whole number, got {value!r}")
    if not isinstance(notes.get("person"), (str, int, type(None))):
        raise TableError(f"{where}: person must be a text or a number, got {notes['person']!r}")
    boxes = notes.get("boxes")
    if boxes is not None and (not isinstance(boxes, list) or len(boxes) != len(images)):
        raise TableError(f"{where}: boxes must be one for each of the {len(images)} images")
    try:
        return Tracklet(
            name=key,
            frames=tuple(images[name] for name in sorted(images, key=natural_key)),
            boxes=None if boxes is None else tuple(map(tuple, boxes)),
            **{name: notes[name] for name in _NOTES if notes.get(name) is not None},
        )
    except (ValueError, TypeError) as error:
        raise TableError(f"{where}: {error}") from error
