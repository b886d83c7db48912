"""What a gallery is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tfclip.gallery.conditions import Where
from tfclip.gallery.entries import UNKNOWN, Entries, Scalar, Values
from tfclip.gallery.journal import Description


class Match(NamedTuple):
    """One entry that a search found."""

    id: str
    distance: float
    """Distance to the query; smaller is nearer."""
    camera: int | None
    time: float | None
    """In seconds."""
    person: str | None
    metadata: dict[str, Scalar]


@dataclass(frozen=True)
class SearchResult:
    """For each query what was found, nearest first.

    ``result[q]`` is the list of ``Match`` of one query; the columns below hold one list for each
    query. A list is shorter than ``k`` where the gallery has no more that may be found.

    Args:
        matches: One list for each query.
        metric: What ``distance`` is: ``"squared_euclidean"`` between vectors of length 1, from 0 to
            4 and equal to 2 - 2 cos; or the name of the re-ranking, whose unit is its own.
    """

    matches: list[list[Match]]
    metric: str = "squared_euclidean"

    def __len__(self) -> int:
        return len(self.matches)

    def __getitem__(self, query: int) -> list[Match]:
        return self.matches[query]

    def __iter__(self) -> Iterator[list[Match]]:
        return iter(self.matches)

    @property
    def ids(self) -> list[list[str]]:
        """Ids of what was found."""
        return [[match.id for match in row] for row in self.matches]

    @property
    def distances(self) -> list[list[float]]:
        """Distances to the query, ascending."""
        return [[match.distance for match in row] for row in self.matches]

    @property
    def cameras(self) -> list[list[int | None]]:
        """Cameras of what was found."""
        return [[match.camera for match in row] for row in self.matches]

    @property
    def times(self) -> list[list[float | None]]:
        """Times of what was found, in seconds."""
        return [[match.time for match in row] for row in self.matches]

    @property
    def persons(self) -> list[list[str | None]]:
        """Persons of what was found."""
        return [[match.person for match in row] for row in self.matches]

    @property
    def metadata(self) -> list[list[dict[str, Scalar]]]:
        """Metadata of what was found."""
        return [[match.metadata for match in row] for row in self.matches]


@dataclass(frozen=True, eq=False)
class Query:
    """A checked question to a storage.

    Args:
        vectors: ``(Q, F)`` float32 of length 1.
        k: How many entries to find for each.
        conditions: What every entry must fulfil.
        exclude_cameras: Entries of these are left out.
        cameras: ``(Q,)``: for each query a camera whose entries are left out.
        ids: For each query an id that is left out, or None.
    """

    vectors: np.ndarray
    k: int
    conditions: tuple[Where, ...] = ()
    exclude_cameras: tuple[int, ...] = ()
    cameras: np.ndarray | None = None
    ids: tuple[str | None, ...] | None = None


class Nearest(NamedTuple):
    """What a storage found: ``rows`` and ``distances`` are ``(Q, k)``, -1 and inf where nothing."""

    entries: Entries
    rows: np.ndarray
    distances: np.ndarray

    def matches(self) -> list[list[Match]]:
        """Return what was found as lists."""
        known: dict[int, Match] = {}
        return [
            [
                self._match(row, known)._replace(distance=distance)
                for row, distance in zip(rows, distances, strict=True)
                if row != UNKNOWN
            ]
            for rows, distances in zip(self.rows.tolist(), self.distances.tolist(), strict=True)
        ]

    def _match(self, row: int, known: dict[int, Match]) -> Match:
        if row not in known:
            entries = self.entries
            camera, time = int(entries.cameras[row]), float(entries.times[row])
            person = entries.persons[row]
            known[row] = Match(
                entries.ids[row],
                0.0,
                None if camera == UNKNOWN else camera,
                None if np.isnan(time) else time,
                None if person is None else str(person),
                entries.metadata_of(row),
            )
        return known[row]


class NewEntries(NamedTuple):
    """Checked entries to add; without ids they are numbered."""

    vectors: np.ndarray
    ids: tuple[str, ...] | None
    cameras: np.ndarray
    times: np.ndarray
    persons: Values
    metadata: dict[str, Values]

    def numbered(self, ids: tuple[str, ...], first: int, added: float) -> Entries:
        """Return them as entries that are added now."""
        count = len(self.vectors)
        return Entries(
            vectors=self.vectors,
            numbers=np.arange(first, first + count, dtype=np.int64),
            ids=ids,
            cameras=self.cameras,
            times=self.times,
            added=np.full(count, added, dtype=np.float64),
            persons=self.persons,
            metadata=self.metadata,
        )


class Storage(Protocol):
    """Where a gallery keeps its entries; everything it is given has been checked."""

    @property
    def description(self) -> Description:
        """What the gallery is."""
        ...

    def count(self) -> int:
        """Return how many entries there are."""
        ...

    def add(self, new: NewEntries, replace: bool) -> tuple[str, ...]:
        """Add entries; return their ids."""
        ...

    def find(self, ids: Sequence[str], vectors: bool = True) -> Entries:
        """Return the entries with some ids, those that there are, in no order.

        Without vectors their width is 0.
        """
        ...

    def search(self, query: Query) -> Nearest:
        """Return the nearest entries of each query."""
        ...

    def entries(self, conditions: tuple[Where, ...], vectors: bool = True) -> Entries:
        """Return the entries that fulfil all conditions; without vectors their width is 0."""
        ...

    def forget(self, conditions: tuple[Where, ...]) -> int:
        """Remove the entries that fulfil all conditions; return how many."""
        ...

    def compact(self) -> int:
        """Remove what has expired and tidy up; return how many expired."""
        ...

    def describe(self, **changes: Any) -> None:
        """Change fields of the description."""
        ...

    def save(self) -> None:
        """Write what could be made again, so that the next opening is faster."""
        ...

    def about(self) -> dict[str, object]:
        """Return what is particular to this storage."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
