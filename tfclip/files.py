"""Writing files so that a reader sees the old file or the whole new one, never a part.

What could not be written is refused before the work that would be lost with it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfclip.errors import SaveError


@contextlib.contextmanager
def replace_when_done(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and rename it to ``path`` when the block succeeds.

    The bytes reach the disk (fsync) before the rename. When the block or the rename fails, the
    temporary file is removed and ``path`` stays as it was.

    Args:
        path: The file to write; its folder is made when it is missing.

    Yields:
        The temporary path, with the suffix of ``path``.

    Raises:
        SaveError: The folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise SaveError(f"cannot write {path}: it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes 0600, not what the user asked for
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except SaveError:
        raise  # of a file written inside the block; it is named already
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Raises:
        SaveError: It is a folder, or lies where nothing may be written.
    """
    try:
        if path.is_dir():
            raise SaveError(f"cannot write {path}: it is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir():
            raise SaveError(f"cannot write {path}: {folder} is not a folder")
    except SaveError:
        raise
    except OSError as error:  # the name is too long, or a folder may not be looked into
        raise SaveError(f"cannot write {path}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SaveError(f"cannot write {path}: no permission to write in {folder}")


def check_folder(folder: Path) -> None:
    """Refuse, before any work, to write a folder where a file stands.

    Raises:
        SaveError: It does.
    """
    if os.path.isfile(folder):  # noqa: PTH113 (no name is an error to it)
        raise SaveError(f"cannot write {folder}: it is not a folder")


def _umask() -> int:
    """Return the process's file-mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
