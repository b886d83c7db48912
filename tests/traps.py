"""What goes wrong on purpose: pickles that run code, and disks that are full."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, NoReturn


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def full_disk(*_: object, **__: object) -> NoReturn:
    """Stand in for whatever writes."""
    raise OSError(errno.ENOSPC, "No space left on device")
