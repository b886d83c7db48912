"""A partition that is left out holds nothing asked for; one that is dropped, nothing else."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tfclip import Gallery
from tfclip.gallery import Between, Entries
from tfclip.gallery.conditions import matching
from tfclip.gallery.entries import UNKNOWN, Values
from tfclip.gallery.partitions import DAY, DEFAULT, is_whole, may_hold, partitions_of

sites = st.sampled_from(
    [None, "north", "south", "North", "a b", "", "5", 5, 5.0, 0, 1, True, False, 0.5, -3, "ñ" * 200]
)
seconds = st.floats(-4 * DAY, 4 * DAY) | st.sampled_from(
    [0.0, -0.0, DAY, math.nextafter(DAY, 0), math.nextafter(0, -1), -DAY, 1e15, 1e300, -1e300]
)
cameras = st.integers(0, 4)


def between(values: Any) -> Any:
    return st.builds(Between, st.none() | values, st.none() | values)


def condition(values: Any) -> Any:
    return st.none() | values | st.lists(st.none() | values, max_size=3) | between(values)


CONDITIONS = {
    "camera": condition(cameras | st.sampled_from([1.0, 2.5])),
    "time": condition(seconds),
    "added": condition(seconds),
    "site": condition(sites.filter(lambda site: site is not None)),
}


def entries(rows: list[tuple[Any, ...]]) -> Entries:
    count = len(rows)
    times = [math.nan if row[1] is None else row[1] for row in rows]
    return Entries(
        vectors=np.ones((count, 1), dtype=np.float32),
        numbers=np.arange(count),
        ids=tuple(map(str, range(count))),
        cameras=np.array([UNKNOWN if row[0] is None else row[0] for row in rows], dtype=np.int64),
        times=np.array(times, dtype=np.float64),
        added=np.array([row[2] for row in rows], dtype=np.float64),
        persons=Values.of([None] * count),
        metadata={"site": Values.of(row[3] for row in rows)},
    )


row = st.tuples(st.none() | cameras, st.none() | seconds, seconds, sites)


@pytest.mark.parametrize("field", CONDITIONS)
@given(data=st.data(), rows=st.lists(row, min_size=1, max_size=12))
def test_no_entry_that_fulfils_the_conditions_is_in_a_partition_that_is_left_out(
    field: str, data: st.DataObject, rows: list[Any]
) -> None:
    known = entries(rows)
    names = partitions_of(field, known)
    asked = data.draw(
        st.lists(st.fixed_dictionaries({}, optional=CONDITIONS), min_size=1, max_size=2)
    )
    kept = may_hold(field, sorted(set(names)), asked)
    fits = np.logical_and.reduce([matching(known, where) for where in asked])
    assert {name for name, fit in zip(names, fits, strict=True) if fit} <= set(kept)
    for name in set(names):
        if is_whole(field, name, asked):
            assert name in kept
            assert all(fit for other, fit in zip(names, fits, strict=True) if other == name)


@given(seconds)
def test_a_day_holds_the_times_from_its_first_moment_to_before_its_last(time: float) -> None:
    [name] = partitions_of("time", entries([(None, time, 0.0, None)]))
    day = math.floor(Fraction(time) / DAY)
    if abs(time) > 10**9 * DAY:
        assert name == DEFAULT
    else:
        assert name == (f"day_{day}" if day >= 0 else f"day_minus_{-day}")


def test_partitions_of_a_few_entries_by_hand() -> None:
    known = entries(
        [
            (0, 0.0, DAY, "north"),
            (3, DAY - 1, 0.0, "North Gate"),
            (None, -1.0, 0.0, True),
            (7, None, -DAY, None),
            (0, 20_531 * DAY, 1.0, 2),
            (0, 20_531 * DAY + 1, 1.0, 2.0),
        ]
    )
    assert partitions_of("camera", known)[:4] == ["camera_0", "camera_3", DEFAULT, "camera_7"]
    assert partitions_of("time", known)[:4] == ["day_0", "day_0", "day_minus_1", DEFAULT]
    assert partitions_of("time", known)[4:] == ["day_20531", "day_20531"]
    assert partitions_of("added", known)[:4] == ["day_1", "day_0", "day_0", "day_minus_1"]
    north, gate, true, unknown, two, also_two = partitions_of("site", known)
    assert (north, true, unknown) == ("is_north", "bool_1", DEFAULT)
    assert gate.startswith("value_")
    assert two == also_two != gate
    assert partitions_of("zone", known) == [DEFAULT] * 6


@pytest.mark.parametrize("field", CONDITIONS)
@given(rows=st.lists(row, min_size=1, max_size=12))
def test_every_name_is_one_that_milvus_allows(field: str, rows: list[Any]) -> None:
    for name in partitions_of(field, entries(rows)):
        assert name.isascii()
        assert name.isidentifier()
        assert len(name) <= 255
        assert name == name.lower()  # not told apart by some file systems


DAYS = ["_default", "day_0", "day_1", "day_2", "day_minus_1"]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"time": Between(DAY, DAY + 1)}, ["_default", "day_1"]),
        ({"time": Between(DAY - 1, DAY)}, ["_default", "day_0", "day_1"]),
        ({"time": Between(high=0)}, ["_default", "day_0", "day_minus_1"]),
        ({"time": Between(low=2 * DAY)}, ["_default", "day_2"]),
        ({"time": [5, 2 * DAY]}, ["_default", "day_0", "day_2"]),
        ({"time": None}, ["_default"]),
        ({"camera": 3}, DAYS),
        ({}, DAYS),
    ],
)
def test_a_time_leaves_the_days_it_touches(where: Any, kept: list[str]) -> None:
    assert may_hold("time", DAYS, [where]) == kept


@pytest.mark.parametrize(
    ("field", "where", "whole"),
    [
        ("time", {"time": Between(high=math.nextafter(DAY, 0))}, ["day_0", "day_minus_1"]),
        ("time", {"time": Between(high=DAY - 1)}, ["day_minus_1"]),
        ("time", {"time": Between(0, DAY)}, ["day_0"]),
        ("time", {"time": Between()}, ["day_0", "day_1", "day_2", "day_minus_1"]),
        ("time", {"time": Between(high=DAY), "person": "7"}, []),
        ("time", lambda columns: columns["time"] > 0, []),
        ("camera", {"camera": [1, 2]}, ["camera_1", "camera_2"]),
        ("camera", {"camera": Between(2)}, ["camera_2", "camera_3"]),
        ("site", {"site": "north"}, ["is_north"]),
        ("site", {"site": 1}, []),  # True may be meant too, and is somewhere else
        ("site", {"site": Between("a", "z")}, []),
    ],
)
def test_what_is_dropped_as_a_whole(field: str, where: Any, whole: list[str]) -> None:
    names = {
        "time": DAYS,
        "camera": [DEFAULT, "camera_1", "camera_2", "camera_3", "by_hand"],
        "site": [DEFAULT, "is_north", "is_south", "bool_1"],
    }[field]
    assert [name for name in names if is_whole(field, name, [where, {}])] == whole


def test_a_partition_that_somebody_else_made_is_looked_at_and_never_dropped() -> None:
    names = ["by_hand", "camera_1"]
    for where in ({"camera": 1}, {"camera": Between(1, 1)}):
        assert may_hold("camera", names, [where]) == names
        assert not is_whole("camera", "by_hand", [where])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"partition": "id", "storage": "milvus"}, ValueError, "partition must be 'camera', 'tim"),
        ({"partition": "person", "storage": "milvus"}, ValueError, "partition must be 'camera'"),
        ({"partition": "", "storage": "milvus"}, ValueError, "partition must be 'camera'"),
        ({"partition": 3, "storage": "milvus"}, TypeError, "partition must be a text, got 3"),
        ({"partition": "camera"}, ValueError, "partition is for storage='milvus', got 'camera' w"),
        ({"num_shards": 2}, ValueError, "num_shards is for storage='milvus', got 2 with 'exact'"),
        ({"num_shards": 0, "storage": "milvus"}, ValueError, "num_shards must be at least 1, got"),
        ({"replica_number": 1.5, "storage": "milvus"}, TypeError, "replica_number must be a whole"),
    ],
)
def test_options_of_milvus_are_checked_before_anything_is_done(
    tmp_path: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Gallery.open(tmp_path / "g", dim=2, **options)
    assert not list(tmp_path.iterdir())
