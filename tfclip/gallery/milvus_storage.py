"""A gallery in Milvus: in a folder with Milvus Lite, or on a server by its address alone."""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfclip.errors import GalleryError, MissingExtraError, SaveError
from tfclip.gallery.conditions import Between, Where
from tfclip.gallery.disk import check_width, no_entries
from tfclip.gallery.entries import Entries, make_ids
from tfclip.gallery.exact import Best, squared_distances
from tfclip.gallery.milvus_collection import MilvusCollection
from tfclip.gallery.milvus_rows import (
    COLUMNS,
    ID_LENGTH,
    MilvusDescription,
    about_fields,
    as_entries,
    as_row,
    entry_fields,
    expressions,
    failures,
)
from tfclip.gallery.opening import MilvusOptions, names_something
from tfclip.gallery.partitions import is_whole, may_hold, partitions_of
from tfclip.gallery.query import Nearest, NewEntries, Query

_BATCH = 1_000  # entries in one request
_LARGEST_K = 16_384  # the most that Milvus returns for a query
_PENDING = 1_000  # entries that Milvus Lite holds in memory, where its search is slow
_VERSION = 2, 5  # the first with fields that may be null
_SPARE = 16  # candidates beyond k, whose exact distances then decide


def open_milvus(
    uri: str,
    options: MilvusOptions,
    wanted: Mapping[str, Any],
    clock: Callable[[], float],
    read_only: bool,
) -> MilvusStorage:
    """Connect, and make the gallery where there is none and enough is known to make one.

    Raises:
        MissingExtraError: The package is not installed.
        GalleryError: Milvus refuses, or there is no such gallery, or it is partitioned otherwise.
        SaveError: The folder cannot be written.
        ValueError: An option is for a server, and this is Milvus Lite.
    """
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise MissingExtraError(
            "storage='milvus' needs pymilvus; install it with: pip install 'tfclip[milvus]'"
        ) from error
    if "://" not in uri:
        folder = Path(uri)
        for name in ("num_shards", "replica_number"):
            if getattr(options, name) is not None:
                raise ValueError(f"{name} is for a Milvus server; Milvus Lite in {folder} has one")
        if not folder.exists() and (read_only or not names_something(wanted)):
            raise GalleryError(f"there is no gallery in {folder}; dim= or model= makes one")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f"cannot write {folder}: {error.strerror}") from error
        uri = str(folder / "milvus.db")
    with failures(uri):
        client = MilvusClient(uri=uri, token=options.token)
    return MilvusStorage(client, uri, options, wanted, clock, read_only)


class MilvusStorage:
    """Entries in a collection of Milvus, and what the gallery is in another.

    Milvus proposes the candidates; their distances are computed here in float64 from the vectors
    that it returns. What is safe when is Milvus's own: see ``docs/gallery.md``.

    Args:
        client: A ``pymilvus.MilvusClient``.
        uri: Where it is.
        options: The name of the collection, and how it is made and loaded.
        wanted: Fields of the description, if the gallery is to be made.
        clock: Gives the time in seconds since 1970.
        read_only: Never write.
    """

    def __init__(
        self,
        client: Any,
        uri: str,
        options: MilvusOptions,
        wanted: Mapping[str, Any],
        clock: Callable[[], float],
        read_only: bool,
    ) -> None:
        self._client = client
        self._uri = uri
        self._options = options
        with failures(uri):
            version = str(client.get_server_version())
        self._is_lite = version.startswith("milvus_lite")
        if not self._is_lite:
            _check_version(uri, version)
        self._rows = MilvusCollection(client, uri, options.collection, self._is_lite)
        self._about = MilvusCollection(client, uri, f"{options.collection}_about", self._is_lite)
        self._clock = clock
        self._read_only = read_only
        self._mutex = threading.RLock()
        self._closed = False
        self._pending = 0  # entries that were added since the last flush
        width = self._open_about(wanted).width
        if self._rows.exists():
            self._rows.check_shards(options.num_shards)
            self._rows.load(options.replica_number)
        elif width and not read_only:  # now, so that an option is refused now
            self._make_rows(width)

    def _open_about(self, wanted: Mapping[str, Any]) -> MilvusDescription:
        """Read what the gallery is; write it where there is none."""
        partition = self._options.partition
        if not self._about.exists():
            if self._read_only or not names_something(wanted):
                raise GalleryError(
                    f"there is no gallery {self._rows.name} in {self._uri}; "
                    "dim= or model= makes one"
                )
            self._about.make(about_fields)
            made = MilvusDescription(**wanted, partition=partition or "")
            self._about.upsert(made.rows_since(None))
        self._about.load()
        description = self.description
        if partition not in (None, description.partition):
            by = f"by {description.partition}" if description.partition else "by nothing"
            raise GalleryError(f"{self._uri} is partitioned {by}, not by {partition}")
        return description

    def _make_rows(self, width: int) -> None:
        self._rows.make(partial(entry_fields, width=width), self._options.num_shards)
        self._rows.check_shards(self._options.num_shards)
        self._rows.load(self._options.replica_number)

    @property
    def description(self) -> MilvusDescription:
        """What the gallery is."""
        rows = self._about.query('id != ""', ["id", "description"])
        try:
            return MilvusDescription.of_rows(rows)
        except (KeyError, TypeError, ValueError) as error:
            raise GalleryError(
                f"{self._uri} is damaged: {self._about.name} does not say what it is"
            ) from error

    def describe(self, **changes: Any) -> None:
        """Change what the gallery is said to be."""
        self._check_writable()
        with self._mutex:
            old = self.description
            rows = dataclasses.replace(old, **changes).rows_since(old)
            if rows:
                self._about.upsert(rows)

    def count(self) -> int:
        """Return how many entries there are that have not expired."""
        if not self._rows.exists():
            return 0
        description = self.description
        partitions = self._touched((), description)
        return self._rows.count(self._filter((), description), partitions)

    def add(self, new: NewEntries, replace: bool) -> tuple[str, ...]:
        """Add entries; they are in Milvus when this returns."""
        self._check_writable()
        with self._mutex:
            description = self.description
            check_width(description, new.vectors.shape[1])
            if not self._rows.exists():
                self._make_rows(new.vectors.shape[1])
            first = description.next_number
            ids = new.ids or make_ids(None, len(new.vectors), first)
            there = self._there(ids, description, replace)
            # First of all, so that no number is given twice whatever happens in between.
            self.describe(
                width=new.vectors.shape[1],
                fields=tuple(dict.fromkeys((*description.fields, *new.metadata))),
                next_number=first + len(ids),
            )
            entries = new.numbered(ids, first, self._clock())
            for partition, rows in self._places(entries, there, description.partition):
                for start in range(0, len(rows), _BATCH):
                    some = [as_row(entries, row) for row in rows[start : start + _BATCH]]
                    self._rows.upsert(some, partition)
            self._pending += len(ids)
            if self._is_lite and self._pending >= _PENDING:
                self.save()
        return ids

    def _there(
        self, ids: tuple[str, ...], description: MilvusDescription, replace: bool
    ) -> Entries:
        """Return what Milvus has under new ids: what has expired, and what is to be replaced."""
        for id_ in ids:
            if len(id_.encode()) > ID_LENGTH:
                raise GalleryError(f"Milvus takes ids of up to {ID_LENGTH} bytes, got {id_!r}")
        there = as_entries(self._rows.look_up(ids, COLUMNS), description, vectors=False)
        taken = np.flatnonzero(self._alive(there, description))
        if len(taken) and not replace:
            raise GalleryError(
                f"the gallery already has an entry {there.ids[taken[0]]!r}; "
                "replace=True puts the new one in its place"
            )
        return there

    def _places(
        self, entries: Entries, there: Entries, field: str
    ) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield partitions, which then exist, and the rows that belong into each.

        Milvus keeps an id once in each partition, not once in all: an entry whose id comes into
        another partition is deleted first.
        """
        if not field:
            yield "", range(len(entries))
            return
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(partitions_of(field, entries)):
            rows.setdefault(name, []).append(row)
        self._rows.make_partitions(rows)
        target = {entries.ids[row]: name for name, some in rows.items() for row in some}
        old = zip(there.ids, partitions_of(field, there), strict=True)
        moved = [id_ for id_, name in old if name != target[id_]]
        self._rows.delete(moved)
        if moved and self._is_lite:
            self._rows.flush()  # else it finds the old one again where it looks there alone
        yield from rows.items()

    def find(self, ids: Sequence[str], vectors: bool = True) -> Entries:
        """Return the entries with some ids, those that there are; see ``Storage``."""
        description = self.description
        if not self._rows.exists():
            return no_entries(description.width)
        columns = [*COLUMNS, "vector"] if vectors else COLUMNS
        there = as_entries(self._rows.look_up(ids, columns), description, vectors)
        return there.select(self._alive(there, description))

    def _alive(self, entries: Entries, description: MilvusDescription) -> np.ndarray:
        ttl = description.ttl
        return entries.added > (-math.inf if ttl is None else self._clock() - ttl)

    def search(self, query: Query) -> Nearest:
        """Return the nearest entries of each query."""
        if query.k > _LARGEST_K - _SPARE:
            raise ValueError(f"k must be at most {_LARGEST_K - _SPARE} in Milvus, got {query.k}")
        count, description = len(query.vectors), self.description
        if not self._rows.exists():
            return self._ranked(query, [[]] * count, {}, description)
        found: dict[str, dict[str, Any]] = {}
        answers: list[list[str]] = [[] for _ in range(count)]
        shared = self._filter(query.conditions, description)
        partitions = self._touched(query.conditions, description)
        if query.exclude_cameras:
            shared += f" and (camera is null or camera not in {list(query.exclude_cameras)})"
        cameras = [None] * count if query.cameras is None else query.cameras.tolist()
        for camera in dict.fromkeys(cameras):
            queries = [q for q, own in enumerate(cameras) if own == camera]
            text = shared
            if camera is not None:
                text += f" and (camera is null or camera != {camera})"
            vectors, limit = query.vectors[queries], query.k + _SPARE
            columns = [*COLUMNS, "vector"]
            some = self._rows.search(vectors, text, limit, columns, partitions)
            for q, rows in zip(queries, some, strict=True):
                answers[q] = [row["id"] for row in rows]
                found.update((row["id"], row) for row in rows)
        return self._ranked(query, answers, found, description)

    def _ranked(
        self,
        query: Query,
        answers: list[list[str]],
        found: dict[str, dict[str, Any]],
        description: MilvusDescription,
    ) -> Nearest:
        """Choose among what Milvus proposes, by distances in float64."""
        best = Best(len(answers), query.k)
        # By id, since processes that add at the same time may give the same number.
        rows = sorted(found.values(), key=lambda row: (row["number"], row["id"]))
        entries = as_entries(rows, description)
        places = {row["id"]: place for place, row in enumerate(rows)}
        for q, ids in enumerate(answers):
            own = None if query.ids is None else query.ids[q]
            different = [id_ for id_ in dict.fromkeys(ids) if id_ != own]
            proposed = np.array([places[id_] for id_ in different], dtype=np.int64)
            if len(proposed):
                distances = squared_distances(query.vectors[q], entries.vectors[proposed])
                best.offer(np.full(len(proposed), q), proposed, distances)
        return Nearest(entries, best.rows, best.distances)

    def entries(self, conditions: tuple[Where, ...], vectors: bool = True) -> Entries:
        """Return the entries that fulfil all conditions, in the order they were added."""
        description = self.description
        rows: list[dict[str, Any]] = []
        if self._rows.exists():
            text = self._filter(conditions, description)
            columns = [*COLUMNS, "vector"] if vectors else COLUMNS
            partitions = self._touched(conditions, description)
            for batch in self._rows.batches(text, columns, description.next_number, partitions):
                rows += batch
        rows.sort(key=lambda row: (row["number"], row["id"]))
        return as_entries(rows, description, vectors)

    def forget(self, conditions: tuple[Where, ...]) -> int:
        """Remove entries from all results; Milvus takes them off the disk when it compacts.

        A partition of which nothing would be left is dropped.
        """
        self._check_writable()
        with self._mutex:
            dropped = 0
            if self._rows.exists():
                text = self._filter((), self.description)
                self._filter(conditions, self.description)  # refuse before anything is dropped
                dropped = self._drop_whole(conditions, text)
            entries = self.entries(conditions, vectors=False)
            self._rows.delete(entries.ids)
            self.compact()
        return dropped + len(entries)

    def compact(self) -> int:
        """Delete what has expired and ask Milvus to tidy up; return how many expired."""
        self._check_writable()
        if not self._rows.exists():
            return 0
        count = 0
        with self._mutex:
            description = self.description
            if description.ttl is not None:
                oldest = self._clock() - description.ttl
                text = f"added <= {oldest!r}"
                count = self._drop_whole(({"added": Between(high=oldest)},), text)
                batches = self._rows.batches(text, ["id"], description.next_number)
                expired = [row["id"] for batch in batches for row in batch]
                self._rows.delete(expired)
                count += len(expired)
            self._rows.flush()
            self._rows.compact()
        return count

    def _drop_whole(self, conditions: tuple[Where, ...], text: str) -> int:
        """Drop the partitions that can hold nothing but what fulfils all conditions.

        Returns:
            How many of their entries the filter ``text`` lets through.
        """
        field = self.description.partition
        names = self._rows.partitions() if field else []
        count = 0
        for name in names:
            if is_whole(field, name, conditions):
                count += self._rows.count(text, [name])
                self._rows.drop_partition(name)
        return count

    def save(self) -> None:
        """Have Milvus write what it holds in memory."""
        if not self._read_only and self._rows.exists():
            self._rows.flush()
            self._pending = 0

    def about(self) -> dict[str, object]:
        """Return where Milvus is, the collection's name, and how it is partitioned."""
        about: dict[str, object] = {"uri": self._uri, "collection": self._rows.name}
        field = self.description.partition
        if field:
            names = self._rows.partitions() if self._rows.exists() else []
            about |= {"partition": field, "partitions": len(names)}
        return about

    def close(self) -> None:
        """Write out and disconnect; a second time does nothing."""
        if not self._closed:
            if self._is_lite:  # a server writes when it wants to, and would make a small file now
                self.save()
            self._client.close()
            self._closed = True

    def _check_writable(self) -> None:
        if self._read_only:
            raise GalleryError(f"{self._uri} was opened to read only")

    def _touched(
        self, conditions: tuple[Where, ...], description: MilvusDescription
    ) -> list[str] | None:
        """Return the partitions that can hold what is alive and fulfils all conditions.

        None stands for all of them.
        """
        field, ttl = description.partition, description.ttl
        if not field:
            return None
        if ttl is not None:
            conditions = (*conditions, {"added": Between(low=self._clock() - ttl)})
        names = self._rows.partitions()
        kept = may_hold(field, names, conditions)
        return None if len(kept) == len(names) else kept

    def _filter(self, conditions: tuple[Where, ...], description: MilvusDescription) -> str:
        """Return what Milvus is to filter by: what is alive and fulfils all conditions."""
        ttl = description.ttl
        texts = ["number >= 0" if ttl is None else f"added > {self._clock() - ttl!r}"]
        for condition in conditions:
            texts += [f"({text})" for text in expressions(condition)]
        return " and ".join(texts)


def _check_version(uri: str, version: str) -> None:
    """Refuse a server that does not know what an entry needs: fields that may be unknown."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < _VERSION:
        needed = ".".join(map(str, _VERSION))
        raise GalleryError(f"a gallery needs Milvus {needed} or newer, and {uri} is {version}")
