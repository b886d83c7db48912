"""Tracklets of one's own as a data set, so that they can be evaluated like a public one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from tfclip.data.benchmarks.records import Dataset, Exclude, FrameRule, Protocol
from tfclip.data.tracklets import Tracklet
from tfclip.errors import TableError


def own_dataset(
    queries: Sequence[Tracklet],
    gallery: Sequence[Tracklet] = (),
    *,
    train: Sequence[Tracklet] = (),
    name: str = "own",
    root: str = "",
    queries_in_gallery: bool = True,
    exclude: Exclude = "person_and_camera",
    frames: FrameRule = "dense",
) -> Dataset:
    """Make a data set of tracklets to search for and tracklets to search in.

    Args:
        queries: Tracklets to search for, of known persons.
        gallery: Tracklets to search in, of known persons; one whose frames are a query's is taken
            once. None at all: each query is searched among the others.
        train: Tracklets of other persons, to fit a threshold on.
        name: Of the data set.
        root: Where it lies, for messages.
        queries_in_gallery: Whether the queries are searched in too, as in MARS.
        exclude: What is left out of a query's ranking, as in ``Protocol``.
        frames: Which frames of a tracklet are encoded, as in ``Protocol``.

    Returns:
        A data set with the one protocol ``"own"``. Names begin with ``query/`` and ``gallery/``.

    Raises:
        TableError: A tracklet of an unknown person or camera, a person who is in ``train`` and in
            the others, no query, nothing to search in, or no query with a match.
        ValueError: ``exclude`` or ``frames`` is unknown.

    Example:
        >>> def seen(person, camera):
        ...     name = f"{person}/{camera}"
        ...     return Tracklet(name=name, frames=(f"{name}.png",), person=person, camera=camera)
        >>> dataset = own_dataset([seen("ann", 0)], [seen("ann", 1), seen("bob", 1)])
        >>> dataset.protocol().query, dataset.protocol().gallery
        ((0,), (0, 1, 2))
    """
    where = root or name
    if not queries:
        raise TableError(f"{where}: there must be at least one query, got none")
    if not (gallery or queries_in_gallery):
        raise TableError(f"{where}: there must be something to search in, got no gallery")
    for tracklet in (*queries, *gallery, *train):
        _check_known(tracklet, where, exclude)
    both = {t.person for t in train} & {t.person for t in (*queries, *gallery)}
    if both:
        raise TableError(
            f"{where}: person {min(map(str, both))!r} is in the training tracklets and in the "
            "others, and a threshold must be fitted on other people than are tested"
        )
    test = [dataclasses.replace(t, name=f"query/{t.name}") for t in queries]
    rows = {_source(tracklet): row for row, tracklet in enumerate(queries)}
    searched = dict.fromkeys(range(len(queries)) if queries_in_gallery else ())
    for tracklet in gallery:
        row = rows.setdefault(_source(tracklet), len(test))
        if row == len(test):
            test.append(dataclasses.replace(tracklet, name=f"gallery/{tracklet.name}"))
        searched[row] = None
    protocol = Protocol(
        name="own",
        query=range(len(queries)),
        gallery=tuple(searched),
        description="queries are searched in the gallery "
        + ("and in one another" if queries_in_gallery else "alone"),
        exclude=exclude,
        frames=frames,
    )
    return Dataset(
        name=name,
        root=where,
        train=tuple(train),
        test=tuple(test),
        protocols={"own": protocol},
    )


def _check_known(tracklet: Tracklet, where: str, exclude: Exclude) -> None:
    if tracklet.person is None:
        raise TableError(f"{where}: it is not known whom tracklet {tracklet.name!r} shows")
    if tracklet.camera is None and exclude != "none":
        raise TableError(
            f"{where}: the camera of tracklet {tracklet.name!r} is not known; without cameras, "
            "nothing can be left out of a ranking for them (exclude 'none')"
        )


def _source(tracklet: Tracklet) -> Any:
    """Return what two records of the same tracklet have in common."""
    frames = tracklet.frames
    paths = frames if isinstance(frames, (list, tuple)) else [frames]
    files = tuple(os.path.realpath(path) for path in paths)
    return files, tracklet.frame_indices, tracklet.boxes
