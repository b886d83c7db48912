"""Reading who is where in a video: MOT tables, COCO JSON and Ultralytics' JSON results.

A reader opens no picture and writes nothing. Frames count from 0 here, whatever the file does.
Which frames and boxes of a file are taken, and what is refused, is the same for every format.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfclip.boxes import FrameBoxes
from tfclip.data.tables import parse_real, parse_whole, read_lines
from tfclip.data.tracklets import Box, Thumbnail, Tracklet
from tfclip.errors import TableError

_logger = logging.getLogger(__name__)

_JSON_SUFFIXES = (".json", ".jsonl")
_MOT_CLASS, _MOT_VISIBILITY = 7, 8  # columns of a table that has nine of them


class Entry(NamedTuple):
    """One box of a file."""

    frame: int
    """From 0."""
    track: int
    box: Box
    """Left, top, width, height; perhaps without an area."""
    where: str
    """The place in the file, for messages."""
    confidence: float | None = None
    classes: tuple[str | int, ...] = ()
    """What the file calls what is in the box: a number, a name or both."""
    visibility: float | None = None


def read_boxes(
    path: str | Path,
    *,
    classes: Collection[str | int] | None = None,
    min_confidence: float | None = None,
    min_visibility: float | None = None,
    video: str | Path | None = None,
    first_frame: int | None = None,
) -> dict[int, FrameBoxes]:
    r"""Read the tracked boxes of a video, of whatever format the file is.

    - ``.json``, ``.jsonl``: COCO with ``track_id`` or ``instance_id`` in its annotations (also the
      bare list of COCO results), or Ultralytics' results, ``to_json()`` of each frame: as a list,
      or one after another.
    - Anything else: a table in the format of the MOT challenges. Each line is ``frame, id, left,
      top, width, height`` and, if there is more, a flag or confidence; in a table of nine columns
      the last two are class and visibility.

    Left out are boxes that the file says not to count: flag 0 in MOT, ``iscrowd`` or ``ignore`` in
    COCO. Boxes without an area, which trackers write when they predict, are left out, counted in
    ``FrameBoxes.num_dropped`` and logged. Two boxes of one id in one frame are an error.

    Args:
        path: The file.
        classes: Which classes to take, by number or name; None takes all, and says so if there are
            several.
        min_confidence: Leave out what is less sure; boxes without a confidence stay.
        min_visibility: Leave out what is more hidden, where the file tells; 0 to 1.
        video: The video that the boxes are of: a COCO file may hold several, and a folder of frames
            is matched by the names of its files.
        first_frame: What the file calls the first frame, 0 or 1. None: 1 in MOT; in COCO 0 if that
            number occurs, else 1; Ultralytics' results have no numbers, and one follows the other.

    Returns:
        Boxes by frame, ascending; frames without a box may be missing.

    Raises:
        TableError: The file cannot be read, holds detections that nobody tracked, or an entry is
            not as above; the message names the line or the entry.
        ValueError: ``first_frame`` is not 0 or 1.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "tracks.txt"
        >>> _ = path.write_text("1,7,10,20,30,80,1\n2,7,12,20,30,80,1\n")
        >>> [(frame, found.boxes.tolist()) for frame, found in read_boxes(path).items()]
        [(0, [[10.0, 20.0, 30.0, 80.0]]), (1, [[12.0, 20.0, 30.0, 80.0]])]
    """
    if first_frame not in (None, 0, 1):
        raise ValueError(f"first_frame must be 0, 1 or None, got {first_frame!r}")
    path = Path(path)
    if path.suffix.lower() in _JSON_SUFFIXES:
        from tfclip.data.box_json import read_json

        entries = read_json(path, None if video is None else Path(video), first_frame)
    else:
        entries = _read_mot_lines(path, 1 if first_frame is None else first_frame)
    chosen = _Choice(path, classes, min_confidence, min_visibility)
    return _by_frame(path, chosen.take(entries))


def read_tracks(
    video: str | Path,
    boxes: str | Path,
    *,
    camera: int | None = None,
    classes: Collection[str | int] | None = None,
    min_confidence: float | None = None,
    min_visibility: float | None = None,
    first_frame: int | None = None,
) -> list[Tracklet]:
    """Read the tracks of a video from a file of boxes, of any format ``read_boxes`` takes.

    An id says which boxes belong together in this video and nothing beyond it, so it becomes part
    of the name (``"street/7"``) and ``person`` stays None.

    Args:
        video: The video, or a folder of its frames.
        boxes: The file: ground truth, or the output of a tracker.
        camera: Number of the camera that took the video, from 0.
        classes: As in ``read_boxes``, and so on.
        min_confidence: Leave out boxes that are less sure.
        min_visibility: Leave out boxes that are more hidden.
        first_frame: What the file calls the first frame.

    Returns:
        The tracklets in the order of their ids; frame numbers in them count from 1.

    Raises:
        TableError: A file is missing, or as ``read_boxes``.
    """
    source = Path(video)
    if not os.path.exists(source):  # noqa: PTH110 (a name no path can have is none, and no error)
        raise TableError(f"cannot read {source}: there is no such video or folder")
    frames = read_boxes(
        boxes,
        classes=classes,
        min_confidence=min_confidence,
        min_visibility=min_visibility,
        video=source,
        first_frame=first_frame,
    )
    tracks: dict[int, dict[int, Box]] = {}
    for frame, found in frames.items():
        for track, box in zip(found.track_ids.tolist(), found.boxes.tolist(), strict=True):
            tracks.setdefault(track, {})[frame] = tuple(box)
    if not tracks:
        raise TableError(f"{boxes} has no box")
    name = source.parent.resolve().name if source.name == "img1" else source.stem
    tracklets = [_tracklet(f"{name}/{key}", str(source), tracks[key]) for key in sorted(tracks)]
    return [dataclasses.replace(tracklet, camera=camera) for tracklet in tracklets]


def read_mot(frames: str | Path, boxes: str | Path) -> list[Tracklet]:
    """Read the tracks of a video from a file in the format of the MOT challenges.

    It is ``read_tracks`` for a file of that format, whatever its name ends in.

    Args:
        frames: The video, or a folder of its frames.
        boxes: The file: ground truth, or the output of a tracker.

    Returns:
        The tracklets in the order of their ids.

    Raises:
        TableError: A file is missing, or a line is not as ``read_boxes`` says.
    """
    return read_tracks(frames, boxes)


class _Choice:
    """Which of a file's boxes are taken."""

    def __init__(
        self,
        path: Path,
        classes: Collection[str | int] | None,
        min_confidence: float | None,
        min_visibility: float | None,
    ) -> None:
        if isinstance(classes, str | int):  # letters of a name are no classes
            classes = (classes,)
        self._path = path
        self._classes = None if classes is None else {str(name) for name in classes}
        self._min_confidence = min_confidence
        self._min_visibility = min_visibility
        self._seen: dict[str, int] = {}

    def take(self, entries: Iterable[Entry]) -> Iterable[Entry]:
        """Yield the boxes to take; at the end say what there is, or refuse what there is not."""
        number = 0
        for entry in entries:
            name = str(entry.classes[-1]) if entry.classes else None
            if name is not None:
                self._seen[name] = self._seen.get(name, 0) + 1
            if self._wanted(entry):
                number += 1
                yield entry
        if self._classes is None and len(self._seen) > 1:
            found = ", ".join(sorted(self._seen))
            _logger.warning(
                "%s: boxes of all its classes are taken, which are %s", self._path, found
            )
        if number == 0 and self._classes is not None and self._seen:
            raise TableError(
                f"{self._path} has no box of the classes {', '.join(sorted(self._classes))}; its "
                f"classes are {', '.join(sorted(self._seen))}"
            )

    def _wanted(self, entry: Entry) -> bool:
        if self._classes is not None and self._classes.isdisjoint(map(str, entry.classes)):
            return False
        least, sure = self._min_confidence, entry.confidence
        if least is not None and sure is not None and sure < least:
            return False
        least, seen = self._min_visibility, entry.visibility
        return least is None or seen is None or seen >= least


def _by_frame(path: Path, entries: Iterable[Entry]) -> dict[int, FrameBoxes]:
    """Group boxes by frame, leaving out and counting what has no area."""
    frames: dict[int, dict[int, Entry]] = {}
    empty: dict[int, int] = {}
    first_empty = ""
    for entry in entries:
        if entry.track in frames.setdefault(entry.frame, {}):
            raise TableError(f"{entry.where}: id {entry.track} has two boxes in one frame")
        if entry.box[2] <= 0 or entry.box[3] <= 0:
            first_empty = first_empty or entry.where
            empty[entry.frame] = empty.get(entry.frame, 0) + 1
        else:
            frames[entry.frame][entry.track] = entry
    if empty:
        _logger.warning(
            "%d boxes without an area are left out, the first in %s",
            sum(empty.values()),
            first_empty,
        )
    if not any(frames.values()):
        raise TableError(f"{path} has no box")
    return {frame: _frame_boxes(frame, frames[frame], empty) for frame in sorted(frames)}


def _frame_boxes(frame: int, entries: Mapping[int, Entry], empty: Mapping[int, int]) -> FrameBoxes:
    found = list(entries.values())
    sure = [entry.confidence for entry in found]
    known = any(value is not None for value in sure)
    return FrameBoxes(
        frame=frame,
        boxes=np.array([entry.box for entry in found]),
        track_ids=np.array([entry.track for entry in found], dtype=np.int64),
        confidences=np.array(sure, dtype=np.float64) if known else None,
        num_dropped=empty.get(frame, 0),
    )


def _read_mot_lines(path: Path, first_frame: int) -> Iterable[Entry]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            entry = _mot_entry(line, f"{path}, line {number}", first_frame)
            if entry is not None:
                yield entry


def _mot_entry(line: str, where: str, first_frame: int) -> Entry | None:
    """Return what a line says, or None if its flag says that it does not count."""
    cells = [cell.strip() for cell in line.rstrip().rstrip(",").split(",")]
    cells = line.split() if len(cells) == 1 else cells
    if len(cells) < 6:
        raise TableError(
            f"{where}: there must be frame, id, left, top, width, height, got {len(cells)} cells"
        )
    frame = parse_whole(cells[0], "frame", where, least=first_frame)
    track = parse_track(cells[1], where)
    left, top, width, height = (
        parse_real(cell, name, where)
        for cell, name in zip(cells[2:6], ("left", "top", "width", "height"), strict=True)
    )
    flag = parse_real(cells[6], "confidence", where) if len(cells) > 6 and cells[6] else None
    if flag == 0:
        return None
    sure = None if flag == -1 else flag  # -1 says unknown, as in the columns after it
    entry = Entry(frame - first_frame, track, (left, top, width, height), where, sure)
    # With ten columns, the last three are a place in the world, or -1.
    if len(cells) != _MOT_VISIBILITY + 1 or flag is None:
        return entry
    kind = parse_whole(cells[_MOT_CLASS], "class", where)
    seen = parse_real(cells[_MOT_VISIBILITY], "visibility", where)
    return entry._replace(
        classes=() if kind < 0 else (kind,), visibility=seen if 0 <= seen <= 1 else None
    )


def parse_track(text: str, where: str) -> int:
    """Return a track id; TableError says ``where`` if it is none, or that of no track."""
    track = parse_whole(text, "id", where)
    if track < 0:
        raise TableError(f"{where}: id is {track}, so these are detections and not yet tracks")
    return track


def _tracklet(name: str, source: str, boxes: Mapping[int, Box]) -> Tracklet:
    frames = sorted(boxes)
    middle = frames[len(frames) // 2]
    return Tracklet(
        name=name,
        frames=source,
        boxes=tuple(boxes[frame] for frame in frames),
        frame_indices=tuple(frames),
        first_frame=frames[0] + 1,
        last_frame=frames[-1] + 1,
        thumbnail=Thumbnail(path=source, frame=middle, box=boxes[middle]),
    )
