"""Entries and conditions in the words of Milvus: rows, columns and filter expressions."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfclip.errors import GalleryError
from tfclip.gallery.conditions import Between, Condition, Where, person_texts, plain_times
from tfclip.gallery.disk import no_entries
from tfclip.gallery.entries import UNKNOWN, Entries, Values
from tfclip.gallery.journal import Description

TEXT_LENGTH = 65_535  # the most that Milvus allows
ID_LENGTH = 512
_GALLERY, _NUMBER, _FIELD = "gallery", "next_number", "field:"  # ids of what is said of it
COLUMNS = ["id", "number", "camera", "time", "added", "person", "metadata"]


@dataclass(frozen=True, kw_only=True)
class MilvusDescription(Description):
    """What a gallery in Milvus is, apart from its entries.

    What every writer changes, the next number and new keys of metadata, has rows of its own: two
    processes that add do not undo what the other, or a third, has said.

    Args:
        partition: The field by which it is partitioned; empty where it is not.
    """

    partition: str = ""

    @classmethod
    def of_rows(cls, rows: Iterable[dict[str, Any]]) -> MilvusDescription:
        """Read the rows that ``rows_since`` gave over time.

        Raises:
            KeyError: The row of the gallery itself is missing.
        """
        texts = {row["id"]: json.loads(row["description"]) for row in rows}
        named = sorted(text for id_, text in texts.items() if id_.startswith(_FIELD))
        return cls(
            **texts[_GALLERY],
            next_number=texts.get(_NUMBER, 0),
            fields=tuple(name for _, _, name in named),
        )

    def rows_since(self, old: MilvusDescription | None) -> list[dict[str, Any]]:
        """Return the rows that say what is new since ``old``; None stands for no gallery."""
        own = {"next_number", "fields"}
        now, before = ({} if d is None else dataclasses.asdict(d) for d in (self, old))
        changed = {name for name, value in now.items() if before.get(name, ...) != value}
        rows: dict[str, Any] = {}
        if changed - own:
            rows[_GALLERY] = {name: value for name, value in now.items() if name not in own}
        if "next_number" in changed:
            rows[_NUMBER] = self.next_number
        for place, name in enumerate(self.fields):
            if old is None or name not in old.fields:
                digest = hashlib.sha256(name.encode()).hexdigest()[:32]  # a name may be too long
                rows[f"{_FIELD}{digest}"] = [self.next_number, place, name]
        return [
            {"id": id_, "vector": [0.0, 0.0], "description": json.dumps(value)}
            for id_, value in rows.items()
        ]


def entry_fields(schema: Any, width: int) -> None:
    """Add the fields of an entry to a schema."""
    from pymilvus import DataType

    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=ID_LENGTH)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
    schema.add_field("number", DataType.INT64)
    schema.add_field("camera", DataType.INT64, nullable=True)
    schema.add_field("time", DataType.DOUBLE, nullable=True)
    schema.add_field("added", DataType.DOUBLE)
    schema.add_field("person", DataType.VARCHAR, max_length=TEXT_LENGTH, nullable=True)
    schema.add_field("metadata", DataType.JSON)


def about_fields(schema: Any) -> None:
    """Add the fields of a description to a schema."""
    from pymilvus import DataType

    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=ID_LENGTH)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one everywhere
    schema.add_field("description", DataType.VARCHAR, max_length=TEXT_LENGTH)


@contextlib.contextmanager
def failures(uri: str) -> Iterator[None]:
    """Turn what Milvus raises into one sentence."""
    from grpc import RpcError
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, RpcError) as error:
        details: Any = getattr(error, "details", None)  # of what never reached Milvus itself
        text = str(details() if details else error)
        raise GalleryError(f"Milvus at {uri} failed: {' '.join(text.split())}") from error


def expressions(where: Where) -> list[str]:
    """Return conditions as filter expressions, all of which must hold.

    Raises:
        ValueError: Milvus cannot ask for it.
    """
    if callable(where):
        raise ValueError("where must be a mapping for Milvus, which cannot call a function")
    return [_expression(name, condition) for name, condition in where.items()]


def _expression(name: str, condition: Condition) -> str:
    if name in ("time", "added"):
        condition = plain_times(condition, name)
    if name == "person":
        condition = person_texts(condition)
    known = name in ("id", "camera", "time", "added", "person")
    field = name if known else f"metadata[{json.dumps(name)}]"
    if isinstance(condition, Between):
        ends = ((">=", condition.low), ("<=", condition.high))
        texts = [f"{field} {sign} {_literal(end)}" for sign, end in ends if end is not None]
        return " and ".join(texts) or _known(field, known)
    if condition is None or isinstance(condition, str | int | float):
        condition = [condition]
    texts = []
    if None in condition:
        if not known:
            raise ValueError(f"where cannot ask Milvus for unknown {name!r}")
        texts.append(f"{field} is null")
    values = [value for value in condition if value is not None]
    if known and values:
        texts.append(f"{field} in [{', '.join(map(_literal, values))}]")
    elif values:  # Milvus Lite knows "in" for fields alone
        texts += [f"{field} == {_literal(value)}" for value in values]
    return " or ".join(texts) or f"{COLUMNS[1]} < 0"


def id_filter(ids: Sequence[str]) -> str:
    """Return a filter for some ids; in this form alone Milvus Lite looks them up."""
    return f"id in [{', '.join(map(_literal, ids))}]"


def _known(field: str, is_column: bool) -> str:
    return f"{field} is not null" if is_column else f"exists {field}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def as_row(entries: Entries, row: int) -> dict[str, Any]:
    """Return one entry as Milvus takes it."""
    camera, moment = int(entries.cameras[row]), float(entries.times[row])
    return {
        "id": entries.ids[row],
        "vector": entries.vectors[row].tolist(),
        "number": int(entries.numbers[row]),
        "camera": None if camera == UNKNOWN else camera,
        "time": None if np.isnan(moment) else moment,
        "added": float(entries.added[row]),
        "person": entries.persons[row],
        "metadata": entries.metadata_of(row),
    }


def as_entries(
    rows: list[dict[str, Any]], description: Description, vectors: bool = True
) -> Entries:
    """Return what Milvus gave as entries."""
    if not rows:
        return no_entries(description.width)
    parsed = [row["metadata"] for row in rows]
    metadata = [json.loads(value) if isinstance(value, str) else value for value in parsed]
    known = {key: Values.of(m.get(key) for m in metadata) for key in description.fields}
    cameras = [UNKNOWN if row["camera"] is None else row["camera"] for row in rows]
    times = [np.nan if row["time"] is None else row["time"] for row in rows]
    wide = [row["vector"] for row in rows] if vectors else np.empty((len(rows), 0))
    return Entries(
        vectors=np.array(wide, dtype=np.float32),
        numbers=np.array([row["number"] for row in rows], dtype=np.int64),
        ids=tuple(row["id"] for row in rows),
        cameras=np.array(cameras, dtype=np.int64),
        times=np.array(times, dtype=np.float64),
        added=np.array([row["added"] for row in rows], dtype=np.float64),
        persons=Values.of(row["person"] for row in rows),
        metadata={key: column for key, column in known.items() if column.different},
    )
