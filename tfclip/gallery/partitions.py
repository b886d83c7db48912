"""Which partition of Milvus an entry lies in, and which partitions a question need not touch.

A gallery may be partitioned by one field: a camera, the day of a time, or a value of metadata (a
site). The name of a partition follows from the value alone, so that processes need not agree on
anything. ``_default``, which Milvus always has, holds what is unknown; it is always looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from tfclip.gallery.conditions import FIELDS, Between, Condition, Where, plain_times
from tfclip.gallery.entries import RESERVED, UNKNOWN, Entries, Scalar

DEFAULT = "_default"
DAY = 86_400  # seconds
_DAYS = ("time", "added")
_LAST_DAY = 10**9  # some million years; where float64 has no days any more, they have no name
_PLAIN = re.compile(r"[a-z0-9_]{1,100}")  # no capitals: some file systems do not tell them apart
_NUMBERED = re.compile(r"(?:day|camera)_(?:minus_)?\d+", re.ASCII)


def check_partition(field: str) -> None:
    """Refuse what a gallery cannot be partitioned by.

    Raises:
        TypeError: Not a text.
        ValueError: A field with too many values, or none.
    """
    if not isinstance(field, str):
        raise TypeError(f"partition must be a text, got {field!r}")
    if not field or field in {*FIELDS, *RESERVED} - {"camera", *_DAYS}:
        raise ValueError(
            f"partition must be 'camera', 'time', 'added' or a key of metadata, got {field!r}"
        )


def partitions_of(field: str, entries: Entries) -> list[str]:
    """Return the partition of each entry.

    Args:
        field: By what the gallery is partitioned: ``"camera"``; ``"time"`` or ``"added"``, by whole
            days; or a key of metadata.
        entries: ``M`` entries.
    """
    if field == "camera":
        return [DEFAULT if c == UNKNOWN else _camera_name(c) for c in entries.cameras.tolist()]
    if field in _DAYS:
        times = entries.times if field == "time" else entries.added
        return list(map(_day_name, times.tolist()))
    column = entries.metadata_column(field)
    names = np.array([*map(_value_name, column.different), DEFAULT], dtype=object)
    return names[column.places].tolist()


def may_hold(field: str, names: Iterable[str], conditions: Iterable[Where]) -> list[str]:
    """Return those partitions that can hold an entry that fulfils all conditions.

    Args:
        field: By what the gallery is partitioned.
        names: Partitions that there are.
        conditions: What an entry must fulfil.
    """
    kept = list(names)
    for condition in conditions:
        if not callable(condition) and field in condition:
            touches = _touches(field, condition[field])
            kept = [name for name in kept if name == DEFAULT or touches(name)]
    return kept


def is_whole(field: str, name: str, conditions: Iterable[Where]) -> bool:
    """Tell whether every entry that a partition can ever hold fulfils all conditions.

    It can then be dropped at any moment, whoever is adding to it: what it loses is what was asked
    for.
    """
    return name != DEFAULT and all(
        not callable(condition)
        and set(condition) <= {field}
        and all(_covers(field, name, value) for value in condition.values())
        for condition in conditions
    )


def _touches(field: str, condition: Condition) -> Callable[[str], bool]:
    if field in _DAYS:
        condition = plain_times(condition, field)
    if not isinstance(condition, Between):
        wanted = {name for value in _listed(condition) for name in _names_of(field, value)}
        return lambda name: name in wanted or _is_foreign(field, name)
    if field == "camera":
        return lambda name: _is_foreign(field, name) or condition.holds(_number(name))
    if field in _DAYS:
        return lambda name: _is_foreign(field, name) or _overlap(_number(name), condition)
    return lambda name: True  # names of values have no order


def _covers(field: str, name: str, condition: Condition) -> bool:
    if _is_foreign(field, name):
        return False
    if field in _DAYS:
        condition = plain_times(condition, field)
        if not isinstance(condition, Between):
            return False  # single moments
        start = _number(name) * DAY
        last = math.nextafter(start + DAY, -math.inf)
        return condition.holds(start) and condition.holds(last)
    if field == "camera":
        return _touches(field, condition)(name)
    if isinstance(condition, Between):
        return False
    return name in {_value_name(value) for value in _listed(condition) if _is_value(value)}


def _overlap(day: int, condition: Between) -> bool:
    low, high = condition
    return (low is None or low < (day + 1) * DAY) and (high is None or high >= day * DAY)


def _listed(condition: Condition) -> Collection[Any]:
    single = condition is None or isinstance(condition, str | int | float)
    return [condition] if single else condition  # type: ignore[return-value,list-item]


def _names_of(field: str, value: Scalar) -> tuple[str, ...]:
    """Return the partitions that hold what a condition means by a value."""
    if not _is_value(value):
        return ()
    if field in _DAYS:
        return (_day_name(float(value)),)  # type: ignore[arg-type]
    if field == "camera":
        whole = not isinstance(value, str | bool) and value == int(value)  # type: ignore[arg-type]
        return (_camera_name(int(value)),) if whole else ()  # type: ignore[arg-type]
    if value in (0, 1):  # where they are compared, False is 0 and True is 1
        return _value_name(bool(value)), _value_name(int(value))
    return (_value_name(value),)


def _is_value(value: Scalar) -> bool:
    return isinstance(value, str) or (value is not None and math.isfinite(value))


def _camera_name(camera: int) -> str:
    return f"camera_{camera}"


def _day_name(seconds: float) -> str:
    if math.isnan(seconds) or abs(seconds) > _LAST_DAY * DAY:
        return DEFAULT
    day = int(seconds // DAY)
    return f"day_{day}" if day >= 0 else f"day_minus_{-day}"


def _value_name(value: Scalar) -> str:
    """Return the partition of a value of metadata: readable where Milvus allows it."""
    if isinstance(value, bool):
        return f"bool_{value:d}"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return f"is_{value}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1 and 1.0 are equal
    return f"value_{hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]}"


def _is_foreign(field: str, name: str) -> bool:
    """Tell whether somebody else made a partition: nothing is known of what it holds."""
    return field in ("camera", *_DAYS) and not _NUMBERED.fullmatch(name)


def _number(name: str) -> int:
    return int(name.partition("_")[2].replace("minus_", "-"))
