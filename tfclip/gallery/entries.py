"""The rows of a gallery as columns: what is stored of each entry, and how it is written."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import numpy as np

from tfclip.untrusted import parse_json

Scalar: TypeAlias = str | int | float | bool | None

UNKNOWN = -1  # a camera, or a place among the values of a column, that is not known
RESERVED = ("id", "camera", "person", "time", "added", "vector")
_DTYPES = {"numbers": np.int64, "cameras": np.int64, "times": np.float64, "added": np.float64}
ARRAYS = ("vectors", "numbers", "cameras", "times", "added", "persons", "metadata", "texts")


@dataclass(frozen=True, eq=False)
class Values:
    """A column of few different values: each once, and for every row its place among them.

    A condition is tried on each different value alone, then looked up for all rows at once.
    """

    different: tuple[Scalar, ...]
    places: np.ndarray  # (M,) int32, UNKNOWN where the value is None

    @classmethod
    def of(cls, values: Iterable[Scalar]) -> Self:
        """Take the values of all rows."""
        places: dict[tuple[type, Scalar], int] = {}  # 1, 1.0 and True are equal, yet not the same
        rows = [
            UNKNOWN if value is None else places.setdefault((type(value), value), len(places))
            for value in values
        ]
        return cls(tuple(value for _, value in places), np.array(rows, dtype=np.int32))

    @classmethod
    def join(cls, parts: Sequence[Values]) -> Values:
        """Put columns below each other."""
        if len(parts) == 1:
            return parts[0]
        places: dict[tuple[type, Scalar], int] = {}
        rows = []
        for part in parts:
            new = [places.setdefault((type(v), v), len(places)) for v in part.different]
            rows.append(np.array([*new, UNKNOWN], dtype=np.int32)[part.places])
        return Values(tuple(value for _, value in places), np.concatenate(rows))

    def select(self, rows: np.ndarray) -> Values:
        """Take some rows, and forget the values that none of them has."""
        used, places = np.unique(self.places[rows], return_inverse=True)
        known = used[used != UNKNOWN]
        # np.unique sorts, so what is unknown came first.
        places = places.astype(np.int32) - (len(used) - len(known))
        return Values(tuple(self.different[place] for place in known), places)

    def __getitem__(self, row: int) -> Scalar:
        place = int(self.places[row])
        return None if place == UNKNOWN else self.different[place]

    def to_list(self) -> list[Scalar]:
        """Return the value of every row."""
        values = [*self.different, None]
        return [values[place] for place in self.places.tolist()]


@dataclass(frozen=True, eq=False)
class Entries:
    """``M`` entries of a gallery as columns.

    Args:
        vectors: ``(M, F)`` float32, each of length 1.
        numbers: ``(M,)`` int64, ascending: the place of each entry among all that were ever added.
        ids: One unique text for each entry.
        cameras: ``(M,)`` int64 from 0, or -1 where unknown.
        times: ``(M,)`` float64 in seconds, or NaN where unknown.
        added: ``(M,)`` float64, when each entry was added, in seconds since 1970.
        persons: Who was seen, as text, where known.
        metadata: Further columns by name.
    """

    vectors: np.ndarray
    numbers: np.ndarray
    ids: tuple[str, ...]
    cameras: np.ndarray
    times: np.ndarray
    added: np.ndarray
    persons: Values
    metadata: Mapping[str, Values] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def join(cls, parts: Sequence[Entries]) -> Entries:
        """Put entries below each other."""
        if len(parts) == 1:
            return parts[0]
        return Entries(
            vectors=np.concatenate([part.vectors for part in parts]),
            ids=tuple(id_ for part in parts for id_ in part.ids),
            persons=Values.join([part.persons for part in parts]),
            metadata={
                key: Values.join([part.metadata_column(key) for part in parts])
                for key in dict.fromkeys(key for part in parts for key in part.metadata)
            },
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in ("numbers", "cameras", "times", "added")
            },
        )

    def select(self, keep: np.ndarray) -> Entries:
        """Take some rows.

        Args:
            keep: A mask ``(M,)`` of bool, or row numbers.
        """
        rows = np.flatnonzero(keep) if keep.dtype == bool else keep
        metadata = {key: column.select(rows) for key, column in self.metadata.items()}
        return Entries(
            vectors=self.vectors[rows],
            numbers=self.numbers[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()),
            cameras=self.cameras[rows],
            times=self.times[rows],
            added=self.added[rows],
            persons=self.persons.select(rows),
            metadata={key: column for key, column in metadata.items() if column.different},
        )

    def without_vectors(self) -> Entries:
        """Return the other columns; the vectors have width 0."""
        return dataclasses.replace(self, vectors=self.vectors[:, :0])

    def metadata_column(self, key: str) -> Values:
        """Return a column of the metadata, all unknown where no entry has it."""
        if key in self.metadata:
            return self.metadata[key]
        return Values((), np.full(len(self), UNKNOWN, dtype=np.int32))

    def metadata_of(self, row: int) -> dict[str, Scalar]:
        """Return what is known of one entry."""
        found = {key: column[row] for key, column in self.metadata.items()}
        return {key: value for key, value in found.items() if value is not None}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that a file holds; texts are one of them."""
        texts = {
            "ids": self.ids,
            "persons": self.persons.different,
            "metadata": {key: column.different for key, column in self.metadata.items()},
        }
        places = [column.places for column in self.metadata.values()]
        return {
            "vectors": np.ascontiguousarray(self.vectors),
            "numbers": self.numbers,
            "cameras": self.cameras,
            "times": self.times,
            "added": self.added,
            "persons": self.persons.places,
            "metadata": np.stack(places) if places else np.empty((0, len(self)), dtype=np.int32),
            "texts": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Read what ``to_arrays`` gave."""
        texts = parse_json(arrays["texts"].tobytes())
        columns = zip(texts["metadata"].items(), arrays["metadata"], strict=True)
        entries = cls(
            ids=tuple(texts["ids"]),
            persons=Values(tuple(texts["persons"]), arrays["persons"]),
            metadata={key: Values(tuple(values), places) for (key, values), places in columns},
            **{name: arrays[name] for name in ("vectors", "numbers", "cameras", "times", "added")},
        )
        entries._check()
        return entries

    def _check(self) -> None:
        """Refuse columns that do not fit together, which only a file of somebody else has."""
        rows = len(self)
        if self.vectors.ndim != 2 or len(self.vectors) != rows or self.vectors.dtype != np.float32:
            raise ValueError(f"its vectors are {self.vectors.shape} for {rows} ids")
        if not all(isinstance(id_, str) for id_ in self.ids):
            raise ValueError("its ids are not texts")
        for name, dtype in _DTYPES.items():
            column = getattr(self, name)
            if column.shape != (rows,) or column.dtype != dtype:
                raise ValueError(f"its {name} are {column.dtype} {column.shape} for {rows} ids")
        if (np.diff(self.numbers) <= 0).any():
            raise ValueError("its numbers do not ascend")
        for values in (self.persons, *self.metadata.values()):
            places, count = values.places, len(values.different)
            if places.shape != (rows,) or places.dtype != np.int32:
                raise ValueError(f"its places are {places.dtype} {places.shape} for {rows} ids")
            if rows and not UNKNOWN <= places.min() <= places.max() < count:
                raise ValueError(f"a place is beyond the {count} values of its column")
            if not all(isinstance(value, str | int | float) for value in values.different):
                raise ValueError("its values are not texts, numbers or bool")


def unit_rows(value: Any, width: int | None, name: str) -> np.ndarray:
    """Return embeddings as rows of length 1 in float32.

    Args:
        value: ``(M, F)``, a tensor or an array of numbers.
        width: What ``F`` must be; None takes any.
        name: What the argument is called.

    Raises:
        ValueError: Not a matrix, of another width, not finite, or a row is zero.
        TypeError: Not numbers.
    """
    if hasattr(value, "detach"):  # a tensor; torch need not be loaded to know
        value = value.detach().cpu().float().numpy()
    rows = np.asarray(value)
    if rows.ndim != 2:
        raise ValueError(f"{name} must be (M, F), got shape {rows.shape}")
    if rows.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be numbers, got {rows.dtype}")
    if width is not None and rows.shape[1] != width:
        raise ValueError(
            f"{name} must have the gallery's width, {width}, got {rows.shape[1]}; "
            "do they come from its model?"
        )
    if not rows.shape[1]:
        raise ValueError(f"{name} must have a width of at least 1, got shape {rows.shape}")
    rows = rows.astype(np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    for row in np.flatnonzero(~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0))[:1]:
        what = "zero" if largest[row, 0] == 0 else "not finite"
        raise ValueError(f"{name} must be finite and not zero, got row {row} that is {what}")
    rows /= largest  # the squares of very long or short rows would leave the range of float64
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_ids(ids: Iterable[object] | None, count: int, first: int) -> tuple[str, ...]:
    """Return the ids of new entries; without any, the number that each will have.

    Raises:
        ValueError: Not as many as rows, empty, or one twice.
        TypeError: Not texts.
    """
    if ids is None:
        return tuple(str(number) for number in range(first, first + count))
    texts = tuple(_listed("ids", ids, count))
    seen: set[str] = set()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"ids must be texts, got {text!r} in row {row}")
        if not text:
            raise ValueError(f"ids must not be empty, got {text!r} in row {row}")
        if text in seen:
            raise ValueError(f"ids must be unique, got {text!r} twice")
        seen.add(text)
    return texts


def check_ids(ids: object) -> None:
    """Refuse what is no sequence of ids.

    Raises:
        TypeError: It is one text, no sequence, or holds something that is no text.
    """
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise TypeError(f"ids must be a sequence of texts, got {ids!r}")
    for row, text in enumerate(ids):
        if not isinstance(text, str):
            raise TypeError(f"ids must be texts, got {text!r} in row {row}")


def make_cameras(cameras: Iterable[Any] | None, count: int, name: str = "cameras") -> np.ndarray:
    """Return camera numbers as integers, -1 where unknown.

    Raises:
        ValueError: Not as many as rows, or less than 0.
        TypeError: Not whole numbers.
    """
    column = np.full(count, UNKNOWN, dtype=np.int64)
    for row, camera in enumerate([] if cameras is None else _listed(name, cameras, count)):
        if camera is None:
            continue
        if isinstance(camera, bool) or not isinstance(camera, int):
            raise TypeError(f"{name} must be whole numbers or None, got {camera!r} in row {row}")
        if not 0 <= camera < 2**63:
            raise ValueError(f"{name} must be 0 or more, or None, got {camera} in row {row}")
        column[row] = camera
    return column


def make_times(times: Iterable[Any] | None, count: int) -> np.ndarray:
    """Return times as seconds, NaN where unknown.

    Raises:
        ValueError: Not as many as rows, or not finite.
        TypeError: Neither numbers nor datetimes.
    """
    column = np.full(count, np.nan)
    for row, time in enumerate([] if times is None else _listed("times", times, count)):
        if time is not None:
            column[row] = seconds(time, "times")
    return column


def seconds(time: Any, name: str) -> float:
    """Return a time in seconds; a ``datetime`` becomes seconds since 1970.

    Raises:
        ValueError: Not finite.
        TypeError: Neither a number nor a datetime.
    """
    if hasattr(time, "timestamp"):
        time = time.timestamp()
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise TypeError(f"{name} must be seconds or datetime, got {time!r}")
    if not math.isfinite(time):
        raise ValueError(f"{name} must be finite, got {time}")
    return float(time)


def make_persons(persons: Iterable[Any] | None, count: int) -> Values:
    """Return persons as texts, None where unknown.

    Raises:
        ValueError: Not as many as rows.
        TypeError: Neither texts nor whole numbers.
    """
    values: list[Scalar] = []
    for row, person in enumerate([] if persons is None else _listed("persons", persons, count)):
        if isinstance(person, bool) or not isinstance(person, str | int | None):
            raise TypeError(f"persons must be texts or None, got {person!r} in row {row}")
        values.append(None if person is None else str(person))
    return Values.of(values or [None] * count)


def make_metadata(
    metadata: Sequence[Mapping[str, Any] | None] | None, count: int
) -> dict[str, Values]:
    """Return metadata as columns.

    Raises:
        ValueError: Not as many as rows, or a key or number that cannot be kept.
        TypeError: Not mappings of text to text, number, bool or None.
    """
    rows: list[Any] = [None] * count if metadata is None else _listed("metadata", metadata, count)
    columns: dict[str, list[Scalar]] = {}
    for row, entry in enumerate(rows):
        if entry is None:
            continue
        if not isinstance(entry, Mapping):
            raise TypeError(f"metadata must be mappings or None, got {entry!r} in row {row}")
        for key, value in entry.items():
            _check_metadata(key, value, row)
            columns.setdefault(key, [None] * count)[row] = value
    found = {key: Values.of(values) for key, values in columns.items()}
    return {key: column for key, column in found.items() if column.different}


def _check_metadata(key: object, value: object, row: int) -> None:
    if not isinstance(key, str):
        raise TypeError(f"metadata must have texts as keys, got {key!r} in row {row}")
    if not key or key in RESERVED:
        raise ValueError(f"metadata must not have the key {key!r}, got it in row {row}")
    if not isinstance(value, str | int | float | bool | None):
        raise TypeError(
            f"metadata must hold texts, numbers, bool or None, got {value!r} for {key!r} "
            f"in row {row}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"metadata must be finite, got {value} for {key!r} in row {row}")


def _listed(name: str, values: Any, count: int) -> list[Any]:
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} must have one entry for each row, got the text {values!r}")
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if not isinstance(listed, list) or len(listed) != count:
        got = len(listed) if isinstance(listed, list) else "a single value"
        raise ValueError(f"{name} must have one entry for each of the {count} rows, got {got}")
    return listed
