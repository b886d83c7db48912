"""Benchmarks that are nothing but folders, so that a table is enough to read them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfclip.data.benchmarks.listing import find_root
from tfclip.data.benchmarks.records import Dataset, ProtocolRule
from tfclip.data.readers import read_folder
from tfclip.data.tracklets import Tracklet
from tfclip.errors import TableError

_NOTES = ("person", "camera", "platform", "modality", "clothes", "session")


def read_parts(
    root: str | Path,
    *,
    name: str,
    train: Sequence[str],
    test: Sequence[str],
    protocols: Sequence[ProtocolRule],
    layout: str = "{person}/{camera}/{tracklet}",
    frame_name: str | None = None,
    first_camera: int = 0,
    platforms: Mapping[int, str] | None = None,
) -> Dataset:
    """Read a benchmark whose parts are folders of tracklets.

    Args:
        root: The folder that holds the parts.
        name: Of the benchmark.
        train: Folders below the root with training tracklets; there may be none.
        test: Folders below the root with test tracklets; each is a part by that name.
        protocols: Chosen from the test tracklets by part and by field.
        layout: The folders below a part, as ``read_folder`` takes it. Persons are texts.
        frame_name: A regular expression that the name of every image must contain; its named groups
            among ``person``, ``camera``, ``platform``, ``modality``, ``clothes`` and ``session``
            are what the tracklet is given, and equal for all of its images.
        first_camera: Number of the first camera in layout or image names; ours count from 0.
        platforms: Platform of each camera, as ours count.

    Returns:
        The tracklets part by part, in natural order; a name begins with that of its part.

    Raises:
        TableError: A part is missing or empty, or a folder or image does not fit.
    """
    root = Path(root)
    find_root(root, [""], [*train, *test])
    pattern = None if frame_name is None else re.compile(frame_name)

    def read(part: str) -> list[Tracklet]:
        found = read_folder(root / part, layout)
        return [_describe(t, part, pattern, first_camera, platforms) for t in found]

    training = [tracklet for part in train for tracklet in read(part)]
    named = [(part, tracklet) for part in test for tracklet in read(part)]
    tests = tuple(tracklet for _, tracklet in named)
    parts = [part for part, _ in named]
    try:
        chosen = {rule.name: rule.apply(tests, parts) for rule in protocols}
    except ValueError as error:
        raise TableError(f"{root}: {error}") from error
    return Dataset(name=name, root=str(root), train=tuple(training), test=tests, protocols=chosen)


def _describe(
    tracklet: Tracklet,
    part: str,
    pattern: re.Pattern[str] | None,
    first_camera: int,
    platforms: Mapping[int, str] | None,
) -> Tracklet:
    notes = {} if pattern is None else _read_name(tracklet, pattern)
    text = notes.pop("camera", None)
    camera = tracklet.camera
    if text is not None:
        if not text.isdecimal():
            raise TableError(f"{tracklet.frames[0]}: camera must be a number, got {text!r}")
        camera = int(text)
    if camera is not None:
        camera -= first_camera
        if camera < 0:
            raise TableError(
                f"{tracklet.frames[0]}: cameras count from {first_camera}, "
                f"got {camera + first_camera}"
            )
    if platforms is not None:
        if camera is None or camera not in platforms:
            raise TableError(
                f"{tracklet.frames[0]}: no platform is known for camera {camera}, "
                f"only for {sorted(platforms)}"
            )
        notes["platform"] = platforms[camera]
    return dataclasses.replace(tracklet, name=f"{part}/{tracklet.name}", camera=camera, **notes)


def _read_name(tracklet: Tracklet, pattern: re.Pattern[str]) -> dict[str, str]:
    first: dict[str, str] | None = None
    for path in tracklet.frames:
        fit = pattern.search(Path(path).stem)
        if fit is None:
            raise TableError(f"the name of {path} does not fit {pattern.pattern!r}")
        found = {key: text for key, text in fit.groupdict().items() if key in _NOTES and text}
        if first is not None and found != first:
            raise TableError(f"{path} and {tracklet.frames[0]} are of one tracklet and differ")
        first = found
    return dict(first or {})
