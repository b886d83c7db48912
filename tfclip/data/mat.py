"""Numeric matrices of MATLAB files, read without SciPy.

What data sets publish as ``.mat`` are tables of integers. This reads just those, from files of
version 5 (what MATLAB writes by default), bound by bound: a damaged file is an error, never a wrong
number. Files of version 7.3 are HDF5 and are read through h5py, an extra.
"""

from __future__ import annotations

import importlib
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfclip.errors import MissingExtraError, TableError
from tfclip.untrusted import one_line

_MAX_BYTES = 256 * 2**20  # of a file or a decompressed variable: far above any table of tracklets
_HEADER_BYTES = 128
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_COMPLEX, _LOGICAL = 0x0800, 0x0200


def read_mat(path: str | Path) -> dict[str, np.ndarray]:
    """Read the real numeric matrices of a MATLAB file.

    Args:
        path: A file of version 5 (MATLAB's ``-v6`` and ``-v7``), or of version 7.3 with h5py.

    Returns:
        The matrices by name, with MATLAB's shape and class. Variables of other classes (texts,
        cells, structures, complex, logical and sparse matrices) are passed over.

    Raises:
        TableError: The file is missing, truncated, damaged or no MATLAB file.
        MissingExtraError: Version 7.3 without h5py.
    """
    path = Path(path)
    data = _read_bytes(path)
    if data[:19] == b"MATLAB 7.3 MAT-file" or data[:8] == b"\x89HDF\r\n\x1a\n":
        return _read_hdf5(path)
    if len(data) < _HEADER_BYTES:
        raise TableError(f"{path} is not a MATLAB file: it has {len(data)} bytes, its header 128")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or struct.unpack(f"{order}H", data[124:126])[0] != 0x0100:
        raise TableError(f"{path} is not a MATLAB file of version 5: its header says otherwise")
    try:
        variables = [_read_variable(element, order) for element in _top_level(data, order)]
    except _DamageError as damage:
        raise TableError(f"{path} is truncated or damaged: {damage}") from damage
    return dict(variable for variable in variables if variable is not None)


def read_matrix(path: str | Path, names: Sequence[str]) -> np.ndarray:
    """Read the one matrix that a MATLAB file is there for.

    Args:
        path: The file.
        names: What its variable may be called; the first that is there is taken.

    Raises:
        TableError: As ``read_mat``, or no variable has such a name; the message lists those there.
        MissingExtraError: Version 7.3 without h5py.
    """
    variables = read_mat(path)
    for name in names:
        if name in variables:
            return variables[name]
    found = ", ".join(sorted(variables)) or "none"
    raise TableError(f"{path} has no numeric variable {' or '.join(names)}; it has {found}")


def whole_numbers(matrix: np.ndarray, path: str | Path) -> np.ndarray:
    """Return a matrix of whole numbers as int64.

    Raises:
        TableError: One of them is not whole, or beyond 2**53.
    """
    if matrix.dtype.kind == "f" and not np.isfinite(matrix).all():
        raise TableError(f"{path}: all entries must be finite")
    if matrix.size and float(np.abs(matrix.astype(np.float64)).max()) > 2**53:
        raise TableError(f"{path}: all entries must be within 2**53")
    whole = matrix.astype(np.int64)
    if (whole != matrix).any():
        bad = matrix[whole != matrix].flat[0]
        raise TableError(f"{path}: all entries must be whole numbers, got {bad}")
    return whole


class _DamageError(Exception):
    """Bytes that break the format; the path is added by the caller."""


class _Element(NamedTuple):
    kind: int
    data: bytes


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TableError(f"cannot read {path}: it is larger than {_MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror or error}") from error


def _elements(data: bytes, order: str, padded: bool = True) -> Iterator[_Element]:
    """Yield the elements that ``data`` consists of, each checked to lie inside it."""
    start = 0
    while start < len(data):
        if start + 8 > len(data):
            raise _DamageError(f"{len(data) - start} bytes are left where an element should be")
        kind, size = struct.unpack_from(f"{order}II", data, start)
        if kind >> 16:  # an element of up to 4 bytes that shares the 8 of its tag
            kind, size, begin, step = kind & 0xFFFF, kind >> 16, start + 4, 8
            if size > 4:
                raise _DamageError(f"a small element says it has {size} bytes")
        else:
            begin = start + 8
            step = 8 + size + (-size % 8 if padded else 0)
        if begin + size > len(data):
            raise _DamageError(f"an element of {size} bytes has {len(data) - begin} left")
        yield _Element(kind, data[begin : begin + size])
        start += step


def _top_level(data: bytes, order: str) -> Iterator[bytes]:
    """Yield the content of each matrix element, decompressed."""
    for kind, content in _elements(data[_HEADER_BYTES:], order, padded=False):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                plain = unpacker.decompress(content, _MAX_BYTES)
            except zlib.error as error:
                raise _DamageError(f"a compressed variable does not unpack ({error})") from error
            if not unpacker.eof:
                raise _DamageError("a compressed variable ends too early or is too large")
            inner = list(_elements(plain, order))
            if len(inner) != 1:
                raise _DamageError(f"a compressed element holds {len(inner)} variables, not one")
            kind, content = inner[0]
        if kind != _MATRIX:
            raise _DamageError(f"an element of type {kind} stands where a variable should")
        yield content


def _read_variable(content: bytes, order: str) -> tuple[str, np.ndarray] | None:
    """Return name and values of a variable, or None if it is no real numeric matrix."""
    parts = list(_elements(content, order))
    if not parts:  # what MATLAB writes for an empty placeholder
        return None
    if parts[0].kind != _UINT32 or len(parts[0].data) != 8:
        raise _DamageError("a variable does not begin with its class")
    flags = struct.unpack(f"{order}I", parts[0].data[:4])[0]
    dtype = _CLASSES.get(flags & 0xFF)
    if dtype is None or flags & (_COMPLEX | _LOGICAL):
        return None
    if [part.kind for part in parts[1:3]] != [_INT32, _INT8] or len(parts) != 4:
        raise _DamageError("a matrix is not made of class, size, name and values")
    name = parts[2].data.decode("ascii", "replace")
    return name, _read_values(parts[1].data, parts[3], order, dtype, name)


def _read_values(sizes: bytes, part: _Element, order: str, dtype: str, name: str) -> np.ndarray:
    if len(sizes) % 4 or len(sizes) < 8:
        raise _DamageError(f"the size of {name} is not two or more numbers")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    stored = _STORED.get(part.kind)
    if stored is None or (stored[0] == "f" and dtype[0] != "f"):
        raise _DamageError(f"the values of {name} are stored as type {part.kind}")
    count = math.prod(shape)
    if min(shape) < 0 or count * int(stored[1]) != len(part.data):
        raise _DamageError(f"{name} is {shape} and has {len(part.data)} bytes of {stored} values")
    values = np.frombuffer(part.data, f"{order}{stored}").reshape(shape, order="F")
    if dtype[0] != "f" and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise _DamageError(f"a value of {name} does not fit its class")
    with np.errstate(over="ignore"):  # a double stored for a single may be beyond its range
        return values.astype(dtype)


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is a MATLAB file of version 7.3, which needs h5py; "
            "install it with: pip install 'tfclip[mat]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            matrices = {
                name: item
                for name, item in file.items()
                if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and item.ndim >= 2
            }
            # What was never written takes no room in a file, and all its room in memory.
            if sum(item.nbytes for item in matrices.values()) > _MAX_BYTES:
                raise _DamageError(f"its matrices take more than {_MAX_BYTES >> 20} MiB")
            # HDF5 counts axes the other way round.
            return {name: np.asarray(item[()]).T for name, item in matrices.items()}
    except (
        *(OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError),
        *(AttributeError, _DamageError),
    ) as error:
        raise TableError(f"{path} is truncated or damaged: {one_line(error)}") from error
