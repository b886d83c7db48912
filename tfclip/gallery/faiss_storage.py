"""A gallery in a folder, searched with an index of FAISS."""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from tfclip.errors import MissingExtraError, SaveError
from tfclip.files import replace_when_done
from tfclip.gallery.disk import DiskStorage, row_of
from tfclip.gallery.exact import Best, squared_distances
from tfclip.gallery.journal import Journal, Snapshot
from tfclip.gallery.query import Query

_FEW = 20_000  # entries that are compared one by one rather than looked up
_SPARSE = 0.1  # of the entries: with fewer than that to find, a graph finds too few
_SPARE = 16  # candidates beyond k, whose exact distances then decide
_DEAD = 0.2  # of a graph, which cannot forget: with more forgotten entries it is built anew
_GROWTH = 4  # of a gallery, after which its centroids are trained anew
_PER_LIST = 64  # entries for each centroid, of which FAISS wants at least 39 to train it
_CHECKSUM = 64  # hexadecimal digits behind the index in its file

_logger = logging.getLogger(__name__)


def check_faiss() -> Any:
    """Return the package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            "storage='faiss' needs faiss; install it with: pip install 'tfclip[index]'"
        ) from error
    return faiss


class FaissStorage(DiskStorage):
    """Entries of a journal, looked up in an index that is made from them.

    The index only proposes: distances are computed from the entries, and what is forgotten is
    never found. It can be made again at any time, so it needs no safety of its own: where its file
    is missing or damaged, or lacks entries, they are put in when the gallery is next searched.

    Args:
        journal: The files.
        clock: Gives the time in seconds since 1970.
        kind: ``"flat"``, ``"hnsw"`` or ``"ivf"``.
    """

    def __init__(self, journal: Journal, clock: Callable[[], float], kind: str) -> None:
        super().__init__(journal, clock)
        self._faiss = check_faiss()
        self._kind = kind
        self._index: Any = None
        self._numbers = np.empty(0, dtype=np.int64)  # of the entries in the index, ascending
        self._trained_on = 0
        self._path = journal.folder / f"faiss-{kind}.index"
        self._saved: bytes | None = None
        self._synced = b"", self._numbers  # the gallery.json that the index is up to, its numbers

    def _search(self, snapshot: Snapshot, masks: list[np.ndarray], query: Query) -> Best:
        mask = np.concatenate([*masks, np.empty(0, dtype=bool)])
        best = Best(len(query.vectors), query.k)
        if query.cameras is None:
            groups = [(np.arange(len(query.vectors)), mask)]
        else:
            cameras = np.concatenate([s.entries.cameras for s in snapshot.segments] or [mask])
            groups = [
                (np.flatnonzero(query.cameras == camera), mask & (cameras != camera))
                for camera in np.unique(query.cameras)
            ]
        exact = [np.empty(0, dtype=np.int64)]
        for queries, allowed in groups:
            exact.append(self._look_up(snapshot, queries, allowed, query, best))
        rest = np.concatenate(exact)
        if len(rest):
            part = Query(
                query.vectors[rest],
                query.k,
                cameras=None if query.cameras is None else query.cameras[rest],
                ids=None if query.ids is None else tuple(query.ids[q] for q in rest),
            )
            found = super()._search(snapshot, masks, part)
            best.rows[rest], best.distances[rest] = found.rows, found.distances
        return best

    def _look_up(
        self,
        snapshot: Snapshot,
        queries: np.ndarray,
        allowed: np.ndarray,
        query: Query,
        best: Best,
    ) -> np.ndarray:
        """Offer what the index finds for some queries; return those that need all entries read."""
        count = int(np.count_nonzero(allowed))
        if count <= max(_FEW, _SPARSE * len(allowed), query.k + _SPARE):
            return queries
        with self.journal.mutex:  # an index that grows must not be searched
            live = self._sync(snapshot)
            wanted = query.k + _SPARE
            selector = self._selector(live[allowed])
            parameters = self._parameters(selector, wanted)
            _, numbers = self._index.search(query.vectors[queries], wanted, params=parameters)
        rows = np.searchsorted(live, numbers)
        own = np.full(len(queries), -1)
        if query.ids is not None:
            own = self._own_rows(snapshot, [query.ids[q] for q in queries])
        valid = (numbers >= 0) & (rows != own[:, None])
        enough = valid.sum(axis=1) >= query.k
        place, column = np.nonzero(valid & enough[:, None])
        rows = rows[place, column]
        vectors = self._vectors(snapshot, rows)
        distances = squared_distances(query.vectors[queries[place]], vectors)
        best.offer(queries[place], rows, distances)
        return queries[~enough]

    def _own_rows(self, snapshot: Snapshot, ids: list[str | None]) -> np.ndarray:
        return np.array([row_of(snapshot.segments, id_) for id_ in ids], dtype=np.int64)

    def _vectors(self, snapshot: Snapshot, rows: np.ndarray) -> np.ndarray:
        vectors = np.empty((len(rows), snapshot.description.width or 0), dtype=np.float32)
        offset = 0
        for segment in snapshot.segments:
            inside = (rows >= offset) & (rows < offset + len(segment.entries))
            vectors[inside] = segment.entries.vectors[rows[inside] - offset]
            offset += len(segment.entries)
        return vectors

    def _selector(self, numbers: np.ndarray) -> Any:
        """Return what tells the index which entries may be found."""
        if len(numbers) == len(self._numbers):
            return None
        bits = np.zeros(int(self._numbers[-1]) + 1, dtype=bool)
        bits[numbers] = True
        return self._faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))

    def _parameters(self, selector: Any, wanted: int) -> Any:
        if self._kind == "hnsw":
            effort = max(128, 2 * wanted)
            return self._faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
        if self._kind == "ivf":
            lists = self._faiss.extract_index_ivf(self._index).nlist
            return self._faiss.SearchParametersIVF(sel=selector, nprobe=max(8, lists // 16))
        return self._faiss.SearchParameters(sel=selector)

    def _sync(self, snapshot: Snapshot) -> np.ndarray:
        """Bring the index up to the entries; return the number of each."""
        if snapshot.written == self._synced[0]:
            return self._synced[1]
        live = np.concatenate([segment.entries.numbers for segment in snapshot.segments])
        if self._index is None:
            self._load(snapshot.description.width or 0)
        stale = self._index is None
        dead = np.setdiff1d(self._numbers, live, assume_unique=True)
        if len(dead) and self._kind == "hnsw":
            stale |= len(dead) > _DEAD * len(self._numbers)
        elif len(dead):
            index: Any = self._index
            index.remove_ids(dead)
            self._numbers = np.setdiff1d(self._numbers, dead, assume_unique=True)
        if self._kind == "ivf":
            stale |= len(live) > _GROWTH * self._trained_on
        if stale:
            self._index = self._build(snapshot, live)
        last = self._numbers[-1] if len(self._numbers) else -1
        for segment in snapshot.segments:
            entries = segment.entries
            if len(entries) and entries.numbers[-1] > last:
                new = np.searchsorted(entries.numbers, last, side="right")
                index = self._index
                index.add_with_ids(entries.vectors[new:], entries.numbers[new:])
                self._numbers = np.concatenate([self._numbers, entries.numbers[new:]])
        self._synced = snapshot.written, live
        return live

    def _build(self, snapshot: Snapshot, live: np.ndarray) -> Any:
        """Return an empty index, trained where it has to be."""
        faiss = self._faiss
        width = snapshot.description.width or 0
        if self._kind == "hnsw":
            index = faiss.IndexHNSWFlat(width, 32)
            index.hnsw.efConstruction = 80
        elif self._kind == "ivf":
            lists = max(1, min(len(live) // _PER_LIST, round(4 * math.sqrt(len(live)))))
            index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
            step = max(1, len(live) // (lists * _PER_LIST))
            index.train(self._vectors(snapshot, np.arange(0, len(live), step)))
        else:
            index = faiss.IndexFlatL2(width)
        self._numbers = np.empty(0, dtype=np.int64)
        self._trained_on = len(live)
        return index if self._kind == "ivf" else faiss.IndexIDMap(index)

    def _load(self, width: int) -> None:
        """Read the index from its file, unless that is damaged."""
        try:
            with self._path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # there is none, or it is empty
            if self._path.exists():
                _logger.warning("%s is damaged: the index is made anew", self._path)
            return
        with mapped, memoryview(mapped) as view, view[:-_CHECKSUM] as data:
            whole = hashlib.sha256(data).hexdigest().encode() == view[-_CHECKSUM:].tobytes()
        if not whole:
            _logger.warning("%s is damaged: the index is made anew", self._path)
            return
        index = self._faiss.read_index(str(self._path))  # it does not look at what follows
        if index.d != width:
            return
        if self._kind == "ivf":
            lists = self._faiss.extract_index_ivf(index).invlists
            parts = [
                self._faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)).copy()
                for i in range(lists.nlist)
                if lists.list_size(i)
            ]
            self._numbers = np.sort(np.concatenate(parts)) if parts else self._numbers
        else:
            self._numbers = self._faiss.vector_to_array(index.id_map)
        self._index = index
        self._trained_on = len(self._numbers)

    def save(self) -> None:
        """Write the index, without any entry that was forgotten."""
        if self.journal.read_only or self._index is None:
            return
        with self.journal.writing() as snapshot:
            if snapshot.written == self._saved or not len(snapshot):
                return
            live = self._sync(snapshot)
            if len(live) != len(self._numbers):  # a graph that holds forgotten ones
                self._index = self._build(snapshot, live)
                self._synced = b"", live
                self._sync(snapshot)
            with replace_when_done(self._path) as temporary:
                temporary.chmod(0o600)
                try:
                    self._faiss.write_index(self._index, str(temporary))
                except RuntimeError as error:
                    raise SaveError(f"cannot write {self._path}: {error}") from error
                with temporary.open("rb+") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    file.seek(0, os.SEEK_END)
                    file.write(digest.encode())
            self._saved = snapshot.written

    def about(self) -> dict[str, object]:
        """Return how many entries the index holds."""
        return {**super().about(), "indexed": len(self._numbers)}

    def close(self) -> None:
        """Save the index."""
        self.save()
