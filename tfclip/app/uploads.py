"""What was dropped on the page, as tracklets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tfclip.data.readers import image_tracklet, read_mot
from tfclip.data.tracklets import Thumbnail, Tracklet
from tfclip.errors import FrameError, TableError
from tfclip.images import natural_key
from tfclip.temporal_attention import spread
from tfclip.video import VIDEO_SUFFIXES

MOST_TRACKLETS = 12
MOST_FRAMES = 256


class Upload(NamedTuple):
    """The tracklets that were uploaded."""

    tracklets: list[Tracklet]
    """At most ``MOST_TRACKLETS``, the longest first, of at most ``MOST_FRAMES`` frames each."""
    notes: list[str]
    """What was left out, a sentence each."""


def read_upload(files: Sequence[str | Path] | None, boxes: str | Path | None = None) -> Upload:
    """Read one video, or the frames of one tracklet, with or without boxes.

    Without boxes all frames are one tracklet, each cut to the person already. Images are put into
    the natural order of their names.

    Args:
        files: The paths.
        boxes: A file in the format of the MOT challenges; frames count from 1.

    Raises:
        FrameError: There is no file, or more than one video, or a video among images; or the frames
            cannot be used.
        TableError: The boxes cannot be read, or are of frames that are not there.
        MissingExtraError: A video, and PyAV is not installed.
    """
    paths = sorted(map(Path, files or ()), key=lambda path: natural_key(path.name))
    if not paths:
        raise FrameError("drop a video, or the frames of a tracklet, and search then")
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos and len(paths) > 1:
        raise FrameError(
            f"files must be one video or several images, got {len(videos)} videos and "
            f"{len(paths) - len(videos)} others"
        )
    if boxes is not None:
        found = _cut(paths, read_mot(paths[0], boxes), is_video=bool(videos))
    elif videos:
        found = [Tracklet(name=paths[0].stem, frames=str(paths[0]))]
    else:
        found = [image_tracklet("upload", paths)]
    notes = []
    lengths = [len(tracklet.open()) for tracklet in found]
    order = sorted(range(len(found)), key=lambda row: -lengths[row])[:MOST_TRACKLETS]
    if len(found) > len(order):
        notes.append(f"Of {len(found)} tracklets the {len(order)} longest are shown.")
    if max(lengths) > MOST_FRAMES:
        notes.append(f"Of a longer tracklet {MOST_FRAMES} evenly spread frames are used.")
    return Upload([_thinned(found[row], lengths[row]) for row in order], notes)


def _cut(paths: Sequence[Path], tracklets: Sequence[Tracklet], is_video: bool) -> list[Tracklet]:
    """Return tracklets of boxes; of images, each upload lies in a folder of its own."""
    if is_video:
        return list(tracklets)
    cut = []
    for tracklet in tracklets:
        last = max(tracklet.frame_indices or (0,))
        if last >= len(paths):
            raise TableError(
                f"frames of the boxes must be 1 to {len(paths)}, the uploaded images, "
                f"got {last + 1}"
            )
        middle = tracklet.thumbnail
        cut.append(
            dataclasses.replace(
                tracklet,
                name=tracklet.name.rpartition("/")[2],
                frames=tuple(map(str, paths)),
                thumbnail=middle and Thumbnail(path=str(paths[middle.frame or 0]), box=middle.box),
            )
        )
    return cut


def _thinned(tracklet: Tracklet, length: int) -> Tracklet:
    """Return a tracklet of no more frames than the app will encode."""
    if length <= MOST_FRAMES:
        return tracklet
    kept = spread(length, MOST_FRAMES)
    indices = tracklet.frame_indices or range(length)
    boxes = tracklet.boxes
    return dataclasses.replace(
        tracklet,
        frame_indices=tuple(indices[place] for place in kept),
        boxes=None if boxes is None else tuple(boxes[place] for place in kept),
    )
