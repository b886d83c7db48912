"""From files of embeddings into a gallery, however large, and from a gallery into a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from tfclip.errors import GalleryError
from tfclip.gallery.entries import UNKNOWN, Entries, make_metadata, seconds, unit_rows
from tfclip.gallery.query import Storage

if TYPE_CHECKING:
    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.gallery.gallery import Gallery
    from tfclip.gallery.journal import Description

_BATCH_BYTES = 2**25  # of embeddings that are added as one step
_SAME = 1e-6  # how far a value of one vector, written and read again, may be from itself


class Imported(NamedTuple):
    """What an import did.

    Args:
        added: Rows that are in the gallery now and were not before, or not with this vector.
        there: Rows that were there already.
    """

    added: int
    there: int


class Marks(NamedTuple):
    """What an import adds to every row: metadata, and when the recording started."""

    metadata: Mapping[str, Any] | None
    started: float | None
    frame_rate: float | None

    @classmethod
    def of(cls, metadata: Mapping[str, Any] | None, started: Any, frame_rate: float | None) -> Self:
        """Check what ``import_file`` is given.

        Raises:
            ValueError: A value is out of range, or one of two is missing.
            TypeError: A value is of a wrong kind.
        """
        if metadata is not None:
            make_metadata([metadata], 1)
        if (started is None) != (frame_rate is None):
            raise ValueError(
                "started and frame_rate must be given together, "
                f"got started={started!r} and frame_rate={frame_rate!r}"
            )
        if frame_rate is None:
            return cls(metadata, None, None)
        if isinstance(frame_rate, bool) or not isinstance(frame_rate, int | float):
            raise TypeError(f"frame_rate must be a number, got {frame_rate!r}")
        if not 0 < frame_rate < math.inf:
            raise ValueError(f"frame_rate must be above 0 and finite, got {frame_rate}")
        return cls(metadata, seconds(started, "started"), frame_rate)

    def times(self, table: EmbeddingTable) -> list[float | None] | None:
        """Return when each tracklet began, where that is known."""
        if self.started is None or self.frame_rate is None:
            return None
        start, rate = self.started, self.frame_rate
        return [None if frame is None else start + frame / rate for frame in table.first_frames]


def import_file(
    gallery: Gallery, storage: Storage, path: Path, marks: Marks, replace: bool, progress: bool
) -> Imported:
    """Add the rows of a file that are not there yet; the arguments are those of ``Gallery``."""
    from tqdm import tqdm

    from tfclip.data.embedding_reader import EmbeddingReader

    added = there = 0
    with EmbeddingReader(path) as reader:
        gallery.take_maker(reader)
        rows = max(1, _BATCH_BYTES // (4 * reader.width))
        with tqdm(total=reader.num_rows, unit="row", disable=not progress) as bar:
            for table in reader.batches(rows):
                new = _missing(storage, table, replace)
                if len(new):
                    _add(gallery, table.select(new.tolist()), marks, replace)
                added += len(new)
                there += len(table) - len(new)
                bar.update(len(table))
    return Imported(added, there)


def _add(gallery: Gallery, table: EmbeddingTable, marks: Marks, replace: bool) -> None:
    gallery.add(
        table.embeddings,
        ids=table.names,
        cameras=table.cameras,
        times=marks.times(table),
        persons=table.persons,
        metadata=None if marks.metadata is None else [marks.metadata] * len(table),
        replace=replace,
    )


def _missing(storage: Storage, table: EmbeddingTable, replace: bool) -> np.ndarray:
    """Return the rows of a table that the gallery does not have with their vectors."""
    entries = storage.find(table.names)
    if not len(entries):
        return np.arange(len(table))
    places = {name: row for row, name in enumerate(table.names)}
    rows = np.array([places[id_] for id_ in entries.ids])
    vectors = unit_rows(table.embeddings[rows.tolist()], entries.vectors.shape[1], "embeddings")
    same = (np.abs(vectors - entries.vectors) <= _SAME).all(axis=1)
    if not replace and not same.all():
        name = entries.ids[int(np.flatnonzero(~same)[0])]
        raise GalleryError(
            f"the gallery already has an entry {name!r} with another vector; "
            "replace=True puts the new one in its place"
        )
    return np.setdiff1d(np.arange(len(table)), rows[same])


def to_table(entries: Entries, description: Description) -> EmbeddingTable:
    """Return entries as a table of embeddings.

    Raises:
        TableError: There is none.
    """
    import torch

    from tfclip.data.embeddings import EmbeddingTable

    return EmbeddingTable(
        embeddings=torch.from_numpy(entries.vectors),
        names=entries.ids,
        persons=tuple(None if p is None else str(p) for p in entries.persons.to_list()),
        cameras=tuple(None if c == UNKNOWN else c for c in entries.cameras.tolist()),
        model=description.model,
        revision=description.revision,
        fingerprint=description.fingerprint,
    )
