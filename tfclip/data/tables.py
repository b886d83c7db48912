"""Reading tracklets from a table with one row for each frame, CSV or Parquet.

A reader opens no image and writes nothing. Tracklets come in natural order (``2`` before ``10``).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tfclip.data.tracklets import Box, Thumbnail, Tracklet
from tfclip.errors import MissingExtraError, TableError
from tfclip.images import natural_key
from tfclip.remote import is_address, read_address
from tfclip.untrusted import is_file, one_line, printable

_MAX_ROWS, _BATCH_ROWS = 2**26, 2**8  # of a table; of it in memory at a time
_BOX_COLUMNS = ("left", "top", "width", "height")
_NOTES = ("person", "camera", "platform", "modality", "clothes", "session")
_COLUMNS = ("tracklet", "path", "frame", *_NOTES, *_BOX_COLUMNS)


def read_table(path: str | Path, *, remote: bool = False) -> list[Tracklet]:
    """Read a table with one row for each frame, ``.csv`` or ``.parquet``.

    Its columns are ``tracklet`` and ``path``, and if known ``frame`` (a whole number), ``person``,
    ``camera`` (a whole number from 0), ``platform``, ``modality``, ``clothes``, ``session``, and
    ``left``, ``top``, ``width``, ``height`` in pixels (the box to cut out of the image). A cell may
    be empty where its value is unknown.

    Args:
        path: The table. Paths in it are relative to its folder.
        remote: The table and the paths in it may be addresses of object stores, web servers and
            archives (``tfclip.remote``). They are looked for when they are read.

    Returns:
        The tracklets in natural order of their names. Their frames are ordered by ``frame`` where
        that is given, and otherwise as in the table.

    Raises:
        TableError: The name ends in something else, or the table cannot be read or contradicts
            itself; the message names the row.
        MissingExtraError: ``.parquet`` without pyarrow.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise TableError(f"cannot read {path}: the name of a table ends in .csv or .parquet")
    table = _Table(path, remote)
    rows = _csv_rows(table) if suffix == ".csv" else _parquet_rows(table)
    return _group_rows(str(path), rows)


def read_csv(path: str | Path) -> list[Tracklet]:
    """Read a table with one row for each frame, as ``read_table``, whatever its name ends in.

    Args:
        path: The table, UTF-8, separated by commas; its first line names the columns. Paths in it
            are relative to its folder.

    Returns:
        The tracklets in natural order of their names.

    Raises:
        TableError: The table cannot be read or contradicts itself; the message names the line.
    """
    return _group_rows(str(path), _csv_rows(_Table(path)))


class _Table:
    """The file of a table, here or elsewhere, and what paths in it are relative to."""

    def __init__(self, path: str | Path, remote: bool = False) -> None:
        self.name = str(path)
        self.remote = remote
        self.address = self.name if remote and is_address(path) else None
        self.path = Path(path)

    def lines(self) -> list[str]:
        """Return the lines of a text in UTF-8."""
        if self.address is None:
            return read_lines(self.path)
        return _decode_lines(read_address(self.address, TableError), self.name)

    def image(self, text: str, where: str) -> str:
        """Return the path or address of an image that a row names."""
        if self.remote and is_address(text):
            return text
        if self.address is not None:
            return f"{self.address.rpartition('/')[0]}/{text}"
        image = self.path.parent / text
        if not is_file(image):
            raise TableError(f"{where}: there is no file {printable(image)}")
        return str(image)


class _Row(NamedTuple):
    """One row of a table, checked."""

    place: str
    """Where it stands, as "line 3"."""
    tracklet: str
    path: str
    frame: int | None
    notes: dict[str, str | int | None]
    """What is the same for all frames of a tracklet, by column."""
    box: Box | None


def _group_rows(path: str, rows: Iterator[_Row]) -> list[Tracklet]:
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.tracklet, []).append(row)
    if not groups:
        raise TableError(f"{path} has no row below its column names")
    return [_row_tracklet(path, name, groups[name]) for name in sorted(groups, key=natural_key)]


def _csv_rows(table: _Table) -> Iterator[_Row]:
    path = table.name
    reader = csv.DictReader(table.lines(), strict=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        _check_columns(f"{path}, line 1", columns)
        reader.fieldnames = columns
        for cells in reader:
            place = f"line {reader.line_num}"
            if None in cells or None in cells.values():
                raise TableError(f"{path}, {place}: there must be {len(columns)} cells")
            texts = {column: (cells[column] or "").strip() for column in columns}
            yield _row(texts, table, place)
    except csv.Error as error:
        line = reader.reader.line_num  # the DictReader's own still tells the last whole row
        raise TableError(f"{path}, line {line}: {error}") from error


def _parquet_rows(table: _Table) -> Iterator[_Row]:
    path = table.name
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "reading .parquet needs pyarrow; install it with: pip install 'tfclip[table]'"
        ) from error
    source: Any = table.path
    if table.address is not None:
        source = pyarrow.BufferReader(read_address(table.address, TableError))
    elif not is_file(table.path):
        raise TableError(f"cannot read {path}: there is no such file")
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            _check_columns(path, file.schema_arrow.names)
            if file.metadata.num_rows > _MAX_ROWS:
                raise TableError(f"{path} must have at most {_MAX_ROWS:,} rows")
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS):  # a small file may unpack to very much
                for cells in batch.to_pylist():
                    number += 1
                    texts = {column: _cell_text(value) for column, value in cells.items()}
                    yield _row(texts, table, f"row {number}")
    except TableError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = one_line(error)
        raise TableError(f"{path} is damaged or not a parquet file: {reason}") from error


def _cell_text(value: Any) -> str:
    """Return a cell as a CSV table writes it; NaN is how data frames write an unknown number."""
    unknown = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if unknown else str(value).strip()


def _check_columns(where: str, columns: Sequence[str]) -> None:
    missing = [column for column in ("tracklet", "path") if column not in columns]
    if missing:
        raise TableError(f"{where}: there is no column {missing[0]!r}, got {columns}")
    unknown = [column for column in columns if column not in _COLUMNS]
    if unknown or len(set(columns)) != len(columns):
        what = f"unknown column {unknown[0]!r}" if unknown else "a column occurs twice"
        raise TableError(f"{where}: {what}; known are {', '.join(_COLUMNS)}")
    box = [column for column in _BOX_COLUMNS if column in columns]
    if box and len(box) < 4:
        raise TableError(f"{where}: a box needs left, top, width and height, got {box}")


def _row(texts: Mapping[str, str], table: _Table, place: str) -> _Row:
    where = f"{table.name}, {place}"
    for column in ("tracklet", "path"):
        if not texts[column]:
            raise TableError(f"{where}: {column} is empty")
    image = table.image(texts["path"], where)
    box = tuple(texts.get(column, "") for column in _BOX_COLUMNS)
    notes: dict[str, str | int | None] = {column: texts.get(column) or None for column in _NOTES}
    if texts.get("camera"):
        notes["camera"] = parse_whole(texts["camera"], "camera", where, least=0)
    return _Row(
        place=place,
        tracklet=texts["tracklet"],
        path=image,
        frame=parse_whole(texts["frame"], "frame", where, least=0) if texts.get("frame") else None,
        notes=notes,
        box=parse_box(box, where) if any(box) else None,
    )


def _row_tracklet(path: str, name: str, rows: list[_Row]) -> Tracklet:
    first = rows[0]
    for row in rows:
        where = f"{path}, {row.place}"
        for column, value in row.notes.items():
            if value != first.notes[column]:
                raise TableError(
                    f"{where}: tracklet {name!r} has {column} {value!r} here "
                    f"and {first.notes[column]!r} on {first.place}"
                )
        for field in ("box", "frame"):
            if (getattr(row, field) is None) != (getattr(first, field) is None):
                raise TableError(
                    f"{where}: tracklet {name!r} must have a {field} on every line or on none"
                )
    if first.frame is not None:
        rows = sorted(rows, key=lambda row: row.frame or 0)
        for early, late in pairwise(rows):
            if early.frame == late.frame:
                raise TableError(
                    f"{path}, {late.place}: tracklet {name!r} has frame {late.frame} twice"
                )
    middle = rows[len(rows) // 2]
    notes: dict[str, Any] = first.notes
    return Tracklet(
        name=name,
        frames=tuple(row.path for row in rows),
        boxes=None if first.box is None else tuple(row.box for row in rows),
        first_frame=rows[0].frame,
        last_frame=rows[-1].frame,
        thumbnail=Thumbnail(path=middle.path, box=middle.box),
        **notes,
    )


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file in UTF-8; TableError names what is wrong with it."""
    try:
        return _decode_lines(path.read_bytes(), str(path))
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror or error}") from error


def _decode_lines(content: bytes, name: str) -> list[str]:
    try:
        return list(io.StringIO(content.decode("utf-8-sig"), newline=None))
    except UnicodeDecodeError as error:
        raise TableError(f"cannot read {name}: it is not a text in UTF-8") from error


def parse_box(cells: Sequence[str], where: str) -> Box:
    """Return left, top, width and height; TableError says ``where`` if they have no area."""
    left, top, width, height = (
        parse_real(cell, name, where) for cell, name in zip(cells, _BOX_COLUMNS, strict=True)
    )
    if width <= 0 or height <= 0:
        raise TableError(f"{where}: the box must have an area, got {width:g} x {height:g} pixels")
    return left, top, width, height


def parse_whole(text: str, name: str, where: str, least: int | None = None) -> int:
    """Return a whole number, at least ``least``; TableError says ``where`` if it is none."""
    value = parse_real(text, name, where)
    if value != int(value):
        raise TableError(f"{where}: {name} must be a whole number, got {text!r}")
    if least is not None and value < least:
        raise TableError(f"{where}: {name} must be at least {least}, got {text}")
    if abs(value) >= 2**63:
        raise TableError(f"{where}: {name} must be less than 2**63, got {text}")
    return int(value)


def parse_real(text: str, name: str, where: str) -> float:
    """Return a finite number; TableError says ``where`` if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TableError(f"{where}: {name} must be a number, got {text!r}")
    return value
