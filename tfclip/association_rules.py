"""What two tracklets cannot be one person: they overlap, are too far apart, or somebody says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor

Rule = Literal["overlap", "travel", "cannot_link"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """Rules on pairs of ``M`` rows; all of them are symmetric.

    Args:
        size: ``M``.
        given: The rules that were given at all.
        cameras: ``(M,)`` int64, -1 where unknown.
        times: ``(M, 2)`` float64 begin and end, NaN where unknown.
        min_travel: ``(C, C)`` float64; empty where there is no such rule.
        cannot_link: ``(P, 2)`` int64.
        must_link: ``(P, 2)`` int64.
    """

    size: int
    given: tuple[Rule, ...]
    cameras: np.ndarray
    times: np.ndarray
    min_travel: np.ndarray
    cannot_link: np.ndarray
    must_link: np.ndarray

    @classmethod
    def check(
        cls, size: int, cameras: Any, times: Any, min_travel: Any, cannot_link: Any, must_link: Any
    ) -> Self:
        """Read the rules as ``associate`` takes them.

        Raises:
            TypeError: Cameras or rows that are no whole numbers.
            ValueError: Shapes that do not fit, or an entry out of its range.
        """
        if (cameras is None) != (times is None):
            missing = "times" if times is None else "cameras"
            raise ValueError(f"cameras and times must be given together, got no {missing}")
        if min_travel is not None and cameras is None:
            raise ValueError("min_travel needs cameras and times, got neither")
        numbers, spans = np.full(size, -1), np.full((size, 2), np.nan)
        if cameras is not None:
            numbers, spans = _check_cameras(cameras, size), _check_times(times, size)
        travel = np.empty((0, 0))
        if min_travel is not None:
            travel = _check_travel(min_travel, numbers)
        apart = _check_pairs("cannot_link", cannot_link, size)
        asked: dict[Rule, bool] = {
            "overlap": cameras is not None,
            "travel": min_travel is not None,
            "cannot_link": len(apart) > 0,
        }
        return cls(
            size=size,
            given=tuple(rule for rule, is_given in asked.items() if is_given),
            cameras=numbers,
            times=spans,
            min_travel=travel,
            cannot_link=apart,
            must_link=_check_pairs("must_link", must_link, size),
        )

    def forbidden(self, rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[Rule, np.ndarray]]:
        """Yield, for each rule given, which pairs it forbids.

        Args:
            rows: ``(R,)`` row numbers.
            columns: ``(N,)`` row numbers, ascending.

        Yields:
            The rule and ``(R, N)`` bool, for the caller to keep. A row and itself are no pair:
            what is said about them means nothing.
        """
        if "overlap" in self.given:
            yield "overlap", self._overlap(rows, columns)
        if "travel" in self.given:
            yield "travel", self._travel(rows, columns)
        if "cannot_link" in self.given:
            yield "cannot_link", self._apart(rows, columns)

    def why(self, first: int, second: int) -> str | None:
        """Return in words why two rows cannot be one person, or None where no rule forbids it.

        Raises:
            ValueError: They are one row, or no row.
        """
        _check_pairs("rows", [(first, second)], self.size)
        pair = np.array([first]), np.array([second])
        broken = [rule for rule, forbids in self.forbidden(*pair) if forbids[0, 0]]
        if not broken:
            return None
        (a, b), spans = self.cameras[[first, second]], self.times[[first, second]]
        from_to = [f"from {begin:g} to {end:g}" for begin, end in spans]
        if broken[0] == "overlap":
            text = f"are both of camera {a}, {from_to[0]} and {from_to[1]}"
        elif broken[0] == "travel":
            text = (
                f"are of camera {a} {from_to[0]} and of camera {b} {from_to[1]}, with at least "
                f"{self.min_travel[a, b]:g} from the one to the other and "
                f"{self.min_travel[b, a]:g} back"
            )
        else:
            text = "are in cannot_link"
        return f"rows {first} and {second} {text}"

    def _overlap(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Both ends belong to a tracklet: two that share one instant overlap."""
        begin = np.maximum(self.times[rows, 0, None], self.times[columns, 0])
        end = np.minimum(self.times[rows, 1, None], self.times[columns, 1])
        known = self.cameras[rows, None] >= 0
        # NaN compares false: what is unknown forbids nothing.
        return known & (self.cameras[rows, None] == self.cameras[columns]) & (begin <= end)

    def _travel(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Too fast in both directions; where two tracklets overlap, time runs negative in both."""
        here, there = self.cameras[rows, None], self.cameras[columns]
        begin, end = self.times[:, 0], self.times[:, 1]
        too_fast = begin[columns] - end[rows, None] < self.min_travel[here, there]
        too_fast &= begin[rows, None] - end[columns] < self.min_travel[there, here]
        return too_fast & (here >= 0) & (there >= 0) & (here != there)

    @cached_property
    def _partners(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the partners of each row begin, ``(M + 1,)``, and all partners."""
        both = np.concatenate([self.cannot_link, self.cannot_link[:, ::-1]])
        both = both[both[:, 0].argsort(kind="stable")]
        return both[:, 0].searchsorted(np.arange(self.size + 1)), both[:, 1]

    def _apart(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Look up the partners of each row among the columns."""
        starts, partners = self._partners
        counts = starts[rows + 1] - starts[rows]
        lines = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(lines)) - np.repeat(counts.cumsum() - counts, counts)
        wanted = partners[starts[rows][lines] + within]
        places = np.minimum(columns.searchsorted(wanted), len(columns) - 1)
        found = columns[places] == wanted
        mask = np.zeros((len(rows), len(columns)), dtype=bool)
        mask[lines[found], places[found]] = True
        return mask


def _check_cameras(cameras: Any, size: int) -> np.ndarray:
    values = cameras.tolist() if hasattr(cameras, "tolist") else list(cameras)
    if not isinstance(values, list) or len(values) != size:
        got = len(values) if isinstance(values, list) else "a single value"
        raise ValueError(f"cameras must have one entry for each of the {size} rows, got {got}")
    for row, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"cameras must be whole numbers or None, got {value!r} in row {row}")
        if value is not None and value < 0:
            raise ValueError(f"cameras must be at least 0, or None, got {value} in row {row}")
    return np.array([-1 if value is None else value for value in values], dtype=np.int64)


def _check_times(times: Any, size: int) -> np.ndarray:
    spans = _array("times", times)
    if spans.shape != (size, 2):
        raise ValueError(f"times must be ({size}, 2), got shape {spans.shape}")
    bad = np.flatnonzero(np.isinf(spans).any(axis=1) | (spans[:, 0] > spans[:, 1]))
    if len(bad):
        raise ValueError(
            "times must be finite or NaN and begin before they end, got "
            f"{spans[bad[0]].tolist()} in row {bad[0]}"
        )
    return spans


def _check_travel(min_travel: Any, cameras: np.ndarray) -> np.ndarray:
    travel = _array("min_travel", min_travel)
    least = max(1, cameras.max() + 1)
    if travel.ndim != 2 or travel.shape[0] != travel.shape[1] or len(travel) < least:
        raise ValueError(
            f"min_travel must be (C, C) with C at least {least}, one more than the largest "
            f"camera, got shape {travel.shape}"
        )
    if np.isnan(travel).any():
        raise ValueError("min_travel must be numbers, got NaN; minus infinity lets anything go")
    return travel


def _check_pairs(name: str, pairs: Any, size: int) -> np.ndarray:
    values = pairs.tolist() if hasattr(pairs, "tolist") else [tuple(pair) for pair in pairs]
    for pair in values:
        if len(pair) != 2:
            raise ValueError(f"{name} must be pairs of rows, got {pair}")
        if any(isinstance(row, bool) or not isinstance(row, int | np.integer) for row in pair):
            raise TypeError(f"{name} must be whole numbers, got {pair}")
        if not all(0 <= row < size for row in pair) or pair[0] == pair[1]:
            raise ValueError(f"{name} must be two rows from 0 to {size - 1}, got {pair}")
    return np.array(values, dtype=np.int64).reshape(-1, 2)


def _array(name: str, values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a table of numbers: {error}") from error
