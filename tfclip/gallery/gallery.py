"""The gallery as its user sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from tfclip.gallery.asking import (
    Rerank,
    check_counts,
    doomed,
    excluded_cameras,
    find_reranker,
    own_cameras,
    own_ids,
    rerank_each,
    within,
)
from tfclip.gallery.conditions import Where, check_where
from tfclip.gallery.entries import (
    UNKNOWN,
    Entries,
    check_ids,
    make_cameras,
    make_ids,
    make_metadata,
    make_persons,
    make_times,
    unit_rows,
)
from tfclip.gallery.opening import (
    IndexName,
    MilvusOptions,
    StorageName,
    check_maker,
    check_options,
    check_ttl,
    check_wanted,
    open_folder,
    wanted_description,
)
from tfclip.gallery.query import NewEntries, Query, SearchResult, Storage
from tfclip.gallery.tables import Imported, Marks, import_file, to_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tfclip.data.embeddings import EmbeddingTable


class Gallery:
    """Embeddings of people that come and go: added, searched and forgotten.

    ``Gallery.open`` makes one. Vectors are kept at length 1; distances are squared Euclidean,
    which then is 2 - 2 cos, from 0 to 4; smaller is nearer. Several threads may use one gallery,
    and several processes one folder.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> gallery = Gallery.open(f"{folder.name}/people", dim=2)
        >>> gallery.add(np.eye(2), cameras=[0, 1], persons=["7", None])
        ['0', '1']
        >>> gallery.search(np.array([[3.0, 0.0]]), k=2).distances
        [[0.0, 2.0]]
        >>> gallery.forget(person="7"), len(gallery)
        (1, 1)
        >>> folder.cleanup()
    """

    def __init__(self, storage: Storage, name: str, kind: str) -> None:
        self._storage = storage
        self._name = name
        self._kind = kind

    @classmethod
    def open(
        cls,
        path_or_uri: str | Path,
        *,
        storage: StorageName | None = None,
        dim: int | None = None,
        model: str | nn.Module | None = None,
        revision: str | None = None,
        fingerprint: str | None = None,
        ttl: float | None = None,
        index: IndexName = "hnsw",
        read_only: bool = False,
        timeout: float = 10,
        verify: bool = True,
        collection: str = "tfclip",
        token: str = "",
        partition: str | None = None,
        num_shards: int | None = None,
        replica_number: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open a gallery; make it where there is none and ``dim`` or ``model`` is given.

        Args:
            path_or_uri: A folder, or for Milvus a folder (Milvus Lite) or the address of a server.
            storage: ``"exact"``, the default for a folder, compares with every entry. ``"faiss"``
                (extra ``index``) searches the same files with an index that it makes from them.
                ``"milvus"`` (extra ``milvus``) is the default for an address.
            dim: Width of the vectors.
            model: The name of the model that makes the vectors; or the model, whose fingerprint
                and width are taken.
            revision: The model's revision.
            fingerprint: ``model_fingerprint`` of the model.
            ttl: Seconds for which an entry is kept, from when it was added; fixed when the gallery
                is made, and changed by ``set_ttl``. None keeps it until it is forgotten.
            index: FAISS's index: ``"flat"``, ``"hnsw"`` or ``"ivf"``.
            read_only: Never write to the folder.
            timeout: Seconds to wait for another process that is writing.
            verify: Compare every file with its checksum.
            collection: The gallery's name in Milvus.
            token: Milvus's token, or ``user:password``.
            partition: The field by which Milvus keeps entries apart: ``"camera"``; ``"time"`` or
                ``"added"``, by days; or a key of metadata, such as the site. Fixed when the gallery
                is made. A search that names values of it touches no other partition, and forgetting
                all of a value drops its partition.
            num_shards: In how many shards a Milvus server takes entries, fixed when the gallery is
                made; None leaves it to the server.
            replica_number: How many copies a Milvus server holds in memory to search them; None
                leaves it as it is.
            clock: Gives the time in seconds since 1970.

        Raises:
            GalleryError: There is none and neither ``dim`` nor ``model`` is given; it is damaged,
                of another model or width, locked, kept for another time, or partitioned otherwise;
                or Milvus fails.
            SaveError: The folder cannot be written.
            MissingExtraError: The package of the storage is not installed.
            ValueError: An argument is out of range, or is for another storage.
            TypeError: An argument is of a wrong kind.
        """
        uri = str(path_or_uri)
        storage = storage or ("milvus" if "://" in uri else "exact")
        milvus = MilvusOptions(collection, token, partition, num_shards, replica_number)
        check_options(uri, storage, index, milvus)
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        check_ttl(ttl)
        wanted = wanted_description(dim, model, revision, fingerprint, ttl)
        if storage == "milvus":
            from tfclip.gallery.milvus_storage import open_milvus

            opened = open_milvus(uri, milvus, wanted, clock, read_only)
        else:
            opened = open_folder(
                Path(path_or_uri), storage, index, wanted, read_only, timeout, verify, clock
            )
        gallery = cls(opened, uri, storage if storage != "faiss" else f"faiss {index}")
        check_wanted(uri, opened.description, wanted)
        return gallery

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Gallery cannot be pickled; open its folder in each process")

    def __len__(self) -> int:
        """Return how many entries there are; expired ones do not count."""
        return self._storage.count()

    @property
    def dim(self) -> int | None:
        """Width of the vectors; None before the first are added to a gallery made without."""
        return self._storage.description.width

    def add(
        self,
        embeddings: Tensor | np.ndarray,
        ids: Iterable[str] | None = None,
        cameras: Iterable[int | None] | None = None,
        times: Iterable[Any] | None = None,
        persons: Iterable[str | int | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        replace: bool = False,
    ) -> list[str]:
        """Add entries, all or none; in a folder they are on the disk when this returns.

        Many at once are much faster than one by one.

        Args:
            embeddings: ``(M, F)``, of any length but zero; they are kept in float32 at length 1.
            ids: A unique text for each; without, they are numbered.
            cameras: Camera numbers from 0, or None where unknown.
            times: Seconds, of whatever clock you use, or ``datetime``; None where unknown.
            persons: Who it is, where known; kept as text.
            metadata: For each a mapping of text to text, number, bool or None.
            replace: Put an entry whose id is there already in the old one's place, which is
                forgotten; otherwise it is an error.

        Returns:
            The ids.

        Raises:
            ValueError: The columns do not fit, or a value is out of range.
            TypeError: A value is of a wrong kind.
            GalleryError: An id is there already, or another process keeps writing.
            SaveError: The folder cannot be written; nothing was added.
        """
        vectors = unit_rows(embeddings, self.dim, "embeddings")
        count = len(vectors)
        new = NewEntries(
            vectors=vectors,
            ids=None if ids is None else make_ids(ids, count, 0),
            cameras=make_cameras(cameras, count),
            times=make_times(times, count),
            persons=make_persons(persons, count),
            metadata=make_metadata(metadata, count),
        )
        return list(self._storage.add(new, replace)) if count else []

    def add_table(
        self, table: EmbeddingTable, *, times: Iterable[Any] | None = None, replace: bool = False
    ) -> list[str]:
        """Add the rows of a file of embeddings under their names.

        An empty gallery that names no model takes the table's.

        Args:
            table: Made by the gallery's model.
            times: As in ``add``.
            replace: As in ``add``.

        Raises:
            GalleryError: Another model made the table, or as in ``add``.
        """
        self.take_maker(table)
        return self.add(
            table.embeddings,
            ids=table.names,
            cameras=table.cameras,
            times=times,
            persons=table.persons,
            replace=replace,
        )

    def lacking(self, ids: Sequence[str]) -> list[int]:
        """Tell which of some ids no entry has, without reading the others' entries.

        Args:
            ids: ``M`` texts.

        Returns:
            Their places among ``ids``, ascending.

        Raises:
            TypeError: It is no sequence of texts.
        """
        check_ids(ids)
        there = set(self._storage.find(ids, vectors=False).ids)
        return [place for place, id_ in enumerate(ids) if id_ not in there]

    def import_file(
        self,
        path: str | Path,
        *,
        metadata: Mapping[str, Any] | None = None,
        started: Any = None,
        frame_rate: float | None = None,
        replace: bool = False,
        progress: bool = False,
    ) -> Imported:
        """Add the rows of a file of embeddings of any size, some thousands at a time.

        Call it again after an interruption: what is there already is not added again. Of a
        ``.parquet`` one step is in memory, of a ``.safetensors`` all.

        Args:
            path: A file that ``tfclip encode`` or ``EmbeddingTable.save`` wrote, made by the
                gallery's model; an empty gallery that names no model takes the file's.
            metadata: Of every entry, for example the site.
            started: When the recording started, in seconds or as ``datetime``: a tracklet's time is
                that of its first frame. Without, times are unknown.
            frame_rate: Frames per second of the recording; goes with ``started``.
            replace: Put a row in the place of an entry of its name with another vector; otherwise
                that is an error.
            progress: Show a bar.

        Returns:
            How many rows were added, and how many were there already.

        Raises:
            TableError: The file cannot be read, or is damaged; what was added before stays.
            GalleryError: Another model made the file, or a name has another vector.
            ValueError: An argument is out of range; nothing was added.
            TypeError: An argument is of a wrong kind; nothing was added.
            SaveError: The folder cannot be written.
            MissingExtraError: ``.parquet`` without pyarrow.
        """
        marks = Marks.of(metadata, started, frame_rate)
        return import_file(self, self._storage, Path(path), marks, replace, progress)

    def search(
        self,
        queries: Tensor | np.ndarray | EmbeddingTable,
        k: int = 10,
        *,
        where: Where | None = None,
        exclude_cameras: Iterable[int] = (),
        exclude_same_camera: bool = False,
        exclude_same_id: bool = False,
        query_cameras: Sequence[int | None] | None = None,
        query_ids: Sequence[str | None] | None = None,
        time_window: tuple[Any, Any] | None = None,
        rerank: Rerank | None = None,
        rerank_candidates: int = 100,
    ) -> SearchResult:
        """Find the nearest entries of each query.

        Equal distances keep the order in which the entries were added. What any process has added
        or forgotten before the call is seen.

        Args:
            queries: ``(Q, F)``, or ``(F,)`` for one; or a table, which brings cameras and names.
            k: Entries to find for each; fewer where there are no more.
            where: For fields (id, camera, person, time, added, or a key of metadata) a value, a
                collection of values, or ``Between(low, high)``; all must hold, and None stands for
                unknown. Or a function of the columns, by field, that returns a mask ``(G,)``; it
                is called once for each segment.
            exclude_cameras: Leave out what these cameras saw.
            exclude_same_camera: Leave out what the query's own camera saw. Entries whose camera is
                unknown stay.
            exclude_same_id: Leave out the entry with the query's own id.
            query_cameras: Camera of each query.
            query_ids: Id of each query.
            time_window: Start and end, both included, each None where open. Entries whose time is
                unknown are left out.
            rerank: ``"k_reciprocal"``, with the defaults of ``functional.k_reciprocal_rerank``; or
                a function of one query ``(1, F)`` and its candidates ``(C, F)`` that returns
                distances ``(1, C)``. Each query is re-ranked among its own candidates, so that its
                result does not depend on the other queries.
            rerank_candidates: How many of the nearest are re-ranked.

        Raises:
            ValueError: An argument is out of range, or a camera or id that is needed is unknown.
            TypeError: A value is of a wrong kind.
            GalleryError: Another model made the table, or the gallery is damaged.
        """
        check_counts(k=k, rerank_candidates=rerank_candidates)
        if hasattr(queries, "embeddings"):
            table: Any = queries
            self.check_maker(table)
            queries = table.embeddings
            query_cameras = table.cameras if query_cameras is None else query_cameras
            query_ids = table.names if query_ids is None else query_ids
        vectors: Any = queries
        vectors = unit_rows(vectors[None] if vectors.ndim == 1 else vectors, self.dim, "queries")
        query = Query(
            vectors=vectors,
            k=k if rerank is None else max(k, rerank_candidates),
            conditions=self._conditions(where, time_window),
            exclude_cameras=excluded_cameras(exclude_cameras),
            cameras=own_cameras(query_cameras, len(vectors)) if exclude_same_camera else None,
            ids=own_ids(query_ids, len(vectors)) if exclude_same_id else None,
        )
        reranker = None if rerank is None else find_reranker(rerank)
        nearest = self._storage.search(query)
        if reranker is None:
            return SearchResult(nearest.matches())
        name = rerank if isinstance(rerank, str) else "reranked"
        return SearchResult(rerank_each(nearest, vectors, k, reranker).matches(), name)

    def entries(self, where: Where | None = None) -> Entries:
        """Return all that is kept of some entries, in the order in which they were added.

        Args:
            where: As in ``search``.

        Raises:
            ValueError: ``where`` names a field that does not exist.
        """
        return self._storage.entries(self._conditions(where, None))

    def to_table(self, where: Where | None = None) -> EmbeddingTable:
        """Return entries as a table of embeddings; times and metadata have no place in it.

        Args:
            where: As in ``search``.

        Raises:
            TableError: There is no such entry.
        """
        return to_table(self.entries(where), self._storage.description)

    def forget(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        person: str | int | None = None,
        camera: int | None = None,
        before: Any = None,
        added_before: Any = None,
        where: Where | None = None,
    ) -> int:
        """Remove entries for good; all that is given must hold.

        In a folder, no file holds their vectors, ids or metadata any more when this returns. With
        Milvus they are never found again, and leave the disk when Milvus compacts its files.

        Args:
            ids: One id, or several; unknown ones are no error.
            person: Entries of this person.
            camera: Entries of this camera.
            before: Entries whose time is earlier; those whose time is unknown stay.
            added_before: Entries that were added earlier, in seconds since 1970 or as ``datetime``.
            where: As in ``search``.

        Returns:
            How many entries were removed.

        Raises:
            ValueError: Nothing is given, or ``where`` names a field that does not exist.
            GalleryError: Another process keeps writing.
            SaveError: The folder cannot be written.
        """
        conditions = doomed(ids, person, camera, before, added_before)
        if not conditions and where is None:
            raise ValueError("forget must be told what: ids, person, camera, before or where")
        return self._storage.forget((conditions, *self._conditions(where, None)))

    def set_ttl(self, ttl: float | None) -> None:
        """Change for how many seconds entries are kept, those that are there included.

        Raises:
            ValueError: Not above 0.
        """
        check_ttl(ttl)
        self._storage.describe(ttl=ttl)

    def compact(self) -> int:
        """Remove expired entries from the disk and join small files; return how many expired."""
        return self._storage.compact()

    def save(self) -> None:
        """Write the index of FAISS beside the entries, so that the next opening is faster.

        Entries need no saving: they are on the disk when ``add`` returns.
        """
        self._storage.save()

    def close(self) -> None:
        """Save, and let go of files and connections."""
        self._storage.close()

    def info(self) -> dict[str, Any]:
        """Return what the gallery is, and how many entries, persons and cameras it has."""
        description = self._storage.description
        entries = self._storage.entries((), vectors=False)
        cameras = np.unique(entries.cameras[entries.cameras != UNKNOWN])
        known = entries.times[~np.isnan(entries.times)]
        return {
            "name": self._name,
            "storage": self._kind,
            "entries": len(entries),
            "dim": description.width,
            "model": description.model,
            "revision": description.revision,
            "fingerprint": description.fingerprint,
            "ttl": description.ttl,
            "persons": len(entries.persons.different),
            "cameras": cameras.tolist(),
            "times": (float(known.min()), float(known.max())) if len(known) else None,
            "fields": list(description.fields),
            **self._storage.about(),
        }

    def _conditions(self, where: Where | None, window: Any) -> tuple[Where, ...]:
        check_where(where, self._storage.description.fields)
        conditions = () if where is None else (where,)
        return conditions if window is None else (*conditions, within(window))

    def take_maker(self, table: Any) -> None:
        """Make a table's model that of an empty gallery that names none; else ``check_maker``."""
        description = self._storage.description
        if not (description.fingerprint or description.model or description.next_number):
            self._storage.describe(
                model=table.model, revision=table.revision, fingerprint=table.fingerprint
            )
        self.check_maker(table)

    def check_maker(self, table: Any) -> None:
        """Refuse embeddings of another model than the gallery's.

        Args:
            table: A table, or anything with its ``model``, ``revision`` and ``fingerprint``.

        Raises:
            GalleryError: Another model made them.
        """
        check_maker(self._name, self._storage.description, table)
