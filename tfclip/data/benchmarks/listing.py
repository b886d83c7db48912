"""What the readers of benchmarks share: folders, image names, lists of persons."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tfclip.errors import TableError
from tfclip.images import IMAGE_SUFFIXES, natural_key


def find_root(root: str | Path, choices: Sequence[str], marks: Sequence[str]) -> Path:
    """Return the folder in which all marks are, among the root and some sub-folders of it.

    Args:
        root: What the user gave.
        choices: Sub-folders that may hold the data, ``""`` is the root itself.
        marks: Files and folders that must be there.

    Raises:
        TableError: None of them holds all; the message names what is missing in the nearest.
    """
    root = Path(root)
    if not root.is_dir():
        raise TableError(f"cannot read {root}: there is no such folder")
    lacking: list[list[Path]] = []
    for choice in choices:
        base = root / choice
        missing = [base / mark for mark in marks if not (base / mark).exists()]
        if not missing:
            return base
        lacking.append(missing)
    missing = min(lacking, key=len)
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    whole = "the archive is not there" if len(missing) == len(marks) else "half of it is there"
    raise TableError(f"{root} has no {missing[0].relative_to(root)}{more}: {whole}")


def image_names(folder: Path) -> list[str]:
    """Return the names of a folder's images in natural order, without hidden ones.

    Raises:
        TableError: There is no such folder, or no image in it.
    """
    try:
        names = [
            name
            for name in os.listdir(folder)  # noqa: PTH208 - names alone, of 100,000 files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise TableError(f"cannot read {folder}: {reason}") from error
    if not names:
        raise TableError(f"{folder} has no image in it")
    return sorted(names, key=natural_key)


def folder_names(folder: Path) -> list[str]:
    """Return the names of a folder's sub-folders in natural order, without hidden ones.

    Raises:
        TableError: There is no such folder, or no sub-folder in it.
    """
    try:
        names = [
            name
            for name in os.listdir(folder)  # noqa: PTH208 - see above
            if not name.startswith(".") and (folder / name).is_dir()
        ]
    except OSError as error:
        raise TableError(f"cannot read {folder}: {error.strerror or error}") from error
    if not names:
        raise TableError(f"{folder} has no folder in it")
    return sorted(names, key=natural_key)
