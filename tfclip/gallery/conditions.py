"""Which entries of a gallery are meant: conditions on their columns, tried on all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tfclip.gallery.entries import UNKNOWN, Entries, Scalar, Values, seconds

FIELDS = ("id", "camera", "person", "time", "added")


class Between(NamedTuple):
    """A range, both ends included; None leaves an end open.

    Example:
        >>> Between(low=3).holds(3), Between(3, 5).holds(5.5)
        (True, False)
    """

    low: Any = None
    high: Any = None

    def holds(self, value: Any) -> bool:
        """Tell whether a value lies in the range; what cannot be compared with it does not."""
        try:
            return (self.low is None or bool(value >= self.low)) and (
                self.high is None or bool(value <= self.high)
            )
        except TypeError:  # a text against a number
            return False


Condition: TypeAlias = "Scalar | Between | Collection[Scalar]"
Where: TypeAlias = "Mapping[str, Condition] | Callable[[Mapping[str, np.ndarray]], np.ndarray]"


def check_where(where: Where | None, known: Collection[str]) -> None:
    """Refuse what is no condition before any work is done.

    Args:
        where: The conditions.
        known: The keys of metadata that the gallery has ever held.

    Raises:
        ValueError: It names a field that does not exist.
        TypeError: Neither a mapping nor callable, or a condition of a wrong kind.
    """
    if where is None or callable(where):
        return
    if not isinstance(where, Mapping):
        raise TypeError(f"where must be a mapping or callable, got {type(where).__name__}")
    for name, condition in where.items():
        if name not in FIELDS and name not in known:
            fields = ", ".join((*FIELDS, *sorted(known)))
            raise ValueError(f"where must name fields of the gallery ({fields}), got {name!r}")
        moment = hasattr(condition, "timestamp")  # a datetime
        if not moment and not isinstance(condition, str | int | float | Collection | None):
            raise TypeError(
                f"where must give a value, a collection or Between, got {condition!r} for {name!r}"
            )


def matching(entries: Entries, where: Where) -> np.ndarray:
    """Return a mask ``(M,)`` of the entries that fulfil every condition."""
    if callable(where):
        return _call(where, entries)
    mask = np.ones(len(entries), dtype=bool)
    for name, condition in where.items():
        mask &= _match(entries, name, condition)
    return mask


def _call(where: Callable[[Mapping[str, np.ndarray]], np.ndarray], entries: Entries) -> np.ndarray:
    mask = np.asarray(where(_Columns(entries)))
    if mask.dtype != bool or mask.shape != (len(entries),):
        raise ValueError(
            f"where must return one bool for each of {len(entries)} entries, "
            f"got {mask.dtype} of shape {mask.shape}"
        )
    return mask


class _Columns(Mapping[str, np.ndarray]):
    """Columns as arrays, each made when it is asked for."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> np.ndarray:
        entries = self._entries
        if name in ("camera", "time", "added"):
            return {"camera": entries.cameras, "time": entries.times, "added": entries.added}[name]
        if name == "id":
            return np.array(entries.ids, dtype=object)
        column = entries.persons if name == "person" else entries.metadata_column(name)
        return np.array(column.to_list(), dtype=object)

    def __iter__(self) -> Any:
        return iter((*FIELDS, *self._entries.metadata))

    def __len__(self) -> int:
        return len(FIELDS) + len(self._entries.metadata)


def _match(entries: Entries, name: str, condition: Condition) -> np.ndarray:
    if name == "id":
        holds = _predicate(condition)
        return np.fromiter(map(holds, entries.ids), dtype=bool, count=len(entries))
    if name in ("time", "added"):
        column = entries.times if name == "time" else entries.added
        return _match_numbers(column, ~np.isnan(column), plain_times(condition, name))
    if name == "camera":
        return _match_numbers(entries.cameras, entries.cameras != UNKNOWN, condition)
    if name == "person":
        return _match_values(entries.persons, person_texts(condition))
    return _match_values(entries.metadata_column(name), condition)


def person_texts(condition: Condition) -> Condition:
    """Return a condition on persons in texts, as which they are kept."""

    def text(value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    if isinstance(condition, Between) or condition is None or isinstance(condition, str):
        return condition
    return list(map(text, condition)) if isinstance(condition, Collection) else text(condition)


def _match_values(column: Values, condition: Condition) -> np.ndarray:
    holds = _predicate(condition)
    found = [holds(value) for value in column.different]
    return np.array([*found, holds(None)], dtype=bool)[column.places]


def _match_numbers(column: np.ndarray, known: np.ndarray, condition: Condition) -> np.ndarray:
    if isinstance(condition, Between):
        mask = known.copy()
        if condition.low is not None:
            mask &= column >= condition.low
        if condition.high is not None:
            mask &= column <= condition.high
        return mask
    if isinstance(condition, range) and column.dtype.kind == "i":
        low, high = min(condition, default=0), max(condition, default=-1)
        inside = known & (column >= low) & (column <= high)
        return inside & ((column - condition.start) % condition.step == 0)
    if condition is None or isinstance(condition, str | int | float):
        condition = [condition]
    wanted = [v for v in condition if isinstance(v, int | float) and not isinstance(v, bool)]
    mask = known & np.isin(column, wanted)
    return mask | ~known if None in condition else mask


def plain_times(condition: Condition, name: str) -> Any:
    """Return a condition on times in seconds, as which they are kept."""

    def turned(value: Any) -> Any:
        return None if value is None else seconds(value, f"{name} in where")

    if isinstance(condition, Between):
        return Between(turned(condition.low), turned(condition.high))
    if condition is None or isinstance(condition, str | int | float):
        return turned(condition)
    if hasattr(condition, "timestamp"):
        return turned(condition)
    return [turned(value) for value in condition]


def _predicate(condition: Condition) -> Callable[[Scalar], bool]:
    if isinstance(condition, Between):
        return lambda value: value is not None and condition.holds(value)
    if condition is None or isinstance(condition, str | int | float):
        return lambda value: value == condition
    wanted = condition if isinstance(condition, range) else frozenset(condition)
    return lambda value: value in wanted
