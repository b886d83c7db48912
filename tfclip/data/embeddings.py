"""A file of tracklet embeddings: who, where, when, and which model made them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tfclip.data.tracklets import Thumbnail, Tracklet
from tfclip.errors import MissingExtraError, TableError
from tfclip.files import replace_when_done
from tfclip.untrusted import is_file, one_line, parse_json

if TYPE_CHECKING:
    import pyarrow

FORMAT_VERSION = 1
_MAX_BLOAT, _SPARE_BYTES = 64, 2**28  # of a parquet file: by how much it may unpack
_BATCH_ROWS = 2**8  # of it, in memory before that is known
SUFFIXES = (".safetensors", ".parquet")

_KEY = "tfclip_embeddings"  # of the metadata that makes a file ours
_NUMBERS = ("cameras", "first_frames", "last_frames", "num_frames")
_TEXTS = ("names", "persons", "thumbnails")
_UNKNOWN = -1  # stands for None in an array of integers
_PARQUET_NAMES = {
    "names": "name",
    "persons": "person",
    "cameras": "camera",
    "first_frames": "first_frame",
    "last_frames": "last_frame",
    "num_frames": "num_frames",
}
_THUMBNAIL_COLUMNS = ("thumbnail_path", "thumbnail_frame", "thumbnail_box")


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingTable:
    """Embeddings of many tracklets, one row each, and what is known about every row.

    Args:
        embeddings: ``(M, F)`` float32 on the CPU, at least one row, finite.
        names: One unique name for each row.
        persons: Identities as text, or None where unknown. Empty means all unknown, here and below.
        cameras: Camera numbers from 0, or None.
        first_frames: Number of the first frame in its recording, or None.
        last_frames: Number of the last frame in its recording, or None.
        num_frames: How many frames each embedding was made of, or None.
        thumbnails: Where a picture of each tracklet can be found, or None. No picture is stored.
        model: The name or path of the model.
        revision: The revision of the model, where it has one.
        fingerprint: ``model_fingerprint`` of the model; tables are comparable if theirs are equal.
        settings: How the tracklets were encoded: sampling, type, ...; plain JSON values.

    Raises:
        TableError: The columns do not fit together; the message names the column and the row.
    """

    embeddings: Tensor
    names: tuple[str, ...]
    persons: tuple[str | None, ...] = ()
    cameras: tuple[int | None, ...] = ()
    first_frames: tuple[int | None, ...] = ()
    last_frames: tuple[int | None, ...] = ()
    num_frames: tuple[int | None, ...] = ()
    thumbnails: tuple[Thumbnail | None, ...] = ()
    model: str = ""
    revision: str | None = None
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        embeddings = self.embeddings
        if embeddings.ndim != 2 or 0 in embeddings.shape or embeddings.dtype != torch.float32:
            raise TableError(
                "embeddings must be (M, F) float32 with at least one row, "
                f"got {embeddings.dtype} of shape {tuple(embeddings.shape)}"
            )
        for name in (*_TEXTS, *_NUMBERS):
            column = tuple(getattr(self, name)) or (None,) * len(embeddings)
            if len(column) != len(embeddings):
                raise TableError(
                    f"{name} must have {len(embeddings)} entries, one for each row of embeddings, "
                    f"got {len(column)}"
                )
            object.__setattr__(self, name, column)  # the dataclass is frozen
        self._check_names()
        bad = (~embeddings.isfinite().all(1)).nonzero()
        if len(bad):
            raise TableError(f"the embedding of {self.names[int(bad[0])]!r} is not finite")
        if any(camera is not None and camera < 0 for camera in self.cameras):
            raise TableError("cameras must be 0 or more, or None")

    def _check_names(self) -> None:
        seen: set[str] = set()
        for row, name in enumerate(self.names):
            if not isinstance(name, str) or not name:
                raise TableError(f"names must be texts, got {name!r} in row {row}")
            if name in seen:
                raise TableError(f"names must be unique, got {name!r} twice")
            seen.add(name)

    @classmethod
    def from_tracklets(
        cls,
        tracklets: Sequence[Tracklet],
        embeddings: Tensor,
        num_frames: Sequence[int | None] = (),
        **fields: Any,
    ) -> Self:
        """Describe the rows of ``embeddings`` by the tracklets they were made from.

        Args:
            tracklets: ``M`` of them, in the order of the rows.
            embeddings: ``(M, F)``.
            num_frames: How many frames each tracklet has, where known.
            **fields: ``model``, ``revision``, ``fingerprint``, ``settings``.

        Raises:
            TableError: The numbers differ, or a name occurs twice.
        """
        return cls(
            embeddings=embeddings,
            names=tuple(tracklet.name for tracklet in tracklets),
            persons=tuple(None if t.person is None else str(t.person) for t in tracklets),
            cameras=tuple(tracklet.camera for tracklet in tracklets),
            first_frames=tuple(tracklet.first_frame for tracklet in tracklets),
            last_frames=tuple(tracklet.last_frame for tracklet in tracklets),
            num_frames=tuple(num_frames),
            thumbnails=tuple(tracklet.thumbnail for tracklet in tracklets),
            **fields,
        )

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: Sequence[int]) -> Self:
        """Return a table of some rows, in the order given."""
        columns = {
            name: tuple(getattr(self, name)[row] for row in rows) for name in (*_TEXTS, *_NUMBERS)
        }
        return dataclasses.replace(self, embeddings=self.embeddings[list(rows)], **columns)

    @classmethod
    def concatenate(cls, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """Return the rows of several tables as one; the model and settings are the first's.

        Raises:
            TableError: The tables come from different models, or share a name.
        """
        for table in tables[1:]:
            tables[0].check_comparable(table)
        columns = {
            name: tuple(value for table in tables for value in getattr(table, name))
            for name in (*_TEXTS, *_NUMBERS)
        }
        embeddings = torch.cat([table.embeddings for table in tables])
        return dataclasses.replace(tables[0], embeddings=embeddings, **columns)

    def check_comparable(self, other: EmbeddingTable) -> None:
        """Refuse to compare embeddings of different models: their distances mean nothing.

        Raises:
            TableError: Fingerprints or widths differ.
        """
        if self.fingerprint != other.fingerprint:
            raise TableError(
                f"embeddings of different models cannot be compared: {self._model_text()} "
                f"and {other._model_text()}; encode both with one model"
            )
        if self.embeddings.shape[1] != other.embeddings.shape[1]:
            raise TableError(
                "embeddings of different widths cannot be compared: "
                f"{self.embeddings.shape[1]} and {other.embeddings.shape[1]}"
            )

    def _model_text(self) -> str:
        revision = f" at {self.revision}" if self.revision else ""
        return f"{self.model or 'a model without a name'}{revision} ({self.fingerprint or 'none'})"

    def save(self, path: str | Path) -> None:
        """Write the table to one file, readable by its owner only: it is personal data.

        Paths of thumbnails are written relative to the file's folder.

        Args:
            path: Ends in ``.safetensors``, or in ``.parquet`` (extra ``table``).

        Raises:
            TableError: The name ends in something else.
            SaveError: The file cannot be written; what stood there is untouched.
            MissingExtraError: ``.parquet`` without pyarrow.
        """
        path = Path(path)
        write = {".safetensors": self._write_safetensors, ".parquet": self._write_parquet}
        check_suffix(path)
        with replace_when_done(path) as temporary:
            temporary.chmod(0o600)
            write[path.suffix](temporary, path.parent)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a table that ``save`` wrote.

        Raises:
            TableError: The file is missing, damaged, of another kind or from a newer version.
            MissingExtraError: ``.parquet`` without pyarrow.
        """
        path = Path(path)
        check_suffix(path)
        if not is_file(path):
            raise TableError(f"cannot read {path}: there is no such file")
        read = _read_safetensors if path.suffix == ".safetensors" else _read_parquet
        description, columns = read(path)
        try:
            return cls(**columns, **parse_description(path, description))
        except TableError as error:
            raise TableError(f"{path}: {error}") from error

    def _description(self) -> str:
        return json.dumps(
            {
                "version": FORMAT_VERSION,
                "model": self.model,
                "revision": self.revision,
                "fingerprint": self.fingerprint,
                "settings": dict(self.settings),
            },
            sort_keys=True,
        )

    def _write_safetensors(self, path: Path, folder: Path) -> None:
        texts = {
            "names": self.names,
            "persons": self.persons,
            "thumbnails": [_thumbnail_to_json(t, folder) for t in self.thumbnails],
        }
        # Texts are an array too: the header, where metadata goes, may not exceed 100 MB.
        encoded = bytearray(json.dumps(texts, ensure_ascii=False).encode())
        arrays = {
            name: torch.tensor([_UNKNOWN if v is None else v for v in getattr(self, name)])
            for name in _NUMBERS
        }
        arrays["embeddings"] = self.embeddings.contiguous()
        arrays["texts"] = torch.frombuffer(encoded, dtype=torch.uint8)
        # One key only: the order of several is random, and equal tables shall be equal files.
        # Written by Python, which keeps the file's mode and says so when the disk is full.
        path.write_bytes(save(arrays, metadata={_KEY: self._description()}))

    def _write_parquet(self, path: Path, folder: Path) -> None:
        arrow = import_pyarrow("writing")
        import pyarrow.parquet

        thumbnails = [_thumbnail_to_json(t, folder) or (None, None, None) for t in self.thumbnails]
        flat = arrow.array(self.embeddings.contiguous().view(-1).numpy())
        columns = {
            **{
                theirs: arrow.array(
                    getattr(self, ours), arrow.int64() if ours in _NUMBERS else arrow.string()
                )
                for ours, theirs in _PARQUET_NAMES.items()
            },
            "thumbnail_path": arrow.array([t[0] for t in thumbnails], arrow.string()),
            "thumbnail_frame": arrow.array([t[1] for t in thumbnails], arrow.int64()),
            "thumbnail_box": arrow.array([t[2] for t in thumbnails], arrow.list_(arrow.float64())),
            "embedding": arrow.FixedSizeListArray.from_arrays(flat, self.embeddings.shape[1]),
        }
        table = arrow.table(columns).replace_schema_metadata({_KEY: self._description()})
        # Numbers of vectors do not repeat: a dictionary of them would cost time and room.
        repeating: Any = [name for name in columns if name != "embedding"]
        pyarrow.parquet.write_table(table, path, use_dictionary=repeating)


def model_fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that stand for a model: its config and every weight.

    Where the weights came from does not count, nor what a distance between embeddings means; type
    and values of the weights do.

    Args:
        model: A ``TFCLIP``; any module with a ``config`` that has ``to_dict``.
    """
    silent = ("provenance", "calibration")  # no embedding depends on them
    config = {key: value for key, value in _config_of(model).items() if key not in silent}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _config_of(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    return config.to_dict()


def check_suffix(path: Path) -> None:
    """Refuse a file name that says no format a table can have.

    Raises:
        TableError: It ends in neither ``.safetensors`` nor ``.parquet``.
        MissingExtraError: ``.parquet`` without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise TableError(f"a file of embeddings must end in {' or '.join(SUFFIXES)}, got {path}")
    if path.suffix == ".parquet":
        import_pyarrow("writing or reading")


def import_pyarrow(action: str) -> Any:
    """Return pyarrow.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(
            f"{action} .parquet needs pyarrow; install it with: pip install 'tfclip[table]'"
        ) from error
    return pyarrow


def _read_safetensors(path: Path) -> tuple[str | None, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {}).get(_KEY)
            if description is None:
                return None, {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TableError(
            f"{path} is damaged or not a safetensors file: {one_line(error)}"
        ) from error
    _refuse_missing(path, ("embeddings", "texts", *_NUMBERS), arrays)
    with _damage_named(path):
        texts = parse_json(arrays["texts"].numpy().tobytes())
        columns: dict[str, Any] = {name: tuple(texts[name]) for name in _TEXTS}
        for name in _NUMBERS:
            values = arrays[name].tolist()
            columns[name] = tuple(None if value == _UNKNOWN else value for value in values)
        columns["thumbnails"] = tuple(_thumbnail(path.parent, t) for t in texts["thumbnails"])
    return description, {"embeddings": arrays["embeddings"], **columns}


def _read_parquet(path: Path) -> tuple[str | None, dict[str, Any]]:
    arrow = import_pyarrow("reading")
    import pyarrow.parquet

    with parquet_damage_named(path), pyarrow.parquet.ParquetFile(path) as file:
        table = arrow.Table.from_batches(parquet_batches(path, file), file.schema_arrow)
    description = parquet_description(path, table.schema)
    return description, {} if description is None else parquet_columns(path, table)


def parquet_description(path: Path, schema: pyarrow.Schema) -> str | None:
    """Return what a parquet file says of itself; None where it is no file of embeddings."""
    description = (schema.metadata or {}).get(_KEY.encode())
    with _damage_named(path):
        return description if description is None else description.decode()


@contextlib.contextmanager
def parquet_damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow stumbles over into one sentence."""
    arrow = import_pyarrow("reading")
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, TableError):
            raise
        reason = one_line(error)
        raise TableError(f"{path} is damaged or not a parquet file: {reason}") from error


def parquet_columns(path: Path, table: pyarrow.Table) -> dict[str, Any]:
    """Return the columns of some rows of a parquet file as ``EmbeddingTable`` takes them.

    Raises:
        TableError: One is missing, or holds something else.
    """
    _refuse_missing(path, (*_PARQUET_NAMES.values(), *_THUMBNAIL_COLUMNS), table.column_names)
    with _damage_named(path):
        columns: dict[str, Any] = {
            ours: _cells(table, theirs) for ours, theirs in _PARQUET_NAMES.items()
        }
        stored = table.column("embedding").combine_chunks()
        flat = torch.from_numpy(stored.flatten().to_numpy(zero_copy_only=False).copy())
        columns["embeddings"] = flat.view(table.num_rows, stored.type.list_size)
        thumbnails = zip(*(_cells(table, name) for name in _THUMBNAIL_COLUMNS), strict=True)
        columns["thumbnails"] = tuple(_thumbnail(path.parent, parts) for parts in thumbnails)
        return columns


def parquet_batches(path: Path, file: Any) -> Iterator[pyarrow.RecordBatch]:
    """Yield the rows of a parquet file, unless they become far more than the file can mean.

    Equal cells are stored once: a file of some kilobytes can hold gigabytes. Embeddings do not
    shrink like that.
    """
    left = _MAX_BLOAT * path.stat().st_size + _SPARE_BYTES
    for batch in file.iter_batches(_BATCH_ROWS):
        left -= batch.nbytes
        if left < 0:
            raise TableError(f"{path} unpacks to far more than a table of embeddings does")
        yield batch


def _cells(table: pyarrow.Table, column: str) -> tuple[Any, ...]:
    return tuple(table.column(column).to_pylist())


def _refuse_missing(path: Path, names: Iterable[str], present: Iterable[str]) -> None:
    missing = sorted(set(names) - set(present))
    if missing:
        raise TableError(f"{path} lacks {', '.join(missing)}, which a table of embeddings has")


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what unpacking a hand-made or damaged file stumbles over into one sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        kind = type(error).__name__
        raise TableError(f"{path} is damaged: {kind}: {one_line(error)}") from error


def parse_description(path: Path, text: str | None) -> dict[str, Any]:
    """Return model, revision, fingerprint and settings from what a file says of itself.

    Raises:
        TableError: It is no file of embeddings, or from a newer version.
    """
    if text is None:
        raise TableError("this file holds something else than a table of embeddings")
    with _damage_named(path):
        description = dict(parse_json(text))
        version = description.pop("version")
        if version > FORMAT_VERSION:
            raise TableError(
                f"this table has format version {version} and this tfclip reads up to "
                f"{FORMAT_VERSION}; upgrade with: pip install --upgrade tfclip"
            )
        return {key: description[key] for key in ("model", "revision", "fingerprint", "settings")}


def _thumbnail_to_json(thumbnail: Thumbnail | None, folder: Path) -> list[Any] | None:
    if thumbnail is None:
        return None
    path = Path(thumbnail.path)
    with contextlib.suppress(ValueError):  # on Windows, another drive has no relative path
        path = Path(os.path.relpath(path, folder))
    return [path.as_posix(), thumbnail.frame, thumbnail.box and list(thumbnail.box)]


def _thumbnail(folder: Path, parts: Sequence[Any] | None) -> Thumbnail | None:
    if parts is None or parts[0] is None:
        return None
    path, frame, box = parts
    if box is not None:
        left, top, width, height = (float(value) for value in box)
        box = (left, top, width, height)
    return Thumbnail(path=os.path.normpath(folder / path), frame=frame, box=box)
