"""Checks of what files of other people claim, made before memory is taken or their words are used.

Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from tfclip.errors import TFCLIPError

# Of a number in a name: Python refuses to read those of more than 4,300 with a ValueError.
MAX_DIGITS = 4000

# Of what a scripted archive packs, its source code, which nobody here reads.
_MAX_PACKED_BYTES = 64 * 2**20


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; nesting too deep for Python is a ValueError like everything that is not JSON.

    Raises:
        ValueError: The text is not JSON, not UTF-8, or nested too deep.

    Example:
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ...
        ValueError: it is nested too deep
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def one_line(error: BaseException) -> str:
    r"""Return what a message should quote of an error: its words in one line, or its kind.

    Example:
        >>> one_line(ValueError("No more data.\nDeserializing failed."))
        'No more data. Deserializing failed.'
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    r"""Return what a message should quote of an error that tells its reason first, then a lot more.

    Example:
        >>> first_line(RuntimeError("sizes differ\n\nThe frames of Python are ..."))
        'sizes differ'
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def printable(text: object) -> str:
    r"""Return how a message quotes a name: as it is, or escaped where it would break the line.

    Example:
        >>> printable("a/é.png"), printable("a\nb.png")
        ('a/é.png', "'a\\nb.png'")
    """
    return str(text) if str(text).isprintable() else repr(str(text))


def is_file(path: str | os.PathLike[str]) -> bool:
    r"""Return whether there is such a file; a name that no file can have is none, and no error.

    Example:
        >>> is_file("a" * 10_000), is_file("a\0b")
        (False, False)
    """
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for names that are too long)


def check_archive(path: Path, error: type[TFCLIPError]) -> None:
    """Refuse a zip archive that unpacks to more than it weighs.

    What PyTorch writes is stored as it is, apart from source code, so the sizes of all entries add
    up to less than the size of the file. An archive that is a bomb packs them, or has many entries
    share the same bytes.

    Args:
        path: A file that ``zipfile`` takes for an archive.
        error: What to raise.

    Raises:
        TFCLIPError: Of type ``error``: the archive claims more than it can hold.
        zipfile.BadZipFile: It is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    stored = sum(one.file_size for one in entries if one.compress_type == zipfile.ZIP_STORED)
    packed = sum(one.file_size for one in entries if one.compress_type != zipfile.ZIP_STORED)
    if stored > path.stat().st_size or packed > _MAX_PACKED_BYTES:
        raise error(
            f"{path} claims to unpack to {stored + packed:,} bytes, which no checkpoint of "
            f"{path.stat().st_size:,} bytes does"
        )
