"""One collection of Milvus: made, loaded, divided, written and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfclip.errors import GalleryError
from tfclip.gallery.milvus_rows import failures, id_filter

_BATCH = 1_000  # entries in one request
_LARGEST_BATCH = 4_096  # entries returned at once
_LAST = 2**63 - 1  # of an integer


class MilvusCollection:
    """A collection, in which every failure of Milvus is one sentence.

    Wherever partitions are given, None stands for all of them.

    Args:
        client: A ``pymilvus.MilvusClient``.
        uri: Where it is.
        name: The name of the collection.
        is_lite: Whether it is Milvus Lite.
    """

    def __init__(self, client: Any, uri: str, name: str, is_lite: bool) -> None:
        self._client = client
        self._uri = uri
        self.name = name
        self._is_lite = is_lite
        self._is_made = False

    def exists(self) -> bool:
        """Tell whether there is such a collection; once it is there, nobody is asked again."""
        if not self._is_made:
            with failures(self._uri):
                self._is_made = bool(self._client.has_collection(self.name))
        return self._is_made

    def make(self, add_fields: Callable[[Any], None], num_shards: int | None = None) -> None:
        """Make the collection.

        Args:
            add_fields: Adds the fields to a schema.
            num_shards: In how many parts Milvus takes entries; None leaves that to it.
        """
        with failures(self._uri):
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            add_fields(schema)
            parameters = self._client.prepare_index_params()
            # For vectors of length 1 the inner product orders as the distance does; Milvus Lite
            # holds every difference of two vectors in memory to compute the latter.
            parameters.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
            self._client.create_collection(
                self.name,
                schema=schema,
                index_params=parameters,
                consistency_level="Strong",
                **({} if num_shards is None else {"num_shards": num_shards}),
            )

    def check_shards(self, wanted: int | None) -> None:
        """Refuse a collection of another number of shards.

        Raises:
            GalleryError: It has another number.
        """
        if wanted is None:
            return
        with failures(self._uri):
            found = self._client.describe_collection(self.name)["num_shards"]
        if found != wanted:
            raise GalleryError(
                f"{self.name} in {self._uri} has num_shards={found}, not {wanted}; it is fixed "
                "when the gallery is made"
            )

    def load(self, replicas: int | None = None) -> None:
        """Have Milvus load the collection; one that is loaded stays as it is without ``replicas``.

        Raises:
            GalleryError: Milvus refuses so many replicas, or does not make them.
        """
        from pymilvus.client.types import LoadState

        with failures(self._uri):
            if replicas is None:
                if self._client.get_load_state(self.name)["state"] != LoadState.Loaded:
                    self._client.load_collection(self.name)
                return
            self._client.load_collection(self.name, replica_number=replicas)
            found = len(self._client.describe_replica(self.name))
        if found != replicas:
            raise GalleryError(
                f"{self.name} in {self._uri} has replica_number={found}, not {replicas}"
            )

    def partitions(self) -> list[str]:
        """Return the names of all partitions."""
        with failures(self._uri):
            return list(self._client.list_partitions(self.name))

    def make_partitions(self, names: Iterable[str]) -> None:
        """Make those partitions that are missing."""
        from pymilvus import MilvusException

        with failures(self._uri):
            for name in sorted(set(names) - set(self.partitions())):
                try:
                    self._client.create_partition(self.name, name)
                except MilvusException:  # unless somebody else was faster
                    if not self._client.has_partition(self.name, name):
                        raise

    def drop_partition(self, name: str) -> None:
        """Drop a partition with all that it holds."""
        with failures(self._uri):
            if not self._is_lite:  # which does not load them singly; a server drops none loaded
                self._client.release_partitions(self.name, [name])
            self._client.drop_partition(self.name, name)

    def upsert(self, rows: Sequence[dict[str, Any]], partition: str = "") -> None:
        """Put rows into a partition, each in the place of one with its id there."""
        with failures(self._uri):
            self._client.upsert(self.name, list(rows), partition_name=partition)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows, in all partitions."""
        with failures(self._uri):
            for start in range(0, len(ids), _BATCH):
                self._client.delete(self.name, ids=list(ids[start : start + _BATCH]))

    def look_up(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        """Return the rows with some ids, in no order."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(ids), _BATCH):
            rows += self.query(id_filter(ids[start : start + _BATCH]), columns)
        return rows

    def query(
        self, text: str, columns: list[str], partitions: list[str] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Return the rows that a filter lets through, as many as Milvus returns at once."""
        if partitions == []:
            return []  # an empty list would mean all of them
        with failures(self._uri):
            rows = self._client.query(
                self.name, text, output_fields=columns, partition_names=partitions, **options
            )
        return [dict(row) for row in rows]

    def count(self, text: str, partitions: list[str] | None = None) -> int:
        """Return how many rows a filter lets through."""
        rows = self.query(text, ["count(*)"], partitions)
        return int(rows[0]["count(*)"]) if rows else 0

    def batches(
        self, text: str, columns: list[str], end: int, partitions: list[str] | None = None
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield all that a filter lets through, though Milvus returns only so many at a time.

        Args:
            text: The filter.
            columns: What to return of each row.
            end: Above the ``number`` of nearly every row.
            partitions: Where to look.
        """
        ranges = [(end, _LAST), (0, end)]  # another writer may be beyond the end already
        while ranges:
            low, high = ranges.pop()
            numbers = f"number >= {low} and number < {high}"
            rows = self.query(f"({text}) and {numbers}", columns, partitions, limit=_LARGEST_BATCH)
            if len(rows) < _LARGEST_BATCH or high - low == 1:
                yield rows
            else:
                middle = (low + high) // 2
                ranges += [(low, middle), (middle, high)]

    def search(
        self,
        vectors: np.ndarray,
        text: str,
        limit: int,
        columns: list[str],
        partitions: list[str] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Return for each vector the rows that Milvus finds nearest, of those let through."""
        if partitions == []:
            return [[] for _ in vectors]
        with failures(self._uri):
            answers = self._client.search(
                self.name,
                data=vectors.tolist(),
                filter=text,
                limit=limit,
                output_fields=columns,
                partition_names=partitions,
            )
        return [[dict(hit["entity"]) for hit in answer] for answer in answers]

    def flush(self) -> None:
        """Have Milvus write what it holds in memory."""
        with failures(self._uri):
            self._client.flush(self.name)

    def compact(self) -> None:
        """Ask Milvus to tidy up its files."""
        with failures(self._uri):
            self._client.compact(self.name)
