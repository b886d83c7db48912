"""A gallery in Milvus: in a folder with Milvus Lite, or on a server by its address alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfclip.errors import GalleryError, MissingExtraError, SaveError
from tfclip.gallery.conditions import Between, Condition, Where, person_texts, plain_times
from tfclip.gallery.disk import check_width, no_entries
from tfclip.gallery.entries import UNKNOWN, Entries, Values, make_ids
from tfclip.gallery.exact import Best, squared_distances
from tfclip.gallery.journal import Description
from tfclip.gallery.opening import names_something
from tfclip.gallery.query import Nearest, NewEntries, Query

_TEXT_LENGTH = 65_535  # the most that Milvus allows
_ID_LENGTH = 512
_BATCH = 1_000  # entries in one request
_LARGEST_BATCH = 4_096  # entries returned at once
_LARGEST_K = 16_384  # the most that Milvus returns for a query
_PENDING = 1_000  # entries that Milvus Lite holds in memory, where its search is slow
_SPARE = 16  # candidates beyond k, whose exact distances then decide
_COLUMNS = ["id", "number", "camera", "time", "added", "person", "metadata"]


def open_milvus(
    uri: str,
    collection: str,
    token: str,
    wanted: Mapping[str, Any],
    clock: Callable[[], float],
    read_only: bool,
) -> MilvusStorage:
    """Connect, and make the gallery where there is none and enough is known to make one.

    Raises:
        MissingExtraError: The package is not installed.
        GalleryError: Milvus refuses, or there is no such gallery.
        SaveError: The folder cannot be written.
    """
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise MissingExtraError(
            "storage='milvus' needs pymilvus; install it with: pip install 'tfclip[milvus]'"
        ) from error
    if "://" not in uri:
        folder = Path(uri)
        if not folder.exists() and (read_only or not names_something(wanted)):
            raise GalleryError(f"there is no gallery in {folder}; dim= or model= makes one")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f"cannot write {folder}: {error.strerror}") from error
        uri = str(folder / "milvus.db")
    with _failures(uri):
        client = MilvusClient(uri=uri, token=token)
    return MilvusStorage(client, uri, collection, wanted, clock, read_only)


class MilvusStorage:
    """Entries in a collection of Milvus, and what the gallery is in another.

    Milvus proposes the candidates; their distances are computed here in float64 from the vectors
    that it returns. What is safe when is Milvus's own: see ``docs/gallery.md``.

    Args:
        client: A ``pymilvus.MilvusClient``.
        uri: Where it is.
        collection: The name of the collection.
        wanted: Fields of the description, if the gallery is to be made.
        clock: Gives the time in seconds since 1970.
        read_only: Never write.
    """

    def __init__(
        self,
        client: Any,
        uri: str,
        collection: str,
        wanted: Mapping[str, Any],
        clock: Callable[[], float],
        read_only: bool,
    ) -> None:
        self._client = client
        self._uri = uri
        self._name = collection
        self._about = f"{collection}_about"
        self._clock = clock
        self._read_only = read_only
        self._mutex = threading.RLock()
        self._closed = False
        self._is_lite = "://" not in uri
        self._pending = 0  # entries that were added since the last flush
        with _failures(uri):
            if not client.has_collection(self._about):
                if read_only or not names_something(wanted):
                    raise GalleryError(
                        f"there is no gallery {collection} in {uri}; dim= or model= makes one"
                    )
                self._make_about(Description(**wanted))
            client.load_collection(self._about)
            if client.has_collection(self._name):
                client.load_collection(self._name)

    @property
    def description(self) -> Description:
        """What the gallery is."""
        with _failures(self._uri):
            rows = self._client.query(
                self._about, filter='id == "gallery"', output_fields=["description"]
            )
        if not rows:
            raise GalleryError(f"{self._uri} is damaged: {self._about} is empty")
        fields = json.loads(rows[0]["description"])
        return Description(**{**fields, "fields": tuple(fields["fields"])})

    def count(self) -> int:
        """Return how many entries there are that have not expired."""
        if not self._has_entries():
            return 0
        with _failures(self._uri):
            found = self._client.query(
                self._name, filter=self._filter(()), output_fields=["count(*)"]
            )
        return int(found[0]["count(*)"])

    def add(self, new: NewEntries, replace: bool) -> tuple[str, ...]:
        """Add entries; they are in Milvus when this returns."""
        self._check_writable()
        with self._mutex, _failures(self._uri):
            description = self.description
            check_width(description, new.vectors.shape[1])
            if not self._has_entries():
                self._make_entries(new.vectors.shape[1])
            first = description.next_number
            ids = new.ids or make_ids(None, len(new.vectors), first)
            self._check_ids(ids, replace)
            # First of all, so that no number is given twice whatever happens in between.
            self.describe(
                width=new.vectors.shape[1],
                fields=tuple(dict.fromkeys((*description.fields, *new.metadata))),
                next_number=first + len(ids),
            )
            entries = new.numbered(ids, first, self._clock())
            for start in range(0, len(ids), _BATCH):
                rows = range(start, min(start + _BATCH, len(ids)))
                self._client.upsert(self._name, [_row(entries, row) for row in rows])
            self._pending += len(ids)
            if self._is_lite and self._pending >= _PENDING:
                self.save()
        return ids

    def _check_ids(self, ids: tuple[str, ...], replace: bool) -> None:
        for id_ in ids:
            if len(id_.encode()) > _ID_LENGTH:
                raise GalleryError(f"Milvus takes ids of up to {_ID_LENGTH} bytes, got {id_!r}")
        if replace:
            return
        for start in range(0, len(ids), _BATCH):
            found = self._client.query(
                self._name,
                filter=self._filter(({"id": list(ids[start : start + _BATCH])},)),
                output_fields=["id"],
            )
            if found:
                raise GalleryError(
                    f"the gallery already has an entry {found[0]['id']!r}; "
                    "replace=True puts the new one in its place"
                )

    def search(self, query: Query) -> Nearest:
        """Return the nearest entries of each query."""
        if query.k > _LARGEST_K - _SPARE:
            raise ValueError(f"k must be at most {_LARGEST_K - _SPARE} in Milvus, got {query.k}")
        count, description = len(query.vectors), self.description
        best = Best(count, query.k)
        if not self._has_entries():
            return Nearest(no_entries(description.width), best.rows, best.distances)
        found: dict[int, dict[str, Any]] = {}
        shared = self._filter(query.conditions)
        if query.exclude_cameras:
            shared += f" and (camera is null or camera not in {list(query.exclude_cameras)})"
        cameras = [None] * count if query.cameras is None else query.cameras.tolist()
        for camera in dict.fromkeys(cameras):
            queries = [q for q, own in enumerate(cameras) if own == camera]
            text = shared
            if camera is not None:
                text += f" and (camera is null or camera != {camera})"
            self._search_some(np.array(queries), text, query, best, found)
        entries = _entries(list(found.values()), description)
        order = np.array(list(found), dtype=np.int64)
        sorter = np.argsort(order)
        places = np.full(best.rows.shape, UNKNOWN, dtype=np.int64)
        known = best.rows != UNKNOWN
        places[known] = sorter[np.searchsorted(order, best.rows[known], sorter=sorter)]
        return Nearest(entries, places, best.distances)

    def _search_some(
        self,
        queries: np.ndarray,
        text: str,
        query: Query,
        best: Best,
        found: dict[int, dict[str, Any]],
    ) -> None:
        """Offer what Milvus finds for queries with one filter."""
        with _failures(self._uri):
            answers = self._client.search(
                self._name,
                data=query.vectors[queries].tolist(),
                filter=text,
                limit=query.k + _SPARE,
                output_fields=[*_COLUMNS, "vector"],
            )
        for q, answer in zip(queries.tolist(), answers, strict=True):
            own = None if query.ids is None else query.ids[q]
            rows = [dict(hit["entity"]) for hit in answer]
            rows = [row for row in rows if row["id"] != own]
            if not rows:
                continue
            vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
            numbers = np.array([row["number"] for row in rows], dtype=np.int64)
            found.update(zip(numbers.tolist(), rows, strict=True))
            distances = squared_distances(query.vectors[q], vectors)
            best.offer(np.full(len(rows), q), numbers, distances)

    def entries(self, conditions: tuple[Where, ...], vectors: bool = True) -> Entries:
        """Return the entries that fulfil all conditions, in the order they were added."""
        description = self.description
        rows: list[dict[str, Any]] = []
        if self._has_entries():
            with _failures(self._uri):
                for batch in self._batches(self._filter(conditions), vectors):
                    rows += batch
        rows.sort(key=lambda row: row["number"])
        return _entries(rows, description, vectors)

    def _batches(self, text: str, vectors: bool) -> Iterator[list[dict[str, Any]]]:
        """Yield all that a filter lets through, though Milvus returns only so many at a time."""
        columns = [*_COLUMNS, "vector"] if vectors else _COLUMNS
        ranges = [(0, self.description.next_number)]
        while ranges:
            low, high = ranges.pop()
            rows = self._client.query(
                self._name,
                filter=f"({text}) and number >= {low} and number < {high}",
                output_fields=columns,
                limit=_LARGEST_BATCH,
            )
            if len(rows) < _LARGEST_BATCH or high - low == 1:
                yield [dict(row) for row in rows]
            else:
                middle = (low + high) // 2
                ranges += [(low, middle), (middle, high)]

    def forget(self, conditions: tuple[Where, ...]) -> int:
        """Remove entries from all results; Milvus takes them off the disk when it compacts."""
        self._check_writable()
        with self._mutex:
            entries = self.entries(conditions, vectors=False)
            self._delete(entries.ids)
            self.compact()
        return len(entries)

    def compact(self) -> int:
        """Delete what has expired and ask Milvus to tidy up; return how many expired."""
        self._check_writable()
        description = self.description
        if not self._has_entries():
            return 0
        with self._mutex, _failures(self._uri):
            expired = ()
            if description.ttl is not None:
                oldest = self._clock() - description.ttl
                batches = self._batches(f"added <= {oldest!r}", vectors=False)
                expired = tuple(row["id"] for batch in batches for row in batch)
                self._delete(expired)
            self._client.flush(self._name)
            self._client.compact(self._name)
        return len(expired)

    def _delete(self, ids: tuple[str, ...]) -> None:
        with _failures(self._uri):
            for start in range(0, len(ids), _BATCH):
                self._client.delete(self._name, ids=list(ids[start : start + _BATCH]))

    def describe(self, **changes: Any) -> None:
        """Change what the gallery is said to be."""
        self._check_writable()
        with self._mutex:
            self._write_about(dataclasses.replace(self.description, **changes))

    def save(self) -> None:
        """Have Milvus write what it holds in memory."""
        if not self._read_only and self._has_entries():
            with _failures(self._uri):
                self._client.flush(self._name)
            self._pending = 0

    def about(self) -> dict[str, object]:
        """Return where Milvus is and the collection's name."""
        return {"uri": self._uri, "collection": self._name}

    def close(self) -> None:
        """Write out and disconnect; a second time does nothing."""
        if not self._closed:
            self.save()
            self._client.close()
            self._closed = True

    def _has_entries(self) -> bool:
        with _failures(self._uri):
            return bool(self._client.has_collection(self._name))

    def _check_writable(self) -> None:
        if self._read_only:
            raise GalleryError(f"{self._uri} was opened to read only")

    def _make_about(self, description: Description) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_ID_LENGTH)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one everywhere
        schema.add_field("description", DataType.VARCHAR, max_length=_TEXT_LENGTH)
        self._make_collection(self._about, schema)
        self._write_about(description)

    def _write_about(self, description: Description) -> None:
        row = {
            "id": "gallery",
            "vector": [0.0, 0.0],
            "description": json.dumps(dataclasses.asdict(description)),
        }
        with _failures(self._uri):
            self._client.upsert(self._about, [row])

    def _make_entries(self, width: int) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_ID_LENGTH)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
        schema.add_field("number", DataType.INT64)
        schema.add_field("camera", DataType.INT64, nullable=True)
        schema.add_field("time", DataType.DOUBLE, nullable=True)
        schema.add_field("added", DataType.DOUBLE)
        schema.add_field("person", DataType.VARCHAR, max_length=_TEXT_LENGTH, nullable=True)
        schema.add_field("metadata", DataType.JSON)
        self._make_collection(self._name, schema)
        self._client.load_collection(self._name)

    def _make_collection(self, name: str, schema: Any) -> None:
        parameters = self._client.prepare_index_params()
        # For vectors of length 1 the inner product orders as the distance does; Milvus Lite holds
        # every difference of two vectors in memory to compute the latter.
        parameters.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        self._client.create_collection(
            name, schema=schema, index_params=parameters, consistency_level="Strong"
        )

    def _filter(self, conditions: tuple[Where, ...]) -> str:
        """Return what Milvus is to filter by: what is alive and fulfils all conditions."""
        ttl = self.description.ttl
        texts = ["number >= 0" if ttl is None else f"added > {self._clock() - ttl!r}"]
        for condition in conditions:
            texts += [f"({text})" for text in _expressions(condition)]
        return " and ".join(texts)


@contextlib.contextmanager
def _failures(uri: str) -> Iterator[None]:
    """Turn what Milvus raises into one sentence."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        raise GalleryError(f"Milvus at {uri} failed: {' '.join(str(error).split())}") from error


def _expressions(where: Where) -> list[str]:
    if callable(where):
        raise ValueError("where must be a mapping for Milvus, which cannot call a function")
    return [_expression(name, condition) for name, condition in where.items()]


def _expression(name: str, condition: Condition) -> str:
    if name in ("time", "added"):
        condition = plain_times(condition, name)
    if name == "person":
        condition = person_texts(condition)
    known = name in ("id", "camera", "time", "added", "person")
    field = name if known else f"metadata[{json.dumps(name)}]"
    if isinstance(condition, Between):
        ends = ((">=", condition.low), ("<=", condition.high))
        texts = [f"{field} {sign} {_literal(end)}" for sign, end in ends if end is not None]
        return " and ".join(texts) or _known(field, known)
    if condition is None or isinstance(condition, str | int | float):
        condition = [condition]
    texts = []
    if None in condition:
        if not known:
            raise ValueError(f"where cannot ask Milvus for unknown {name!r}")
        texts.append(f"{field} is null")
    values = [value for value in condition if value is not None]
    if known and values:
        texts.append(f"{field} in [{', '.join(map(_literal, values))}]")
    elif values:  # Milvus Lite knows "in" for fields alone
        texts += [f"{field} == {_literal(value)}" for value in values]
    return " or ".join(texts) or f"{_COLUMNS[1]} < 0"


def _known(field: str, is_column: bool) -> str:
    return f"{field} is not null" if is_column else f"exists {field}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _row(entries: Entries, row: int) -> dict[str, Any]:
    camera, moment = int(entries.cameras[row]), float(entries.times[row])
    return {
        "id": entries.ids[row],
        "vector": entries.vectors[row].tolist(),
        "number": int(entries.numbers[row]),
        "camera": None if camera == UNKNOWN else camera,
        "time": None if np.isnan(moment) else moment,
        "added": float(entries.added[row]),
        "person": entries.persons[row],
        "metadata": entries.metadata_of(row),
    }


def _entries(rows: list[dict[str, Any]], description: Description, vectors: bool = True) -> Entries:
    if not rows:
        return no_entries(description.width)
    parsed = [row["metadata"] for row in rows]
    metadata = [json.loads(value) if isinstance(value, str) else value for value in parsed]
    known = {key: Values.of(m.get(key) for m in metadata) for key in description.fields}
    cameras = [UNKNOWN if row["camera"] is None else row["camera"] for row in rows]
    times = [np.nan if row["time"] is None else row["time"] for row in rows]
    wide = [row["vector"] for row in rows] if vectors else np.empty((len(rows), 0))
    return Entries(
        vectors=np.array(wide, dtype=np.float32),
        numbers=np.array([row["number"] for row in rows], dtype=np.int64),
        ids=tuple(row["id"] for row in rows),
        cameras=np.array(cameras, dtype=np.int64),
        times=np.array(times, dtype=np.float64),
        added=np.array([row["added"] for row in rows], dtype=np.float64),
        persons=Values.of(row["person"] for row in rows),
        metadata={key: column for key, column in known.items() if column.different},
    )
