"""Files by address: object stores, web servers and members of archives, through fsspec.

An address is what fsspec opens, such as ``s3://bucket/a.jpg`` or ``zip://a.jpg::file:///b.zip``;
or some bytes of a file, from one position up to another, ``bytes://512-9000/a.jpg::s3://b/0.tar``.
Only what was meant to be remote is ever fetched: readers take addresses where their documentation
says so, and everything else is a path.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from typing import Any, BinaryIO, TypeGuard

from tfclip.errors import FrameError, MissingExtraError, TFCLIPError

_PART = re.compile(
    r"bytes://(?P<start>\d{1,18})-(?P<end>\d{1,18})/.*::(?P<container>.+?)", re.DOTALL
)
_archives = threading.Lock()  # fsspec reads all members of an archive through one open file


def is_address(path: object) -> TypeGuard[str]:
    """Return whether a path is an address, and not one of this machine's file system.

    Example:
        >>> is_address("s3://bucket/a.jpg"), is_address("crops/a.jpg")
        (True, False)
    """
    return isinstance(path, str) and "://" in path


def read_address(address: str, error: type[TFCLIPError] = FrameError) -> bytes:
    """Return the bytes behind an address.

    Args:
        address: What to read; all of it.
        error: What is raised, for the message to be of the right kind.

    Raises:
        TFCLIPError: ``error``, when it cannot be read.
        MissingExtraError: fsspec needs a package for this kind of address.
    """
    part = _PART.fullmatch(address)
    if part:
        start, end, container = int(part["start"]), int(part["end"]), part["container"]
        return _with_fsspec(container, error, lambda fs, path: fs.cat_file(path, start, end))
    with _archives if "::" in address else contextlib.nullcontext():
        return _with_fsspec(address, error, lambda fs, path: fs.cat_file(path))


def part_of(container: str, start: int, size: int, name: str) -> str:
    """Return the address of some bytes of a file.

    Args:
        container: Path or address of the file.
        start: Position of the first byte.
        size: Number of bytes.
        name: What they are called.

    Example:
        >>> part_of("s3://bucket/0.tar", 512, 100, "a.jpg")
        'bytes://512-612/a.jpg::s3://bucket/0.tar'
    """
    return f"bytes://{start}-{start + size}/{name}::{as_address(container)}"


def stamp_address(address: str, error: type[TFCLIPError] = FrameError) -> list[Any]:
    """Return what changes when the file behind an address does; of a chain, the last part's.

    Raises:
        TFCLIPError: ``error``, when it cannot be looked at.
        MissingExtraError: As ``read_address``.
    """
    container = container_of(address)
    return _with_fsspec(container, error, lambda fs, path: [container, _facts(fs.info(path))])


def container_of(address: str) -> str:
    """Return the file that holds what an address names: of a chain, its last part.

    Example:
        >>> container_of("bytes://512-612/a.jpg::s3://bucket/0.tar")
        's3://bucket/0.tar'
    """
    return address.rpartition("::")[2]


def expand_address(pattern: str, error: type[TFCLIPError] = FrameError) -> list[str]:
    """Return the files that a path or address with ``*`` names, in order; itself without one.

    Raises:
        TFCLIPError: ``error``, when there is none, or none can be listed.
        MissingExtraError: As ``read_address``.
    """
    if "*" not in pattern:
        return [pattern]

    def find(fs: Any, path: str) -> list[str]:
        return [str(fs.unstrip_protocol(file)) for file in sorted(fs.glob(path))]

    found = _with_fsspec(as_address(pattern), error, find)
    if not found:
        raise error(f"{pattern} names no file")
    return found


def open_address(address: str, error: type[TFCLIPError] = FrameError) -> BinaryIO:
    """Open the file behind an address, to read parts of it.

    Raises:
        TFCLIPError: ``error``, when it cannot be opened.
        MissingExtraError: As ``read_address``.
    """
    return _with_fsspec(address, error, lambda fs, path: fs.open(path, "rb"))


def _facts(info: dict[str, Any]) -> list[str]:
    changes = ("size", "mtime", "created", "LastModified", "ETag", "etag", "updated")
    return [f"{name} {info[name]}" for name in changes if info.get(name) is not None]


def _with_fsspec(address: str, error: type[TFCLIPError], use: Any) -> Any:
    import fsspec

    try:
        return use(*fsspec.url_to_fs(address))
    except ImportError as missing:
        raise MissingExtraError(f"cannot read {address}: {missing}") from missing
    except FileNotFoundError as missing:
        raise error(f"cannot read {address}: there is no such file") from missing
    except Exception as failure:  # each store has exceptions of its own
        reason = getattr(failure, "strerror", None) or str(failure) or type(failure).__name__
        raise error(f"cannot read {address}: {reason}".partition("\n")[0]) from failure


def as_address(path: str | os.PathLike[str]) -> str:
    """Return the address of a file; of a local path, ``file://`` and the whole of it."""
    text = os.fspath(path)
    return text if is_address(text) else f"file://{os.path.abspath(text)}"  # noqa: PTH100
