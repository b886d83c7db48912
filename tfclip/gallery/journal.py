"""Entries on disk such that a process may be killed at any moment.

A folder holds *segments*, files of entries that are never changed once they are there, and
``gallery.json``, which names those that count, with their checksums. Whatever is done ends with
the replacement of ``gallery.json``: until then the gallery is the old one, from then on the new
one. Files that it does not name are left-overs of an interruption; the next writer removes them.
Writers exclude each other by a lock that the system releases with their process. A reader takes
no lock: what it has opened stays as it is.

Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import mmap
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tfclip.errors import GalleryError, SaveError
from tfclip.files import replace_when_done
from tfclip.gallery.entries import ARRAYS, Entries
from tfclip.untrusted import one_line, parse_json

FORMAT_VERSION = 1
INDEX = "gallery.json"
LOCK = "lock"

_SEGMENT_BYTES = 2**27  # of vectors in one segment: what forgetting one entry rewrites at most
_OURS = re.compile(r"\.?(segment|gallery|faiss)-.*")
_SEGMENT = re.compile(r"segment-\d{8,}\.safetensors", re.ASCII)
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "width": (int, type(None)),
    "model": (str,),
    "revision": (str, type(None)),
    "fingerprint": (str,),
    "ttl": (int, float, type(None)),
    "next_number": (int,),
    "next_segment": (int,),
}
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError)  # of a JSON value of another form
_TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
_RETRIES = 1000  # a reader starts again when a writer replaced what it was about to open


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a gallery is, apart from its entries.

    Args:
        width: Width of its vectors; None until the first ones are added.
        model: The name of the model that made them.
        revision: The model's revision.
        fingerprint: ``model_fingerprint`` of the model.
        ttl: Seconds for which an entry is kept; None keeps it until it is forgotten.
        fields: Every key of metadata that was ever added.
        next_number: The number of the next entry.
        next_segment: The number of the next segment.
    """

    width: int | None = None
    model: str = ""
    revision: str | None = None
    fingerprint: str = ""
    ttl: float | None = None
    fields: tuple[str, ...] = ()
    next_number: int = 0
    next_segment: int = 0


class Record(NamedTuple):
    """What ``gallery.json`` says of a segment."""

    file: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Segment:
    """A file of entries; its vectors are mapped, not read."""

    record: Record
    entries: Entries

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The row of each id."""
        return {id_: row for row, id_ in enumerate(self.entries.ids)}


class Snapshot(NamedTuple):
    """A gallery at one moment; it stays readable whatever is done to the gallery."""

    description: Description
    segments: tuple[Segment, ...]
    written: bytes  # what gallery.json held

    def __len__(self) -> int:
        return sum(len(segment.entries) for segment in self.segments)


class Journal:
    """The files of a gallery.

    Args:
        folder: Where they are.
        read_only: Never write, not even the lock.
        timeout: Seconds to wait for another writer.
        verify: Compare every file with its checksum when it is opened.

    Raises:
        GalleryError: There is no gallery, it is damaged, or from a newer version.
    """

    def __init__(
        self, folder: Path, *, read_only: bool = False, timeout: float = 10, verify: bool = True
    ) -> None:
        self.folder = folder
        self.read_only = read_only
        self._timeout = timeout
        self._verify = verify
        self.mutex = threading.RLock()
        self._known: dict[Record, Segment] = {}
        self.snapshot = self._read()

    @classmethod
    def create(cls, folder: Path, description: Description, timeout: float = 10) -> None:
        """Make an empty gallery, unless there is one by now.

        Raises:
            GalleryError: The folder holds something else, or the rest of a gallery.
            SaveError: The folder cannot be written.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = {path.name for path in folder.iterdir()} - {LOCK}
            strangers = sorted(name for name in names if not _OURS.fullmatch(name))
            if INDEX not in names and strangers:
                raise GalleryError(f"{folder} is not a gallery: it holds {strangers[0]}")
            if INDEX not in names:
                folder.chmod(0o700)
        except OSError as error:
            raise SaveError(f"cannot write {folder}: {error.strerror}") from error
        with _locked(folder, timeout):
            if not (folder / INDEX).exists():
                if any(folder.glob("segment-*")):
                    raise GalleryError(f"{folder} is damaged: it has entries but no {INDEX}")
                for path in folder.glob("faiss-*"):  # of a gallery that somebody removed
                    path.unlink()
                _write_index(folder, description, ())
                _sync_folder(folder)
                _sync_folder(folder.parent)

    def refresh(self) -> Snapshot:
        """Return the gallery as it is now, whoever wrote it last."""
        with self.mutex:
            # Not the time of the file: two writers within one tick of the clock would go unseen.
            if _read_file(self.folder / INDEX) != self.snapshot.written:
                self.snapshot = self._read()
            return self.snapshot

    @contextlib.contextmanager
    def writing(self) -> Iterator[Snapshot]:
        """Exclude other writers; yield the gallery as it is.

        Raises:
            GalleryError: Another process keeps writing, or this one may not.
        """
        if self.read_only:
            raise GalleryError(f"{self.folder} was opened to read only")
        with self.mutex, _locked(self.folder, self._timeout):
            snapshot = self.refresh()
            self._remove_others({segment.record.file for segment in snapshot.segments})
            yield snapshot

    def commit(
        self,
        drop: Mapping[Record, np.ndarray] | None = None,
        new: Entries | None = None,
        *,
        merge: bool = False,
        **changes: Any,
    ) -> None:
        """Take entries out and put new ones in, as one step; call it within ``writing``.

        When it returns, what is new has reached the disk, and no file of the folder holds what
        was taken out.

        Args:
            drop: For each segment that loses entries, a mask of them.
            new: What comes in.
            merge: Join small segments.
            **changes: Fields of the description.

        Raises:
            SaveError: A file cannot be written; nothing has changed.
        """
        with self.mutex:
            snapshot = self.snapshot
            parts = self._parts(drop or {}, new, merge)
            description = dataclasses.replace(snapshot.description, **changes)
            records: list[Record] = []
            written: list[Path] = []
            try:
                for part in parts:
                    if isinstance(part, Segment):
                        records.append(part.record)
                        continue
                    number = description.next_segment
                    path = self.folder / f"segment-{number:08d}.safetensors"
                    written.append(path)
                    records.append(_write_segment(path, part))
                    description = dataclasses.replace(description, next_segment=number + 1)
                _sync_folder(self.folder)
                _write_index(self.folder, description, records)
            except OSError:  # the disk is full; after anything else the next writer clears up
                for path in written:
                    path.unlink(missing_ok=True)
                raise
            _sync_folder(self.folder)  # from here on the gallery is the new one
            self._remove_others({record.file for record in records})
            self.snapshot = self._read()

    def _parts(
        self, drop: Mapping[Record, np.ndarray], new: Entries | None, merge: bool
    ) -> list[Segment | Entries]:
        """Return the next segments: those that stay, and the entries of those to write."""
        parts: list[Segment | Entries] = []
        for segment in self.snapshot.segments:
            mask = drop.get(segment.record)
            if mask is None or not mask.any():
                parts.append(segment)
            elif not mask.all():
                parts.append(segment.entries.select(~mask))
        if merge:
            parts = _merge(parts)
        pieces = _split(new) if new is not None and len(new) else []
        while len(pieces) == 1 and parts:
            # Like carrying in binary addition: a gallery that grows by single entries has as many
            # segments as its size has digits, and each entry is written as often.
            if not len(_entries(parts[-1])) <= len(pieces[0]) <= _rows(pieces[0]) // 2:
                break
            pieces = [Entries.join([_entries(parts.pop()), pieces[0]])]
        return [*parts, *pieces]

    def _remove_others(self, kept: set[str]) -> None:
        """Remove our files that the gallery does not name: of old states, and of interruptions."""
        gone = False
        for name in os.listdir(self.folder):  # noqa: PTH208 (names are all that is needed)
            old = name.startswith("segment-") and name not in kept
            if old or (name.startswith(".") and _OURS.fullmatch(name)):
                (self.folder / name).unlink(missing_ok=True)
                gone = True
        if gone:
            _sync_folder(self.folder)

    def _read(self) -> Snapshot:
        for _ in range(_RETRIES):
            index = _read_file(self.folder / INDEX)
            description, records = _parse_index(self.folder, index)
            try:
                segments = tuple(self._known.get(r) or self._open(r) for r in records)
            except FileNotFoundError as error:
                if _read_file(self.folder / INDEX) == index:
                    name = Path(error.filename).name
                    raise GalleryError(f"{self.folder} is damaged: it lacks {name}") from error
                continue  # a writer was faster
            widths = {segment.entries.vectors.shape[1] for segment in segments}
            if widths - {description.width}:
                raise GalleryError(
                    f"{self.folder} is damaged: it has vectors of widths {sorted(widths)}, "
                    f"not {description.width}"
                )
            self._known = {segment.record: segment for segment in segments}
            return Snapshot(description, segments, index)
        raise GalleryError(f"{self.folder} changes faster than it can be read")

    def _open(self, record: Record) -> Segment:
        path = self.folder / record.file
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != record.size:
                    raise GalleryError(f"{path} is damaged: its size is not what was written")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            reason = getattr(error, "strerror", None) or error
            raise GalleryError(f"cannot read {path}: {reason}") from error
        if self._verify and hashlib.sha256(mapped).hexdigest() != record.sha256:
            raise GalleryError(f"{path} is damaged: its checksum is not that of what was written")
        try:
            entries = Entries.from_arrays(_arrays(mapped))
            if len(entries) != record.rows:
                raise ValueError(f"it has {len(entries)} rows, not {record.rows}")
        except (*_DAMAGE, IndexError, OverflowError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise GalleryError(f"{path} is damaged: {reason}") from error
        return Segment(record, entries)


def _entries(part: Segment | Entries) -> Entries:
    return part.entries if isinstance(part, Segment) else part


def _rows(entries: Entries) -> int:
    """Return how many rows a segment has at most."""
    return max(2, _SEGMENT_BYTES // (4 * entries.vectors.shape[1]))


def _split(entries: Entries) -> list[Entries]:
    step = _rows(entries)
    if len(entries) <= step:
        return [entries]
    starts = range(0, len(entries), step)
    return [entries.select(np.arange(s, min(s + step, len(entries)))) for s in starts]


def _merge(parts: Sequence[Segment | Entries]) -> list[Segment | Entries]:
    """Join neighbours that fit into one segment."""
    merged: list[list[Segment | Entries]] = []
    size = 0
    for part in parts:
        rows = len(_entries(part))
        if not merged or size + rows > _rows(_entries(part)):
            merged.append([])
            size = 0
        merged[-1].append(part)
        size += rows
    return [
        group[0] if len(group) == 1 else Entries.join([_entries(part) for part in group])
        for group in merged
    ]


def _write_segment(path: Path, entries: Entries) -> Record:
    from safetensors.numpy import save

    data = save(entries.to_arrays())
    with replace_when_done(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_bytes(data)
    return Record(path.name, len(entries), len(data), hashlib.sha256(data).hexdigest())


def _arrays(mapped: mmap.mmap) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file without copying them, which the package would."""
    length = int.from_bytes(mapped[:8], "little")
    header: dict[str, Any] = parse_json(mapped[8 : 8 + length])
    arrays = {}
    for name in ARRAYS:
        about = header[name]
        start, end = about["data_offsets"]
        if start < 0:
            raise ValueError(f"{name} begins before the arrays do")
        dtype = np.dtype(_TYPES[about["dtype"]])
        flat = np.frombuffer(mapped, dtype, (end - start) // dtype.itemsize, 8 + length + start)
        arrays[name] = flat.reshape(about["shape"])
    return arrays


def _write_index(folder: Path, description: Description, records: Sequence[Record]) -> None:
    with replace_when_done(folder / INDEX) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(_index_text(dataclasses.asdict(description), records))


def _index_text(description: dict[str, Any], records: Sequence[Sequence[Any]]) -> str:
    gallery = {"version": FORMAT_VERSION, **description, "segments": list(map(list, records))}
    text = json.dumps(gallery, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "gallery": gallery})


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GalleryError(f"cannot read {path}: {error.strerror}") from error


def _parse_index(folder: Path, data: bytes) -> tuple[Description, list[Record]]:
    path = folder / INDEX
    try:
        gallery = parse_json(data)["gallery"]
        version = gallery.pop("version")
        records = [Record(*fields) for fields in gallery.pop("segments")]
        if version > FORMAT_VERSION:
            raise GalleryError(
                f"{folder} has format version {version} and this tfclip reads up to "
                f"{FORMAT_VERSION}; upgrade with: pip install --upgrade tfclip"
            )
        # Written anew, it must be the same to the last byte: then its checksum fits as well.
        whole = _index_text(gallery, records).encode() == data
        description = Description(**{**gallery, "fields": tuple(gallery["fields"])})
        _check_index(description, records)
    except _DAMAGE as error:
        raise GalleryError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not whole:
        raise GalleryError(f"{path} is damaged: its checksum is not that of what was written")
    return description, records


def _check_index(description: Description, records: Sequence[Record]) -> None:
    """Refuse what ``gallery.json`` never says, unless somebody else wrote it.

    Raises:
        ValueError: A field is of another type, or a file has a name that no segment has.
    """
    for name, kinds in _FIELD_TYPES.items():
        value = getattr(description, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
        if not isinstance(value, str | None) and not 0 <= value < 2**63:
            raise ValueError(f"{name} is {value!r}")
    if not all(isinstance(key, str) for key in description.fields):
        raise ValueError(f"fields are {description.fields!r}")
    for record in records:
        if not _SEGMENT.fullmatch(record.file):  # never a path to somewhere else
            raise ValueError(f"a segment is called {record.file!r}")
        if not all(isinstance(number, int) for number in (record.rows, record.size)):
            raise ValueError(f"{record.file} has {record.rows!r} rows, {record.size!r} bytes")


@contextlib.contextmanager
def _locked(folder: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of a folder; the system lets go of it when the process ends, however."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SaveError(f"cannot write {folder}: {error.strerror}") from error
    with os.fdopen(handle, "r+b") as file:
        _wait_for(file, folder, timeout)
        yield  # closing the file lets go


def _wait_for(file: IO[bytes], folder: Path, timeout: float) -> None:
    try:
        import fcntl
    except ImportError as error:
        raise GalleryError(
            "a gallery in a folder needs the file locks of Linux or macOS; on Windows, give the "
            "address of a Milvus server"
        ) from error
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise GalleryError(
                    f"another process has been writing to {folder} for {timeout:g} seconds; "
                    "try again, or wait longer with timeout="
                ) from error
            time.sleep(0.002)
        except OSError as error:
            raise GalleryError(f"cannot lock {folder}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder reach the disk."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise SaveError(f"cannot write {folder}: {error.strerror}") from error
