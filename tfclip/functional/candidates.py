"""Which gallery rows stand in a query's ranking, and which of them are right matches."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

Exclusion = Literal["person_and_camera", "camera", "none"]
Labels: TypeAlias = Sequence[Hashable] | Tensor | np.ndarray

_LEFT_OUT: dict[Exclusion, str] = {
    "person_and_camera": "gallery rows of the query's person and camera are left out",
    "camera": "gallery rows of the query's camera are left out",
    "none": "no gallery row is left out for its camera",
}
_BLOCK_ENTRIES = 4_000_000  # distances looked at together: bounds the memory whatever the gallery


class Rows(NamedTuple):
    """Gallery rows of one query, no row twice."""

    matches: np.ndarray
    """Right matches that stand in its ranking, ascending."""
    left_out: np.ndarray
    """Rows that do not stand in its ranking."""


class Candidates:
    """For every query, the right matches of its ranking and what is left out of it.

    Args:
        query_ids: ``(Q,)`` persons.
        gallery_ids: ``(G,)`` persons.
        query_cameras: ``(Q,)`` cameras; ``None`` only where ``exclude`` is ``"none"``.
        gallery_cameras: ``(G,)`` cameras, or ``None`` likewise.
        sizes: Q and G, each with what it counts, for the messages.
        exclude: What is left out of a ranking, beside junk and the query's own row.
        junk_ids: Persons whose gallery rows are left out of every ranking.
        query_rows: ``(Q,)`` the gallery row that is the query itself, -1 for none.

    Raises:
        TypeError: ``junk_ids`` are a string, or ``query_rows`` not integers.
        ValueError: Lengths that do not fit, an unknown label or choice, a query of a junk person,
            junk of another type than the persons, or an own row that does not exist or belongs to
            another person.
    """

    def __init__(
        self,
        query_ids: Labels,
        gallery_ids: Labels,
        query_cameras: Labels | None,
        gallery_cameras: Labels | None,
        *,
        sizes: tuple[tuple[int, str], tuple[int, str]],
        exclude: Exclusion,
        junk_ids: Collection[Hashable],
        query_rows: Labels | None,
    ) -> None:
        if exclude not in get_args(Exclusion):
            raise ValueError(f"exclude must be one of {get_args(Exclusion)}, got {exclude!r}")
        queries, gallery = sizes
        self.num_queries, self.num_gallery = queries[0], gallery[0]
        self.exclude: Exclusion = exclude
        self._query_ids = _as_list("query_ids", query_ids, *queries)
        self._gallery_ids = _as_list("gallery_ids", gallery_ids, *gallery)
        self._query_cameras = _cameras("query_cameras", query_cameras, *queries, exclude)
        self._gallery_cameras = _cameras("gallery_cameras", gallery_cameras, *gallery, exclude)
        junk = _check_junk(junk_ids, self._query_ids, self._gallery_ids)
        self._own_rows = _check_own_rows(query_rows, self._query_ids, self._gallery_ids, queries[1])

        self._persons, gallery_persons = _number(self._query_ids, self._gallery_ids)
        self._views, self._gallery_views = _number(self._query_cameras, self._gallery_cameras)
        is_junk = np.array([person in junk for person in self._gallery_ids], dtype=bool)
        self._junk_rows = np.flatnonzero(is_junk)
        self._junk_named = bool(junk)
        self._rows_of_person = _Groups(gallery_persons, ~is_junk)
        self._rows_of_view = _Groups(self._gallery_views, ~is_junk)

    def of(self, query: int) -> Rows:
        """Return the gallery rows that are right for a query, and those left out of its ranking."""
        rows = self._rows_of_person[self._persons[query]]
        own = -1 if self._own_rows is None else self._own_rows[query]
        out = rows == own
        if self.exclude != "none":
            out |= self._gallery_views[rows] == self._views[query]
        matches, left_out = rows[~out], rows[out]
        if self.exclude == "camera":
            left_out = self._rows_of_view[self._views[query]]
            if own >= 0 and self._gallery_views[own] != self._views[query]:
                left_out = np.append(left_out, own)
        if len(self._junk_rows):
            left_out = np.concatenate([left_out, self._junk_rows])
        return Rows(matches, left_out)

    def blocks(self, distance: Tensor) -> Iterator[tuple[Tensor, list[Rows]]]:
        """Yield views of a ``(Q, G)`` matrix, a few queries at a time, with the rows of each."""
        size = max(1, _BLOCK_ENTRIES // self.num_gallery)
        for first in range(0, self.num_queries, size):
            block = distance[first : first + size].detach()
            yield block, [self.of(first + i) for i in range(len(block))]

    def protocol(self) -> str:
        """Return in words what is left out."""
        words = _LEFT_OUT[self.exclude]
        if self._own_rows is not None:
            words += "; so is each query's own row"
        if self._junk_named:
            words += f"; {len(self._junk_rows)} rows of junk persons are in no ranking"
        return words

    def why_no_match(self) -> str:
        """Return the likely cause of no query having a right match."""
        junk = set(self._junk_rows.tolist())
        gallery = [person for row, person in enumerate(self._gallery_ids) if row not in junk]
        cameras = set(self._query_cameras) | set(self._gallery_cameras)
        if not gallery:
            cause = "every gallery row is of a junk person"
        elif not set(self._query_ids) & set(gallery):
            cause = (
                f"no person is in both (queries have {self._query_ids[0]!r}, ..., "
                f"the gallery {gallery[0]!r}, ...)"
            )
        elif self.exclude == "none":
            cause = "the only row of each query's person is the query itself"
        elif len(cameras) == 1:
            cause = (
                f"every camera is {cameras.pop()!r}, so every match is in the query's own camera; "
                "were the cameras given?"
            )
        else:
            cause = "every person was seen by one camera only"
        return f"no query has a right match in the gallery: {cause}"


class _Groups:
    """Gallery rows by label, ascending; only rows that are ``kept``."""

    def __init__(self, labels: np.ndarray, kept: np.ndarray) -> None:
        rows = np.flatnonzero(kept)
        self._rows = rows[np.argsort(labels[rows], kind="stable")]
        self._starts = np.searchsorted(labels[self._rows], np.arange(labels.max() + 2)).tolist()

    def __getitem__(self, label: int) -> np.ndarray:
        if label + 1 >= len(self._starts):  # no gallery row has it
            return self._rows[:0]
        return self._rows[self._starts[label] : self._starts[label + 1]]


def without(block: Tensor, rows: list[Rows]) -> Tensor:
    """Return a copy of distances ``(B, G)`` that is infinite where a row is left out."""
    copy = block.clone()
    lines = np.repeat(np.arange(len(rows)), [len(row.left_out) for row in rows])
    columns = np.concatenate([row.left_out for row in rows])
    places = (torch.from_numpy(lines), torch.from_numpy(columns))
    copy[tuple(place.to(block.device) for place in places)] = torch.inf
    return copy


def check_distance(distance: Tensor) -> Tensor:
    """Return a matrix of distances, or say what is wrong with it.

    Raises:
        TypeError: It is not floating point.
        ValueError: It is not ``(Q, G)``, is empty, or has an entry that is not finite.
    """
    if distance.ndim != 2 or 0 in distance.shape:
        raise ValueError(
            "distance must be (Q, G) with at least one query and one gallery row, "
            f"got shape {tuple(distance.shape)}"
        )
    if not distance.is_floating_point():
        raise TypeError(f"distance must be floating point, got {distance.dtype}")
    low, high = distance.detach().aminmax()  # NaN wins both
    if not (low.isfinite() and high.isfinite()):
        row, column = (~distance.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"distance must be finite, got {distance[row, column].item()} "
            f"for query {row} and gallery row {column}"
        )
    return distance


def matrix_sizes(distance: Tensor) -> tuple[tuple[int, str], tuple[int, str]]:
    """Return the two lengths of a matrix of distances, with their names for messages."""
    return (distance.shape[0], "rows of distance"), (distance.shape[1], "columns of distance")


def number_labels(
    queries: tuple[str, Labels, int, str], gallery: tuple[str, Labels, int, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Give equal labels of both equal numbers.

    Args:
        queries: The argument's name, the labels, how many they must be, and what they label.
        gallery: Likewise.

    Returns:
        The numbers of both, int64.

    Raises:
        ValueError: Lengths that do not fit, or an unknown label.
    """
    return _number(_as_list(*queries), _as_list(*gallery))


def _as_list(name: str, labels: Any, length: int, axis: str) -> list[Any]:
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if not isinstance(values, list) or len(values) != length:
        got = len(values) if isinstance(values, list) else "a single value"
        raise ValueError(f"{name} must have one entry for each of the {length} {axis}, got {got}")
    kinds = set(map(type, values))
    if list in kinds:
        raise ValueError(
            f"{name} must have one entry for each of the {length} {axis}, got a list for each"
        )
    if not kinds <= {int, str}:
        for position, value in enumerate(values):
            if value is None or value != value:  # NaN is what tables hold for an unknown entry
                raise ValueError(f"{name} must be known, got {value} at position {position}")
    return values


def _cameras(
    name: str, labels: Labels | None, length: int, axis: str, exclude: Exclusion
) -> list[Any]:
    if labels is None:
        if exclude != "none":
            raise ValueError(f"{name} must be given with exclude={exclude!r}, got None")
        return [0] * length
    return _as_list(name, labels, length, axis)


def _check_junk(
    junk_ids: Collection[Hashable], query_ids: list[Any], gallery_ids: list[Any]
) -> set[Hashable]:
    if isinstance(junk_ids, str):
        raise TypeError(f"junk_ids must be a collection of persons, got the string {junk_ids!r}")
    junk = set(junk_ids.tolist() if isinstance(junk_ids, Tensor | np.ndarray) else junk_ids)
    for position, person in enumerate(query_ids):
        if person in junk:
            raise ValueError(
                f"query_ids must have no junk person, got {person!r} at position {position}"
            )
    words = isinstance(gallery_ids[0], str)
    for person in junk:
        if isinstance(person, str) != words:  # would never be found, and junk would stay in
            raise ValueError(
                f"junk_ids must be of the type of gallery_ids, got {person!r} "
                f"where the gallery has {gallery_ids[0]!r}"
            )
    return junk


def _check_own_rows(
    query_rows: Labels | None, query_ids: list[Any], gallery_ids: list[Any], axis: str
) -> list[int] | None:
    if query_rows is None:
        return None
    rows = _as_list("query_rows", query_rows, len(query_ids), axis)
    for position, row in enumerate(rows):
        if isinstance(row, bool) or not isinstance(row, int | np.integer):
            raise TypeError(f"query_rows must be integers, got {row!r} at position {position}")
        if not -1 <= row < len(gallery_ids):
            raise ValueError(
                f"query_rows must be gallery rows from 0 to {len(gallery_ids) - 1}, or -1 for "
                f"none, got {row} at position {position}"
            )
        if row >= 0 and gallery_ids[row] != query_ids[position]:
            raise ValueError(
                f"query_rows must name rows of the query's person, got row {row} of "
                f"{gallery_ids[row]!r} for query {position} of {query_ids[position]!r}"
            )
    return rows


def _number(queries: list[Hashable], gallery: list[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Give equal labels equal numbers, so that strings and integers compare alike."""
    both = queries + gallery
    if set(map(type, both)) == {int}:
        codes = np.unique(np.array(both), return_inverse=True)[1]
    else:
        numbers: dict[Hashable, int] = {}
        codes = np.array([numbers.setdefault(label, len(numbers)) for label in both])
    return codes[: len(queries)], codes[len(queries) :]
