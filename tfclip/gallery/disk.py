"""A gallery in a folder, searched exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfclip.errors import GalleryError
from tfclip.gallery.conditions import Where, matching
from tfclip.gallery.entries import UNKNOWN, Entries, Values, make_ids
from tfclip.gallery.exact import Best, search_exact
from tfclip.gallery.journal import Description, Journal, Record, Segment, Snapshot
from tfclip.gallery.query import Nearest, NewEntries, Query

_LATENESS = 0.1  # of the time to live, after which expired entries go with the next change


class DiskStorage:
    """Entries of a journal, searched exactly.

    Args:
        journal: The files.
        clock: Gives the time in seconds since 1970.
    """

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self.journal = journal
        self._clock = clock

    @property
    def description(self) -> Description:
        """What the gallery is."""
        return self.journal.refresh().description

    def count(self) -> int:
        """Return how many entries there are that have not expired."""
        snapshot = self.journal.refresh()
        return sum(int(np.count_nonzero(mask)) for mask in self._masks(snapshot, ()))

    def add(self, new: NewEntries, replace: bool) -> tuple[str, ...]:
        """Add entries as one step; they are on the disk when this returns."""
        with self.journal.writing() as snapshot:
            description = snapshot.description
            check_width(description, new.vectors.shape[1])
            first = description.next_number
            if new.ids is None:
                first = _free_number(snapshot, len(new.vectors), first)
            ids = new.ids or make_ids(None, len(new.vectors), first)
            drop = self._expired(snapshot)
            self._drop_present(snapshot, ids, replace, drop)
            if any(mask.any() for mask in drop.values()):
                self._before_drop()
            self.journal.commit(
                drop,
                new.numbered(ids, first, self._clock()),
                width=new.vectors.shape[1],
                fields=tuple(dict.fromkeys((*description.fields, *new.metadata))),
                next_number=first + len(ids),
            )
        return ids

    def _drop_present(
        self,
        snapshot: Snapshot,
        ids: Sequence[str],
        replace: bool,
        drop: dict[Record, np.ndarray],
    ) -> None:
        """Drop the entries that new ones replace; expired ones never stand in the way."""
        gone = self._masks(snapshot, ())
        for segment, alive in zip(snapshot.segments, gone, strict=True):
            present = [segment.rows[id_] for id_ in ids if id_ in segment.rows]
            if not present:
                continue
            if not replace and alive[present].any():
                row = present[int(np.flatnonzero(alive[present])[0])]
                raise GalleryError(
                    f"the gallery already has an entry {segment.entries.ids[row]!r}; "
                    "replace=True puts the new one in its place"
                )
            mask = drop.setdefault(segment.record, np.zeros(len(segment.entries), dtype=bool))
            mask[present] = True

    def find(self, ids: Sequence[str], vectors: bool = True) -> Entries:
        """Return the entries with some ids, those that there are; see ``Storage``."""
        snapshot = self.journal.refresh()
        keep = []
        for segment, alive in zip(snapshot.segments, self._masks(snapshot, ()), strict=True):
            rows = [segment.rows[id_] for id_ in ids if id_ in segment.rows]
            found = np.array(sorted(rows), dtype=np.int64)
            keep.append(found[alive[found]])
        return _select(snapshot, keep, vectors)

    def search(self, query: Query) -> Nearest:
        """Return the nearest entries of each query."""
        snapshot = self.journal.refresh()
        masks = self._masks(snapshot, query.conditions)
        if query.exclude_cameras:
            for segment, mask in zip(snapshot.segments, masks, strict=True):
                mask &= ~np.isin(segment.entries.cameras, query.exclude_cameras)
        return self._gather(snapshot, self._search(snapshot, masks, query))

    def _search(self, snapshot: Snapshot, masks: list[np.ndarray], query: Query) -> Best:
        segments = snapshot.segments
        cameras = None
        if query.cameras is not None:
            cameras = query.cameras, [segment.entries.cameras for segment in segments]
        own = None
        if query.ids is not None:
            own = np.array([row_of(segments, id_) for id_ in query.ids], dtype=np.int64)
        parts = [(s.entries.vectors, mask) for s, mask in zip(segments, masks, strict=True)]
        return search_exact(query.vectors, parts, query.k, cameras, own)

    def _gather(self, snapshot: Snapshot, best: Best) -> Nearest:
        """Copy what was found out of the segments."""
        wanted = np.unique(best.rows[best.rows != UNKNOWN])
        keep, offset = [], 0
        for segment in snapshot.segments:
            end = offset + len(segment.entries)
            keep.append(wanted[(wanted >= offset) & (wanted < end)] - offset)
            offset = end
        entries = _select(snapshot, keep)
        rows = np.searchsorted(wanted, best.rows)
        rows[best.rows == UNKNOWN] = UNKNOWN
        return Nearest(entries, rows, best.distances)

    def entries(self, conditions: tuple[Where, ...], vectors: bool = True) -> Entries:
        """Return the entries that fulfil all conditions."""
        snapshot = self.journal.refresh()
        return _select(snapshot, self._masks(snapshot, conditions), vectors)

    def forget(self, conditions: tuple[Where, ...]) -> int:
        """Remove entries; when this returns, no file of the folder holds them."""
        with self.journal.writing() as snapshot:
            masks = self._masks(snapshot, conditions)
            count = sum(int(np.count_nonzero(mask)) for mask in masks)
            drop = self._expired(snapshot, lateness=0)
            for segment, mask in zip(snapshot.segments, masks, strict=True):
                drop[segment.record] = drop.get(segment.record, False) | mask
            if any(mask.any() for mask in drop.values()):
                self._before_drop()
                self.journal.commit(drop)
        return count

    def compact(self) -> int:
        """Remove what has expired and join small segments; return how many expired."""
        with self.journal.writing() as snapshot:
            drop = self._expired(snapshot, lateness=0)
            if drop:
                self._before_drop()
            self.journal.commit(drop, merge=True)
        return int(sum(np.count_nonzero(mask) for mask in drop.values()))

    def describe(self, **changes: Any) -> None:
        """Change what the gallery is said to be."""
        with self.journal.writing():
            self.journal.commit(**changes)

    def tidy(self) -> None:
        """Remove what an interruption left behind, and what has expired."""
        with self.journal.writing() as snapshot:
            drop = self._expired(snapshot, lateness=0)
            if drop:
                self._before_drop()
                self.journal.commit(drop)

    def save(self) -> None:
        """Do nothing: every change is on the disk when it returns."""

    def about(self) -> dict[str, object]:
        """Return the number of segments and their bytes."""
        records = [segment.record for segment in self.journal.refresh().segments]
        return {"segments": len(records), "bytes": sum(record.size for record in records)}

    def close(self) -> None:
        """Let go of the files; the system unmaps them when nobody uses their vectors."""

    def _before_drop(self) -> None:
        """Remove from the folder what else holds the entries that go: the index of FAISS."""
        for path in self.journal.folder.glob("faiss-*"):
            path.unlink(missing_ok=True)

    def _masks(self, snapshot: Snapshot, conditions: tuple[Where, ...]) -> list[np.ndarray]:
        """Return for each segment a mask of the entries that are alive and fulfil all."""
        masks = []
        ttl = snapshot.description.ttl
        oldest = None if ttl is None else self._clock() - ttl
        for segment in snapshot.segments:
            entries = segment.entries
            mask = np.ones(len(entries), dtype=bool)
            for condition in conditions:
                mask &= matching(entries, condition)
            masks.append(mask if oldest is None else mask & (entries.added > oldest))
        return masks

    def _expired(self, snapshot: Snapshot, lateness: float = _LATENESS) -> dict[Record, np.ndarray]:
        """Return the expired entries to drop: all of them as soon as one is late enough."""
        ttl = snapshot.description.ttl
        if ttl is None:
            return {}
        now = self._clock()
        drop = {s.record: s.entries.added <= now - ttl for s in snapshot.segments}
        late = now - (1 + lateness) * ttl
        if not any((segment.entries.added <= late).any() for segment in snapshot.segments):
            return {}
        return {record: mask for record, mask in drop.items() if mask.any()}


def check_width(description: Description, width: int) -> None:
    """Refuse vectors of another width, which another process may have fixed just now."""
    if description.width not in (None, width):
        raise GalleryError(f"the gallery has vectors of width {description.width}, got {width}")


def row_of(segments: Sequence[Segment], id_: str | None) -> int:
    """Return where an entry stands among all, or -1."""
    offset = 0
    for segment in segments:
        if id_ in segment.rows:
            return offset + segment.rows[id_]
        offset += len(segment.entries)
    return UNKNOWN


def _free_number(snapshot: Snapshot, count: int, first: int) -> int:
    """Return from where so many numbers are nobody's id, where somebody gave numbers as ids."""
    taken = [-1]
    while taken:
        ids = make_ids(None, count, first)
        taken = [int(id_) for id_ in ids if any(id_ in s.rows for s in snapshot.segments)]
        first = max(taken, default=first - 1) + 1
    return first


def _select(snapshot: Snapshot, keep: Sequence[np.ndarray], vectors: bool = True) -> Entries:
    parts = [
        (segment.entries if vectors else segment.entries.without_vectors()).select(mask)
        for segment, mask in zip(snapshot.segments, keep, strict=True)
        if (mask.any() if mask.dtype == bool else len(mask))
    ]
    return Entries.join(parts) if parts else no_entries(snapshot.description.width)


def no_entries(width: int | None) -> Entries:
    """Return no entry at all."""
    empty = np.empty(0)
    return Entries(
        vectors=np.empty((0, width or 0), dtype=np.float32),
        numbers=empty.astype(np.int64),
        ids=(),
        cameras=empty.astype(np.int64),
        times=empty,
        added=empty,
        persons=Values((), empty.astype(np.int32)),
    )
