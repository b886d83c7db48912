"""Files by address: object stores, web servers and members of archives, through fsspec.

An address is what fsspec opens: ``s3://bucket/a.jpg``, or a chain such as
``tar://member.jpg::file:///shards/0.tar``. Only what was meant to be remote is ever fetched:
readers take addresses where their documentation says so, and everything else is a path.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO, TypeGuard

from tfclip.errors import FrameError, MissingExtraError, TFCLIPError


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
    return _with_fsspec(address, error, lambda fs, path: fs.cat_file(path))


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
        >>> container_of("tar://a.jpg::file:///shards/0.tar")
        'file:///shards/0.tar'
    """
    return address.rpartition("::")[2]


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
